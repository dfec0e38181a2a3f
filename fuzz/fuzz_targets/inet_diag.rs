//! Answers of NETLINK_SOCK_DIAG about TCP connections.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: &[u8]| storagelink_multipath::fuzzing::inet_diag(answer));

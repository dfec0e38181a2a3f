//! Messages of the kernel's netlink multicast groups: uevents and links.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| storagelink_multipath::fuzzing::kernel_event(message));

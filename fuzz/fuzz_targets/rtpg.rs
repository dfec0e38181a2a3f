//! REPORT TARGET PORT GROUPS: an answer is read to its end or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storagelink_multipath::alua::{parse_report, report_length};

fuzz_target!(|answer: &[u8]| {
    let Ok(groups) = parse_report(answer) else { return };
    let length = report_length(answer).expect("what is understood has a length");
    assert!(length <= answer.len() && 4 + groups.len() * 8 <= length);
    // What lies behind the answer is not the device's.
    assert_eq!(parse_report(&answer[..length]).as_ref(), Ok(&groups));
});

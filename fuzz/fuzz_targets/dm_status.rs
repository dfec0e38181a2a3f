//! The multipath target's status line: what is understood is printed, and understood again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storagelink_multipath::status::MultipathStatus;

fuzz_target!(|line: &str| {
    if let Ok(status) = line.parse::<MultipathStatus>() {
        let again = status.to_string().parse::<MultipathStatus>();
        assert_eq!(again.as_ref(), Ok(&status), "printed as {status}");
    }
});

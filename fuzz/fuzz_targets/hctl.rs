//! SCSI addresses and device numbers as sysfs writes them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storagelink_multipath::{Hctl, host::DevNo};

fuzz_target!(|text: &str| {
    if let Ok(hctl) = text.parse::<Hctl>() {
        assert_eq!(hctl.to_string().parse::<Hctl>(), Ok(hctl));
    }
    if let Ok(devno) = text.parse::<DevNo>() {
        assert_eq!(devno.to_string().parse::<DevNo>(), Ok(devno));
    }
});

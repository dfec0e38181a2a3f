//! `/proc/self/mountinfo`: no line is overlooked, and every mount is found by its path.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storagelink_fuzz::mountinfo::{parse, top};

fuzz_target!(|content: &[u8]| {
    let lines = content
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    let count = lines.count();
    match parse(content) {
        Ok(mounts) => {
            assert_eq!(mounts.len(), count);
            for mount in &mounts {
                assert_eq!(top(&mounts, &mount.path).map(|top| &top.path), Some(&mount.path));
            }
        }
        Err(error) => assert!(count > 0 && !error.to_string().is_empty()),
    }
});

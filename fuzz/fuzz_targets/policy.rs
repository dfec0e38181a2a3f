//! A volume's policy, which travels as text: `key=value` lines here. What is understood is written and understood again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storagelink_multipath::Policy;

fuzz_target!(|text: &str| {
    if let Ok(policy) = Policy::from_map(&storagelink_fuzz::lines(text)) {
        assert_eq!(Policy::from_map(&policy.to_map()), Ok(policy));
    }
});

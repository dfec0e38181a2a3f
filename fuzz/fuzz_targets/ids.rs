//! Volume ids and node ids, which the orchestrator hands back: what is understood is written as it was, or in its one lower-case form.
#![no_main]

use std::{fmt::Display, str::FromStr};

use libfuzzer_sys::fuzz_target;
use storagelink_fuzz::ids::{IdError, MAX_NODE_ID_BYTES, MAX_VOLUME_ID_BYTES, NodeId, VolumeId};

fn check<T: FromStr<Err = IdError> + Display + PartialEq + std::fmt::Debug>(text: &str, limit: usize) {
    if let Ok(id) = text.parse::<T>() {
        let written = id.to_string();
        assert!(written.len() <= limit, "{written}");
        assert_eq!(written.parse::<T>(), Ok(id));
    }
}

fuzz_target!(|text: &str| {
    check::<VolumeId>(text, MAX_VOLUME_ID_BYTES);
    check::<NodeId>(text, MAX_NODE_ID_BYTES);
});

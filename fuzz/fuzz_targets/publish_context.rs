//! The publish context, which a node gets from the API server: `key=value` lines here. What is understood is written and understood again as
//! the same.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use storagelink_fuzz::publish_context::PublishContext;

fuzz_target!(|text: &str| {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let map: HashMap<String, String> = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    if let Ok(context) = PublishContext::from_map(&map) {
        assert_eq!(PublishContext::from_map(&context.to_map()), Ok(context));
    }
});

//! The publish context, which a node gets from the API server: `key=value` lines here. What is understood is written and understood again as
//! the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storagelink_fuzz::publish_context::PublishContext;

fuzz_target!(|text: &str| {
    if let Ok(context) = PublishContext::from_map(&storagelink_fuzz::lines(text)) {
        assert_eq!(PublishContext::from_map(&context.to_map()), Ok(context));
    }
});

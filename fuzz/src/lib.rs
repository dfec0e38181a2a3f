//! The driver's parsers, compiled from their own files: with the driver's crate its hundreds of dependencies would be built once more, with
//! the fuzzer's instrumentation.

#![allow(dead_code, reason = "a target calls what it tests")]

use std::collections::HashMap;

#[path = "../../driver/src/ids.rs"]
pub mod ids;
#[path = "../../driver/src/mount/mountinfo.rs"]
pub mod mountinfo;
#[path = "../../driver/src/publish_context.rs"]
pub mod publish_context;

/// A map of texts, one `key=value` a line.
pub fn lines(text: &str) -> HashMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

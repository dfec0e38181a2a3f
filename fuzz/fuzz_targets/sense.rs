//! Sense data, fixed and descriptor format: what lies behind the data never counts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storagelink_multipath::sense::Sense;

fuzz_target!(|data: &[u8]| {
    let Some(sense) = Sense::parse(data) else { return };
    assert!(sense.key < 16);
    assert_eq!(sense.is_unit_attention(), sense.key == 6);
    // The longest sense data have 252 bytes (SPC-6 4.4.1).
    if data.len() >= 252 {
        assert_eq!(Sense::parse(&data[..252]), Some(sense));
    }
});

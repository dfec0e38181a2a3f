//! Checks of the fields of a request: lengths, characters, shapes. A refusal names the field and what is allowed.
//!
//! Nothing here looks at the array or the node, so nothing can have changed when a check fails.

use std::borrow::Cow;
use std::collections::HashMap;

use storagelink_proto::csi::v1::CapacityRange;
use tonic::Code;

use crate::codes::Coded;
use crate::ids::{IdError, MAX_VOLUME_ID_BYTES};

/// Longest string field in bytes where CSI says nothing else (CSI, "Size Limits").
pub const MAX_STRING_BYTES: usize = 128;
/// Longest node id that CSI allows, in bytes.
pub const MAX_CSI_NODE_ID_BYTES: usize = 256;
/// Largest map field: the bytes of all keys and values (CSI, "Size Limits").
pub const MAX_MAP_BYTES: usize = 4096;

/// A field of a request is not what it must be. Always INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// The field's name in csi.proto, with the key of a map in brackets.
    pub field: Cow<'static, str>,
    /// What is wrong and what is allowed.
    pub problem: String,
}

impl FieldError {
    /// A refusal.
    pub fn new(field: impl Into<Cow<'static, str>>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

impl Coded for FieldError {
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

/// A string that must be there: 1 to `limit` bytes, none of them a control character.
pub fn text(field: &'static str, value: &str, limit: usize) -> Result<(), FieldError> {
    if value.is_empty() {
        return Err(FieldError::new(field, "is required"));
    }
    if value.len() > limit {
        let problem = format!("has {} bytes, at most {limit} are allowed", value.len());
        return Err(FieldError::new(field, problem));
    }
    if value.chars().any(char::is_control) {
        return Err(FieldError::new(field, "holds a control character"));
    }
    Ok(())
}

/// `volume_id`: its length. Whether it is one of ours is for the call to decide: an unknown volume is no bad argument.
pub fn volume_id(value: &str) -> Result<(), FieldError> {
    text("volume_id", value, MAX_VOLUME_ID_BYTES)
}

/// `node_id`, likewise.
pub fn node_id(value: &str) -> Result<(), FieldError> {
    text("node_id", value, MAX_CSI_NODE_ID_BYTES)
}

/// A map of strings: its size, and that no key is empty or holds a control character.
pub fn map(field: &'static str, value: &HashMap<String, String>) -> Result<(), FieldError> {
    let bytes: usize = value.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_MAP_BYTES {
        let problem = format!("has {bytes} bytes, at most {MAX_MAP_BYTES} are allowed");
        return Err(FieldError::new(field, problem));
    }
    if value
        .keys()
        .any(|key| key.is_empty() || key.chars().any(char::is_control))
    {
        return Err(FieldError::new(
            field,
            "has a key that is empty or holds a control character",
        ));
    }
    Ok(())
}

/// What an id's own check says, with the field's name.
pub fn id_error(field: impl Into<Cow<'static, str>>, error: &IdError) -> FieldError {
    FieldError::new(field, error.to_string())
}

/// A checked `capacity_range`: bytes, none for what was not given; at least one is there and they do not contradict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Range {
    /// At least this.
    pub required: Option<u64>,
    /// At most this.
    pub limit: Option<u64>,
}

impl Range {
    /// Checks the field.
    pub fn parse(range: CapacityRange) -> Result<Self, FieldError> {
        let part = |field: &'static str, bytes: i64| match u64::try_from(bytes) {
            Ok(0) => Ok(None),
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) => Err(FieldError::new(field, format!("{bytes} is negative"))),
        };
        let required = part("capacity_range.required_bytes", range.required_bytes)?;
        let limit = part("capacity_range.limit_bytes", range.limit_bytes)?;
        match (required, limit) {
            (None, None) => Err(FieldError::new(
                "capacity_range",
                "one of required_bytes and limit_bytes is required",
            )),
            (Some(required), Some(limit)) if limit < required => Err(FieldError::new(
                "capacity_range.limit_bytes",
                format!("{limit} is less than required_bytes {required}"),
            )),
            _ => Ok(Self { required, limit }),
        }
    }

    /// Whether a volume of `bytes` is what was asked for.
    pub fn holds(&self, bytes: u64) -> bool {
        self.required.is_none_or(|required| bytes >= required)
            && self.limit.is_none_or(|limit| bytes <= limit)
    }
}

/// A size for people: binary units, at most one decimal, rounded down so that nobody is promised too much.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = usize::min((63 - bytes.leading_zeros() as usize) / 10, UNITS.len());
    let tenths = (u128::from(bytes) * 10) >> (10 * power);
    let unit = UNITS[power - 1];
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        decimal => format!("{}.{decimal} {unit}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let parse = |required_bytes, limit_bytes| {
            Range::parse(CapacityRange {
                required_bytes,
                limit_bytes,
            })
        };
        assert_eq!(
            parse(5, 0).unwrap(),
            Range {
                required: Some(5),
                limit: None
            }
        );
        assert_eq!(
            parse(0, 5).unwrap(),
            Range {
                required: None,
                limit: Some(5)
            }
        );
        assert!(parse(5, 5).unwrap().holds(5));
        assert!(!parse(5, 6).unwrap().holds(7));
        assert!(!parse(5, 6).unwrap().holds(4));
        for (required, limit, field) in [
            (0, 0, "capacity_range"),
            (-1, 0, "capacity_range.required_bytes"),
            (0, i64::MIN, "capacity_range.limit_bytes"),
            (6, 5, "capacity_range.limit_bytes"),
        ] {
            assert_eq!(parse(required, limit).unwrap_err().field, field);
        }
    }

    #[test]
    fn texts_and_maps() {
        assert_eq!(text("name", "", 4).unwrap_err().to_string(), "name: is required");
        assert_eq!(
            text("name", "abcde", 4).unwrap_err().to_string(),
            "name: has 5 bytes, at most 4 are allowed"
        );
        assert!(text("name", "a\nb", 4).is_err());
        text("name", "äb", 4).unwrap();
        let large = HashMap::from([("k".to_owned(), "v".repeat(MAX_MAP_BYTES))]);
        assert!(map("parameters", &large).is_err());
        assert!(map("parameters", &HashMap::from([(String::new(), String::new())])).is_err());
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (1 << 30, "1 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}

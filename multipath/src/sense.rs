//! SCSI sense data (SPC-6 4.4), fixed and descriptor format.
//!
//! Pure.

use std::fmt;

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key, 0 to 15.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
}

/// Sense key NOT READY (SPC-6 table 47).
const NOT_READY: u8 = 0x2;
/// Sense key UNIT ATTENTION (SPC-6 table 47).
pub const UNIT_ATTENTION: u8 = 0x6;

impl Sense {
    /// Reads sense data; `None` when there is none or it is cut short.
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<Self> {
        match data.first()? & 0x7f {
            // Fixed format: key in byte 2, code and qualifier in 12 and 13 if the additional length reaches them.
            0x70 | 0x71 => {
                let key = data.get(2)? & 0x0f;
                let reaches = |index: u8| data.get(7).is_some_and(|length| index < length.saturating_add(8));
                let byte = |index: u8| {
                    if reaches(index) {
                        data.get(usize::from(index)).copied().unwrap_or(0)
                    } else {
                        0
                    }
                };
                Some(Self {
                    key,
                    asc: byte(12),
                    ascq: byte(13),
                })
            }
            0x72 | 0x73 => Some(Self {
                key: data.get(1)? & 0x0f,
                asc: *data.get(2)?,
                ascq: *data.get(3)?,
            }),
            _ => None,
        }
    }

    /// The device says that something changed since the last command; the command itself may be sent again.
    #[must_use]
    pub fn is_unit_attention(self) -> bool {
        self.key == UNIT_ATTENTION
    }

    /// The path is well, its target port is in the standby state (SPC-6 5.18.2.4.4; ASC and ASCQ 04h/0Bh).
    #[must_use]
    pub fn is_standby(self) -> bool {
        (self.key, self.asc, self.ascq) == (NOT_READY, 0x04, 0x0b)
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}/{:02x}/{:02x}", self.key, self.asc, self.ascq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_formats() {
        let fixed = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x25, 0, 0, 0, 0, 0];
        assert_eq!(Sense::parse(&fixed).unwrap().to_string(), "5/25/00");
        let descriptor = [0x72, 6, 0x3f, 0x0e, 0, 0, 0, 0];
        let sense = Sense::parse(&descriptor).unwrap();
        assert_eq!(sense.to_string(), "6/3f/0e");
        assert!(sense.is_unit_attention());
        assert_eq!(Sense::parse(&[]), None);
        assert_eq!(Sense::parse(&[0; 18]), None);
    }

    proptest! {
        #[test]
        fn never_panics(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Sense::parse(&data);
        }
    }
}

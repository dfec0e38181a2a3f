//! The address of a SCSI device on a Linux host.

use std::{fmt, str::FromStr};

/// Host, channel, target and LUN as Linux counts them: `H:C:T:L`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hctl {
    /// SCSI host number.
    pub host: u32,
    /// Channel on the host.
    pub channel: u32,
    /// Target on the channel.
    pub target: u32,
    /// LUN of the target, as a decoded integer.
    pub lun: u64,
}

impl fmt::Display for Hctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.host, self.channel, self.target, self.lun)
    }
}

/// Text that is not `H:C:T:L` in decimal.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a SCSI address of the form H:C:T:L")]
pub struct HctlError(pub String);

impl FromStr for Hctl {
    type Err = HctlError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || HctlError(s.to_owned());
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<&str> = s.split(':').collect();
        let [host, channel, target, lun] = parts[..] else {
            return Err(bad());
        };
        if ![host, channel, target, lun].into_iter().all(digits) {
            return Err(bad());
        }
        Ok(Self {
            host: host.parse().map_err(|_| bad())?,
            channel: channel.parse().map_err(|_| bad())?,
            target: target.parse().map_err(|_| bad())?,
            lun: lun.parse().map_err(|_| bad())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(host: u32, channel: u32, target: u32, lun: u64) {
            let hctl = Hctl { host, channel, target, lun };
            prop_assert_eq!(hctl.to_string().parse::<Hctl>().unwrap(), hctl);
        }

        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = text.parse::<Hctl>();
        }
    }

    #[test]
    fn refuses_what_is_not_an_address() {
        for text in [
            "",
            "1:2:3",
            "1:2:3:4:5",
            "a:0:0:0",
            "-1:0:0:0",
            "0:0:0:",
            "+1:0:0:0",
            "4294967296:0:0:0",
        ] {
            assert!(text.parse::<Hctl>().is_err(), "{text}");
        }
    }
}

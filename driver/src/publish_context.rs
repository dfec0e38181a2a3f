//! The publish context: what ControllerPublishVolume tells NodeStageVolume and NodePublishVolume.
//!
//! It holds no secret: Kubernetes stores it in clear in the VolumeAttachment. Nothing else reads or writes its keys.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use storagelink_multipath::Policy;

use crate::ids::is_iscsi_name;

/// Highest LUN: flat space addressing has 14 bits (SAM-5, 4.7.7.1).
pub const MAX_LUN: u32 = 16_383;

const PROTOCOL: &str = "protocol";
const PORTALS: &str = "portals";
const LUN: &str = "lun";
const WWID: &str = "wwid";
const SIZE: &str = "sizeBytes";
const READ_ONLY: &str = "readOnly";
/// Not in the contexts of controllers before it: then the volume was made here.
const ADOPTED: &str = "adopted";

/// Why a map is not a publish context. The text names the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// A key is not there.
    #[error("publish_context: key {0:?} is missing")]
    Missing(&'static str),
    /// A value is not what it must be.
    #[error("publish_context: {key} {value:?} is not {expected}")]
    Malformed {
        /// The key.
        key: &'static str,
        /// What was there.
        value: String,
        /// What may be there.
        expected: &'static str,
    },
}

/// The transport by which a node reaches the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// iSCSI over TCP.
    Iscsi,
}

/// One iSCSI portal of the target, written `<address>:<port>,<portal group tag>,<target name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Portal {
    /// Address and port; IPv6 in brackets.
    pub address: SocketAddr,
    /// Target portal group tag, 1 to 65535 (RFC 7143, 13.9).
    pub group_tag: u16,
    /// The target's iSCSI name.
    pub target: String,
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.address, self.group_tag, self.target)
    }
}

impl FromStr for Portal {
    type Err = ContextError;

    fn from_str(text: &str) -> Result<Self, ContextError> {
        let malformed = || ContextError::Malformed {
            key: PORTALS,
            value: text.to_owned(),
            expected: "<address>:<port>,<portal group tag>,<target name>",
        };
        let mut parts = text.splitn(3, ',');
        let mut next = || parts.next().ok_or_else(malformed);
        let address: SocketAddr = next()?.parse().map_err(|_| malformed())?;
        let group_tag: u16 = next()?.parse().map_err(|_| malformed())?;
        let target = next()?;
        if address.port() == 0 || group_tag == 0 || !is_iscsi_name(target) {
            return Err(malformed());
        }
        Ok(Self {
            address,
            group_tag,
            target: target.to_owned(),
        })
    }
}

/// Everything that a node needs to find the volume and to prove that it has the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishContext {
    /// How the volume is reached.
    pub transport: Transport,
    /// At least one.
    pub portals: Vec<Portal>,
    /// The LUN that this node sees, 0 to [`MAX_LUN`].
    pub lun: u32,
    /// What VPD page 0x83 of every path must say: `naa.` and 32 lower-case hexadecimal digits.
    pub wwid: String,
    /// Bytes.
    pub size_bytes: u64,
    /// The array refuses writes from this node.
    pub read_only: bool,
    /// Somebody else made it: its content is not ours, so it is never formatted.
    pub adopted: bool,
    /// How the node uses its paths, from the volume context. Its keys are those of the StorageClass; defaults are not written.
    pub policy: Policy,
}

impl PublishContext {
    /// The map that travels.
    pub fn to_map(&self) -> HashMap<String, String> {
        let portals: Vec<String> = self.portals.iter().map(Portal::to_string).collect();
        let protocol = match self.transport {
            Transport::Iscsi => "iscsi",
        };
        [
            (PROTOCOL, protocol.to_owned()),
            (PORTALS, portals.join(" ")),
            (LUN, self.lun.to_string()),
            (WWID, self.wwid.clone()),
            (SIZE, self.size_bytes.to_string()),
            (READ_ONLY, self.read_only.to_string()),
            (ADOPTED, self.adopted.to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .chain(self.policy.to_map())
        .collect()
    }

    /// Reads the map. Keys that it does not know are left alone: a newer controller may add some.
    pub fn from_map(map: &HashMap<String, String>) -> Result<Self, ContextError> {
        let get = |key: &'static str| match map.get(key) {
            Some(value) if !value.is_empty() => Ok(value.as_str()),
            _ => Err(ContextError::Missing(key)),
        };
        let transport = match get(PROTOCOL)? {
            "iscsi" => Transport::Iscsi,
            other => return Err(malformed(PROTOCOL, other, "iscsi")),
        };
        let portals: Vec<Portal> = get(PORTALS)?
            .split_ascii_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        if portals.is_empty() {
            return Err(ContextError::Missing(PORTALS));
        }
        let lun = number(LUN, get(LUN)?, u64::from(MAX_LUN), "0 to 16383")?;
        let wwid = get(WWID)?;
        if !is_wwid(wwid) {
            return Err(malformed(WWID, wwid, "naa. and 32 lower-case hexadecimal digits"));
        }
        let size_bytes = number(SIZE, get(SIZE)?, i64::MAX as u64, "a number of bytes")?;
        if size_bytes == 0 {
            return Err(malformed(SIZE, "0", "a number of bytes"));
        }
        let read_only = flag(READ_ONLY, get(READ_ONLY)?)?;
        let adopted = match map.get(ADOPTED) {
            Some(text) => flag(ADOPTED, text)?,
            None => false,
        };
        Ok(Self {
            transport,
            portals,
            lun: u32::try_from(lun).unwrap_or(MAX_LUN),
            wwid: wwid.to_owned(),
            size_bytes,
            read_only,
            adopted,
            policy: Policy::from_map(map)
                .map_err(|error| malformed(error.key, &error.value, error.allowed))?,
        })
    }
}

/// Whether a text is the identifier of one of our volumes as Linux shows it in sysfs: NAA type 6, 16 bytes.
pub fn is_wwid(text: &str) -> bool {
    text.strip_prefix("naa.").is_some_and(|digits| {
        digits.len() == 32
            && digits
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn malformed(key: &'static str, value: &str, expected: &'static str) -> ContextError {
    ContextError::Malformed {
        key,
        value: value.to_owned(),
        expected,
    }
}

fn flag(key: &'static str, text: &str) -> Result<bool, ContextError> {
    text.parse().map_err(|_| malformed(key, text, "true or false"))
}

fn number(key: &'static str, text: &str, limit: u64, expected: &'static str) -> Result<u64, ContextError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(number) if digits && number <= limit => Ok(number),
        _ => Err(malformed(key, text, expected)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> PublishContext {
        PublishContext {
            transport: Transport::Iscsi,
            portals: vec![
                "10.0.1.1:3260,1,iqn.2026-01.io.example:a".parse().unwrap(),
                "[fd00::1]:3260,2,iqn.2026-01.io.example:a".parse().unwrap(),
            ],
            lun: 7,
            wwid: format!("naa.6001405{}", "0".repeat(25)),
            size_bytes: 1 << 30,
            read_only: false,
            adopted: false,
            policy: Policy::default(),
        }
    }

    proptest! {
        #[test]
        fn round_trip(
            portals in proptest::collection::vec(
                (any::<std::net::IpAddr>(), 1u16.., 1u16.., "iqn\\.2026-01\\.[a-z]{1,9}:[a-z0-9:.-]{1,20}"), 1..5),
            lun in 0..=MAX_LUN, wwid in "naa\\.[0-9a-f]{32}", size_bytes in 1..=i64::MAX as u64, read_only in any::<bool>(),
            adopted in any::<bool>(), min_paths in 1u32..32,
        ) {
            let policy = Policy { min_paths, ..Policy::default() };
            let portals = portals
                .into_iter()
                .map(|(ip, port, group_tag, target)| Portal { address: SocketAddr::new(ip, port), group_tag, target })
                .collect();
            let context = PublishContext { transport: Transport::Iscsi, portals, lun, wwid, size_bytes, read_only, adopted, policy };
            prop_assert_eq!(PublishContext::from_map(&context.to_map()), Ok(context));
        }

        #[test]
        fn any_text_in_any_key_is_read_or_refused(key in 0usize..7, text in "\\PC{0,60}") {
            let key = [PROTOCOL, PORTALS, LUN, WWID, SIZE, READ_ONLY, ADOPTED][key];
            let mut map = sample().to_map();
            map.insert(key.to_owned(), text);
            if let Err(error) = PublishContext::from_map(&map) {
                prop_assert!(error.to_string().contains(key));
            }
        }
    }

    #[test]
    fn every_key_is_required_and_named() {
        for key in [PROTOCOL, PORTALS, LUN, WWID, SIZE, READ_ONLY] {
            let mut map = sample().to_map();
            map.remove(key);
            assert_eq!(PublishContext::from_map(&map), Err(ContextError::Missing(key)));
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for (key, value) in [
            (PROTOCOL, "nvme"),
            (PORTALS, "10.0.1.1,1,iqn.2026-01.x:y"),
            (PORTALS, "10.0.1.1:0,1,iqn.2026-01.x:y"),
            (PORTALS, "10.0.1.1:3260,0,iqn.2026-01.x:y"),
            (PORTALS, "10.0.1.1:3260,1,target"),
            (PORTALS, "host:3260,1,iqn.2026-01.x:y"),
            (LUN, "-1"),
            (LUN, "+1"),
            (LUN, "16384"),
            (WWID, "naa.6001405"),
            (WWID, "naa.6001405ABCDEF0000000000000000000F"),
            (WWID, "eui.00000000000000000000000000000000"),
            (SIZE, "0"),
            (SIZE, "1G"),
            (READ_ONLY, "yes"),
            (ADOPTED, ""),
            ("noPathRetry", "1m"),
            ("minPaths", "0"),
        ] {
            let mut map = sample().to_map();
            map.insert(key.to_owned(), value.to_owned());
            assert!(
                matches!(PublishContext::from_map(&map), Err(ContextError::Malformed { key: k, .. }) if k == key),
                "{key} {value}"
            );
        }
    }
}

//! The ids of CSI: what a volume id and a node id hold, how they are written, and how they are read back.
//!
//! Everything here is pure text. Nothing else in the driver takes an id apart or puts one together.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use uuid::Uuid;

/// The namespace of the UUIDv5 that is made of a CSI volume name (RFC 9562, 5.5). Changing it loses every volume.
const VOLUME_NAMESPACE: Uuid = Uuid::from_u128(0x3d0b_7a52_60c1_4f6e_9b38_5a1e_94d7_c26f);

/// Longest volume id in bytes: CSI allows 128 for `volume_id`.
pub const MAX_VOLUME_ID_BYTES: usize = 128;
/// Longest node id in bytes: CSI allows 256, but Kubernetes stores it in `CSINode`, which allows 192.
pub const MAX_NODE_ID_BYTES: usize = 192;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// Longer than the limit.
    #[error("has {length} bytes, at most {limit} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The part before `@` of a volume id.
    #[error("does not begin with a lower-case hyphenated UUID")]
    Uuid,
    /// A host name or address.
    #[error("names a host that is neither a DNS name nor an IP address")]
    Host,
    /// A port.
    #[error("names a port outside 1 to 65535")]
    Port,
    /// Not of the form of a node id.
    #[error("is not <node name>/<iSCSI initiator name>[/<WWPN>,...]")]
    NodeShape,
    /// The node name of a node id.
    #[error("holds a node name that is not a DNS subdomain")]
    NodeName,
    /// The iSCSI name of a node id.
    #[error("holds an iSCSI initiator name that is not iqn., eui. or naa. of at most 223 bytes (RFC 7143)")]
    Initiator,
    /// A world wide port name.
    #[error("holds a WWPN that is not 16 hexadecimal digits")]
    Wwpn,
}

/// Where a gateway listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// Takes a DNS name or an IP address (IPv6 with or without brackets) and a port of 1 to 65535.
    pub fn new(host: &str, port: u16) -> Result<Self, IdError> {
        if port == 0 {
            return Err(IdError::Port);
        }
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match (bare, host.parse::<IpAddr>()) {
            // Written back as the standard library writes it, so that one address has one id.
            (Some(bare), _) => match bare.parse::<IpAddr>() {
                Ok(IpAddr::V6(address)) => address.to_string(),
                _ => return Err(IdError::Host),
            },
            (None, Ok(address)) => address.to_string(),
            (None, Err(_)) if is_dns_name(&host.to_ascii_lowercase()) => host.to_ascii_lowercase(),
            (None, Err(_)) => return Err(IdError::Host),
        };
        Ok(Self { host, port })
    }

    /// The DNS name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Endpoint {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (host, port) = text.rsplit_once(':').ok_or(IdError::Port)?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(IdError::Host);
        }
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(IdError::Port);
        }
        Self::new(host, port.parse().map_err(|_| IdError::Port)?)
    }
}

/// A CSI volume id: `<uuid>`, or `<uuid>@<host>:<port>` for a volume behind another gateway than the configured one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeId {
    uuid: Uuid,
    endpoint: Option<Endpoint>,
}

/// The id of a snapshot has the same form, and is found in the same way.
pub type SnapshotId = VolumeId;

impl VolumeId {
    /// The id of the volume with this CSI name: the same name always gives the same id, so that a repeated
    /// CreateVolume finds what the first one made.
    pub fn from_name(name: &str) -> Self {
        Self {
            uuid: Uuid::new_v5(&VOLUME_NAMESPACE, name.as_bytes()),
            endpoint: None,
        }
    }

    /// An id on the configured gateway.
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self { uuid, endpoint: None }
    }

    /// The same volume behind another gateway. Fails when the id would become too long.
    pub fn at(self, endpoint: Endpoint) -> Result<Self, IdError> {
        let id = Self {
            uuid: self.uuid,
            endpoint: Some(endpoint),
        };
        check_length(&id.to_string(), MAX_VOLUME_ID_BYTES)?;
        Ok(id)
    }

    /// The id that the gateway knows the volume by.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The gateway, when it is not the configured one.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref()
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.uuid.hyphenated())?;
        match &self.endpoint {
            Some(endpoint) => write!(f, "@{endpoint}"),
            None => Ok(()),
        }
    }
}

impl FromStr for VolumeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        check_length(text, MAX_VOLUME_ID_BYTES)?;
        let (uuid, endpoint) = match text.split_once('@') {
            Some((uuid, endpoint)) => (uuid, Some(endpoint.parse::<Endpoint>()?)),
            None => (text, None),
        };
        let parsed = Uuid::try_parse(uuid).map_err(|_| IdError::Uuid)?;
        let id = Self {
            uuid: parsed,
            endpoint,
        };
        // One volume has one id: other spellings of it (upper case, braces, a long IPv6 address) are not it.
        if id.to_string() != text {
            return Err(if parsed.hyphenated().to_string() == uuid {
                IdError::Host
            } else {
                IdError::Uuid
            });
        }
        Ok(id)
    }
}

/// A Fibre Channel world wide port name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wwpn(pub u64);

impl fmt::Display for Wwpn {
    /// Colon separated, lower case: `20:00:00:25:b5:11:22:33`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.to_be_bytes().iter().enumerate() {
            write!(f, "{}{byte:02x}", if i == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl FromStr for Wwpn {
    type Err = IdError;

    /// Takes the colon separated form and the bare 16 digits that sysfs shows without its `0x`.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let digits = if text.len() == 23 {
            if !text.bytes().enumerate().all(|(i, b)| (i % 3 == 2) == (b == b':')) {
                return Err(IdError::Wwpn);
            }
            text.replace(':', "")
        } else {
            text.to_owned()
        };
        if digits.len() != 16 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(IdError::Wwpn);
        }
        u64::from_str_radix(&digits, 16)
            .map(Self)
            .map_err(|_| IdError::Wwpn)
    }
}

/// A CSI node id: the node's name and every initiator by which an array knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeId {
    name: String,
    initiator: String,
    wwpns: Vec<Wwpn>,
}

impl NodeId {
    /// Checks the parts and that the whole fits into [`MAX_NODE_ID_BYTES`]. The initiator name may be empty only on a
    /// node that has Fibre Channel ports.
    pub fn new(name: &str, initiator: &str, wwpns: Vec<Wwpn>) -> Result<Self, IdError> {
        if !is_dns_name(name) {
            return Err(IdError::NodeName);
        }
        if !(is_iscsi_name(initiator) || initiator.is_empty() && !wwpns.is_empty()) {
            return Err(IdError::Initiator);
        }
        let id = Self {
            name: name.to_owned(),
            initiator: initiator.to_owned(),
            wwpns,
        };
        check_length(&id.to_string(), MAX_NODE_ID_BYTES)?;
        Ok(id)
    }

    /// The node's name in Kubernetes: the name of the host on the array.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its iSCSI initiator name; empty when it has none.
    pub fn initiator(&self) -> &str {
        &self.initiator
    }

    /// Its Fibre Channel ports.
    pub fn wwpns(&self) -> &[Wwpn] {
        &self.wwpns
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.initiator)?;
        for (i, wwpn) in self.wwpns.iter().enumerate() {
            write!(f, "{}{wwpn}", if i == 0 { '/' } else { ',' })?;
        }
        Ok(())
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        check_length(text, MAX_NODE_ID_BYTES)?;
        let parts: Vec<&str> = text.split('/').collect();
        let (name, initiator, wwpns) = match parts[..] {
            [name, initiator] => (name, initiator, Vec::new()),
            [name, initiator, wwpns] => (
                name,
                initiator,
                wwpns.split(',').map(str::parse).collect::<Result<_, _>>()?,
            ),
            _ => return Err(IdError::NodeShape),
        };
        Self::new(name, initiator, wwpns)
    }
}

fn check_length(text: &str, limit: usize) -> Result<(), IdError> {
    match text.len() {
        0 => Err(IdError::Empty),
        length if length > limit => Err(IdError::TooLong { length, limit }),
        _ => Ok(()),
    }
}

/// RFC 1123 subdomain as Kubernetes checks it: labels of lower-case letters, digits and inner hyphens; 253 bytes.
fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    (1..=253).contains(&text.len()) && text.split('.').all(label)
}

/// RFC 7143, 4.2.7: the three name types, 223 bytes; letters, digits, dot, hyphen and colon, and the underscore that
/// hosts use although the RFC does not have it.
pub(crate) fn is_iscsi_name(text: &str) -> bool {
    let rest = ["iqn.", "eui.", "naa."]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix));
    text.len() <= 223
        && rest.is_some_and(|rest| {
            !rest.is_empty()
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b".-:_".contains(&b))
        })
}

#[cfg(test)]
#[path = "ids_tests.rs"]
mod tests;

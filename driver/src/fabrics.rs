//! Fabrics: named sets of networks, and the topology segments that say who reaches them.
//!
//! Node and controller are configured with the same names. A node says for each whether it reaches it; a system is in
//! each that holds one of its portals; a volume is offered to the nodes that reach one of its system's. Nothing here
//! asks the kernel or the array.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::Deserialize;
use storagelink_proto::csi::v1::Topology;

/// What comes before a fabric's name in the key of its topology segment.
pub const KEY_PREFIX: &str = "fabric.storagelink.io/";
/// More fabrics than this do not fit into the topology of a node: CSI limits a map to 4096 bytes.
pub const MAX_FABRICS: usize = 32;
/// Longest name: a DNS label.
const MAX_NAME_BYTES: usize = 63;

/// Why fabrics cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FabricError {
    /// The flag's text has no `=`.
    #[error("{0:?} is not NAME=CIDR[,CIDR...]")]
    Flag(String),
    /// The name.
    #[error(
        "name {0:?} is not a DNS label: 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
    )]
    Name(String),
    /// A network.
    #[error("fabric {fabric}: {cidr:?} {problem}")]
    Cidr {
        /// The fabric's name.
        fabric: String,
        /// The text.
        cidr: String,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// A fabric without a network.
    #[error("fabric {0} has no CIDR, for example 10.1.0.0/24")]
    Empty(String),
    /// The same name again.
    #[error("fabric {0} is given twice")]
    Twice(String),
    /// Too many.
    #[error("{0} fabrics are given, at most {MAX_FABRICS} are allowed")]
    TooMany(usize),
}

/// A network: an address whose host bits are zero, and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The network of this prefix that an address is in; none when the prefix is longer than the address.
    pub fn of(address: IpAddr, prefix: u8) -> Option<Self> {
        let (bits, width) = bits(address);
        let shift = width.checked_sub(prefix)?;
        let masked = if shift >= width { 0 } else { bits >> shift << shift };
        let address = match address {
            IpAddr::V4(_) => IpAddr::V4(u32::try_from(masked).ok()?.into()),
            IpAddr::V6(_) => IpAddr::V6(masked.into()),
        };
        Some(Self { address, prefix })
    }

    /// Whether it is a default route's.
    pub fn is_everything(&self) -> bool {
        self.prefix == 0
    }

    /// Whether an address lies in it.
    pub fn holds(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::of(address, self.prefix) == Some(*self)
    }

    /// Whether another network lies wholly in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.holds(other.address)
    }
}

/// The bits of an address, and how many.
fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || "is not an address and a prefix length, for example 10.1.0.0/24".to_owned();
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let network = prefix
            .parse()
            .ok()
            .and_then(|prefix| Self::of(address, prefix))
            .ok_or_else(|| {
                format!(
                    "has a prefix longer than the {} bits of its address",
                    bits(address).1
                )
            })?;
        if network.is_everything() {
            // Every node would reach it, or none: either way it says nothing.
            return Err("holds every address; a fabric is a part of the network".to_owned());
        }
        if network.address != address {
            return Err(format!("has bits set after its prefix; is {network} meant?"));
        }
        Ok(network)
    }
}

/// One fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fabric {
    name: String,
    networks: Vec<Cidr>,
}

impl Fabric {
    /// Checks a name and the texts of its networks.
    pub fn new<'a>(name: &str, cidrs: impl IntoIterator<Item = &'a str>) -> Result<Self, FabricError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty()
            || name.len() > MAX_NAME_BYTES
            || !name.bytes().all(inner)
            || name.starts_with('-')
            || name.ends_with('-')
        {
            return Err(FabricError::Name(name.to_owned()));
        }
        let network = |text: &str| {
            text.trim().parse().map_err(|problem| FabricError::Cidr {
                fabric: name.to_owned(),
                cidr: text.to_owned(),
                problem,
            })
        };
        let networks: Vec<Cidr> = cidrs.into_iter().map(network).collect::<Result<_, _>>()?;
        if networks.is_empty() {
            return Err(FabricError::Empty(name.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            networks,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its networks, at least one.
    pub fn networks(&self) -> &[Cidr] {
        &self.networks
    }

    /// The key of its topology segment.
    pub fn key(&self) -> String {
        format!("{KEY_PREFIX}{}", self.name)
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.holds(address))
    }

    /// The topology of every node that reaches it.
    pub fn topology(&self) -> Topology {
        Topology {
            segments: HashMap::from([(self.key(), true.to_string())]),
        }
    }

    /// Whether a place with these segments reaches it. No segment at all is every place.
    pub fn reached_from(&self, place: &Topology) -> bool {
        place.segments.is_empty()
            || place
                .segments
                .get(&self.key())
                .is_some_and(|value| value == "true")
    }
}

/// The text of `--fabric`: `NAME=CIDR[,CIDR...]`.
impl FromStr for Fabric {
    type Err = FabricError;

    fn from_str(text: &str) -> Result<Self, FabricError> {
        let (name, cidrs) = text
            .split_once('=')
            .ok_or_else(|| FabricError::Flag(text.to_owned()))?;
        if cidrs.is_empty() {
            return Fabric::new(name, []);
        }
        Fabric::new(name, cidrs.split(','))
    }
}

/// A value of the table `[fabrics]` in controller.toml.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Networks {
    /// `a = "10.1.0.0/24"`
    One(String),
    /// `a = ["10.1.0.0/24", "fd00:1::/64"]`
    More(Vec<String>),
}

/// All fabrics of a configuration, in the order of their names. None: there is no topology.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fabrics(Vec<Fabric>);

impl Fabrics {
    /// Fabrics whose names differ.
    pub fn new(mut fabrics: Vec<Fabric>) -> Result<Self, FabricError> {
        if fabrics.len() > MAX_FABRICS {
            return Err(FabricError::TooMany(fabrics.len()));
        }
        fabrics.sort_by(|a, b| a.name.cmp(&b.name));
        match fabrics.windows(2).find(|pair| pair[0].name == pair[1].name) {
            Some(pair) => Err(FabricError::Twice(pair[0].name.clone())),
            None => Ok(Self(fabrics)),
        }
    }

    /// The table of controller.toml.
    pub fn from_table(table: &BTreeMap<String, Networks>) -> Result<Self, FabricError> {
        let fabric = |(name, networks): (&String, &Networks)| match networks {
            Networks::One(one) => Fabric::new(name, [one.as_str()]),
            Networks::More(more) => Fabric::new(name, more.iter().map(String::as_str)),
        };
        Self::new(table.iter().map(fabric).collect::<Result<_, _>>()?)
    }

    /// Whether there is no topology.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each.
    pub fn iter(&self) -> impl Iterator<Item = &Fabric> {
        self.0.iter()
    }

    /// Those that hold at least one of these portals.
    pub fn holding(&self, portals: &[SocketAddr]) -> Vec<&Fabric> {
        self.iter()
            .filter(|fabric| portals.iter().any(|portal| fabric.holds(portal.ip())))
            .collect()
    }
}

#[cfg(test)]
#[path = "fabrics_tests.rs"]
mod tests;

//! Fabrics: named sets of networks that hold portals, and CSI topology in terms of them.
//!
//! A node has a fabric when it has a route of its own, not the default one, into one of the fabric's networks; a volume can
//! be reached where one of the fabrics is that its system has portals in. Nothing here asks the network or changes it.

use std::{collections::BTreeMap, collections::HashMap, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::Deserialize;
use storagelink_proto::csi::v1::{Topology, TopologyRequirement};

pub mod routes;

/// The prefix of a topology key; the fabric's name follows. CSI: a key has an optional prefix that is a DNS subdomain.
pub const KEY_PREFIX: &str = "fabric.storagelink.io/";
/// The value of a fabric that a node has.
pub const HAS: &str = "true";
/// The value of a fabric that a node does not have. Every node says it of every fabric: the keys must be the same everywhere.
pub const HAS_NOT: &str = "false";
/// A name is the last part of a label's key (Kubernetes: 63 characters).
const MAX_NAME: usize = 63;

/// Why fabrics cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FabricError {
    /// Not a name.
    #[error("fabric name {0:?} is not 1 to 63 lower-case letters, digits and inner hyphens")]
    Name(String),
    /// No network at all.
    #[error("fabric {0} has no network")]
    Empty(String),
    /// Not a network.
    #[error("fabric {name}: {network:?} is not a network in CIDR notation, for example 198.51.100.0/24")]
    Network {
        /// The fabric.
        name: String,
        /// The text.
        network: String,
    },
    /// A name that comes twice.
    #[error("fabric {0} is given twice")]
    Twice(String),
    /// A portal could belong to both.
    #[error("fabrics {0} and {1} share addresses: {2} and {3}")]
    Overlap(String, String, IpNet, IpNet),
    /// Not `<name>=<network>,…`.
    #[error("{0:?} is not <name>=<network>[,<network>]")]
    Form(String),
}

/// The fabrics of a configuration, by name. Empty: there is no topology.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fabrics(BTreeMap<String, Vec<IpNet>>);

/// Networks in `controller.toml`: one or a list.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Networks {
    /// One.
    One(String),
    /// Several.
    More(Vec<String>),
}

/// The value of one `--fabric`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fabric {
    name: String,
    networks: Vec<String>,
}

impl FromStr for Fabric {
    type Err = FabricError;

    fn from_str(text: &str) -> Result<Self, FabricError> {
        let form = || FabricError::Form(text.to_owned());
        let (name, networks) = text.split_once('=').ok_or_else(form)?;
        Ok(Self {
            name: name.to_owned(),
            networks: networks.split(',').map(str::to_owned).collect(),
        })
    }
}

impl Fabrics {
    /// Checks names and networks.
    pub fn new(given: impl IntoIterator<Item = (String, Vec<String>)>) -> Result<Self, FabricError> {
        let mut all: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        for (name, texts) in given {
            if !is_name(&name) {
                return Err(FabricError::Name(name));
            }
            if texts.is_empty() {
                return Err(FabricError::Empty(name));
            }
            let mut networks = Vec::new();
            for text in texts {
                let network = text.trim().parse::<IpNet>().map_err(|_| FabricError::Network {
                    name: name.clone(),
                    network: text.clone(),
                })?;
                networks.push(network.trunc());
            }
            for (other, theirs) in &all {
                for (mine, their) in networks.iter().flat_map(|m| theirs.iter().map(move |t| (m, t))) {
                    if overlap(mine, their) {
                        return Err(FabricError::Overlap(other.clone(), name, *their, *mine));
                    }
                }
            }
            if all.insert(name.clone(), networks).is_some() {
                return Err(FabricError::Twice(name));
            }
        }
        Ok(Self(all))
    }

    /// From the values of `--fabric`.
    pub fn from_flags(flags: Vec<Fabric>) -> Result<Self, FabricError> {
        Self::new(flags.into_iter().map(|flag| (flag.name, flag.networks)))
    }

    /// From the table `[fabrics]`.
    pub fn from_table(table: BTreeMap<String, Networks>) -> Result<Self, FabricError> {
        Self::new(table.into_iter().map(|(name, networks)| {
            let networks = match networks {
                Networks::One(one) => vec![one],
                Networks::More(more) => more,
            };
            (name, networks)
        }))
    }

    /// Whether there is any: without, nothing is said about topology.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The segments of a node with these routes: every fabric, with whether the node has it.
    pub fn of_node(&self, routes: &[IpNet]) -> Option<Topology> {
        if self.is_empty() {
            return None;
        }
        let has = |networks: &[IpNet]| networks.iter().any(|n| routes.iter().any(|r| overlap(n, r)));
        let segments = self
            .0
            .iter()
            .map(|(name, networks)| (key(name), (if has(networks) { HAS } else { HAS_NOT }).to_owned()))
            .collect();
        Some(Topology { segments })
    }

    /// The fabrics that hold one of these portals (`<address>:<port>`), in the order of their names.
    pub fn of_portals<'a>(&self, portals: impl IntoIterator<Item = &'a str>) -> Reach {
        let addresses: Vec<IpAddr> = portals
            .into_iter()
            .filter_map(|portal| portal.parse::<std::net::SocketAddr>().ok())
            .map(|portal| portal.ip())
            .collect();
        let holds = |networks: &[IpNet]| {
            networks
                .iter()
                .any(|n| addresses.iter().any(|address| n.contains(address)))
        };
        Reach {
            fabrics: self
                .0
                .iter()
                .filter(|(_, networks)| holds(networks))
                .map(|(name, _)| name.clone())
                .collect(),
        }
    }
}

/// The fabrics by which a system can be reached. None: it is not bound to any, and every node is taken to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    fabrics: Vec<String>,
}

impl Reach {
    /// Whether no fabric holds a portal.
    pub fn is_unbound(&self) -> bool {
        self.fabrics.is_empty()
    }

    /// Whether a node with these segments reaches the system.
    pub fn from(&self, topology: &Topology) -> bool {
        self.is_unbound()
            || self.fabrics.iter().any(|name| {
                topology
                    .segments
                    .get(&key(name))
                    .is_some_and(|value| value == HAS)
            })
    }

    /// The accessible topology of a volume: one alternative for each fabric. With a requirement, those that some of the
    /// requisite topologies have.
    ///
    /// # Errors
    /// None of the requisite topologies reaches the system.
    pub fn accessible(
        &self,
        requirement: Option<&TopologyRequirement>,
    ) -> Result<Vec<Topology>, Unreachable> {
        let requisite = requirement.map_or(&[][..], |requirement| &requirement.requisite);
        if !requisite.is_empty() && !requisite.iter().any(|topology| self.from(topology)) {
            return Err(Unreachable {
                system: self.clone(),
                nodes: requisite.iter().map(describe).collect::<Vec<_>>().join("; "),
            });
        }
        let alternative = |name: &String| Topology {
            segments: HashMap::from([(key(name), HAS.to_owned())]),
        };
        let wanted = |alternative: &Topology| {
            requisite.is_empty()
                || requisite.iter().any(|topology| {
                    alternative
                        .segments
                        .iter()
                        .all(|(key, value)| topology.segments.get(key) == Some(value))
                })
        };
        Ok(self.fabrics.iter().map(alternative).filter(wanted).collect())
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fabrics.join(", "))
    }
}

/// No node that may have the volume reaches its system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its portals are in the fabrics {system}, and no node that may have it has one of them: {nodes}")]
pub struct Unreachable {
    system: Reach,
    nodes: String,
}

fn describe(topology: &Topology) -> String {
    let mut segments: Vec<String> = topology
        .segments
        .iter()
        .map(|(key, value)| format!("{}={value}", key.strip_prefix(KEY_PREFIX).unwrap_or(key)))
        .collect();
    segments.sort_unstable();
    segments.join(" ")
}

fn key(name: &str) -> String {
    format!("{KEY_PREFIX}{name}")
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn is_name(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests;

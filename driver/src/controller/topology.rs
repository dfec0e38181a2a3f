//! From where a volume can be reached: the fabrics of its system's portals against what the orchestrator asks for.
//!
//! It only reads. Without `[fabrics]` in controller.toml there is no topology, and a request that has one is refused.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use storagelink_proto::csi::v1::{Topology, TopologyRequirement};
use storagelink_proto::storagelink::v1::Protocol;
use tonic::Code;

use crate::fabrics::Fabric;
use crate::fields::{self, FieldError};
use crate::gateway::{Client, GatewayError, Gateways};

/// More topologies than this are not repeated in an error.
const MAX_LISTED: usize = 8;

/// The fabrics that a system's iSCSI portals lie in. None: no topology, because no fabric is configured, because the
/// system lies in none (which is logged once for each system), or because there is no such system.
pub(super) async fn fabrics_of<'a>(
    gateways: &'a Gateways,
    client: &Client,
    system: &str,
) -> Result<Option<Vec<&'a Fabric>>, GatewayError> {
    let fabrics = gateways.fabrics();
    if fabrics.is_empty() {
        return Ok(None);
    }
    let ports = match client.ports(system, Protocol::Iscsi).await {
        // Whoever needs the system says it with the list of those that exist.
        Err(GatewayError::Refused {
            code: Code::NotFound, ..
        }) => return Ok(None),
        ports => ports?,
    };
    let mut portals: Vec<SocketAddr> = Vec::new();
    for port in ports.iter().filter(|port| port.protocol() == Protocol::Iscsi) {
        let problem = || format!("with portal {:?} of {:?}", port.portal, port.target);
        let portal = port.portal.parse();
        portals.push(portal.map_err(|_| client.malformed("ListTargetPorts", problem()))?);
    }
    let holding = fabrics.holding(&portals);
    if !holding.is_empty() {
        return Ok(Some(holding));
    }
    if gateways.first_time(client.endpoint(), system) {
        tracing::warn!(
            system,
            gateway = %client.endpoint(),
            "no iSCSI portal of the system lies in one of the configured fabrics: its volumes are offered to every node"
        );
    }
    Ok(None)
}

/// The fabrics of several systems of one gateway, each asked for once.
#[derive(Default)]
pub(super) struct Known(BTreeMap<String, Vec<Topology>>);

impl Known {
    /// The topology of a system's volumes.
    pub(super) async fn of(
        &mut self,
        gateways: &Gateways,
        client: &Client,
        system: &str,
    ) -> Result<Vec<Topology>, GatewayError> {
        if let Some(known) = self.0.get(system) {
            return Ok(known.clone());
        }
        let topology = alternatives(fabrics_of(gateways, client, system).await?.unwrap_or_default());
        self.0.insert(system.to_owned(), topology.clone());
        Ok(topology)
    }
}

fn alternatives(fabrics: Vec<&Fabric>) -> Vec<Topology> {
    fabrics.into_iter().map(Fabric::topology).collect()
}

/// Checks `accessibility_requirements`; what stays is `requisite`, empty for every place. `preferred` never excludes a
/// place, and a volume is the same wherever it is asked for.
pub(super) fn requisite(
    gateways: &Gateways,
    requirement: Option<&TopologyRequirement>,
) -> Result<Vec<Topology>, FieldError> {
    let Some(requirement) = requirement else {
        return Ok(Vec::new());
    };
    if gateways.fabrics().is_empty() {
        return Err(FieldError::new(
            "accessibility_requirements",
            "are not supported: the controller has no fabrics configured",
        ));
    }
    for place in requirement.requisite.iter().chain(&requirement.preferred) {
        fields::map("accessibility_requirements", &place.segments)?;
    }
    Ok(requirement.requisite.clone())
}

/// The alternatives of a volume on a system in these fabrics, those that some requisite place reaches. The error is a
/// text that names both sides.
pub(super) fn narrowed(
    system: &str,
    fabrics: Option<Vec<&Fabric>>,
    requisite: &[Topology],
) -> Result<Vec<Topology>, String> {
    let Some(mut fabrics) = fabrics else {
        return Ok(Vec::new());
    };
    if !requisite.is_empty() {
        let all: Vec<&str> = fabrics.iter().map(|fabric| fabric.name()).collect();
        let text = format!(
            "system {system} is reached through fabric {}, and no node that may have the volume reaches it: {}",
            all.join(" or "),
            describe(requisite)
        );
        fabrics.retain(|fabric| requisite.iter().any(|place| fabric.reached_from(place)));
        if fabrics.is_empty() {
            return Err(text);
        }
    }
    Ok(alternatives(fabrics))
}

/// Topologies for people, in a fixed order.
fn describe(places: &[Topology]) -> String {
    let one = |place: &Topology| {
        let mut pairs: Vec<String> = place
            .segments
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        pairs.sort();
        pairs.join(", ")
    };
    let mut texts: Vec<String> = places.iter().map(one).collect();
    texts.sort();
    texts.dedup();
    let hidden = texts.len().saturating_sub(MAX_LISTED);
    texts.truncate(MAX_LISTED);
    let mut text = texts.join("; ");
    if hidden > 0 {
        text.push_str(&format!("; and {hidden} more"));
    }
    text
}

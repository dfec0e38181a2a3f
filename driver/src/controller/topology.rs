//! Where a system can be reached from, in the fabrics of the configuration.

use std::collections::BTreeMap;

use storagelink_proto::csi::v1::Topology;
use storagelink_proto::storagelink::v1::Protocol;
use tonic::Code;

use crate::fabrics::Reach;
use crate::gateway::{Client, GatewayError, Gateways};

/// The fabrics of a system's portals; none when no fabric is configured.
pub(super) async fn reach(
    gateways: &Gateways,
    client: &Client,
    system: &str,
) -> Result<Option<Reach>, GatewayError> {
    if gateways.fabrics().is_empty() {
        return Ok(None);
    }
    let ports = client.target_ports(system, Protocol::Iscsi).await?;
    let reach = gateways
        .fabrics()
        .of_portals(ports.iter().map(|port| port.portal.as_str()));
    if reach.is_unbound() && gateways.first_time(client.endpoint(), system) {
        tracing::warn!(
            system,
            "no portal of the system is in a configured fabric: every node is taken to reach it"
        );
    }
    Ok(Some(reach))
}

/// The topology of volumes in lists: the systems of one gateway, each asked for once.
#[derive(Default)]
pub(super) struct Known(BTreeMap<String, Vec<Topology>>);

impl Known {
    /// From where a system's volumes can be used. A system that the gateway does not know any more says nothing.
    pub(super) async fn of(
        &mut self,
        gateways: &Gateways,
        client: &Client,
        system: &str,
    ) -> Result<Vec<Topology>, GatewayError> {
        if let Some(known) = self.0.get(system) {
            return Ok(known.clone());
        }
        let topology = match reach(gateways, client, system).await {
            Ok(reach) => reach
                .and_then(|reach| reach.accessible(None).ok())
                .unwrap_or_default(),
            Err(GatewayError::Refused {
                code: Code::NotFound, ..
            }) => Vec::new(),
            Err(error) => return Err(error),
        };
        self.0.insert(system.to_owned(), topology.clone());
        Ok(topology)
    }
}

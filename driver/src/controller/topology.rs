//! Where a system can be reached from, in the fabrics of the configuration.

use storagelink_proto::storagelink::v1::Protocol;

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
    if reach.is_unbound() {
        tracing::warn!(
            system,
            "no portal of the system is in a configured fabric: every node is taken to reach it"
        );
    }
    Ok(Some(reach))
}

//! ListVolumes and ControllerGetVolume: volumes as CSI shows them, with the nodes that have them and their condition.

use std::collections::HashMap;

use storagelink_proto::csi::v1::list_volumes_response::{Entry, VolumeStatus};
use storagelink_proto::csi::v1::{
    ControllerGetVolumeRequest, ControllerGetVolumeResponse, ListVolumesRequest, ListVolumesResponse,
    Topology, Volume as CsiVolume, VolumeCondition, controller_get_volume_response,
};
use storagelink_proto::storagelink::v1::{Host, Volume};
use uuid::Uuid;

use super::topology::Known;
use super::{CommonError, Located};
use crate::codes::Rpc;
use crate::fields::{FieldError, MAX_MAP_BYTES};
use crate::gateway::Gateways;
use crate::ids::{NodeId, VolumeId};
use crate::parameters::provision_type_name;

/// Only the configured gateway is listed: the others are known only from the ids of their volumes.
pub(super) async fn list_volumes(
    gateways: &Gateways,
    request: ListVolumesRequest,
) -> Result<ListVolumesResponse, CommonError> {
    let page_size = u32::try_from(request.max_entries)
        .map_err(|_| FieldError::new("max_entries", format!("{} is negative", request.max_entries)))?;
    if request.starting_token.len() > MAX_MAP_BYTES {
        let problem = format!("has more than {MAX_MAP_BYTES} bytes");
        return Err(FieldError::new("starting_token", problem).into());
    }
    let client = gateways.configured().await?;
    let (volumes, next_token) = client
        .volumes(page_size, request.starting_token)
        .await
        .map_err(|error| error.during(Rpc::List))?;
    let mut known = Known::default();
    let mut entries = Vec::new();
    for volume in &volumes {
        // What has another id was not made through CSI.
        let Ok(uuid) = Uuid::try_parse(&volume.id) else {
            continue;
        };
        let topology = known.of(gateways, &client, &volume.system).await;
        let topology = topology.map_err(|error| error.during(Rpc::List))?;
        let status = VolumeStatus {
            published_node_ids: published_node_ids(volume),
            volume_condition: Some(condition(volume)),
        };
        entries.push(Entry {
            volume: Some(csi_volume(&VolumeId::from_uuid(uuid), volume, topology)),
            status: Some(status),
        });
    }
    Ok(ListVolumesResponse { entries, next_token })
}

pub(super) async fn get_volume(
    gateways: &Gateways,
    request: ControllerGetVolumeRequest,
) -> Result<ControllerGetVolumeResponse, CommonError> {
    let located = Located::find(gateways, &request.volume_id, &HashMap::new()).await?;
    let volume = located.volume(Rpc::Get).await?;
    let topology = Known::default()
        .of(gateways, &located.client, &volume.system)
        .await
        .map_err(|error| error.during(Rpc::Get))?;
    Ok(ControllerGetVolumeResponse {
        volume: Some(csi_volume(&located.id, &volume, topology)),
        status: Some(controller_get_volume_response::VolumeStatus {
            published_node_ids: published_node_ids(&volume),
            volume_condition: Some(condition(&volume)),
        }),
    })
}

/// What the node and people get to know about a volume. Every key is one that CreateVolume answered, too; it added the class's policy, which
/// the array does not know.
pub(super) fn volume_context(id: &VolumeId, volume: &Volume) -> HashMap<String, String> {
    let mut context = HashMap::from([
        ("system".to_owned(), volume.system.clone()),
        ("aggregate".to_owned(), volume.aggregate.clone()),
        (
            "provisionType".to_owned(),
            provision_type_name(volume.provision_type()).to_owned(),
        ),
        ("wwid".to_owned(), volume.wwid.clone()),
    ]);
    if !volume.source_lun.is_empty() {
        context.insert("adoptedLun".to_owned(), volume.source_lun.clone());
    }
    if let Some(endpoint) = id.endpoint() {
        context.insert("target".to_owned(), endpoint.host().to_owned());
        context.insert("port".to_owned(), endpoint.port().to_string());
    }
    context
}

fn csi_volume(id: &VolumeId, volume: &Volume, accessible_topology: Vec<Topology>) -> CsiVolume {
    CsiVolume {
        capacity_bytes: i64::try_from(volume.size_bytes).unwrap_or(i64::MAX),
        volume_id: id.to_string(),
        volume_context: volume_context(id, volume),
        content_source: None,
        accessible_topology,
    }
}

/// The nodes that a volume is mapped to. A mapping that is not of a node of ours (its host has no such id) is left out.
fn published_node_ids(volume: &Volume) -> Vec<String> {
    volume
        .mappings
        .iter()
        .filter_map(|mapping| node_id(mapping.host.as_ref()?))
        .map(|id| id.to_string())
        .collect()
}

fn node_id(host: &Host) -> Option<NodeId> {
    let wwpns = host
        .fc_initiators
        .iter()
        .map(|wwpn| wwpn.parse().ok())
        .collect::<Option<_>>()?;
    NodeId::new(&host.name, &host.iscsi_initiator, wwpns).ok()
}

fn condition(volume: &Volume) -> VolumeCondition {
    match volume.abnormal_reason.as_str() {
        "" => VolumeCondition {
            abnormal: false,
            message: "the array reports no fault".to_owned(),
        },
        reason => VolumeCondition {
            abnormal: true,
            message: reason.to_owned(),
        },
    }
}

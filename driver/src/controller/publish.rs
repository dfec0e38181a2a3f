//! ControllerPublishVolume and ControllerUnpublishVolume: which node may reach a volume, and what it must know for it.

use storagelink_multipath::Policy;
use storagelink_proto::csi::v1::{
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse,
};
use storagelink_proto::storagelink::v1::{
    Host, MapVolumeRequest, MapVolumeResponse, Mapping, Protocol, TargetPort, Volume,
};
use tonic::Code;

use super::capability::Capability;
use super::{CommonError, Located};
use crate::codes::{Coded, Rpc};
use crate::fields::{self, FieldError};
use crate::gateway::Gateways;
use crate::ids::NodeId;
use crate::parameters::policy_of;
use crate::publish_context::{MAX_LUN, Portal, PublishContext, Transport, is_wwid};

#[derive(Debug, thiserror::Error)]
pub(super) enum PublishError {
    #[error(transparent)]
    Common(#[from] CommonError),
    #[error("node {0} does not exist")]
    NoNode(String),
    #[error("node {0} has no iSCSI initiator name")]
    NoInitiator(String),
    #[error("volume {volume} is published to node {node} with readonly={is} already")]
    ReadOnlyDiffers { volume: String, node: String, is: bool },
    #[error("volume {volume} is published to node {holder} and may be on one node only")]
    Held { volume: String, holder: String },
    #[error("volume {volume}: system {system} has no iSCSI portal")]
    NoPortal { volume: String, system: String },
}

impl Coded for PublishError {
    fn code(&self) -> Code {
        match self {
            Self::Common(error) => error.code(),
            Self::NoNode(_) => Code::NotFound,
            Self::ReadOnlyDiffers { .. } => Code::AlreadyExists,
            Self::NoInitiator(_) | Self::Held { .. } | Self::NoPortal { .. } => Code::FailedPrecondition,
        }
    }
}

impl From<FieldError> for PublishError {
    fn from(error: FieldError) -> Self {
        Self::Common(error.into())
    }
}

pub(super) async fn publish_volume(
    gateways: &Gateways,
    request: ControllerPublishVolumeRequest,
) -> Result<ControllerPublishVolumeResponse, PublishError> {
    fields::volume_id(&request.volume_id)?;
    fields::node_id(&request.node_id)?;
    fields::map("volume_context", &request.volume_context)?;
    let capability = match &request.volume_capability {
        Some(capability) => Capability::parse(capability)?,
        None => return Err(FieldError::new("volume_capability", "is required").into()),
    };
    capability.supported()?;
    let policy = policy_of("volume_context", &request.volume_context)?;
    let located = Located::find(gateways, &request.volume_id, &request.secrets).await?;
    let volume = located.volume(Rpc::Publish).await?;
    let node: NodeId = request
        .node_id
        .parse()
        .map_err(|_| PublishError::NoNode(request.node_id.clone()))?;
    if node.initiator().is_empty() {
        return Err(PublishError::NoInitiator(node.name().to_owned()));
    }
    let read_only = request.readonly || capability.read_only();
    check_mappings(
        &volume,
        &request.volume_id,
        &node,
        read_only,
        capability.exclusive(),
    )?;

    let mapped = located
        .client
        .map(MapVolumeRequest {
            id: located.id.uuid().to_string(),
            host: Some(Host {
                name: node.name().to_owned(),
                iscsi_initiator: node.initiator().to_owned(),
                fc_initiators: node.wwpns().iter().map(ToString::to_string).collect(),
            }),
            protocol: Protocol::Iscsi.into(),
            read_only,
            exclusive: capability.exclusive(),
        })
        .await
        .map_err(|error| located.failed(Rpc::Publish, error))?;
    if !mapped.ports.iter().any(|port| port.protocol() == Protocol::Iscsi) {
        return Err(PublishError::NoPortal {
            volume: request.volume_id,
            system: volume.system,
        });
    }
    let context = publish_context(&mapped, &volume, read_only, policy).map_err(|problem| {
        CommonError::from(
            located
                .client
                .malformed("MapVolume", problem)
                .during(Rpc::Publish),
        )
    })?;
    Ok(ControllerPublishVolumeResponse {
        publish_context: context.to_map(),
    })
}

/// Refuses what contradicts the mappings that are there. The gateway decides again, in one step with the mapping; this
/// look is for the right code and a text that names the node.
fn check_mappings(
    volume: &Volume,
    volume_id: &str,
    node: &NodeId,
    read_only: bool,
    exclusive: bool,
) -> Result<(), PublishError> {
    let host = |mapping: &Mapping| {
        mapping
            .host
            .as_ref()
            .map_or(String::new(), |host| host.name.clone())
    };
    for mapping in &volume.mappings {
        let holder = host(mapping);
        if holder != node.name() {
            if exclusive {
                return Err(PublishError::Held {
                    volume: volume_id.to_owned(),
                    holder,
                });
            }
        } else if mapping.read_only != read_only {
            let (volume, is) = (volume_id.to_owned(), mapping.read_only);
            return Err(PublishError::ReadOnlyDiffers {
                volume,
                node: holder,
                is,
            });
        }
    }
    Ok(())
}

/// What the node must know, from an answer that is not trusted blindly: a wrong WWID would be a wrong disk.
fn publish_context(
    mapped: &MapVolumeResponse,
    volume: &Volume,
    read_only: bool,
    policy: Policy,
) -> Result<PublishContext, String> {
    let Some(mapping) = &mapped.mapping else {
        return Err("without a mapping".to_owned());
    };
    if mapping.lun > MAX_LUN {
        return Err(format!("with LUN {}", mapping.lun));
    }
    if mapping.read_only != read_only {
        return Err(format!("with readonly={}", mapping.read_only));
    }
    if !is_wwid(&mapped.wwid) || mapped.wwid != volume.wwid {
        return Err(format!(
            "with WWID {:?}, the volume has {:?}",
            mapped.wwid, volume.wwid
        ));
    }
    if mapped.size_bytes == 0 {
        return Err("with a size of 0 bytes".to_owned());
    }
    let portals: Vec<Portal> = mapped
        .ports
        .iter()
        .filter(|port| port.protocol() == Protocol::Iscsi)
        .map(|port| portal(port).ok_or_else(|| format!("with portal {:?} of {:?}", port.portal, port.target)))
        .collect::<Result<_, _>>()?;
    Ok(PublishContext {
        transport: Transport::Iscsi,
        portals,
        lun: mapping.lun,
        wwid: mapped.wwid.clone(),
        size_bytes: mapped.size_bytes,
        read_only,
        adopted: !volume.source_lun.is_empty(),
        policy,
    })
}

fn portal(port: &TargetPort) -> Option<Portal> {
    format!("{},{},{}", port.portal, port.portal_group_tag, port.target)
        .parse()
        .ok()
}

pub(super) async fn unpublish_volume(
    gateways: &Gateways,
    request: ControllerUnpublishVolumeRequest,
) -> Result<ControllerUnpublishVolumeResponse, CommonError> {
    fields::volume_id(&request.volume_id)?;
    // CSI: no node means all of them. A node id that is not ours never got the volume.
    let host_name = match request.node_id.as_str() {
        "" => String::new(),
        text => {
            fields::node_id(text)?;
            match text.parse::<NodeId>() {
                Ok(node) => node.name().to_owned(),
                Err(_) => return Ok(ControllerUnpublishVolumeResponse {}),
            }
        }
    };
    let located = match Located::find(gateways, &request.volume_id, &request.secrets).await {
        Err(CommonError::NoVolume(_)) => return Ok(ControllerUnpublishVolumeResponse {}),
        located => located?,
    };
    let unmapped = located.client.unmap(located.id.uuid(), &host_name).await;
    match unmapped.map_err(|error| located.failed(Rpc::Unpublish, error)) {
        Ok(()) | Err(CommonError::NoVolume(_)) => Ok(ControllerUnpublishVolumeResponse {}),
        Err(error) => Err(error),
    }
}

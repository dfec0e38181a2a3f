//! The product running in a lab, and the CSI calls an orchestrator makes to it.

use std::{collections::HashMap, fmt, time::Duration};

use anyhow::Result;
use storagelink_proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, NodeExpandVolumeRequest,
    NodeGetInfoRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
    controller_client::ControllerClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
};
use tonic::{Code, Request, transport::Channel};

use super::volume::Volume;
use crate::{
    guest::Guest,
    lab::Lab,
    roles::{
        array::{self, Array},
        node,
    },
};

/// What a sidecar gives a call (external-provisioner's and kubelet's order of magnitude).
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// A refused call: its code and text.
#[derive(Debug, Clone)]
pub struct Refused {
    call: &'static str,
    /// The CSI code.
    pub code: Code,
    /// The text an administrator reads.
    pub message: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}: {}", self.call, self.code, self.message)
    }
}

impl std::error::Error for Refused {}

/// How a volume is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A file system of this type.
    Mount(&'static str),
    /// The raw device.
    Block,
}

impl Form {
    /// As the orchestrator says it, for one node.
    #[must_use]
    pub fn capability(self) -> VolumeCapability {
        let access_type = match self {
            Self::Mount(fs_type) => AccessType::Mount(MountVolume {
                fs_type: fs_type.to_owned(),
                ..MountVolume::default()
            }),
            Self::Block => AccessType::Block(BlockVolume {}),
        };
        VolumeCapability {
            access_mode: Some(AccessMode {
                mode: Mode::SingleNodeWriter.into(),
            }),
            access_type: Some(access_type),
        }
    }
}

/// A node plugin.
#[derive(Debug)]
pub struct NodeEnd {
    channel: Channel,
    /// As NodeGetInfo says.
    pub id: String,
}

/// A program that is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// storagelinkd on the array.
    Gateway,
    /// The controller.
    Controller,
    /// The first node's plugin.
    Plugin,
}

/// The successor of a killed program.
#[derive(Debug)]
pub struct Reborn {
    victim: Victim,
    channel: Option<Channel>,
}

/// A lab with the product running on it.
#[derive(Debug)]
pub struct Cluster {
    /// The lab below.
    pub lab: Lab,
    /// The gateway's access.
    pub array: Array,
    controller: Channel,
    nodes: Vec<NodeEnd>,
}

impl Cluster {
    /// Starts the gateway on the array, a plugin on each node (udev on every second one), the controller on the first.
    pub async fn start(lab: Lab) -> Result<Self> {
        Self::start_with_udev(lab, |number| number % 2 == 1).await
    }

    /// [`Cluster::start`] with udev on the nodes that `udev` says.
    pub async fn start_with_udev(lab: Lab, udev: impl Fn(usize) -> bool) -> Result<Self> {
        array::prepare(lab.array()).await?;
        let array = array::start_gateway(&lab).await?;
        let mut nodes = Vec::new();
        for (number, guest) in lab.nodes().iter().enumerate() {
            node::prepare(guest, udev(number)).await?;
            let channel = node::start_plugin(&lab, guest).await?;
            let request = limited(NodeGetInfoRequest {});
            let info = NodeClient::new(channel.clone()).node_get_info(request).await;
            let id = info.map_err(refused("NodeGetInfo"))?.into_inner().node_id;
            nodes.push(NodeEnd { channel, id });
        }
        let controller = node::start_controller(&lab, lab.node(0), &array).await?;
        Ok(Self {
            lab,
            array,
            controller,
            nodes,
        })
    }

    /// The guest of a node.
    #[must_use]
    pub fn guest(&self, node: usize) -> &Guest {
        self.lab.node(node)
    }

    /// StorageClass parameters that name the lab's aggregate.
    #[must_use]
    pub fn parameters(&self) -> HashMap<String, String> {
        [("system", array::SYSTEM), ("aggregate", array::AGGREGATE_NAME)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    /// CreateVolume with these parameters.
    pub async fn create_with(
        &self,
        name: &str,
        bytes: i64,
        form: Form,
        parameters: HashMap<String, String>,
    ) -> Result<Volume, Refused> {
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange {
                required_bytes: bytes,
                limit_bytes: 0,
            }),
            volume_capabilities: vec![form.capability()],
            parameters,
            ..CreateVolumeRequest::default()
        };
        let answer = ControllerClient::new(self.controller.clone())
            .create_volume(limited(request))
            .await;
        let volume = answer
            .map_err(refused("CreateVolume"))?
            .into_inner()
            .volume
            .unwrap_or_default();
        Ok(Volume::new(volume, form))
    }

    /// CreateVolume on the lab's aggregate.
    pub async fn create(&self, name: &str, bytes: i64, form: Form) -> Result<Volume, Refused> {
        self.create_with(name, bytes, form, self.parameters()).await
    }

    /// DeleteVolume.
    pub async fn delete(&self, volume: &Volume) -> Result<(), Refused> {
        let request = DeleteVolumeRequest {
            volume_id: volume.id.clone(),
            ..DeleteVolumeRequest::default()
        };
        let answer = ControllerClient::new(self.controller.clone())
            .delete_volume(limited(request))
            .await;
        answer.map(drop).map_err(refused("DeleteVolume"))
    }

    /// ControllerExpandVolume, then NodeExpandVolume where it is published; the new size in bytes.
    pub async fn expand(&self, volume: &Volume, node: usize, bytes: i64) -> Result<i64, Refused> {
        let range = CapacityRange {
            required_bytes: bytes,
            limit_bytes: 0,
        };
        let request = ControllerExpandVolumeRequest {
            volume_id: volume.id.clone(),
            capacity_range: Some(range),
            volume_capability: Some(volume.form.capability()),
            ..ControllerExpandVolumeRequest::default()
        };
        ControllerClient::new(self.controller.clone())
            .controller_expand_volume(limited(request))
            .await
            .map_err(refused("ControllerExpandVolume"))?;
        let request = NodeExpandVolumeRequest {
            volume_id: volume.id.clone(),
            volume_path: volume.target(),
            staging_target_path: volume.staging(),
            capacity_range: Some(range),
            volume_capability: Some(volume.form.capability()),
            ..NodeExpandVolumeRequest::default()
        };
        let answer = self.node(node).node_expand_volume(limited(request)).await;
        Ok(answer
            .map_err(refused("NodeExpandVolume"))?
            .into_inner()
            .capacity_bytes)
    }

    /// ControllerPublishVolume; the publish context.
    pub async fn attach(&self, volume: &Volume, node: usize) -> Result<HashMap<String, String>, Refused> {
        let request = ControllerPublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: self.nodes[node].id.clone(),
            volume_capability: Some(volume.form.capability()),
            volume_context: volume.context.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        let answer = ControllerClient::new(self.controller.clone())
            .controller_publish_volume(limited(request))
            .await;
        Ok(answer
            .map_err(refused("ControllerPublishVolume"))?
            .into_inner()
            .publish_context)
    }

    /// ControllerUnpublishVolume.
    pub async fn detach(&self, volume: &Volume, node: usize) -> Result<(), Refused> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: self.nodes[node].id.clone(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        let answer = ControllerClient::new(self.controller.clone())
            .controller_unpublish_volume(limited(request))
            .await;
        answer.map(drop).map_err(refused("ControllerUnpublishVolume"))
    }

    /// NodeStageVolume. The staging directory must be there ([`Volume::make_directories`]).
    pub async fn stage(
        &self,
        volume: &Volume,
        node: usize,
        publish_context: &HashMap<String, String>,
    ) -> Result<(), Refused> {
        let request = NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: volume.staging(),
            volume_capability: Some(volume.form.capability()),
            volume_context: volume.context.clone(),
            ..NodeStageVolumeRequest::default()
        };
        let answer = self.node(node).node_stage_volume(limited(request)).await;
        answer.map(drop).map_err(refused("NodeStageVolume"))
    }

    /// NodeUnstageVolume.
    pub async fn unstage(&self, volume: &Volume, node: usize) -> Result<(), Refused> {
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: volume.staging(),
        };
        let answer = self.node(node).node_unstage_volume(limited(request)).await;
        answer.map(drop).map_err(refused("NodeUnstageVolume"))
    }

    /// NodePublishVolume.
    pub async fn publish(
        &self,
        volume: &Volume,
        node: usize,
        publish_context: &HashMap<String, String>,
    ) -> Result<(), Refused> {
        let request = NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: publish_context.clone(),
            staging_target_path: volume.staging(),
            target_path: volume.target(),
            volume_capability: Some(volume.form.capability()),
            volume_context: volume.context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        let answer = self.node(node).node_publish_volume(limited(request)).await;
        answer.map(drop).map_err(refused("NodePublishVolume"))
    }

    /// NodeUnpublishVolume.
    pub async fn unpublish(&self, volume: &Volume, node: usize) -> Result<(), Refused> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: volume.target(),
        };
        let answer = self.node(node).node_unpublish_volume(limited(request)).await;
        answer.map(drop).map_err(refused("NodeUnpublishVolume"))
    }

    /// SIGKILL of a program and whatever it started, then a fresh one. Calls in flight meet the death; [`Cluster::meet`]
    /// makes later ones go to the fresh one.
    pub async fn kill(&self, victim: Victim) -> Result<Reborn> {
        self.end(victim).await?;
        self.start_again(victim).await
    }

    /// SIGKILL of a program and whatever it started.
    pub async fn end(&self, victim: Victim) -> Result<()> {
        let (guest, process) = match victim {
            Victim::Gateway => (self.lab.array(), array::PROCESS),
            Victim::Controller => (self.lab.node(0), node::CONTROLLER),
            Victim::Plugin => (self.lab.node(0), node::NODE),
        };
        guest.kill(process, 9).await?;
        guest.wait(process, CALL_LIMIT).await.map(drop)
    }

    /// A fresh one of a program that has ended.
    pub async fn start_again(&self, victim: Victim) -> Result<Reborn> {
        let guest = self.lab.node(0);
        let channel = match victim {
            Victim::Gateway => {
                array::spawn_gateway(&self.lab).await?;
                None
            }
            Victim::Controller => Some(node::spawn_controller(&self.lab, guest).await?),
            Victim::Plugin => Some(node::start_plugin(&self.lab, guest).await?),
        };
        Ok(Reborn { victim, channel })
    }

    /// SIGKILL of the first node's plugin, then one with these arguments besides the usual ones.
    pub async fn restart_plugin(&mut self, more: &[&str]) -> Result<()> {
        self.end(Victim::Plugin).await?;
        let channel = node::start_plugin_with(&self.lab, self.lab.node(0), more).await?;
        self.nodes[0].channel = channel;
        Ok(())
    }

    /// Calls go to the fresh program from here on.
    pub fn meet(&mut self, reborn: Reborn) {
        match (reborn.victim, reborn.channel) {
            (Victim::Controller, Some(channel)) => self.controller = channel,
            (Victim::Plugin, Some(channel)) => self.nodes[0].channel = channel,
            _ => {}
        }
    }

    pub(super) fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.controller.clone())
    }

    fn node(&self, node: usize) -> NodeClient<Channel> {
        NodeClient::new(self.nodes[node].channel.clone())
    }
}

pub(super) fn limited<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_LIMIT);
    request
}

pub(super) fn refused(call: &'static str) -> impl FnOnce(tonic::Status) -> Refused {
    move |status| Refused {
        call,
        code: status.code(),
        message: status.message().to_owned(),
    }
}

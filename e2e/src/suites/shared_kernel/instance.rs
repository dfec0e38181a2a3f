//! A node that is no guest of its own: a node plugin in a network namespace of its own, with its own state, on a kernel that others use too.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use storagelink_proto::csi::v1::{
    ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, NodeGetInfoRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
    VolumeCapability, node_client::NodeClient,
};
use tonic::transport::Channel;

use crate::{
    guest::Guest,
    suites::{
        cluster::{Cluster, Form, limited, refused},
        volume::Volume,
    },
};

/// The handle of the guest's first network namespace, where iscsid runs.
pub(super) const HOST_NETWORK: &str = "/run/netns/host";
const SOCKET_LIMIT: Duration = Duration::from_secs(20);
const END_LIMIT: Duration = Duration::from_secs(20);

/// What its /dev is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dev {
    /// The guest's.
    Host,
    /// A file system of its own with next to nothing in it, as in a container.
    Private,
}

/// A running one.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) name: &'static str,
    dev: Dev,
    channel: Option<Channel>,
    /// As NodeGetInfo says.
    pub(super) id: String,
}

impl Instance {
    /// Makes its network namespace, without any interface that is up, and starts it.
    pub(super) async fn start(
        cluster: &Cluster,
        guest: &Guest,
        name: &'static str,
        dev: Dev,
    ) -> Result<Self> {
        guest.exec(&["ip", "netns", "add", name]).await?;
        let mut instance = Self {
            name,
            dev,
            channel: None,
            id: String::new(),
        };
        instance.spawn(cluster, guest).await?;
        let info = instance
            .node()?
            .node_get_info(limited(NodeGetInfoRequest {}))
            .await;
        instance.id = info.map_err(refused("NodeGetInfo"))?.into_inner().node_id;
        Ok(instance)
    }

    /// Starts its plugin (again).
    pub(super) async fn spawn(&mut self, cluster: &Cluster, guest: &Guest) -> Result<()> {
        let (state, socket) = (self.state(), format!("/run/storagelink/{}.sock", self.name));
        guest.exec(&["mkdir", "-p", "/run/storagelink", &state]).await?;
        let command = format!(
            "exec nsenter --net=/run/netns/{} {} node --endpoint unix://{socket} --node-name {} --state-dir {state} \
             --shared-kernel --iscsi-netns {HOST_NETWORK}",
            self.name,
            cluster.lab.program("storagelink-csi"),
            self.name,
        );
        let script = match self.dev {
            Dev::Host => command,
            // Its own mount on /dev is not seen outside; what it mounts elsewhere is, as from a pod with Bidirectional mounts.
            Dev::Private => format!(
                "mount --make-private /dev; mount -t tmpfs -o mode=755 tmpfs /dev; mknod -m 666 /dev/null c 1 3; {command}"
            ),
        };
        let shell = ["bash", "-ec", &script];
        let apart = ["unshare", "--mount", "--propagation", "unchanged"];
        let argv: Vec<&str> = match self.dev {
            Dev::Host => shell.to_vec(),
            Dev::Private => apart.into_iter().chain(shell).collect(),
        };
        guest.spawn(&self.process(), &argv, &[]).await?;
        let channel = guest.channel(&socket, SOCKET_LIMIT).await;
        self.channel = Some(channel.with_context(|| guest.log(&self.process()).unwrap_or_default())?);
        Ok(())
    }

    /// SIGKILL of the plugin.
    pub(super) async fn kill(&self, guest: &Guest) -> Result<()> {
        guest.kill(&self.process(), 9).await?;
        guest.wait(&self.process(), END_LIMIT).await.map(drop)
    }

    /// Its process, and its log.
    pub(super) fn process(&self) -> String {
        format!("csi-node-{}", self.name)
    }

    /// Its state directory.
    pub(super) fn state(&self) -> String {
        format!("/var/lib/storagelink-csi-{}", self.name)
    }

    /// Name of a volume's map.
    pub(super) fn map(&self, volume: &Volume) -> String {
        volume
            .map()
            .replace("storagelink-", &format!("storagelink-{}@", self.name))
    }

    /// The initiator name that it says it has.
    pub(super) fn initiator(&self) -> &str {
        self.id.split('/').nth(1).unwrap_or_default()
    }

    /// Where a pod's process finds the volume.
    pub(super) fn target(&self, volume: &Volume) -> String {
        format!("/var/lib/kubelet-{}/pods/{}/volume", self.name, volume.id)
    }

    fn staging(&self, volume: &Volume) -> String {
        format!("/var/lib/kubelet-{}/plugins/{}/globalmount", self.name, volume.id)
    }

    fn node(&self) -> Result<NodeClient<Channel>> {
        let channel = self.channel.clone().context("its plugin was not started")?;
        Ok(NodeClient::new(channel))
    }

    /// ControllerPublishVolume, stage and publish; the publish context.
    pub(super) async fn bring_up(
        &self,
        cluster: &Cluster,
        guest: &Guest,
        volume: &Volume,
    ) -> Result<HashMap<String, String>> {
        let request = ControllerPublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: self.id.clone(),
            volume_capability: Some(shared_block()),
            volume_context: volume.context.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        let answer = cluster
            .controller()
            .controller_publish_volume(limited(request))
            .await;
        let answer = answer.map_err(refused("ControllerPublishVolume"))?;
        let context = answer.into_inner().publish_context;
        let target = self.target(volume);
        let parent = target.rsplit_once('/').map_or("/", |(parent, _)| parent);
        guest
            .exec(&["mkdir", "-p", &self.staging(volume), parent])
            .await?;
        self.stage(volume, &context).await?;
        let request = NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: context.clone(),
            staging_target_path: self.staging(volume),
            target_path: target,
            volume_capability: Some(shared_block()),
            volume_context: volume.context.clone(),
            ..NodePublishVolumeRequest::default()
        };
        let answer = self.node()?.node_publish_volume(limited(request)).await;
        answer.map_err(refused("NodePublishVolume"))?;
        Ok(context)
    }

    /// NodeStageVolume.
    pub(super) async fn stage(&self, volume: &Volume, context: &HashMap<String, String>) -> Result<()> {
        let request = NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            publish_context: context.clone(),
            staging_target_path: self.staging(volume),
            volume_capability: Some(shared_block()),
            volume_context: volume.context.clone(),
            ..NodeStageVolumeRequest::default()
        };
        let answer = self.node()?.node_stage_volume(limited(request)).await;
        answer
            .map(drop)
            .map_err(refused("NodeStageVolume"))
            .map_err(Into::into)
    }

    /// The way back.
    pub(super) async fn take_down(&self, cluster: &Cluster, guest: &Guest, volume: &Volume) -> Result<()> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: self.target(volume),
        };
        let answer = self.node()?.node_unpublish_volume(limited(request)).await;
        answer.map_err(refused("NodeUnpublishVolume"))?;
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: self.staging(volume),
        };
        let answer = self.node()?.node_unstage_volume(limited(request)).await;
        answer.map_err(refused("NodeUnstageVolume"))?;
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            node_id: self.id.clone(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        let answer = cluster
            .controller()
            .controller_unpublish_volume(limited(request))
            .await;
        answer.map_err(refused("ControllerUnpublishVolume"))?;
        // The orchestrator's own directories; one that the plugin left something in stays, and is found.
        let directory = format!("/var/lib/kubelet-{}", self.name);
        let empty = ["find", &directory, "-depth", "-type", "d", "-empty", "-delete"];
        guest.exec(&empty).await.map(drop)
    }

    /// Its volumes, as `mpathutil --node` shows them.
    pub(super) async fn shown(&self, cluster: &Cluster, guest: &Guest) -> Result<Vec<Value>> {
        let program = cluster.lab.program("mpathutil");
        let argv = [
            &program,
            "--node",
            self.name,
            "--state-dir",
            &self.state(),
            "status",
            "-o",
            "json",
        ];
        serde_json::from_str(&guest.exec(&argv).await?).context("mpathutil's JSON")
    }

    /// How many paths of its one volume carry I/O.
    pub(super) async fn usable(&self, cluster: &Cluster, guest: &Guest) -> Result<usize> {
        let shown = self.shown(cluster, guest).await?;
        ensure!(shown.len() == 1, "{} has {shown:?}", self.name);
        let groups = shown[0]["groups"].as_array().cloned().unwrap_or_default();
        let paths = groups
            .iter()
            .filter_map(|group| group["paths"].as_array())
            .flatten();
        let usable = |path: &&Value| path["active"] == true && path["device_state"] == "running";
        Ok(paths.filter(usable).count())
    }
}

/// A raw block volume that several nodes write at once.
pub(super) fn shared_block() -> VolumeCapability {
    use storagelink_proto::csi::v1::volume_capability::access_mode::Mode;
    let mut capability = Form::Block.capability();
    if let Some(mode) = &mut capability.access_mode {
        mode.mode = Mode::MultiNodeMultiWriter.into();
    }
    capability
}

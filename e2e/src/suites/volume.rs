//! A volume as the orchestrator knows it, and its way from nothing to a mounted path and back.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use serde_json::Value;
use storagelink_proto::csi::v1 as csi;

use super::cluster::{Cluster, Form};
use crate::guest::Guest;

/// A volume that CreateVolume answered.
#[derive(Debug, Clone)]
pub struct Volume {
    /// CSI volume id.
    pub id: String,
    /// Volume context.
    pub context: HashMap<String, String>,
    /// Size in bytes.
    pub bytes: i64,
    /// How it is used.
    pub form: Form,
}

impl Volume {
    pub(super) fn new(volume: csi::Volume, form: Form) -> Self {
        Self {
            id: volume.volume_id,
            context: volume.volume_context,
            bytes: volume.capacity_bytes,
            form,
        }
    }

    /// Name of its dm map.
    #[must_use]
    pub fn map(&self) -> String {
        let uuid = self.id.split('@').next().unwrap_or_default();
        format!("storagelink-{uuid}")
    }

    /// Where kubelet stages it.
    #[must_use]
    pub fn staging(&self) -> String {
        format!(
            "/var/lib/kubelet/plugins/kubernetes.io/csi/csi.storagelink.io/{}/globalmount",
            self.id
        )
    }

    /// Where kubelet wants it for a pod.
    #[must_use]
    pub fn target(&self) -> String {
        format!(
            "/var/lib/kubelet/pods/{}/volumes/kubernetes.io~csi/mount",
            self.id
        )
    }

    /// What a pod's process writes to: the block device, or a file on the file system.
    #[must_use]
    pub fn data(&self) -> String {
        match self.form {
            Form::Block => self.target(),
            Form::Mount(_) => format!("{}/data", self.target()),
        }
    }

    /// The orchestrator's part before staging: the staging directory, and the parent of the target.
    pub async fn make_directories(&self, guest: &Guest) -> Result<()> {
        let target = self.target();
        let parent = target.rsplit_once('/').map_or("/", |(parent, _)| parent);
        guest
            .exec(&["mkdir", "-p", &self.staging(), parent])
            .await
            .map(drop)
    }

    /// The orchestrator's part after unstaging. Only removes empty directories: what a plugin left makes it fail.
    pub async fn remove_directories(&self, guest: &Guest) -> Result<()> {
        let (staging, target) = (self.staging(), self.target());
        // rmdir -p goes up until a directory is not empty; that end is no failure, the first one not going is.
        guest
            .shell(&format!(
                "for d in {staging} $(dirname {target}); do \
                   rmdir $d; cd /var/lib/kubelet; rmdir -p --ignore-fail-on-non-empty $(dirname ${{d#/var/lib/kubelet/}}); \
                 done"
            ))
            .await
            .context("remove the orchestrator's directories")
            .map(drop)
    }

    /// ControllerPublish, stage and publish on a node; the publish context.
    pub async fn bring_up(&self, cluster: &Cluster, node: usize) -> Result<HashMap<String, String>> {
        let context = cluster.attach(self, node).await?;
        self.make_directories(cluster.guest(node)).await?;
        cluster.stage(self, node, &context).await?;
        cluster.publish(self, node, &context).await?;
        Ok(context)
    }

    /// Its map on a node, as `mpathutil status -o json` shows it.
    pub async fn shown(&self, cluster: &Cluster, node: usize) -> Result<Value> {
        let program = cluster.lab.program("mpathutil");
        let guest = cluster.guest(node);
        let text = guest.exec(&[&program, "status", "-o", "json"]).await?;
        let maps: Vec<Value> = serde_json::from_str(&text).context("mpathutil's answer")?;
        let map = maps.into_iter().find(|map| map["name"] == self.map().as_str());
        map.context("no such map")
    }

    /// The way back, but for DeleteVolume.
    pub async fn take_down(&self, cluster: &Cluster, node: usize) -> Result<()> {
        cluster.unpublish(self, node).await?;
        cluster.unstage(self, node).await?;
        self.remove_directories(cluster.guest(node)).await?;
        cluster.detach(self, node).await?;
        Ok(())
    }
}

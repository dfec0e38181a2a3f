//! A PersistentVolume that somebody writes by hand for a volume that exists.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    kube::{
        cluster::{Cluster, DRIVER},
        leftovers::Before,
        objects::{self, Claim, DATA, Pod},
        writers,
    },
    report::Report,
};

const LIMIT: Duration = Duration::from_secs(180);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &mut Report, cluster: &Cluster) -> Result<()> {
    let before = Before::look(cluster).await?;
    let handle = report
        .step("a volume is kept when its claim goes", async {
            let objects = [
                Claim::new("statics", "storagelink").object(),
                Pod::new("statics", "statics").object(),
            ];
            cluster.kubectl.apply(&objects::all(&objects)).await?;
            cluster
                .kubectl
                .until(&["pod", "statics"], ".status.phase", "Running", LIMIT)
                .await?;
            let script = format!("echo kept > {DATA}/file; sync");
            cluster
                .kubectl
                .exec("default", "statics", &["sh", "-ec", &script])
                .await?;
            let volume = cluster
                .kubectl
                .field(&["pvc", "statics"], ".spec.volumeName")
                .await?;
            let handle = writers::volume_of(cluster, "statics").await?;
            let retain = r#"{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}"#;
            cluster
                .kubectl
                .run(&["patch", "pv", &volume, "--type=merge", "-p", retain])
                .await?;
            cluster.kubectl.delete(&["pod", "statics"]).await?;
            cluster.kubectl.delete(&["pvc", "statics"]).await?;
            cluster.kubectl.delete(&["pv", &volume]).await?;
            Ok(handle)
        })
        .await?;
    report
        .step("a PersistentVolume by hand brings it to a pod again", async {
            let volume = json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "statics"},
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "",
                    "csi": {"driver": DRIVER, "volumeHandle": handle, "fsType": "ext4"},
                },
            });
            let mut claim = Claim::new("statics", "").object();
            claim["spec"]["volumeName"] = json!("statics");
            let objects = [volume, claim, Pod::new("statics", "statics").object()];
            cluster.kubectl.apply(&objects::all(&objects)).await?;
            cluster
                .kubectl
                .until(&["pod", "statics"], ".status.phase", "Running", LIMIT)
                .await?;
            let script = format!("cat {DATA}/file");
            let found = cluster
                .kubectl
                .exec("default", "statics", &["sh", "-ec", &script])
                .await?;
            ensure!(found == "kept", "{found:?}");
            Ok(())
        })
        .await?;
    report
        .step("one for a volume that does not exist: the pod's Event says so", async {
            let volume = json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "statics-none"},
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "",
                    "csi": {"driver": DRIVER, "volumeHandle": "11111111-2222-4333-8444-555555555555", "fsType": "ext4"},
                },
            });
            let mut claim = Claim::new("statics-none", "").object();
            claim["spec"]["volumeName"] = json!("statics-none");
            let objects = [volume, claim, Pod::new("statics-none", "statics-none").object()];
            cluster.kubectl.apply(&objects::all(&objects)).await?;
            cluster.kubectl.told("Pod", "statics-none", &["NotFound"], LIMIT).await
        })
        .await?;
    report
        .step(
            "all of it is deleted, the volume with its PersistentVolume",
            async {
                cluster.kubectl.delete(&["pods", "--all"]).await?;
                cluster.kubectl.delete(&["pvc", "--all"]).await?;
                cluster.kubectl.delete(&["pv", "statics-none"]).await?;
                before.nothing_left(cluster).await
            },
        )
        .await
}

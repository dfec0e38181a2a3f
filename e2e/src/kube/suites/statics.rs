//! A PersistentVolume that somebody writes by hand for a volume that exists.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    kube::{
        cluster::{Cluster, DRIVER},
        objects::{self, Claim, DATA, Pod},
        writers,
    },
    report::Report,
};

const NAME: &str = "statics";
/// For a volume that does not exist.
const NONE: &str = "statics-none";
const LIMIT: Duration = Duration::from_secs(300);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let handle = report
        .step("a volume is kept when its claim goes", async {
            let objects = [
                Claim::new(NAME, "storagelink").object(),
                Pod::new(NAME, NAME).object(),
            ];
            objects::create(&cluster.kubectl, NAME, &objects).await?;
            cluster
                .kubectl
                .until(&["pod", NAME], ".status.phase", "Running", LIMIT)
                .await?;
            let script = format!("echo kept > {DATA}/file; sync");
            cluster
                .kubectl
                .exec("default", NAME, &["sh", "-ec", &script])
                .await?;
            let volume = cluster.kubectl.field(&["pvc", NAME], ".spec.volumeName").await?;
            let handle = writers::volume_of(cluster, NAME).await?;
            let retain = r#"{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}"#;
            cluster
                .kubectl
                .run(&["patch", "pv", &volume, "--type=merge", "-p", retain])
                .await?;
            cluster.kubectl.delete(&["pod", NAME]).await?;
            cluster.kubectl.delete(&["pvc", NAME]).await?;
            cluster.kubectl.delete(&["pv", &volume]).await?;
            Ok(handle)
        })
        .await?;
    report
        .step("a PersistentVolume by hand brings it to a pod again", async {
            let volume = json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": NAME},
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "",
                    "csi": {"driver": DRIVER, "volumeHandle": handle, "fsType": "ext4"},
                },
            });
            let mut claim = Claim::new(NAME, "").object();
            claim["spec"]["volumeName"] = json!(NAME);
            let objects = [volume, claim, Pod::new(NAME, NAME).object()];
            objects::create(&cluster.kubectl, NAME, &objects).await?;
            cluster
                .kubectl
                .until(&["pod", NAME], ".status.phase", "Running", LIMIT)
                .await?;
            let script = format!("cat {DATA}/file");
            let found = cluster
                .kubectl
                .exec("default", NAME, &["sh", "-ec", &script])
                .await?;
            ensure!(found == "kept", "{found:?}");
            Ok(())
        })
        .await?;
    report
        .step("one for a volume that does not exist: the pod's Event says so", async {
            let volume = json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": NONE},
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "",
                    "csi": {"driver": DRIVER, "volumeHandle": "11111111-2222-4333-8444-555555555555", "fsType": "ext4"},
                },
            });
            let mut claim = Claim::new(NONE, "").object();
            claim["spec"]["volumeName"] = json!(NONE);
            let objects = [volume, claim, Pod::new(NONE, NONE).object()];
            objects::create(&cluster.kubectl, NAME, &objects).await?;
            cluster.kubectl.told("Pod", NONE, &["NotFound"], LIMIT).await
        })
        .await?;
    report
        .step(
            "all of it is deleted, the volume with its PersistentVolume",
            async {
                objects::delete(&cluster.kubectl, NAME).await?;
                cluster.kubectl.delete(&["pv", NONE]).await?;
                cluster.kubectl.gone(&["pv", NAME], LIMIT).await.map(drop)
            },
        )
        .await
}

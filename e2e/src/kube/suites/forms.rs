//! The forms in which pods use volumes: file systems, raw block, sharing, growing, and what the kubelet does with them.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    kube::{
        cluster::Cluster,
        leftovers::Before,
        objects::{self, Claim, DATA, DEVICE, Pod},
        writers,
    },
    report::Report,
    roles::array,
    wait,
};

const READY_LIMIT: Duration = Duration::from_secs(180);
const GROWN_LIMIT: Duration = Duration::from_secs(180);

/// Runs the steps; each is on its own, and cleans up after itself.
pub async fn run(report: &mut Report, cluster: &Cluster) -> Result<()> {
    let before = Before::look(cluster).await?;
    for fs in ["ext4", "xfs", "btrfs"] {
        let outcome = report
            .step(
                &format!("{fs}: mount options, fsGroup, subPath, grown in use"),
                file_system(cluster, fs),
            )
            .await;
        drop(outcome);
        clean(cluster).await?;
    }
    drop(
        report
            .step("raw block: written, grown in use", block(cluster))
            .await,
    );
    clean(cluster).await?;
    drop(
        report
            .step(
                "raw block on both workers at once: each reads what the other wrote",
                shared_block(cluster),
            )
            .await,
    );
    clean(cluster).await?;
    drop(
        report
            .step("ReadWriteOncePod: a second pod waits", once_pod(cluster))
            .await,
    );
    clean(cluster).await?;
    drop(
        report
            .step("read-only: reads go, writes are refused", read_only(cluster))
            .await,
    );
    clean(cluster).await?;
    drop(
        report
            .step(
                "generic ephemeral: comes and goes with its pod",
                ephemeral(cluster),
            )
            .await,
    );
    clean(cluster).await?;
    drop(
        report
            .step(
                "a file system for several nodes is refused by name",
                refused_mode(cluster),
            )
            .await,
    );
    clean(cluster).await?;
    report.step("nothing is left", before.nothing_left(cluster)).await
}

/// Every pod, claim and class that these steps made.
async fn clean(cluster: &Cluster) -> Result<()> {
    cluster.kubectl.delete(&["pods", "--all"]).await?;
    cluster.kubectl.delete(&["pvc", "--all"]).await?;
    cluster
        .kubectl
        .delete(&["storageclass", "-l", "suite=forms"])
        .await?;
    writers::no_volumes(cluster).await
}

async fn running(cluster: &Cluster, pods: &[&str]) -> Result<()> {
    for pod in pods {
        cluster
            .kubectl
            .until(&["pod", pod], ".status.phase", "Running", READY_LIMIT)
            .await?;
    }
    Ok(())
}

async fn sh(cluster: &Cluster, pod: &str, script: &str) -> Result<String> {
    cluster.kubectl.exec("default", pod, &["sh", "-ec", script]).await
}

fn class(name: &str, fs: &str, more: &Value) -> Value {
    let mut class = objects::class(
        name,
        &json!({"system": array::SYSTEM, "aggregate": array::AGGREGATE_NAME, "csi.storage.k8s.io/fstype": fs}),
    );
    class["metadata"]["labels"] = json!({"suite": "forms"});
    if let (Some(class), Some(more)) = (class.as_object_mut(), more.as_object()) {
        class.extend(more.clone());
    }
    class
}

async fn file_system(cluster: &Cluster, fs: &str) -> Result<()> {
    let name = format!("forms-{fs}");
    let mut pod = Pod::new("forms", "forms").object();
    pod["spec"]["securityContext"] = json!({"fsGroup": 4321});
    if let Some(mounts) = pod["spec"]["containers"][0]["volumeMounts"].as_array_mut() {
        mounts.push(json!({"name": "data", "mountPath": "/part", "subPath": "inner/part"}));
    }
    let objects = [
        class(&name, fs, &json!({"mountOptions": ["noatime"]})),
        Claim::new("forms", &name).object(),
        pod,
    ];
    cluster.kubectl.apply(&objects::all(&objects)).await?;
    running(cluster, &["forms"]).await?;
    let mount = sh(cluster, "forms", &format!("grep ' {DATA} ' /proc/mounts")).await?;
    ensure!(mount.contains(fs) && mount.contains("noatime"), "{mount}");
    let owner = sh(
        cluster,
        "forms",
        &format!("echo x > {DATA}/file; stat -c '%g %a' {DATA}"),
    )
    .await?;
    ensure!(
        owner.starts_with("4321 ") && owner.contains("277"),
        "group and mode of the root: {owner}"
    );
    let part = sh(
        cluster,
        "forms",
        &format!("echo part > /part/file; sync; cat {DATA}/inner/part/file"),
    )
    .await?;
    ensure!(part == "part", "{part:?}");
    let size = || sh(cluster, "forms", "df -k /data | awk 'END { print $(NF-4) }'");
    let small: u64 = size().await?.parse()?;
    grow(cluster, "forms", "2Gi").await?;
    let large: u64 = size().await?.parse()?;
    ensure!(large > small + 700_000, "{small} KiB became {large} KiB");
    let file = sh(cluster, "forms", &format!("cat {DATA}/file")).await?;
    ensure!(file == "x", "{file:?}");
    Ok(())
}

async fn grow(cluster: &Cluster, claim: &str, size: &str) -> Result<()> {
    let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}}).to_string();
    cluster
        .kubectl
        .run(&["patch", "pvc", claim, "--type=merge", "-p", &patch])
        .await?;
    cluster
        .kubectl
        .until(&["pvc", claim], ".status.capacity.storage", size, GROWN_LIMIT)
        .await
        .map(drop)
}

async fn block(cluster: &Cluster) -> Result<()> {
    let mut claim = Claim::new("forms", "storagelink");
    claim.block = true;
    let mut pod = Pod::new("forms", "forms");
    pod.block = true;
    cluster
        .kubectl
        .apply(&objects::all(&[claim.object(), pod.object()]))
        .await?;
    running(cluster, &["forms"]).await?;
    let write = format!("lab-writer write --target {DEVICE} --log /tmp/log --seconds 2 --blocks 64");
    sh(cluster, "forms", &write).await?;
    grow(cluster, "forms", "2Gi").await?;
    wait::until("the device has grown", GROWN_LIMIT, async || {
        Ok(sh(cluster, "forms", &format!("blockdev --getsize64 {DEVICE}")).await? == "2147483648")
    })
    .await?;
    let verify = format!("lab-writer verify --target {DEVICE} --log /tmp/log");
    sh(cluster, "forms", &verify).await.map(drop)
}

async fn shared_block(cluster: &Cluster) -> Result<()> {
    let mut claim = Claim::new("forms", "storagelink");
    claim.block = true;
    claim.modes = &["ReadWriteMany"];
    let mut objects = vec![claim.object()];
    for (pod, node) in [("forms-1", "node1"), ("forms-2", "node2")] {
        let mut pod = Pod::new(pod, "forms");
        pod.block = true;
        pod.node = Some(node);
        objects.push(pod.object());
    }
    cluster.kubectl.apply(&objects::all(&objects)).await?;
    running(cluster, &["forms-1", "forms-2"]).await?;
    for (writer, reader, offset) in [("forms-1", "forms-2", 0), ("forms-2", "forms-1", 8)] {
        let text = format!("written by {writer}");
        let write = format!(
            "printf '%-4096s' '{text}' > /tmp/block; dd if=/tmp/block of={DEVICE} bs=4096 seek={offset} oflag=direct 2>&1"
        );
        sh(cluster, writer, &write).await?;
        let read =
            format!("dd if={DEVICE} bs=4096 skip={offset} count=1 iflag=direct 2>/dev/null | head -c 60");
        let found = sh(cluster, reader, &read).await?;
        ensure!(found.starts_with(&text), "{reader} reads {found:?}");
    }
    // One leaves: the other goes on.
    cluster.kubectl.delete(&["pod", "forms-1"]).await?;
    let read = format!("dd if={DEVICE} bs=4096 count=1 iflag=direct 2>/dev/null | head -c 18");
    let found = sh(cluster, "forms-2", &read).await?;
    ensure!(found == "written by forms-1", "{found:?}");
    Ok(())
}

async fn once_pod(cluster: &Cluster) -> Result<()> {
    let mut claim = Claim::new("forms", "storagelink");
    claim.modes = &["ReadWriteOncePod"];
    let objects = [claim.object(), Pod::new("forms-1", "forms").object()];
    cluster.kubectl.apply(&objects::all(&objects)).await?;
    running(cluster, &["forms-1"]).await?;
    cluster
        .kubectl
        .apply(&Pod::new("forms-2", "forms").object().to_string())
        .await?;
    wait::until("the scheduler says why", Duration::from_secs(60), async || {
        let message = cluster
            .kubectl
            .field(
                &["pod", "forms-2"],
                ".status.conditions[?(@.type=='PodScheduled')].message",
            )
            .await?;
        Ok(message.contains("ReadWriteOncePod"))
    })
    .await?;
    cluster.kubectl.delete(&["pod", "forms-1"]).await?;
    running(cluster, &["forms-2"]).await
}

async fn read_only(cluster: &Cluster) -> Result<()> {
    let objects = [
        Claim::new("forms", "storagelink").object(),
        Pod::new("forms-w", "forms").object(),
    ];
    cluster.kubectl.apply(&objects::all(&objects)).await?;
    running(cluster, &["forms-w"]).await?;
    sh(cluster, "forms-w", &format!("echo kept > {DATA}/file; sync")).await?;
    cluster.kubectl.delete(&["pod", "forms-w"]).await?;
    let mut pod = Pod::new("forms-r", "forms").object();
    pod["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    cluster.kubectl.apply(&pod.to_string()).await?;
    running(cluster, &["forms-r"]).await?;
    let found = sh(cluster, "forms-r", &format!("cat {DATA}/file")).await?;
    ensure!(found == "kept", "{found:?}");
    let said = sh(cluster, "forms-r", &format!("echo x > {DATA}/file 2>&1 || true")).await?;
    let still = sh(
        cluster,
        "forms-r",
        &format!("cat {DATA}/file; grep ' {DATA} ' /proc/mounts"),
    )
    .await?;
    ensure!(
        still.starts_with("kept") && still.contains("ro,"),
        "a write was not refused: {said:?}, {still:?}"
    );
    Ok(())
}

async fn ephemeral(cluster: &Cluster) -> Result<()> {
    let mut pod = Pod::new("forms", "").object();
    let spec = Claim::new("", "storagelink").spec();
    pod["spec"]["volumes"] = json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}}]);
    cluster.kubectl.apply(&pod.to_string()).await?;
    running(cluster, &["forms"]).await?;
    sh(cluster, "forms", &format!("echo x > {DATA}/file")).await?;
    cluster.kubectl.delete(&["pod", "forms"]).await?;
    cluster
        .kubectl
        .gone(&["pvc", "forms-data"], Duration::from_secs(120))
        .await
        .map(drop)
}

async fn refused_mode(cluster: &Cluster) -> Result<()> {
    let mut claim = Claim::new("forms", "storagelink");
    claim.modes = &["ReadWriteMany"];
    cluster.kubectl.apply(&claim.object().to_string()).await?;
    let words = ["volume_capability.access_mode", "MULTI_NODE"];
    cluster
        .kubectl
        .told("PersistentVolumeClaim", "forms", &words, Duration::from_secs(60))
        .await
        .map(drop)
}

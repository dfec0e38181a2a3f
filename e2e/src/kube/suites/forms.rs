//! The forms in which pods use volumes: file systems, raw block, sharing, growing, and what the kubelet does with them.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::{FutureExt as _, StreamExt as _, future::LocalBoxFuture, stream};
use serde_json::{Value, json};

use crate::{
    kube::{
        cluster::Cluster,
        objects::{self, Claim, DATA, DEVICE, Pod},
    },
    report::Report,
    roles::array,
    wait,
};

const READY_LIMIT: Duration = Duration::from_secs(300);
const GROWN_LIMIT: Duration = Duration::from_secs(300);

/// How many steps run side by side: what one waits for, another does.
const SIDE_BY_SIDE: usize = 2;

/// What a step does with objects of this name.
type Form = for<'a> fn(&'a Cluster, &'a str) -> LocalBoxFuture<'a, Result<()>>;

/// The steps, by the name that the objects of each have.
const FORMS: [(&str, &str, Form); 9] = [
    (
        "ext4",
        "ext4: mount options, fsGroup, subPath, grown in use",
        |c, n| file_system(c, n).boxed_local(),
    ),
    (
        "xfs",
        "xfs: mount options, fsGroup, subPath, grown in use",
        |c, n| file_system(c, n).boxed_local(),
    ),
    (
        "btrfs",
        "btrfs: mount options, fsGroup, subPath, grown in use",
        |c, n| file_system(c, n).boxed_local(),
    ),
    ("block", "raw block: written, grown in use", |c, n| {
        block(c, n).boxed_local()
    }),
    (
        "shared",
        "raw block on both workers at once: each reads what the other wrote",
        |c, n| shared_block(c, n).boxed_local(),
    ),
    ("once", "ReadWriteOncePod: a second pod waits", |c, n| {
        once_pod(c, n).boxed_local()
    }),
    ("read", "read-only: reads go, writes are refused", |c, n| {
        read_only(c, n).boxed_local()
    }),
    (
        "ephemeral",
        "generic ephemeral: comes and goes with its pod",
        |c, n| ephemeral(c, n).boxed_local(),
    ),
    (
        "refused",
        "a file system for several nodes is refused by name",
        |c, n| refused_mode(c, n).boxed_local(),
    ),
];

/// Runs the steps; each is on its own, and cleans up after itself.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let steps = FORMS.map(|(name, title, form)| async move {
        let outcome = report.step(title, form(cluster, name)).await;
        outcome.and(objects::delete(&cluster.kubectl, name).await)
    });
    let outcomes: Vec<Result<()>> = stream::iter(steps).buffer_unordered(SIDE_BY_SIDE).collect().await;
    outcomes.into_iter().collect()
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
    if let (Some(class), Some(more)) = (class.as_object_mut(), more.as_object()) {
        class.extend(more.clone());
    }
    class
}

async fn file_system(cluster: &Cluster, fs: &str) -> Result<()> {
    let mut pod = Pod::new(fs, fs).object();
    pod["spec"]["securityContext"] = json!({"fsGroup": 4321});
    if let Some(mounts) = pod["spec"]["containers"][0]["volumeMounts"].as_array_mut() {
        mounts.push(json!({"name": "data", "mountPath": "/part", "subPath": "inner/part"}));
    }
    let objects = [
        class(fs, fs, &json!({"mountOptions": ["noatime"]})),
        Claim::new(fs, fs).object(),
        pod,
    ];
    objects::create(&cluster.kubectl, fs, &objects).await?;
    running(cluster, &[fs]).await?;
    let mount = sh(cluster, fs, &format!("grep ' {DATA} ' /proc/mounts")).await?;
    ensure!(mount.contains(fs) && mount.contains("noatime"), "{mount}");
    let owner = sh(
        cluster,
        fs,
        &format!("echo x > {DATA}/file; stat -c '%g %a' {DATA}"),
    )
    .await?;
    ensure!(
        owner.starts_with("4321 ") && owner.contains("277"),
        "group and mode of the root: {owner}"
    );
    let part = sh(
        cluster,
        fs,
        &format!("echo part > /part/file; sync; cat {DATA}/inner/part/file"),
    )
    .await?;
    ensure!(part == "part", "{part:?}");
    let size = || sh(cluster, fs, "df -k /data | awk 'END { print $(NF-4) }'");
    let small: u64 = size().await?.parse()?;
    grow(cluster, fs, "2Gi").await?;
    let large: u64 = size().await?.parse()?;
    ensure!(large > small + 700_000, "{small} KiB became {large} KiB");
    let file = sh(cluster, fs, &format!("cat {DATA}/file")).await?;
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

async fn block(cluster: &Cluster, name: &str) -> Result<()> {
    let mut claim = Claim::new(name, "storagelink");
    claim.block = true;
    let mut pod = Pod::new(name, name);
    pod.block = true;
    objects::create(&cluster.kubectl, name, &[claim.object(), pod.object()]).await?;
    running(cluster, &[name]).await?;
    let write = format!("lab-writer write --target {DEVICE} --log /tmp/log --seconds 2 --blocks 64");
    sh(cluster, name, &write).await?;
    grow(cluster, name, "2Gi").await?;
    wait::until("the device has grown", GROWN_LIMIT, async || {
        Ok(sh(cluster, name, &format!("blockdev --getsize64 {DEVICE}")).await? == "2147483648")
    })
    .await?;
    let verify = format!("lab-writer verify --target {DEVICE} --log /tmp/log");
    sh(cluster, name, &verify).await.map(drop)
}

async fn shared_block(cluster: &Cluster, name: &str) -> Result<()> {
    let mut claim = Claim::new(name, "storagelink");
    claim.block = true;
    claim.modes = &["ReadWriteMany"];
    let mut objects = vec![claim.object()];
    for (pod, node) in [("shared-1", "node1"), ("shared-2", "node2")] {
        let mut pod = Pod::new(pod, name);
        pod.block = true;
        pod.node = Some(node);
        objects.push(pod.object());
    }
    objects::create(&cluster.kubectl, name, &objects).await?;
    running(cluster, &["shared-1", "shared-2"]).await?;
    for (writer, reader, offset) in [("shared-1", "shared-2", 0), ("shared-2", "shared-1", 8)] {
        let text = format!("written by {writer}");
        let write = format!(
            "printf '%-4096s' '{text}' > /tmp/block; dd if=/tmp/block of={DEVICE} bs=4096 seek={offset} oflag=direct 2>&1"
        );
        sh(cluster, writer, &write).await?;
        let read =
            format!("dd if={DEVICE} bs=4096 skip={offset} count=1 iflag=direct 2>/dev/null | head -c 60");
        let found = sh(cluster, reader, &read).await?;
        ensure!(found.trim_end() == text, "{reader} reads {found:?}");
    }
    // One leaves: the other goes on.
    cluster.kubectl.delete(&["pod", "shared-1"]).await?;
    let read = format!("dd if={DEVICE} bs=4096 count=1 iflag=direct 2>/dev/null | head -c 60");
    let found = sh(cluster, "shared-2", &read).await?;
    ensure!(found.trim_end() == "written by shared-1", "{found:?}");
    Ok(())
}

async fn once_pod(cluster: &Cluster, name: &str) -> Result<()> {
    let mut claim = Claim::new(name, "storagelink");
    claim.modes = &["ReadWriteOncePod"];
    let objects = [claim.object(), Pod::new("once-1", name).object()];
    objects::create(&cluster.kubectl, name, &objects).await?;
    running(cluster, &["once-1"]).await?;
    objects::create(&cluster.kubectl, name, &[Pod::new("once-2", name).object()]).await?;
    wait::until("the scheduler says why", Duration::from_secs(60), async || {
        let message = cluster
            .kubectl
            .field(
                &["pod", "once-2"],
                ".status.conditions[?(@.type=='PodScheduled')].message",
            )
            .await?;
        Ok(message.contains("ReadWriteOncePod"))
    })
    .await?;
    cluster.kubectl.delete(&["pod", "once-1"]).await?;
    running(cluster, &["once-2"]).await
}

async fn read_only(cluster: &Cluster, name: &str) -> Result<()> {
    let objects = [
        Claim::new(name, "storagelink").object(),
        Pod::new("read-w", name).object(),
    ];
    objects::create(&cluster.kubectl, name, &objects).await?;
    running(cluster, &["read-w"]).await?;
    sh(cluster, "read-w", &format!("echo kept > {DATA}/file; sync")).await?;
    cluster.kubectl.delete(&["pod", "read-w"]).await?;
    let mut pod = Pod::new("read-r", name).object();
    pod["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    objects::create(&cluster.kubectl, name, &[pod]).await?;
    running(cluster, &["read-r"]).await?;
    let found = sh(cluster, "read-r", &format!("cat {DATA}/file")).await?;
    ensure!(found == "kept", "{found:?}");
    let said = sh(cluster, "read-r", &format!("echo x > {DATA}/file 2>&1 || true")).await?;
    let still = sh(
        cluster,
        "read-r",
        &format!("cat {DATA}/file; grep ' {DATA} ' /proc/mounts"),
    )
    .await?;
    ensure!(
        still.starts_with("kept") && still.contains("ro,"),
        "a write was not refused: {said:?}, {still:?}"
    );
    Ok(())
}

async fn ephemeral(cluster: &Cluster, name: &str) -> Result<()> {
    let mut pod = Pod::new(name, "").object();
    let spec = Claim::new("", "storagelink").spec();
    pod["spec"]["volumes"] = json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}}]);
    objects::create(&cluster.kubectl, name, &[pod]).await?;
    running(cluster, &[name]).await?;
    sh(cluster, name, &format!("echo x > {DATA}/file")).await?;
    cluster.kubectl.delete(&["pod", name]).await?;
    cluster
        .kubectl
        .gone(&["pvc", &format!("{name}-data")], Duration::from_secs(120))
        .await
        .map(drop)
}

async fn refused_mode(cluster: &Cluster, name: &str) -> Result<()> {
    let mut claim = Claim::new(name, "storagelink");
    claim.modes = &["ReadWriteMany"];
    objects::create(&cluster.kubectl, name, &[claim.object()]).await?;
    let words = ["volume_capability.access_mode", "MULTI_NODE"];
    cluster
        .kubectl
        .told("PersistentVolumeClaim", name, &words, Duration::from_secs(60))
        .await
        .map(drop)
}

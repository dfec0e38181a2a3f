//! Volumes that share a target: taking one down never touches the other, on one node and on two.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    cluster::{Cluster, Form},
    leftovers::Before,
    volume::Volume,
};
use crate::{
    report::Report,
    roles::{inspect, writer::Writer},
    wait,
};

const SIZE: i64 = 512 << 20;

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let before = Before::look(cluster).await?;
    let kept = report
        .step("one volume on the first node, ext4", async {
            let kept = cluster.create("sharing-kept", SIZE, Form::Mount("ext4")).await?;
            kept.bring_up(cluster, 0).await?;
            Ok(kept)
        })
        .await?;
    let neighbour = "unstaged beside it while it is written";
    report
        .step(
            &format!("a raw block volume on the same node, {neighbour}"),
            beside(cluster, &kept, 0, Form::Block),
        )
        .await?;
    report
        .step(
            &format!("a btrfs volume on the other node, {neighbour}"),
            beside(cluster, &kept, 1, Form::Mount("btrfs")),
        )
        .await?;
    report
        .step("nothing is left on both nodes and on the array", async {
            kept.take_down(cluster, 0).await?;
            cluster.delete(&kept).await?;
            before.nothing_left(cluster).await
        })
        .await
}

/// Brings a volume up on `node`, writes both, takes it down under the other's writer.
async fn beside(cluster: &Cluster, kept: &Volume, node: usize, form: Form) -> Result<()> {
    let volume = cluster.create(&format!("sharing-{node}"), SIZE, form).await?;
    volume.bring_up(cluster, node).await?;
    let (first, other) = (cluster.guest(0), cluster.guest(node));
    let kept_writer = Writer::start(
        &cluster.lab,
        first,
        &format!("kept-{node}"),
        &kept.data(),
        "fsync",
    )
    .await?;
    let writer = Writer::start(
        &cluster.lab,
        other,
        &format!("other-{node}"),
        &volume.data(),
        "direct",
    )
    .await?;
    let paths = inspect::paths(first, &kept.map()).await?;
    ensure!(paths.len() == 2, "the kept volume has paths {paths:?}");

    let summary = writer.stop(other, Duration::from_secs(30)).await?;
    ensure!(summary.errors == 0, "{summary:?}");
    writer.verify(other, None).await?;
    let acknowledged = kept_writer.acknowledged(first).await?.len();
    volume.take_down(cluster, node).await?;
    cluster.delete(&volume).await?;
    wait::until(
        "the kept volume is still written",
        Duration::from_secs(20),
        async || Ok(kept_writer.acknowledged(first).await?.len() > acknowledged + 50),
    )
    .await?;

    let summary = kept_writer.stop(first, Duration::from_secs(30)).await?;
    ensure!(summary.errors == 0, "{summary:?}");
    kept_writer.verify(first, None).await?;
    let after = inspect::paths(first, &kept.map()).await?;
    let disks = |paths: &[inspect::Path]| paths.iter().map(|path| path.disk.clone()).collect::<Vec<_>>();
    ensure!(
        disks(&paths) == disks(&after),
        "the kept volume's paths changed: {paths:?} {after:?}"
    );
    Ok(())
}

//! Never the wrong disk: an array shows another LUN under the number of a volume in use, and no path ever failed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{
    cluster::{Cluster, Form},
    leftovers::Before,
    volume::Volume,
};
use crate::{
    report::{Report, seconds},
    roles::{array, node},
    wait,
};

const SIZE: i64 = 64 << 20;
/// The node under test.
const NODE: usize = 0;
/// Identities are proved every 30 s.
const NOTICED: Duration = Duration::from_secs(45);
const BACK: Duration = Duration::from_secs(20);
/// A write that must wait.
const LATE: &str = "late-write";

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let before = Before::look(cluster).await?;
    let volume = cluster.create("remap-mine", SIZE, Form::Block).await?;
    let other = cluster.create("remap-other", SIZE, Form::Block).await?;
    let lun = lun_of(&volume.bring_up(cluster, NODE).await?)?;
    let others = lun_of(&cluster.attach(&other, NODE).await?)?;
    let content = first_bytes(cluster, &other).await?;
    let took = report
        .step(
            "the array shows another disk under the volume's number: no path is used any more",
            async {
                map(cluster, &lun, &others).await?;
                usable(cluster, &volume, 0, NOTICED).await
            },
        )
        .await;
    let held = match &took {
        Ok(took) => {
            report.say(format!("      noticed after {}", seconds(*took)));
            report
                .step("a write waits, the other disk is as it was", async {
                    write(cluster, &volume).await?;
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    let now = first_bytes(cluster, &other).await?;
                    ensure!(now == content, "somebody wrote to the other disk");
                    let running = cluster.guest(NODE).wait(LATE, Duration::from_secs(1)).await;
                    ensure!(running.is_err(), "the write ended: {running:?}");
                    Ok(())
                })
                .await
        }
        Err(_) => Ok(()),
    };
    report
        .step(
            "the array shows the volume again: both paths are used, the write ends",
            async {
                map(cluster, &lun, &lun).await?;
                usable(cluster, &volume, 2, BACK).await?;
                if took.is_ok() {
                    let exit = cluster.guest(NODE).wait(LATE, BACK).await?;
                    ensure!(exit == 0, "the write failed: {exit}");
                }
                ensure!(
                    first_bytes(cluster, &volume).await? != content,
                    "the write is not on the volume"
                );
                ensure!(
                    first_bytes(cluster, &other).await? == content,
                    "the other disk was written"
                );
                Ok(())
            },
        )
        .await?;
    report
        .step("the volumes are deleted, nothing is left", async {
            volume.take_down(cluster, NODE).await?;
            cluster.delete(&volume).await?;
            cluster.detach(&other, NODE).await?;
            cluster.delete(&other).await?;
            before.nothing_left(cluster).await
        })
        .await?;
    took.and(held)
}

fn lun_of(context: &std::collections::HashMap<String, String>) -> Result<String> {
    context
        .get("lun")
        .cloned()
        .context("the publish context has no lun")
}

/// Lets the node's LUN `number` lead to what the target has under `to`.
async fn map(cluster: &Cluster, number: &str, to: &str) -> Result<()> {
    let group = format!("/sys/kernel/config/target/iscsi/{}/tpgt_1", array::TARGET);
    let initiator = node::initiator(cluster.guest(NODE));
    let mapped = format!("{group}/acls/{initiator}/lun_{number}");
    let script = format!(
        "set -e; for l in $(find {mapped} -maxdepth 1 -type l); do rm $l; done; ln -s {group}/lun/lun_{to} {mapped}/storagelink"
    );
    cluster.lab.array().shell(&script).await.map(drop)
}

/// Waits until so many paths of the volume's map are usable; how long that took.
async fn usable(cluster: &Cluster, volume: &Volume, wanted: usize, limit: Duration) -> Result<Duration> {
    wait::until(&format!("{wanted} usable paths"), limit, async || {
        let map = volume.shown(cluster, NODE).await?;
        let paths = map["groups"][0]["paths"].as_array();
        let paths = paths.context("a map without paths")?;
        let now = paths
            .iter()
            .filter(|path| path["active"] == true && path["device_state"] == "running")
            .count();
        ensure!(now == wanted, "{now} of {} paths are usable", paths.len());
        Ok(true)
    })
    .await
}

/// Starts a write of one block to the volume; it is not waited for.
async fn write(cluster: &Cluster, volume: &Volume) -> Result<()> {
    let script = format!(
        "head -c 4096 /dev/zero | tr '\\0' x | dd of={} bs=4096 count=1 iflag=fullblock oflag=direct",
        volume.data()
    );
    let argv = ["sh", "-c", &script];
    cluster.guest(NODE).spawn(LATE, &argv, &[]).await.map(drop)
}

/// A sum of a volume's first block, as the array has it.
async fn first_bytes(cluster: &Cluster, volume: &Volume) -> Result<String> {
    let uuid = volume.map().replace("storagelink-", "");
    let script = format!(
        "f=$(find {} -path '*{uuid}*' -type f -size +1M); head -c 4096 $f | sha256sum",
        array::AGGREGATE
    );
    cluster.lab.array().shell(&script).await
}

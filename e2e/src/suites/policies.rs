//! The multipath parameters of a StorageClass, on the real kernel: what they do to the map, and to I/O without a path.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tonic::Code;

use super::{
    cluster::{Cluster, Form},
    leftovers::Before,
    volume::Volume,
};
use crate::{
    net::Fabric,
    report::{Report, seconds},
    wait,
};

const SIZE: i64 = 64 << 20;
/// The node under test.
const NODE: usize = 0;
/// iscsid's own pauses before it logs in again are most of it.
const BACK: Duration = Duration::from_secs(30);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let before = Before::look(cluster).await?;
    report
        .step(
            "a value that is not known is refused by its key, and nothing is made",
            wrong(cluster),
        )
        .await?;
    for (parameters, groups) in [
        (&[("pathSelector", "queue-length")][..], 1),
        (&[("pathSelector", "service-time"), ("queueMode", "bio")], 1),
        (&[("pathGrouping", "failover")], 2),
    ] {
        let title = format!("{parameters:?}: the map is so, and carries I/O");
        report.step(&title, carries(cluster, parameters, groups)).await?;
    }
    report
        .step(
            "minPaths above the portals there are: not staged, and nothing is left on the node",
            too_few(cluster, &before),
        )
        .await?;
    let took = report
        .step(
            "noPathRetry fail: without a path a write fails at once, with one the next does not",
            fails(cluster),
        )
        .await?;
    report.say(format!(
        "      the write failed {} after both fabrics were cut",
        seconds(took)
    ));
    report
        .step("nothing is left", async { before.nothing_left(cluster).await })
        .await
}

/// The lab's aggregate, and these parameters.
fn with(cluster: &Cluster, more: &[(&str, &str)]) -> HashMap<String, String> {
    let more = more
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    cluster.parameters().into_iter().chain(more).collect()
}

async fn wrong(cluster: &Cluster) -> Result<()> {
    for (key, value) in [
        ("noPathRetry", "0"),
        ("pathSelector", "round_robin"),
        ("minPaths", "many"),
    ] {
        let asked = cluster.create_with("policies", SIZE, Form::Block, with(cluster, &[(key, value)]));
        let refused = asked
            .await
            .err()
            .with_context(|| format!("{key} {value:?} was taken"))?;
        ensure!(
            refused.code == Code::InvalidArgument && refused.message.contains(key),
            "{refused}"
        );
    }
    Ok(())
}

async fn carries(cluster: &Cluster, parameters: &[(&str, &str)], groups: usize) -> Result<()> {
    let guest = cluster.guest(NODE);
    let volume = cluster
        .create_with("policies", SIZE, Form::Block, with(cluster, parameters))
        .await?;
    volume.bring_up(cluster, NODE).await?;
    let map = volume.shown(cluster, NODE).await?;
    let selector = parameters.iter().find(|(key, _)| *key == "pathSelector");
    ensure!(
        map["selector"] == selector.map_or("round-robin", |(_, value)| value)
            && map["groups"].as_array().map(Vec::len) == Some(groups),
        "{map}"
    );
    if parameters.contains(&("queueMode", "bio")) {
        // Schedulers work on requests.
        let devno = map["devno"].as_str().context("the map's number")?;
        let script = format!("cat /sys/dev/block/{devno}/queue/scheduler 2>/dev/null || true");
        let scheduler = guest.shell(&script).await?;
        ensure!(!scheduler.contains('['), "a scheduler over bios: {scheduler}");
    }
    write(cluster, &volume).await?;
    volume.take_down(cluster, NODE).await?;
    Ok(cluster.delete(&volume).await?)
}

async fn too_few(cluster: &Cluster, before: &Before) -> Result<()> {
    let guest = cluster.guest(NODE);
    let volume = cluster
        .create_with("policies", SIZE, Form::Block, with(cluster, &[("minPaths", "3")]))
        .await?;
    let context = cluster.attach(&volume, NODE).await?;
    volume.make_directories(guest).await?;
    let staged = cluster.stage(&volume, NODE, &context).await;
    let refused = staged.err().context("it was staged")?;
    ensure!(
        refused.code == Code::Unavailable && refused.message.contains("minPaths"),
        "{refused}"
    );
    volume.remove_directories(guest).await?;
    before.nothing_left_on_nodes(cluster).await?;
    cluster.detach(&volume, NODE).await?;
    Ok(cluster.delete(&volume).await?)
}

/// How long a write without a path took to fail.
async fn fails(cluster: &Cluster) -> Result<Duration> {
    let guest = cluster.guest(NODE);
    let volume = cluster
        .create_with(
            "policies",
            SIZE,
            Form::Block,
            with(cluster, &[("noPathRetry", "fail")]),
        )
        .await?;
    volume.bring_up(cluster, NODE).await?;
    for fabric in [Fabric::A, Fabric::B] {
        guest.cut(fabric).await?;
    }
    let start = std::time::Instant::now();
    let failed = write(cluster, &volume).await;
    let took = start.elapsed();
    for fabric in [Fabric::A, Fabric::B] {
        guest.heal(fabric).await?;
    }
    let error = failed.err().context("a write without a path was acknowledged")?;
    ensure!(format!("{error:#}").contains("Input/output error"), "{error:#}");
    wait::until("a path carries a write again", BACK, async || {
        write(cluster, &volume).await.map(|()| true)
    })
    .await?;
    volume.take_down(cluster, NODE).await?;
    cluster.delete(&volume).await?;
    Ok(took)
}

/// Writes a block and reads it back, past the page cache.
async fn write(cluster: &Cluster, volume: &Volume) -> Result<()> {
    let data = volume.data();
    let script = format!(
        "set -e; head -c 65536 /dev/urandom > /run/policies; dd if=/run/policies of={data} bs=64k oflag=direct 2>&1; \
         dd if={data} bs=64k count=1 iflag=direct 2>/dev/null | cmp - /run/policies; rm /run/policies"
    );
    cluster.guest(NODE).shell(&script).await.map(drop)
}

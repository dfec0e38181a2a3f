//! The main job: a StorageClass's parameters become a disk that a process writes over two paths, one of which is cut under
//! it; and afterwards nothing is left.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tonic::Code;

use super::{
    cluster::{Cluster, Form},
    leftovers::Before,
    volume::Volume,
};
use crate::{
    net::Fabric,
    report::{Report, seconds},
    roles::{array, inspect, writer::Writer},
    wait,
};

const GIB: i64 = 1 << 30;
/// The node under test.
const NODE: usize = 0;
/// How long writes must go on over the one path that is left.
const ON_ONE_PATH: Duration = Duration::from_secs(8);
/// Promise of the main job; the engine makes it shorter.
const PATH_BACK: Duration = Duration::from_secs(5);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let guest = cluster.guest(NODE);
    let before = Before::look(cluster).await?;

    let offer = report
        .step(
            "CreateVolume without an aggregate lists what there is",
            offers(cluster),
        )
        .await?;
    report.note(&offer);
    let parameters = cluster.parameters();
    report.note(format!("parameters: {parameters:?}"));
    let volume = report
        .step("CreateVolume, twice with one answer", async {
            let volume = cluster.create("main-job", GIB, Form::Mount("xfs")).await?;
            let again = cluster.create("main-job", GIB, Form::Mount("xfs")).await?;
            ensure!(
                volume.id == again.id && volume.bytes >= GIB,
                "{volume:?} {again:?}"
            );
            Ok(volume)
        })
        .await?;
    let context = report
        .step("ControllerPublishVolume", async {
            Ok(cluster.attach(&volume, NODE).await?)
        })
        .await?;
    let portals = context.get("portals").cloned().unwrap_or_default();
    for portal in portals.split(' ') {
        report.note(format!("portal: {portal}"));
    }
    volume.make_directories(guest).await?;
    let start = Instant::now();
    report
        .step("NodeStageVolume: first on this node, format xfs", async {
            Ok(cluster.stage(&volume, NODE, &context).await?)
        })
        .await?;
    report.note(format!("stage, first use: {}", seconds(start.elapsed())));
    report
        .step("NodePublishVolume", async {
            Ok(cluster.publish(&volume, NODE, &context).await?)
        })
        .await?;
    report.note_lines(&guest.exec(&[&cluster.lab.program("mpathutil"), "status"]).await?);
    let second = report
        .step(
            "a second volume while the sessions are up",
            second_volume(cluster),
        )
        .await?;
    report.note(format!(
        "stage, sessions up: {}; unstage: {}",
        seconds(second.0),
        seconds(second.1)
    ));

    let writer = report
        .step(
            "both paths carry about half of the requests",
            write_on_both(cluster, &volume),
        )
        .await?;
    print_paths(report, cluster, &volume, "before the cut").await?;
    report
        .step(
            "fabric a is cut silently: writes go on over fabric b",
            cut(cluster, &volume, &writer),
        )
        .await?;
    print_paths(report, cluster, &volume, "during the cut").await?;
    let back = report
        .step(
            "fabric a is back: both paths carry by themselves within 5 s",
            heal(cluster, &volume),
        )
        .await?;
    report.note(format!(
        "both paths carry again {} after the fabric returned",
        seconds(back)
    ));
    print_paths(report, cluster, &volume, "after the heal").await?;
    let summary = report
        .step(
            "no error reached the writer, everything acknowledged is there",
            async {
                let summary = writer.stop(guest, Duration::from_secs(30)).await?;
                ensure!(summary.errors == 0, "{summary:?}");
                writer.verify(guest, None).await?;
                Ok(summary)
            },
        )
        .await?;
    report.note(format!(
        "{} writes, the longest {}",
        summary.writes,
        seconds(Duration::from_micros(summary.longest_us))
    ));

    report
        .step("NodeUnpublishVolume", async {
            Ok(cluster.unpublish(&volume, NODE).await?)
        })
        .await?;
    let start = Instant::now();
    report
        .step("NodeUnstageVolume", async {
            Ok(cluster.unstage(&volume, NODE).await?)
        })
        .await?;
    report.note(format!(
        "unstage, last on this node: {}",
        seconds(start.elapsed())
    ));
    volume.remove_directories(guest).await?;
    report
        .step("ControllerUnpublishVolume", async {
            Ok(cluster.detach(&volume, NODE).await?)
        })
        .await?;
    report
        .step("DeleteVolume", async { Ok(cluster.delete(&volume).await?) })
        .await?;
    report
        .step("nothing is left on the node and on the array", async {
            before.nothing_left(cluster).await
        })
        .await
}

/// The text an administrator gets who has not chosen yet.
async fn offers(cluster: &Cluster) -> Result<String> {
    let mut parameters = cluster.parameters();
    parameters.remove("aggregate");
    match cluster
        .create_with("no-aggregate", GIB, Form::Block, parameters)
        .await
    {
        Ok(volume) => anyhow::bail!("it chose one by itself: {volume:?}"),
        Err(refused) => {
            ensure!(refused.code == Code::InvalidArgument, "{refused}");
            ensure!(refused.message.contains(array::AGGREGATE_NAME), "{refused}");
            Ok(refused.message)
        }
    }
}

/// Stage and unstage of another volume of the target; how long each took.
async fn second_volume(cluster: &Cluster) -> Result<(Duration, Duration)> {
    let volume = cluster
        .create("main-job-second", GIB, Form::Mount("ext4"))
        .await?;
    let context = cluster.attach(&volume, NODE).await?;
    let guest = cluster.guest(NODE);
    volume.make_directories(guest).await?;
    let start = Instant::now();
    cluster.stage(&volume, NODE, &context).await?;
    let stage = start.elapsed();
    let start = Instant::now();
    cluster.unstage(&volume, NODE).await?;
    let unstage = start.elapsed();
    volume.remove_directories(guest).await?;
    cluster.detach(&volume, NODE).await?;
    cluster.delete(&volume).await?;
    Ok((stage, unstage))
}

async fn write_on_both(cluster: &Cluster, volume: &Volume) -> Result<Writer> {
    let guest = cluster.guest(NODE);
    let writer = Writer::start(&cluster.lab, guest, "main-job", &volume.data(), "direct").await?;
    let before = inspect::paths(guest, &volume.map()).await?;
    carried(cluster, volume, &before, 500, Duration::from_secs(30)).await?;
    let shares = inspect::shares(&before, &inspect::paths(guest, &volume.map()).await?);
    let even = shares.len() == 2 && shares.iter().all(|(_, _, share)| (40.0..=60.0).contains(share));
    ensure!(even, "requests are not shared: {shares:?}");
    Ok(writer)
}

/// Waits until writes go on and none goes to this portal.
pub(super) async fn writes_avoid(
    cluster: &Cluster,
    volume: &Volume,
    writer: &Writer,
    portal: &str,
) -> Result<()> {
    let guest = cluster.guest(NODE);
    wait::until(
        "the dead path is out and writes go on",
        Duration::from_secs(60),
        async || {
            let before = inspect::paths(guest, &volume.map()).await?;
            let acknowledged = writer.acknowledged(guest).await?.len();
            tokio::time::sleep(Duration::from_millis(500)).await;
            let shares = inspect::shares(&before, &inspect::paths(guest, &volume.map()).await?);
            Ok(writer.acknowledged(guest).await?.len() > acknowledged
                && shares
                    .iter()
                    .all(|(path, requests, _)| path.portal != portal || *requests == 0))
        },
    )
    .await
    .map(drop)
}

async fn cut(cluster: &Cluster, volume: &Volume, writer: &Writer) -> Result<()> {
    let guest = cluster.guest(NODE);
    guest.cut(Fabric::A).await?;
    let dead = cluster.lab.array().address(Fabric::A);
    writes_avoid(cluster, volume, writer, &dead).await?;
    let before = inspect::paths(guest, &volume.map()).await?;
    tokio::time::sleep(ON_ONE_PATH).await;
    let shares = inspect::shares(&before, &inspect::paths(guest, &volume.map()).await?);
    ensure!(
        shares
            .iter()
            .any(|(path, requests, _)| path.portal != dead && *requests > 100),
        "{shares:?}"
    );
    Ok(())
}

async fn heal(cluster: &Cluster, volume: &Volume) -> Result<Duration> {
    let guest = cluster.guest(NODE);
    let before = inspect::paths(guest, &volume.map()).await?;
    guest.heal(Fabric::A).await?;
    let start = Instant::now();
    carried(cluster, volume, &before, 20, PATH_BACK).await?;
    Ok(start.elapsed())
}

/// Waits until each of two paths has carried `least` requests since `before`.
pub(super) async fn carried(
    cluster: &Cluster,
    volume: &Volume,
    before: &[inspect::Path],
    least: u64,
    limit: Duration,
) -> Result<()> {
    let guest = cluster.guest(NODE);
    let what = format!("{least} requests over each path");
    wait::until(&what, limit, async || {
        let now = inspect::paths(guest, &volume.map()).await?;
        let shares = inspect::shares(before, &now);
        ensure!(
            shares.len() == 2 && shares.iter().all(|(_, requests, _)| *requests >= least),
            "{shares:?}"
        );
        Ok(true)
    })
    .await
    .map(drop)
}

async fn print_paths(report: &Report, cluster: &Cluster, volume: &Volume, when: &str) -> Result<()> {
    for path in inspect::paths(cluster.guest(NODE), &volume.map()).await? {
        report.note(format!(
            "{when}: {} to {}: {} requests, {}",
            path.disk, path.portal, path.requests, path.state
        ));
    }
    Ok(())
}

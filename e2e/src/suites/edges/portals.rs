//! Portals that are dead when a volume is staged, and longer than a map waits for them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tonic::Code;

use super::{BACK, SIZE};
use crate::{
    net::Fabric,
    report::{Report, seconds},
    roles::inspect,
    suites::{
        cluster::{Cluster, Form},
        volume::Volume,
    },
    wait,
};

/// The node of this half.
const NODE: usize = 1;
/// How long the map holds its I/O without a path.
const HELD: Duration = Duration::from_secs(10);
/// That, and what it takes to notice.
const GIVEN_UP: Duration = Duration::from_secs(40);

/// Runs the steps in order; the first that fails ends them.
pub(super) async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let mut parameters = cluster.parameters();
    parameters.insert("noPathRetry".to_owned(), HELD.as_secs().to_string());
    let volume = cluster
        .create_with("edges-portals", SIZE, Form::Block, parameters)
        .await?;
    let context = cluster.attach(&volume, NODE).await?;
    let guest = cluster.guest(NODE);
    volume.make_directories(guest).await?;
    let outcome = async {
        report
            .step(
                "21: no portal answers: an error that says so, and nothing is left",
                async {
                    let before = inspect::snapshot(guest).await?;
                    guest.cut(Fabric::A).await?;
                    guest.cut(Fabric::B).await?;
                    let refused = cluster.stage(&volume, NODE, &context).await;
                    guest.heal(Fabric::B).await?;
                    guest.heal(Fabric::A).await?;
                    match refused {
                        Ok(()) => anyhow::bail!("staged without a portal"),
                        Err(refused) => ensure!(refused.code == Code::Unavailable, "{refused}"),
                    }
                    inspect::same("node", &before, &inspect::snapshot(guest).await?)
                },
            )
            .await?;
        report
            .step(
                "21: one portal is dead: staged over the other, and the first joins",
                async {
                    guest.cut(Fabric::A).await?;
                    let staged = cluster.stage(&volume, NODE, &context).await;
                    let paths = inspect::paths(guest, &volume.map()).await;
                    guest.heal(Fabric::A).await?;
                    staged?;
                    ensure!(paths?.len() == 1, "not one path");
                    cluster.publish(&volume, NODE, &context).await?;
                    wait::until("two paths", 2 * BACK, async || {
                        Ok(inspect::paths(guest, &volume.map()).await?.len() == 2)
                    })
                    .await
                    .map(drop)
                },
            )
            .await?;
        let held = report
            .step(
                "2: no path for longer than a map waits: a write fails, the next one after does not",
                given_up(cluster, &volume),
            )
            .await?;
        report.say(format!("      the write failed after {}", seconds(held)));
        Ok(())
    }
    .await;
    guest.heal(Fabric::A).await?;
    guest.heal(Fabric::B).await?;
    volume.take_down(cluster, NODE).await?;
    cluster.delete(&volume).await?;
    outcome
}

fn write(volume: &Volume) -> [String; 5] {
    let target = format!("of={}", volume.data());
    ["dd", "if=/dev/urandom", &target, "bs=4096", "count=1"].map(str::to_owned)
}

/// How long the write was held.
async fn given_up(cluster: &Cluster, volume: &Volume) -> Result<Duration> {
    const LATE: &str = "edges-late-write";
    let guest = cluster.guest(NODE);
    let argv = write(volume);
    let mut argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    argv.push("oflag=direct");
    guest.exec(&argv).await?;
    guest.cut(Fabric::A).await?;
    guest.cut(Fabric::B).await?;
    let start = Instant::now();
    guest.spawn(LATE, &argv, &[]).await?;
    let exit = guest.wait(LATE, GIVEN_UP).await?;
    let held = start.elapsed();
    ensure!(exit != 0, "a write without a path worked");
    ensure!(held >= HELD, "it was held for {held:?} only");
    guest.heal(Fabric::B).await?;
    guest.heal(Fabric::A).await?;
    wait::until("a write works again", 2 * BACK, async || {
        Ok(guest.run(&argv, &[], BACK).await?.exit == 0)
    })
    .await?;
    wait::until("both paths are back", BACK, async || {
        let paths = inspect::paths(guest, &volume.map()).await?;
        Ok(paths.len() == 2 && paths.iter().all(|path| path.state == "running"))
    })
    .await?;
    Ok(held)
}

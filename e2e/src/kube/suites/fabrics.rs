//! Six writers over both workers while one fabric is cut silently, comes back, and the other is cut.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::life::map_of;
use crate::{
    kube::{
        cluster::Cluster,
        writers::{Place, Writers},
    },
    net::Fabric,
    report::{Report, seconds},
    roles::inspect,
    wait,
};

const REPLICAS: u32 = 6;
/// How long writes go on over the fabric that is left.
const ON_ONE_FABRIC: Duration = Duration::from_secs(10);
/// Until the dead paths of six maps are out, on a loaded machine.
const OUT_LIMIT: Duration = Duration::from_secs(60);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let (writers, places) = report
        .step("a StatefulSet of 6 writes on both workers", async {
            let writers = Writers::start(cluster, "fabrics", REPLICAS, "storagelink").await?;
            let places = writers.places(cluster).await?;
            let on = |node| places.iter().any(|place| place.node == node);
            ensure!(on(0) && on(1), "pods are on {places:?}");
            Ok((writers, places))
        })
        .await?;
    for (fabric, name) in [(Fabric::A, "a"), (Fabric::B, "b")] {
        report
            .step(
                &format!("fabric {name} is cut silently: all go on over the other"),
                cut(cluster, &writers, &places, fabric),
            )
            .await?;
        let back = report
            .step(
                &format!("fabric {name} is back: all use both again"),
                heal(cluster, &places, fabric),
            )
            .await?;
        report.note(format!("both paths of all maps after {}", seconds(back)));
    }
    let longest = report
        .step(
            "no writer saw an error, nothing is lost",
            writers.stop_all(cluster),
        )
        .await?;
    report.note(format!("the longest single write: {}", seconds(longest)));
    report
        .step("pods and claims are deleted", writers.delete(cluster))
        .await
}

/// Maps of a worker with the states of their paths' devices.
async fn states(cluster: &Cluster, places: &[Place]) -> Result<Vec<Vec<inspect::Path>>> {
    let mut maps = Vec::new();
    for guest in cluster.lab.nodes() {
        maps.push(inspect::paths_of_all(guest).await?);
    }
    let mut of = |place: &Place| {
        maps[place.node]
            .remove(&map_of(&place.volume))
            .unwrap_or_default()
    };
    Ok(places.iter().map(&mut of).collect())
}

/// Cuts a fabric; returns when its paths are out, Events told it and all writers went on over the other for a while.
pub async fn cut(cluster: &Cluster, writers: &Writers, places: &[Place], fabric: Fabric) -> Result<()> {
    cluster.lab.array().cut(fabric).await?;
    let dead = cluster.lab.array().address(fabric);
    wait::until("the dead paths are out", OUT_LIMIT, async || {
        let states = states(cluster, places).await?;
        Ok(states
            .iter()
            .flatten()
            .filter(|path| path.portal == dead)
            .all(|path| path.state != "running"))
    })
    .await?;
    let begun = tokio::time::Instant::now();
    told(cluster, &places[0], ["PathLost", "LastPath"], &dead).await?;
    tokio::time::sleep_until(begun + ON_ONE_FABRIC).await;
    writers.all_progress(cluster, places).await
}

/// The node, the claim and the pod say what became of the paths over a portal. `reasons`: on the node, and on the others.
async fn told(cluster: &Cluster, place: &Place, reasons: [&str; 2], address: &str) -> Result<()> {
    let claim = format!("data-{}", place.pod);
    let node = cluster.guest(place.node).name();
    let objects = [
        ("Node", node, reasons[0]),
        ("PersistentVolumeClaim", &claim, reasons[1]),
        ("Pod", &place.pod, reasons[1]),
    ];
    for (kind, name, reason) in objects {
        cluster
            .kubectl
            .told(kind, name, &[reason, address], OUT_LIMIT)
            .await?;
    }
    Ok(())
}

/// Heals it; how long it took until both paths of all maps carried requests again.
pub async fn heal(cluster: &Cluster, places: &[Place], fabric: Fabric) -> Result<Duration> {
    let before = states(cluster, places).await?;
    cluster.lab.array().heal(fabric).await?;
    let took = wait::until("both paths of all maps carry", OUT_LIMIT, async || {
        let now = states(cluster, places).await?;
        for (before, now) in before.iter().zip(&now) {
            let shares = inspect::shares(before, now);
            ensure!(
                shares.len() == 2 && shares.iter().all(|(_, requests, _)| *requests >= 10),
                "{shares:?}"
            );
        }
        Ok(true)
    })
    .await?;
    told(
        cluster,
        &places[0],
        ["PathBack"; 2],
        &cluster.lab.array().address(fabric),
    )
    .await?;
    Ok(took)
}

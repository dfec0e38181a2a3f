//! From a StorageClass and a claim to a pod that writes over both paths, and back to nothing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{
    kube::{cluster::Cluster, writers::Writers},
    report::{Report, seconds},
    roles::inspect,
    wait,
};

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let start = Instant::now();
    let writers = report
        .step(
            "a claim becomes a disk under a pod that writes",
            Writers::start(cluster, "life", 1, "storagelink"),
        )
        .await?;
    report.note(format!("from the claim to writes: {}", seconds(start.elapsed())));
    let pod = "life-0";
    report
        .step(
            "both paths carry about half of the requests",
            both_paths(cluster, &writers),
        )
        .await?;
    report
        .step("every acknowledged write is there", writers.stop(cluster, pod))
        .await?;
    report
        .step("pod and claim are deleted", writers.delete(cluster))
        .await
}

/// Waits until each of two paths has carried 40 to 60 % of at least 100 requests.
pub async fn both_paths(cluster: &Cluster, writers: &Writers) -> Result<()> {
    let places = writers.places(cluster).await?;
    let guest = cluster.guest(places[0].node);
    let map = map_of(&places[0].volume);
    let before = inspect::paths(guest, &map).await?;
    wait::until("requests on both paths", Duration::from_secs(60), async || {
        let shares = inspect::shares(&before, &inspect::paths(guest, &map).await?);
        let total: u64 = shares.iter().map(|(_, requests, _)| requests).sum();
        let even = shares.len() == 2 && shares.iter().all(|(_, _, share)| (40.0..=60.0).contains(share));
        ensure!(total >= 100 && even, "{shares:?}");
        Ok(true)
    })
    .await
    .map(drop)
}

/// Name of the map of a volume.
#[must_use]
pub fn map_of(volume: &str) -> String {
    let uuid = volume.split('@').next().unwrap_or_default();
    format!("storagelink-{uuid}")
}

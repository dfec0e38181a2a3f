//! What the driver depends on goes away: the leading controller in the middle of provisioning, the API server, the
//! gateway. Everything recovers; nothing is made twice, nothing leaks.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::all_are;
use crate::{
    kube::{
        cluster::{Cluster, NAMESPACE},
        objects::{self, Claim, Pod},
        writers::{self, Writers},
    },
    report::Report,
    roles::array,
    wait,
};

const CLAIMS: usize = 12;
const BOUND_LIMIT: Duration = Duration::from_secs(240);
/// How long the API server is away.
const API_AWAY: Duration = Duration::from_secs(120);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    report
        .step(
            "the leading controller is killed while it makes 12 volumes: 12 there are",
            leader(cluster),
        )
        .await?;
    report.step("they are deleted", delete_claims(cluster)).await?;
    report
        .step("the gateway is away: a claim waits, then binds", gateway(cluster))
        .await?;
    report.step("it is deleted", delete_claims(cluster)).await?;
    report
        .step(
            "the API server is away for two minutes: I/O goes on, then pods come and go",
            api(cluster),
        )
        .await
}

fn names() -> Vec<String> {
    (0..CLAIMS).map(|number| format!("outages-{number:02}")).collect()
}

async fn leader(cluster: &Cluster) -> Result<()> {
    let claims: Vec<Value> = names()
        .iter()
        .map(|name| Claim::new(name, "storagelink").object())
        .collect();
    objects::create(&cluster.kubectl, "outages", &claims).await?;
    wait::until("the first volumes are there", BOUND_LIMIT, async || {
        Ok(!cluster.kubectl.list(&["pv"]).await?.is_empty())
    })
    .await?;
    let holder = cluster
        .kubectl
        .field(
            &["-n", NAMESPACE, "lease", "csi-storagelink-io"],
            ".spec.holderIdentity",
        )
        .await?;
    let pods = cluster.kubectl.list(&["-n", NAMESPACE, "pods"]).await?;
    let pod = pods
        .iter()
        .filter_map(|pod| pod["metadata"]["name"].as_str())
        .find(|name| holder.contains(name));
    let pod = pod.ok_or_else(|| anyhow::anyhow!("no pod holds the lease: {holder}"))?;
    cluster
        .kubectl
        .run(&[
            "-n",
            NAMESPACE,
            "delete",
            "pod",
            pod,
            "--grace-period=0",
            "--force",
        ])
        .await?;
    all_are(cluster, "pvc", "Bound", BOUND_LIMIT).await?;
    let (made, there) = (
        array::volumes(cluster.lab.array()).await?,
        cluster.kubectl.list(&["pv"]).await?.len(),
    );
    ensure!(
        (made, there) == (CLAIMS, CLAIMS),
        "{made} volumes on the array, {there} PersistentVolumes"
    );
    Ok(())
}

async fn delete_claims(cluster: &Cluster) -> Result<()> {
    cluster.kubectl.delete(&["pvc", "--all"]).await?;
    writers::no_volumes(cluster).await
}

async fn gateway(cluster: &Cluster) -> Result<()> {
    let guest = cluster.lab.array();
    guest.kill(array::PROCESS, Signal::SIGKILL as i32).await?;
    guest.wait(array::PROCESS, Duration::from_secs(10)).await?;
    let claim = Claim::new("outages-gateway", "storagelink").object();
    objects::create(&cluster.kubectl, "outages", &[claim]).await?;
    wait::until(
        "the claim's Event names the service",
        Duration::from_secs(90),
        async || {
            let events = cluster
                .kubectl
                .events("default", "PersistentVolumeClaim", "outages-gateway")
                .await?;
            ensure!(
                events.iter().any(|event| event.contains("198.18.2.1:21605")),
                "{events:?}"
            );
            Ok(true)
        },
    )
    .await?;
    array::spawn_gateway(&cluster.lab).await?;
    all_are(cluster, "pvc", "Bound", BOUND_LIMIT).await
}

async fn api(cluster: &Cluster) -> Result<()> {
    let writers = Writers::start(cluster, "outages", 2, "storagelink").await?;
    let nodes = [
        writers.node(cluster, "outages-0").await?,
        writers.node(cluster, "outages-1").await?,
    ];
    cluster.control.kill_api().await?;
    tokio::time::sleep(API_AWAY).await;
    let lines = |cluster: &Cluster| -> Vec<usize> {
        let pods = nodes.iter().zip(["outages-0", "outages-1"]);
        pods.map(|(node, pod)| writers.acknowledged(cluster, *node, pod))
            .collect()
    };
    let before = lines(cluster);
    wait::until(
        "writes go on without an API server",
        Duration::from_secs(30),
        async || {
            Ok(lines(cluster)
                .iter()
                .zip(&before)
                .all(|(now, before)| now > before))
        },
    )
    .await?;
    cluster.control.restart_api().await?;
    cluster.nodes_ready().await?;
    writers.stop_all(cluster).await?;
    // New work is done, too.
    let objects = [
        Claim::new("outages-after", "storagelink").object(),
        Pod::new("outages-after", "outages-after").object(),
    ];
    objects::create(&cluster.kubectl, "outages", &objects).await?;
    cluster
        .kubectl
        .until(&["pod", "outages-after"], ".status.phase", "Running", BOUND_LIMIT)
        .await?;
    cluster.kubectl.delete(&["pod", "outages-after"]).await?;
    cluster.kubectl.delete(&["pvc", "outages-after"]).await?;
    writers.delete(cluster).await
}

//! `make demo-kube`: a claim, a pod, a cut fabric, as a user of the cluster watches them.

use anyhow::Result;

use super::{
    fabrics::{cut, heal},
    life::both_paths,
};
use crate::{
    kube::{
        cluster::{Cluster, NAMESPACE},
        writers::Writers,
    },
    net::Fabric,
    report::{Report, seconds},
};

/// Runs the steps in order; the first that fails ends the demonstration.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    show(report, cluster, &["get", "pods", "-n", NAMESPACE, "-o", "wide"]).await?;
    let writers = report
        .step(
            "a StatefulSet with a claim: a formatted multipath disk under a pod that writes",
            Writers::start(cluster, "demo", 1, "storagelink"),
        )
        .await?;
    show(report, cluster, &["get", "pvc,pods"]).await?;
    report
        .step(
            "both paths carry about half of the requests",
            both_paths(cluster, &writers),
        )
        .await?;
    let places = writers.places(cluster).await?;
    paths(report, cluster, places[0].node).await?;
    report
        .step(
            "fabric a is cut silently: writes go on over fabric b",
            cut(cluster, &writers, &places, Fabric::A),
        )
        .await?;
    paths(report, cluster, places[0].node).await?;
    show(report, cluster, &["events", "--for", "pod/demo-0"]).await?;
    let back = report
        .step(
            "fabric a is back: both paths carry by themselves",
            heal(cluster, &places, Fabric::A),
        )
        .await?;
    report.say(format!("      after {}", seconds(back)));
    paths(report, cluster, places[0].node).await?;
    let longest = report
        .step(
            "no write failed, every acknowledged one is there",
            writers.stop_all(cluster),
        )
        .await?;
    report.say(format!("      longest single write: {}", seconds(longest)));
    report
        .step("pod and claim are deleted", writers.delete(cluster))
        .await
}

/// Prints a command and its output.
async fn show(report: &Report, cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    let text = cluster.kubectl.run(arguments).await?;
    report.say(format!("      $ kubectl {}", arguments.join(" ")));
    for line in text.lines() {
        report.say(format!("      {line}"));
    }
    Ok(())
}

/// Prints what mpathutil says on a worker.
async fn paths(report: &Report, cluster: &Cluster, node: usize) -> Result<()> {
    let name = cluster.guest(node).name();
    let selector = format!("spec.nodeName={name}");
    let pod = cluster
        .kubectl
        .field(
            &[
                "pods",
                "-n",
                NAMESPACE,
                "-l",
                "app.kubernetes.io/component=node",
                "--field-selector",
                &selector,
            ],
            ".items[0].metadata.name",
        )
        .await?;
    show(
        report,
        cluster,
        &["exec", "-n", NAMESPACE, &pod, "--", "mpathutil", "list"],
    )
    .await
}

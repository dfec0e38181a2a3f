//! A class that does not say where: the claim stays Pending and its Event lists what there is.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    kube::{
        cluster::Cluster,
        objects::{self, Claim},
        writers,
    },
    report::Report,
    roles::array,
};

const CLASS: &str = "choices";
const CLAIM: &str = "choices";
/// external-provisioner asks again after a growing pause.
const EVENT_LIMIT: Duration = Duration::from_secs(180);
const BOUND_LIMIT: Duration = Duration::from_secs(180);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let outcome = steps(report, cluster).await;
    outcome.and(objects::delete(&cluster.kubectl, CLASS).await)
}

async fn steps(report: &Report, cluster: &Cluster) -> Result<()> {
    let text = report
        .step("without an aggregate the claim's Event lists them", async {
            let class = objects::class(CLASS, &json!({"system": array::SYSTEM}));
            let objects = [class, Claim::new(CLAIM, CLASS).object()];
            objects::create(&cluster.kubectl, CLASS, &objects).await?;
            told(
                cluster,
                &[array::AGGREGATE_NAME, "GiB free", "parameters[aggregate]"],
            )
            .await
        })
        .await?;
    report.note(text);
    report
        .step("an aggregate that is not there is named, with what is", async {
            cluster.kubectl.delete(&["storageclass", CLASS]).await?;
            let class = objects::class(CLASS, &json!({"system": array::SYSTEM, "aggregate": "aggr9"}));
            objects::create(&cluster.kubectl, CLASS, &[class]).await?;
            told(cluster, &["\"aggr9\"", array::AGGREGATE_NAME]).await
        })
        .await?;
    report
        .step("a parameter that is misspelt is named", async {
            cluster.kubectl.delete(&["storageclass", CLASS]).await?;
            let class = objects::class(CLASS, &json!({"system": array::SYSTEM, "agregate": "aggr0"}));
            objects::create(&cluster.kubectl, CLASS, &[class]).await?;
            told(cluster, &["unknown: agregate", "aggregate"]).await
        })
        .await?;
    report
        .step("the class is corrected and the claim binds", async {
            let phase = cluster.kubectl.field(&["pvc", CLAIM], ".status.phase").await?;
            ensure!(phase == "Pending", "the claim is {phase}");
            cluster.kubectl.delete(&["storageclass", CLASS]).await?;
            let parameters = json!({"system": array::SYSTEM, "aggregate": array::AGGREGATE_NAME});
            objects::create(&cluster.kubectl, CLASS, &[objects::class(CLASS, &parameters)]).await?;
            cluster
                .kubectl
                .until(&["pvc", CLAIM], ".status.phase", "Bound", BOUND_LIMIT)
                .await?;
            writers::volume_of(cluster, CLAIM).await
        })
        .await
        .map(drop)
}

async fn told(cluster: &Cluster, words: &[&str]) -> Result<String> {
    cluster
        .kubectl
        .told("PersistentVolumeClaim", CLAIM, words, EVENT_LIMIT)
        .await
}

//! LUNs that somebody made with targetcli before: a claim gets one by its name, with its content, unless its owner or its
//! content is in doubt.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    kube::{
        cluster::Cluster,
        objects::{self, Claim, DATA, Pod},
    },
    report::Report,
    roles::array::{AGGREGATE, AGGREGATE_NAME, SYSTEM},
};

/// The class names the LUN after the claim.
const CLASS: &str = "adopt";
/// The claims, and so the LUNs: one with a file system, one with nothing.
const FULL: &str = "ledger";
const BLANK: &str = "blank";
/// Somebody else's target.
const TARGET: &str = "iqn.2003-01.org.example:before";
const EVENT_LIMIT: Duration = Duration::from_secs(180);
const LIMIT: Duration = Duration::from_secs(300);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let outcome = steps(report, cluster).await;
    outcome.and(objects::delete(&cluster.kubectl, CLASS).await)
}

async fn steps(report: &Report, cluster: &Cluster) -> Result<()> {
    let lun = format!("old-{FULL}");
    report
        .step(
            "a LUN that another target exports is not taken, and the claim's Event says where",
            async {
                make(cluster, FULL, true).await?;
                targetcli(cluster, &["/iscsi", "create", TARGET]).await?;
                let luns = format!("/iscsi/{TARGET}/tpg1/luns");
                targetcli(cluster, &[&luns, "create", &format!("/backstores/fileio/{lun}")]).await?;
                let class =
                    json!({"system": SYSTEM, "aggregate": AGGREGATE_NAME, "adopt": "old-${pvc.name}"});
                let objects = [objects::class(CLASS, &class), Claim::new(FULL, CLASS).object()];
                objects::create(&cluster.kubectl, CLASS, &objects).await?;
                told(cluster, FULL, &["is exported as", TARGET]).await
            },
        )
        .await?;
    report
        .step(
            "nobody exports it any more: the claim binds, the pod finds its content",
            async {
                targetcli(cluster, &["/iscsi", "delete", TARGET]).await?;
                let pod = Pod::new(FULL, FULL).object();
                objects::create(&cluster.kubectl, CLASS, &[pod]).await?;
                cluster
                    .kubectl
                    .until(&["pod", FULL], ".status.phase", "Running", LIMIT)
                    .await?;
                let found = cluster
                    .kubectl
                    .exec("default", FULL, &["cat", &format!("{DATA}/file")])
                    .await?;
                ensure!(found == "kept", "{found:?}");
                let listed = targetcli(cluster, &["ls", "/backstores/fileio"]).await?;
                ensure!(
                    !listed.contains(&lun),
                    "it is still a LUN beside its volume:\n{listed}"
                );
                Ok(())
            },
        )
        .await?;
    report
        .step("a LUN that is not there: the Event lists those that are", async {
            make(cluster, BLANK, false).await?;
            objects::create(&cluster.kubectl, CLASS, &[Claim::new("second", CLASS).object()]).await?;
            told(cluster, "second", &["old-second", &format!("old-{BLANK}")]).await
        })
        .await?;
    report
        .step(
            "one that holds nothing is adopted and never formatted: the pod's Event says so",
            async {
                let objects = [Claim::new(BLANK, CLASS).object(), Pod::new(BLANK, BLANK).object()];
                objects::create(&cluster.kubectl, CLASS, &objects).await?;
                cluster
                    .kubectl
                    .told("Pod", BLANK, &["never formatted"], LIMIT)
                    .await
                    .map(drop)
            },
        )
        .await
}

async fn told(cluster: &Cluster, claim: &str, words: &[&str]) -> Result<()> {
    cluster
        .kubectl
        .told("PersistentVolumeClaim", claim, words, EVENT_LIMIT)
        .await
        .map(drop)
}

/// A LUN of 1 GiB in the aggregate, as an administrator makes it.
async fn make(cluster: &Cluster, claim: &str, full: bool) -> Result<()> {
    let file = format!("{AGGREGATE}/{claim}.img");
    let array = cluster.lab.array();
    array.shell(&format!("truncate -s 1G {file}")).await?;
    if full {
        let script = format!(
            "mkdir -p /tmp/{claim}; echo kept > /tmp/{claim}/file; mkfs.ext4 -q -d /tmp/{claim} {file}; rm -r /tmp/{claim}"
        );
        array.shell(&script).await?;
    }
    targetcli(
        cluster,
        &["/backstores/fileio", "create", &format!("old-{claim}"), &file],
    )
    .await
    .map(drop)
}

async fn targetcli(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let mut argv = vec!["targetcli"];
    argv.extend(arguments);
    cluster.lab.array().exec(&argv).await
}

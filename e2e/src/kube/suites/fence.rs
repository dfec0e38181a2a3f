//! A worker freezes and is declared out of service: its pod moves, finds every acknowledged write, and the old worker,
//! when it wakes up, cannot write a byte and cleans up after itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::upgrade::plugins_ready;
use crate::{
    kube::{
        cluster::{Cluster, condition},
        objects,
        writers::Writers,
    },
    report::{Report, seconds},
    roles::array,
    wait,
};

const SUITE: &str = "fence";
const TAINT: &str = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";
/// node-monitor-grace-period is 30 s.
const NOT_READY_LIMIT: Duration = Duration::from_secs(120);
const MOVED_LIMIT: Duration = Duration::from_secs(240);

/// Runs the steps in order; whatever happens, the worker runs again at the end.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let writers = report
        .step("a writer", async {
            // For so long the old worker waits for its paths to come back before it lets go of the volume.
            let parameters = json!({
                "system": array::SYSTEM, "aggregate": array::AGGREGATE_NAME, "noPathRetry": "15",
            });
            let class = objects::class(SUITE, &parameters);
            objects::create(&cluster.kubectl, SUITE, &[class]).await?;
            Writers::start(cluster, SUITE, 1, SUITE).await
        })
        .await?;
    let pod = "fence-0";
    let old = writers.node(cluster, pod).await?;
    let outcome = steps(report, cluster, &writers, pod, old).await;
    // Harmless where it runs.
    cluster.guest(old).resume().await?;
    let taint = format!("{TAINT}-");
    let name = cluster.guest(old).name();
    let _ = cluster.kubectl.run(&["taint", "node", name, &taint]).await;
    outcome?;
    report
        .step("the old worker is back and its plugin Ready", async {
            cluster.nodes_ready().await?;
            plugins_ready(cluster).await
        })
        .await?;
    report
        .step("pod and claim are deleted", async {
            writers.delete(cluster).await?;
            objects::delete(&cluster.kubectl, SUITE).await
        })
        .await
}

async fn steps(report: &Report, cluster: &Cluster, writers: &Writers, pod: &str, old: usize) -> Result<()> {
    let guest = cluster.guest(old);
    let new = 1 - old;
    let took = report
        .step(
            "its worker freezes, is declared out of service: the pod moves",
            async {
                guest.pause().await?;
                wait::until("the worker is not Ready", NOT_READY_LIMIT, async || {
                    let node = cluster.kubectl.get(&["node", guest.name()]).await?;
                    Ok(!condition(&node, "Ready"))
                })
                .await?;
                cluster
                    .kubectl
                    .run(&["taint", "node", guest.name(), TAINT])
                    .await?;
                let start = std::time::Instant::now();
                wait::until("the pod runs on the other worker", MOVED_LIMIT, async || {
                    let found = cluster.kubectl.get(&["pod", pod]).await?;
                    let there = found["spec"]["nodeName"] == cluster.guest(new).name();
                    Ok(there && condition(&found, "Ready"))
                })
                .await?;
                Ok(start.elapsed())
            },
        )
        .await?;
    report.note(format!("from the taint to Ready elsewhere: {}", seconds(took)));
    report
        .step(
            "every write that the frozen worker acknowledged is there",
            async {
                let verdict = writers.verify_from(cluster, pod, old).await?;
                ensure!(verdict.acknowledged > 5, "{verdict:?}");
                Ok(())
            },
        )
        .await?;
    let acknowledged = writers.acknowledged(cluster, old, pod);
    report
        .step(
            "the old worker wakes up: its writes fail, nothing of the volume changes",
            async {
                let sum = sum_of(cluster, pod).await?;
                guest.resume().await?;
                let file = guest.results().join(format!("{pod}.summary"));
                wait::until(
                    "the old writer's errors, or its end",
                    Duration::from_secs(120),
                    async || {
                        let running = guest.shell("pgrep -f '[l]ab-writer write' || true").await?;
                        Ok(running.is_empty() || std::fs::read(&file).is_ok_and(|text| !text.is_empty()))
                    },
                )
                .await?;
                let after = writers.acknowledged(cluster, old, pod);
                // Writes that the array had taken before the freeze may be acknowledged now; a handful, one per job.
                ensure!(
                    after <= acknowledged + 2,
                    "{acknowledged} acknowledged writes became {after}"
                );
                let now = sum_of(cluster, pod).await?;
                ensure!(now == sum, "the volume's data changed: {sum} became {now}");
                Ok(())
            },
        )
        .await
}

/// Checksum of what is on the disk, not in a cache.
async fn sum_of(cluster: &Cluster, pod: &str) -> Result<String> {
    let script = "dd if=/data/file bs=1M iflag=direct 2>/dev/null | sha256sum";
    cluster.kubectl.exec("default", pod, &["sh", "-ec", script]).await
}

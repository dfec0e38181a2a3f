//! The driver goes and comes under load: killed, upgraded to another image, uninstalled, and the kubelet restarted. I/O goes on and
//! nothing is mounted again.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::life::map_of;
use crate::{
    kube::{
        cluster::{Cluster, NAMESPACE},
        worker::{self, KUBELET},
        writers::{Place, Writers},
    },
    net::Fabric,
    report::{Report, seconds},
    wait,
};

const REPLICAS: u32 = 2;
/// The second tag of the product's images.
const NEXT: &str = "next";
const ROLLED_LIMIT: Duration = Duration::from_secs(240);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let writers = report
        .step(
            "two writers",
            Writers::start(cluster, "upgrade", REPLICAS, "storagelink"),
        )
        .await?;
    let mounts = mounts(cluster, &writers).await?;
    report
        .step("the node plugin is killed on both workers: I/O goes on", async {
            for guest in cluster.lab.nodes() {
                guest
                    .exec(&["pkill", "-KILL", "-f", "storagelink-csi node"])
                    .await?;
            }
            unchanged(cluster, &writers, &mounts).await?;
            plugins_ready(cluster).await
        })
        .await?;
    report
        .step("helm upgrade to another image tag: I/O goes on", async {
            for guest in cluster.lab.nodes() {
                for image in ["storagelink-csi-controller", "storagelink-csi-node"] {
                    let (old, new) = tags(cluster, image).await?;
                    guest
                        .exec(&["ctr", "-n", "k8s.io", "images", "tag", "--force", &old, &new])
                        .await?;
                }
            }
            let mut values = cluster.values();
            values["image"] = json!({"tag": NEXT});
            cluster.install(&values).await?;
            let image = cluster
                .kubectl
                .field(
                    &["-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/component=node"],
                    ".items[*].spec.containers[0].image",
                )
                .await?;
            ensure!(
                image.split(' ').all(|image| image.ends_with(":next")),
                "the node plugins run {image}"
            );
            unchanged(cluster, &writers, &mounts).await
        })
        .await?;
    report
        .step("helm rollback: I/O goes on", async {
            cluster
                .helm(
                    &[
                        "rollback",
                        super::super::cluster::RELEASE,
                        "--wait",
                        "--timeout=280s",
                    ],
                    &json!({}),
                )
                .await?;
            unchanged(cluster, &writers, &mounts).await
        })
        .await?;
    report
        .step(
            "helm uninstall and install again: I/O goes on all the time",
            async {
                // The sidecars ask for their leases until they have ended; their right to goes with the release.
                cluster.control.without_roles(cluster.uninstall()).await?;
                unchanged(cluster, &writers, &mounts).await?;
                cluster.install(&cluster.values()).await?;
                cluster.sidecars_lead().await?;
                unchanged(cluster, &writers, &mounts).await
            },
        )
        .await?;
    report
        .step(
            "both kubelets are restarted: I/O goes on, no container restarts",
            async {
                for guest in cluster.lab.nodes() {
                    guest.kill(KUBELET, Signal::SIGKILL as i32).await?;
                    guest.wait(KUBELET, Duration::from_secs(10)).await?;
                    let address = guest.address(Fabric::Management);
                    worker::start_kubelet(guest, &cluster.prepared.binaries, &address).await?;
                }
                let took = cluster.nodes_ready().await?;
                plugins_ready(cluster).await?;
                unchanged(cluster, &writers, &mounts).await?;
                for pod in writers.pods() {
                    // A kubelet that has just started hears of its pods a little later.
                    wait::until("the kubelet knows its pods", ROLLED_LIMIT, async || {
                        cluster
                            .kubectl
                            .exec("default", &pod, &["true"])
                            .await
                            .map(|_| true)
                    })
                    .await?;
                    let restarts = cluster
                        .kubectl
                        .field(&["pod", &pod], ".status.containerStatuses[0].restartCount")
                        .await?;
                    ensure!(restarts == "0", "{pod} restarted {restarts} times");
                }
                Ok(took)
            },
        )
        .await?;
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

/// The image that the node plugin or the controller runs now, and the same under another tag.
async fn tags(cluster: &Cluster, name: &str) -> Result<(String, String)> {
    let images = cluster
        .kubectl
        .field(&["-n", NAMESPACE, "pods"], ".items[*].spec.containers[*].image")
        .await?;
    let old = images
        .split(' ')
        .find(|image| image.contains(&format!("/{name}:")))
        .with_context(|| format!("no pod runs {name}: {images}"))?;
    let (repository, _) = old.rsplit_once(':').context("an image without a tag")?;
    Ok((old.to_owned(), format!("{repository}:{NEXT}")))
}

/// Every node plugin is Ready, which it is when the kubelet has registered it.
pub async fn plugins_ready(cluster: &Cluster) -> Result<Duration> {
    wait::until("both node plugins are Ready", ROLLED_LIMIT, async || {
        let object = [
            "-n",
            NAMESPACE,
            "daemonsets",
            "-l",
            "app.kubernetes.io/component=node",
        ];
        let ready = cluster
            .kubectl
            .field(&object, ".items[0].status.numberReady")
            .await?;
        Ok(ready == cluster.lab.nodes().len().to_string())
    })
    .await
}

/// The mounts of each volume with their ids: a volume that was mounted again has another one. Of each node, the lines of
/// /proc/self/mountinfo whose source is a map.
async fn mounts(cluster: &Cluster, writers: &Writers) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for Place { pod, node, volume } in writers.places(cluster).await? {
        let map = map_of(&volume);
        let guest = cluster.guest(node);
        let script = format!(
            "for dm in /sys/block/dm-*; do [ \"$(cat $dm/dm/name)\" = {map} ] || continue; \
             echo \"$(cat $dm/dev) $(cat $dm/diskseq 2>/dev/null)\"; \
             awk -v dev=\"$(cat $dm/dev)\" '$3 == dev {{ print $1, $3, $5 }}' /proc/self/mountinfo; done"
        );
        let text = guest.shell(&script).await?;
        // The device and two mounts: staging and pod.
        ensure!(text.lines().count() >= 3, "{pod}: {text:?}");
        all.push(format!("{pod} {text}"));
    }
    Ok(all)
}

async fn unchanged(cluster: &Cluster, writers: &Writers, before: &[String]) -> Result<()> {
    writers
        .all_progress(cluster, &writers.places(cluster).await?)
        .await?;
    let now = mounts(cluster, writers).await?;
    ensure!(now == before, "before: {before:?}; now: {now:?}");
    Ok(())
}

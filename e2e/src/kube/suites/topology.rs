//! A node that loses its routes to the portals says so, gets no volume, and counts for nothing in the storage capacity.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::{
    guest::Guest,
    kube::{
        cluster::{Cluster, NAMESPACE},
        objects::{self, Claim, Pod},
        writers,
    },
    net::Fabric,
    report::Report,
    wait,
};

const FABRICS: [(Fabric, &str); 2] = [(Fabric::A, "a"), (Fabric::B, "b")];
const NAME: &str = "topology";
const LIMIT: Duration = Duration::from_secs(150);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let guest = cluster.guest(1);
    report
        .step("both nodes say that they have both fabrics", async {
            for node in cluster.lab.nodes() {
                labelled(cluster, node.name(), "true").await?;
            }
            Ok(())
        })
        .await?;
    let gone = cut_off(cluster, guest, report).await;
    // Whatever came of it: the other suites want the node back.
    let back = report
        .step("its routes are back, and it says so", async {
            for (fabric, _) in FABRICS {
                let address = format!("{}/24", guest.address(fabric));
                let interface = interface(fabric);
                guest
                    .exec(&["ip", "address", "add", &address, "dev", &interface])
                    .await?;
            }
            register_again(cluster, guest, "true").await
        })
        .await;
    gone.and(back)
}

async fn cut_off(cluster: &Cluster, guest: &Guest, report: &Report) -> Result<()> {
    report
        .step("a node without routes to the portals says so", async {
            for (fabric, _) in FABRICS {
                let address = format!("{}/24", guest.address(fabric));
                let interface = interface(fabric);
                guest
                    .exec(&["ip", "address", "delete", &address, "dev", &interface])
                    .await?;
            }
            register_again(cluster, guest, "false").await
        })
        .await?;
    report
        .step(
            "a pod that must run there is not scheduled, one that need not runs elsewhere",
            async {
                let mut bound = Pod::new("topology-bound", "topology-bound");
                bound.node = Some(guest.name());
                let all = [
                    Claim::new("topology-bound", "storagelink").object(),
                    Claim::new("topology-free", "storagelink").object(),
                    bound.object(),
                    Pod::new("topology-free", "topology-free").object(),
                ];
                objects::create(&cluster.kubectl, NAME, &all).await?;
                cluster
                    .kubectl
                    .until(&["pod", "topology-free"], ".status.phase", "Running", LIMIT)
                    .await?;
                let node = cluster
                    .kubectl
                    .field(&["pod", "topology-free"], ".spec.nodeName")
                    .await?;
                ensure!(node != guest.name(), "it runs on {node}");
                wait::until("the scheduler says why", LIMIT, async || {
                    let message = cluster
                        .kubectl
                        .field(
                            &["pod", "topology-bound"],
                            ".status.conditions[?(@.type=='PodScheduled')].message",
                        )
                        .await?;
                    Ok(message.contains("PersistentVolume's node affinity"))
                })
                .await
                .map(drop)
            },
        )
        .await?;
    report
        .step(
            "the capacity is that of the aggregate where it is reached, and nothing elsewhere",
            async {
                wait::until("the storage capacity is right", LIMIT, async || {
                    let objects = cluster
                        .kubectl
                        .list(&["-n", NAMESPACE, "csistoragecapacities"])
                        .await?;
                    let of = |value: &str| objects.iter().find(|object| segment(object) == Some(value));
                    let (Some(here), Some(there)) = (of("true"), of("false")) else {
                        return Ok(false);
                    };
                    ensure!(there["capacity"] == "0", "unreachable: {there}");
                    ensure!(here["capacity"] != "0", "reachable: {here}");
                    Ok(true)
                })
                .await
            },
        )
        .await?;
    report
        .step("pods and claims are deleted", async {
            objects::delete(&cluster.kubectl, NAME).await?;
            // Before the routes are back: what is left to do must not need them.
            writers::no_volumes(cluster).await
        })
        .await
}

/// What a capacity object says of fabric a.
fn segment(object: &Value) -> Option<&str> {
    object["nodeTopology"]["matchLabels"]["fabric.storagelink.io/a"].as_str()
}

/// The kubelet takes a changed topology only for labels that are not there, when the plugin registers.
async fn register_again(cluster: &Cluster, guest: &Guest, value: &str) -> Result<()> {
    let mut argv = vec!["label", "node", guest.name()];
    let labels = FABRICS.map(|(_, name)| format!("fabric.storagelink.io/{name}-"));
    argv.extend(labels.iter().map(String::as_str));
    cluster.kubectl.run(&argv).await?;
    let field = format!("--field-selector=spec.nodeName={}", guest.name());
    cluster
        .kubectl
        .delete(&[
            "-n",
            NAMESPACE,
            "pods",
            "-l",
            "app.kubernetes.io/component=node",
            &field,
        ])
        .await?;
    labelled(cluster, guest.name(), value).await
}

async fn labelled(cluster: &Cluster, node: &str, value: &str) -> Result<()> {
    wait::until("the node's fabrics", LIMIT, async || {
        let node = cluster.kubectl.get(&["node", node]).await?;
        let labels = &node["metadata"]["labels"];
        let says = |name: &str| labels[format!("fabric.storagelink.io/{name}")].as_str() == Some(value);
        Ok(FABRICS.iter().all(|(_, name)| says(name)))
    })
    .await
    .map(drop)
}

/// As the guest's agent sets it up.
fn interface(fabric: Fabric) -> String {
    format!("eth{}", fabric.number())
}

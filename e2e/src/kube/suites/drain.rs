//! A node is drained and removed from the cluster, and comes back.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::upgrade::plugins_ready;
use crate::{
    kube::{
        cluster::{Cluster, DRIVER},
        worker::{self, KUBELET},
        writers::Writers,
    },
    net::Fabric,
    report::Report,
    wait,
};

const REPLICAS: u32 = 3;
const MOVED_LIMIT: Duration = Duration::from_secs(300);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let writers = report
        .step(
            "three writers",
            Writers::start(cluster, "drain", REPLICAS, "storagelink"),
        )
        .await?;
    let old = writers.node(cluster, "drain-0").await?;
    let guest = cluster.guest(old);
    report
        .step(
            "its node is drained: its pods run elsewhere, with their data",
            async {
                let mut nodes = Vec::new();
                for pod in writers.pods() {
                    nodes.push(writers.node(cluster, &pod).await?);
                    writers.stop(cluster, &pod).await?;
                }
                let argv = [
                    "drain",
                    guest.name(),
                    "--ignore-daemonsets",
                    "--delete-emptydir-data",
                    "--force",
                    "--timeout=110s",
                ];
                cluster.kubectl.run(&argv).await?;
                writers.ready(cluster, MOVED_LIMIT).await?;
                for (pod, before) in writers.pods().iter().zip(nodes) {
                    let node = writers.node(cluster, pod).await?;
                    ensure!(node != old, "{pod} is still on {}", guest.name());
                    writers.verify_from(cluster, pod, before).await?;
                }
                Ok(())
            },
        )
        .await?;
    report
        .step("the drained node holds nothing of the volumes", async {
            wait::until("the drained node is clean", Duration::from_secs(90), async || {
                let left = worker::snapshot(guest).await?;
                let devices: Vec<&String> = left
                    .iter()
                    .filter(|line| line.contains("/sys/block/dm-") || line.contains("/sys/block/sd"))
                    .collect();
                ensure!(devices.is_empty(), "{devices:?}");
                Ok(true)
            })
            .await
        })
        .await?;
    report
        .step(
            "it is removed, and comes back with its plugin registered",
            async {
                guest.kill(KUBELET, Signal::SIGKILL as i32).await?;
                guest.wait(KUBELET, Duration::from_secs(10)).await?;
                cluster.kubectl.delete(&["node", guest.name()]).await?;
                let address = guest.address(Fabric::Management);
                worker::start_kubelet(guest, &cluster.prepared.binaries, &address).await?;
                cluster.nodes_ready().await?;
                wait::until(
                    "the node has the driver again",
                    Duration::from_secs(180),
                    async || {
                        let drivers = cluster
                            .kubectl
                            .field(&["csinode", guest.name()], ".spec.drivers[*].name")
                            .await?;
                        Ok(drivers.contains(DRIVER))
                    },
                )
                .await?;
                plugins_ready(cluster).await
            },
        )
        .await?;
    report
        .step("pods and claims are deleted", writers.delete(cluster))
        .await
}

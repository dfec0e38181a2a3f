//! Hosts without a running open-iscsi: the plugin runs iscsid in its own container. A lost path comes back by itself, and the
//! plugin may die under load.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    fabrics::{cut, heal},
    life::both_paths,
    upgrade::plugins_ready,
};
use crate::{
    guest::Guest,
    kube::{cluster::Cluster, worker::ISCSID, writers::Writers},
    net::Fabric,
    report::Report,
    wait,
};

/// A container that died starts again after a pause of the kubelet, and iscsid logs in after one of its own.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the steps in order; whatever happens, the hosts have their iscsid again at the end.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let outcome = steps(report, cluster).await;
    report
        .step("the chart goes back to the hosts' iscsid", async {
            cluster.install(&cluster.values()).await?;
            for guest in cluster.lab.nodes() {
                guest.spawn(ISCSID, &["iscsid", "--foreground"], &[]).await?;
            }
            plugins_ready(cluster).await
        })
        .await?;
    outcome
}

async fn steps(report: &Report, cluster: &Cluster) -> Result<()> {
    report
        .step(
            "the hosts' iscsid is stopped, the chart upgraded to one in the container",
            async {
                for guest in cluster.lab.nodes() {
                    guest.kill(ISCSID, Signal::SIGKILL as i32).await?;
                    guest.wait(ISCSID, Duration::from_secs(10)).await?;
                }
                let mut values = cluster.values();
                // It finds none on the hosts.
                values["node"] = json!({"iscsid": "auto"});
                cluster.install(&values).await?;
                plugins_ready(cluster).await?;
                for guest in cluster.lab.nodes() {
                    contained(guest).await?;
                }
                Ok(())
            },
        )
        .await?;
    let writers = report
        .step("two writers", Writers::start(cluster, ISCSID, 2, "storagelink"))
        .await?;
    report
        .step(
            "both paths carry about half of the requests",
            both_paths(cluster, &writers),
        )
        .await?;
    let places = writers.places(cluster).await?;
    report
        .step(
            "the plugin is killed on both workers, and its iscsid with it: I/O goes on, the next takes the sessions over",
            async {
                let mut before = Vec::new();
                for guest in cluster.lab.nodes() {
                    before.push(connections(guest).await?);
                    guest
                        .exec(&["pkill", "-KILL", "-f", "storagelink-csi node"])
                        .await?;
                }
                writers.all_progress(cluster, &places).await?;
                for (guest, before) in cluster.lab.nodes().iter().zip(&before) {
                    taken_over(guest, before).await?;
                }
                plugins_ready(cluster).await
            },
        )
        .await?;
    report
        .step(
            "a fabric is cut silently: writes go on over the other",
            cut(cluster, &writers, &places, Fabric::A),
        )
        .await?;
    report
        .step(
            "it is back: the new iscsid logs in to the old sessions again",
            heal(cluster, &places, Fabric::A),
        )
        .await?;
    report
        .step(
            "no writer saw an error, nothing is lost",
            writers.stop_all(cluster),
        )
        .await?;
    report
        .step("pods and claims are deleted", writers.delete(cluster))
        .await
}

/// Local ends of a worker's connections to portals.
async fn connections(guest: &Guest) -> Result<BTreeSet<String>> {
    let text = guest
        .exec(&["ss", "-Htn", "state", "established", "dport", "=", ":3260"])
        .await?;
    let local = |line: &str| line.split_whitespace().nth(2).map(str::to_owned);
    Ok(text.lines().filter_map(local).collect())
}

/// Waits until an iscsid that has just started has made every session's connection anew: it cannot know what went over the old ones.
async fn taken_over(guest: &Guest, before: &BTreeSet<String>) -> Result<()> {
    wait::until("new connections", LIMIT, async || {
        let now = connections(guest).await?;
        ensure!(
            now.len() == before.len() && now.is_disjoint(before),
            "{}: {before:?} are now {now:?}",
            guest.name()
        );
        contained(guest).await?;
        Ok(true)
    })
    .await
    .map(drop)
}

/// The one iscsid of a worker is the child of the plugin.
async fn contained(guest: &Guest) -> Result<()> {
    let script = "for p in $(pidof iscsid); do cat /proc/$(awk '{ print $4 }' /proc/$p/stat)/cmdline | tr '\\0' ' '; echo; done";
    let parents = guest.shell(script).await?;
    ensure!(
        parents.contains("storagelink-csi node"),
        "{}: iscsid was started by {parents:?}",
        guest.name()
    );
    Ok(())
}

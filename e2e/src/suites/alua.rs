//! An array with two target port groups, one of them in standby: which paths are used follows what the array says, and a map that must go to
//! the other group tells the array so.
//!
//! The second group is of [`crate::roles::port_groups`]: storagelinkd offers one portal group.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    cluster::{Cluster, Form},
    leftovers::Before,
    main_job::{carried, writes_avoid},
    volume::Volume,
};
use crate::{
    net::Fabric,
    report::{Report, seconds},
    roles::{
        inspect, node,
        port_groups::{self, FIRST, PortGroups, SECOND, State},
        writer::Writer,
    },
    wait,
};

const GIB: i64 = 1 << 30;
/// The node under test.
const NODE: usize = 0;
/// A changed state is told by a unit attention, or found within the cycle of 30 s; then it has to last 10 s.
const FOLLOWED: Duration = Duration::from_secs(60);

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let guest = cluster.guest(NODE);
    let before = Before::look(cluster).await?;
    let volume = cluster.create("alua", GIB, Form::Mount("ext4")).await?;
    let context = cluster.attach(&volume, NODE).await?;
    let ports = PortGroups::make(cluster.lab.array(), &context, &node::initiator(guest)).await?;
    let outcome = steps(report, cluster, &volume, &context, &ports).await;
    report
        .step("the volume is deleted, nothing is left", async {
            cluster.unpublish(&volume, NODE).await?;
            cluster.unstage(&volume, NODE).await?;
            volume.remove_directories(guest).await?;
            ports.remove(cluster.lab.array()).await?;
            cluster.detach(&volume, NODE).await?;
            cluster.delete(&volume).await?;
            before.nothing_left(cluster).await
        })
        .await?;
    outcome
}

async fn steps(
    report: &Report,
    cluster: &Cluster,
    volume: &Volume,
    context: &HashMap<String, String>,
    ports: &PortGroups,
) -> Result<()> {
    let (guest, target) = (cluster.guest(NODE), cluster.lab.array());
    let (a, b) = port_groups::portals(target);
    let mut context = context.clone();
    context.insert("portals".to_owned(), port_groups::context_portals(target));
    ports.set(target, SECOND, State::Standby).await?;
    volume.make_directories(guest).await?;
    let writer = report
        .step(
            "a volume with a path in standby: that path carries nothing",
            async {
                cluster.stage(volume, NODE, &context).await?;
                cluster.publish(volume, NODE, &context).await?;
                ensure!(
                    order(cluster, volume).await? == [a.as_str(), b.as_str()],
                    "groups: {:?}",
                    order(cluster, volume).await?
                );
                let writer = Writer::start(&cluster.lab, guest, "alua", &volume.data(), "direct").await?;
                only(cluster, volume, &a).await?;
                Ok(writer)
            },
        )
        .await?;
    let took = report
        .step(
            "the array exchanges the states: the other path carries all",
            async {
                ports.set(target, SECOND, State::Optimized).await?;
                ports.set(target, FIRST, State::Standby).await?;
                writes_avoid(cluster, volume, &writer, &address(&a)).await?;
                let followed = async || Ok(order(cluster, volume).await? == [b.as_str(), a.as_str()]);
                let took = wait::until("the map's groups follow", FOLLOWED, followed).await?;
                only(cluster, volume, &b).await?;
                Ok(took)
            },
        )
        .await?;
    report.say(format!(
        "      the order of the groups followed after {}",
        seconds(took)
    ));
    report
        .step(
            "the fabric of the optimized path is cut: the array is told to use the other one",
            async {
                guest.cut(Fabric::B).await?;
                writes_avoid(cluster, volume, &writer, &address(&b)).await?;
                told_to_use(cluster, ports, FIRST).await
            },
        )
        .await?;
    report
        .step("it is back: both are optimized and carry I/O", async {
            let before = inspect::paths(guest, &volume.map()).await?;
            guest.heal(Fabric::B).await?;
            ports.set(target, SECOND, State::Optimized).await?;
            carried(cluster, volume, &before, 20, FOLLOWED).await
        })
        .await?;
    report
        .step(
            "one goes to standby, the other is lost before the map has followed: the array is told",
            async {
                ports.set(target, SECOND, State::Standby).await?;
                writes_avoid(cluster, volume, &writer, &address(&b)).await?;
                let before = inspect::paths(guest, &volume.map()).await?;
                guest.cut(Fabric::A).await?;
                writes_avoid(cluster, volume, &writer, &address(&a)).await?;
                told_to_use(cluster, ports, SECOND).await?;
                guest.heal(Fabric::A).await?;
                carried(cluster, volume, &before, 20, FOLLOWED).await
            },
        )
        .await?;
    report
        .step(
            "no error reached the writer, everything acknowledged is there",
            async {
                let summary = writer.stop(guest, Duration::from_secs(30)).await?;
                ensure!(summary.errors == 0, "{summary:?}");
                report.say(format!(
                    "      longest write {}",
                    seconds(Duration::from_micros(summary.longest_us))
                ));
                writer.verify(guest, None).await.map(drop)
            },
        )
        .await
}

/// The array has been told to take I/O through this group.
async fn told_to_use(cluster: &Cluster, ports: &PortGroups, group: &str) -> Result<()> {
    let state = ports.get(cluster.lab.array(), group).await?;
    ensure!(
        state == State::Optimized as u8,
        "the array's state of the other path: {state}"
    );
    Ok(())
}

/// The address of a portal.
fn address(portal: &str) -> String {
    portal
        .rsplit_once(':')
        .map_or(portal, |(address, _)| address)
        .to_owned()
}

/// The portals of the map's groups, in their order; groups have one path here.
async fn order(cluster: &Cluster, volume: &Volume) -> Result<Vec<String>> {
    let map = volume.shown(cluster, NODE).await?;
    let groups = map["groups"].as_array().context("a map without groups")?;
    let portal = |group: &Value| {
        group["paths"][0]["portal"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    Ok(groups.iter().map(portal).collect())
}

/// For a second all requests go over this portal.
async fn only(cluster: &Cluster, volume: &Volume, portal: &str) -> Result<()> {
    let guest = cluster.guest(NODE);
    let before = inspect::paths(guest, &volume.map()).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let shares = inspect::shares(&before, &inspect::paths(guest, &volume.map()).await?);
    let address = address(portal);
    let used = |here: bool| -> u64 {
        let of = shares
            .iter()
            .filter(|(path, _, _)| (path.portal == address) == here);
        of.map(|(_, requests, _)| requests).sum()
    };
    ensure!(used(true) > 20 && used(false) == 0, "{shares:?}");
    Ok(())
}

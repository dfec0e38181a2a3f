//! What an administrator sees: targetcli beside the gateway, mpathutil without the plugin, a volume that grows in use.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    cluster::{Cluster, Form, Victim},
    leftovers::Before,
    volume::Volume,
};
use crate::{
    report::Report,
    roles::{array, node, writer::Writer},
};

const SIZE: i64 = 256 << 20;
const GROWN: i64 = 512 << 20;
const NODE: usize = 0;

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &mut Cluster) -> Result<()> {
    let before = Before::look(cluster).await?;
    let volume = cluster.create("tools", SIZE, Form::Mount("ext4")).await?;
    volume.bring_up(cluster, NODE).await?;
    report
        .step(
            "targetcli lists what the gateway made, and works beside it",
            targetcli(cluster, &volume),
        )
        .await?;
    let reborn = report
        .step("mpathutil with the plugin down", async {
            cluster.end(Victim::Plugin).await?;
            without_plugin(cluster, &volume).await?;
            cluster.start_again(Victim::Plugin).await
        })
        .await?;
    cluster.meet(reborn);
    report
        .step(
            "the file system grows while it is written",
            grow(cluster, &volume),
        )
        .await?;
    report
        .step("nothing is left on the node and on the array", async {
            volume.take_down(cluster, NODE).await?;
            cluster.delete(&volume).await?;
            before.nothing_left(cluster).await
        })
        .await?;
    report
        .step(
            "doctor finds this node, the service and its portals good, and names an iscsid that does not run",
            doctor(cluster),
        )
        .await
}

/// The pre-flight check of a node that has everything, and of one whose iscsid was killed.
async fn doctor(cluster: &Cluster) -> Result<()> {
    let guest = cluster.guest(NODE);
    let program = cluster.lab.program("storagelink-csi");
    let argv = [
        &program,
        "doctor",
        "--config",
        "/etc/storagelink-csi/controller.toml",
    ];
    let all = guest.exec(&argv).await?;
    ensure!(!all.contains("FAIL") && all.contains("iscsid: runs"), "{all}");
    let portals = all
        .lines()
        .filter(|line| line.contains("portal ") && line.ends_with("answers"));
    ensure!(
        all.contains("takes the credentials") && portals.count() == 2,
        "{all}"
    );
    guest
        .kill("iscsid", nix::sys::signal::Signal::SIGKILL as i32)
        .await?;
    guest.wait("iscsid", Duration::from_secs(10)).await?;
    let all = guest.shell(&format!("{program} doctor || true")).await?;
    ensure!(all.contains("FAIL  iscsid: does not run"), "{all}");
    guest
        .spawn("iscsid", &["iscsid", "--foreground"], &[])
        .await
        .map(drop)
}

/// targetcli shows target, portals, initiator, LUN and backstore, and an object made by hand comes and goes beside them.
async fn targetcli(cluster: &Cluster, volume: &Volume) -> Result<()> {
    let guest = cluster.lab.array();
    let uuid = volume.map().replace("storagelink-", "");
    let listed = guest.exec(&["targetcli", "ls"]).await?;
    for wanted in [
        array::TARGET,
        &uuid,
        ":3260",
        &node::initiator(cluster.guest(NODE)),
        "mapped_lun",
    ] {
        ensure!(listed.contains(wanted), "`{wanted}` is not in\n{listed}");
    }
    let by_hand = ["targetcli", "/backstores/ramdisk", "create", "byhand", "1M"];
    guest.exec(&by_hand).await?;
    let listed = guest.exec(&["targetcli", "ls"]).await?;
    ensure!(
        listed.contains("byhand") && listed.contains(&uuid),
        "after a backstore was made by hand:\n{listed}"
    );
    guest
        .exec(&["targetcli", "/backstores/ramdisk", "delete", "byhand"])
        .await
        .map(drop)
}

/// List, status and JSON come from the kernel.
async fn without_plugin(cluster: &Cluster, volume: &Volume) -> Result<()> {
    let (guest, program) = (cluster.guest(NODE), cluster.lab.program("mpathutil"));
    let list = guest.exec(&[&program, "list"]).await?;
    ensure!(
        list.lines().count() == 1 && list.contains(&volume.map()),
        "{list}"
    );
    let status = guest.exec(&[&program, "status"]).await?;
    ensure!(status.contains("2 of 2 paths usable"), "{status}");
    let json = guest.exec(&[&program, "status", "-o", "json"]).await?;
    let maps: Value = serde_json::from_str(&json).context("mpathutil's JSON")?;
    let paths = maps
        .pointer("/0/groups/0/paths")
        .and_then(Value::as_array)
        .context("no paths in mpathutil's JSON")?;
    let mut portals: Vec<&str> = paths.iter().filter_map(|path| path["portal"].as_str()).collect();
    portals.sort_unstable();
    ensure!(portals == ["198.18.0.1:3260", "198.18.1.1:3260"], "{json}");
    Ok(())
}

/// Twice as large, with a writer at work; the file system has the room and nothing that was written is lost.
async fn grow(cluster: &Cluster, volume: &Volume) -> Result<()> {
    let guest = cluster.guest(NODE);
    let writer = Writer::start(&cluster.lab, guest, "grow", &volume.data(), "direct").await?;
    let bytes = cluster.expand(volume, NODE, GROWN).await?;
    ensure!(bytes >= GROWN, "NodeExpandVolume answered {bytes} bytes");
    let room = guest
        .exec(&["stat", "--file-system", "--format", "%b %S", &volume.target()])
        .await?;
    let numbers: Vec<i64> = room
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let total: i64 = numbers.iter().product();
    ensure!(
        numbers.len() == 2 && total > SIZE * 3 / 2,
        "the file system has {room} blocks and bytes"
    );
    let summary = writer.stop(guest, Duration::from_secs(30)).await?;
    ensure!(summary.errors == 0, "{summary:?}");
    writer.verify(guest, None).await.map(drop)
}

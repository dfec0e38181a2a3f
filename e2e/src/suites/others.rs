//! A multipathd beside the plugin that takes every disk it sees (`find_multipaths no`): a volume whose disk it has taken is refused with what to do. And
//! what the plugin installs on the host to hide its paths from udev's customers. That this keeps such a multipathd away is not shown: it was seen to take
//! a disk all the same.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tonic::Code;

use super::{
    cluster::{Cluster, Form},
    leftovers::Before,
    volume::Volume,
};
use crate::{
    artifacts::Artifacts,
    guest::Guest,
    net::Fabric,
    report::Report,
    roles::{array, inspect, multipathd},
    wait,
};

const SIZE: i64 = 256 << 20;
const NODE: usize = 0;
const MULTIPATHD: &str = "multipathd";
const LIMIT: Duration = Duration::from_secs(30);
/// Files that the plugin installs.
const INSTALLED: &str = "ls /etc/udev/rules.d/*storagelink-csi.rules /etc/multipath/conf.d/storagelink-csi.conf 2>/dev/null | wc -l";

/// Runs the steps in order; the first that fails ends the suite. The node has neither udev nor multipathd at the end, and its usual plugin.
pub async fn run(report: &Report, cluster: &mut Cluster, artifacts: &Artifacts) -> Result<()> {
    let guest = cluster.guest(NODE);
    let tree = artifacts.multipath_tools.as_ref().context("multipath-tools")?;
    multipathd::install(guest, tree).await?;
    guest.exec(&["/lib/systemd/systemd-udevd", "--daemon"]).await?;
    guest.exec(&["udevadm", "trigger", "--action=add"]).await?;
    guest
        .write(
            "/etc/multipath.conf",
            "defaults {\n    find_multipaths no\n}\n",
            0o600,
        )
        .await?;
    let outcome = steps(report, cluster).await;
    let again = cluster.restart_plugin(&[]).await;
    let guest = cluster.guest(NODE);
    drop(guest.kill(MULTIPATHD, 9).await);
    let exited = guest
        .shell("multipath -F || true; udevadm settle; udevadm control --exit; rm -f /etc/multipath.conf")
        .await;
    outcome.and(again).and(exited.map(drop))
}

async fn steps(report: &Report, cluster: &mut Cluster) -> Result<()> {
    let guest = cluster.guest(NODE);
    let before = Before::look(cluster).await?;
    let volume = cluster.create("others", SIZE, Form::Mount("ext4")).await?;
    let context = cluster.attach(&volume, NODE).await?;
    volume.make_directories(guest).await?;
    report
        .step(
            "a disk that multipathd has taken is refused, with what to do",
            async {
                guest.spawn(MULTIPATHD, &["multipathd", "-d"], &[]).await?;
                // An administrator's session shows it every LUN.
                login(cluster, true).await?;
                wait::until("multipathd makes a map", LIMIT, async || {
                    Ok(maps(guest).await?.contains("mpath-"))
                })
                .await?;
                let refused = cluster.stage(&volume, NODE, &context).await.err();
                let text = refused.as_ref().map(ToString::to_string).unwrap_or_default();
                ensure!(
                    refused.is_some_and(|refused| refused.code == Code::FailedPrecondition)
                        && text.contains("multipathd took it")
                        && text.contains("node.installHostConfig")
                        && text.contains("multipath -f"),
                    "{text:?}"
                );
                guest.kill(MULTIPATHD, 9).await?;
                guest.wait(MULTIPATHD, LIMIT).await?;
                guest.shell("udevadm settle; multipath -F").await?;
                login(cluster, false).await
            },
        )
        .await?;
    report
        .step(
            "with the host's configuration installed udev hides the paths",
            async {
                cluster.restart_plugin(&["--install-host-config"]).await?;
                let guest = cluster.guest(NODE);
                ensure!(
                    guest.shell(INSTALLED).await?.trim() == "4",
                    "not all files are there"
                );
                cluster.stage(&volume, NODE, &context).await?;
                cluster.publish(&volume, NODE, &context).await?;
                // udev may see new rules only after seconds; the plugin then has it look again.
                wait::until("udev hides the paths", LIMIT, async || {
                    hidden(cluster, &volume).await.map(|()| true)
                })
                .await
                .map(drop)
            },
        )
        .await?;
    report
        .step(
            "switched off, nothing of it stays; nothing is left of the volume",
            async {
                volume.take_down(cluster, NODE).await?;
                cluster.delete(&volume).await?;
                cluster.restart_plugin(&[]).await?;
                let guest = cluster.guest(NODE);
                ensure!(guest.shell(INSTALLED).await?.trim() == "0", "files are left");
                before.nothing_left(cluster).await
            },
        )
        .await
}

/// An administrator logs in to, or out of, one portal by hand, and tidies up.
async fn login(cluster: &Cluster, up: bool) -> Result<()> {
    let (guest, portal) = (cluster.guest(NODE), cluster.lab.array().address(Fabric::A));
    let node = format!("iscsiadm -m node -T {} -p {portal}:3260", array::TARGET);
    let script = match up {
        true => format!("{node} -o new && {node} --login"),
        false => format!("{node} --logout && {node} -o delete"),
    };
    guest.shell(&script).await.map(drop)
}

/// Uuids of all maps.
async fn maps(guest: &Guest) -> Result<String> {
    guest
        .shell("cat /sys/block/dm-*/dm/uuid 2>/dev/null || true")
        .await
}

async fn hidden(cluster: &Cluster, volume: &Volume) -> Result<()> {
    let guest = cluster.guest(NODE);
    let paths = inspect::paths(guest, &volume.map()).await?;
    ensure!(paths.len() == 2, "{paths:?}");
    guest.exec(&["udevadm", "settle", "--timeout=30"]).await?;
    for path in &paths {
        let node = format!("/dev/{}", path.disk);
        let told = guest
            .exec(&["udevadm", "info", "--query=property", &node])
            .await?;
        for property in [
            "CSI_STORAGELINK=1",
            "DM_MULTIPATH_DEVICE_PATH=1",
            "SYSTEMD_READY=0",
        ] {
            ensure!(
                told.lines().any(|line| line == property),
                "{property} is not in\n{told}"
            );
        }
    }
    let maps = maps(guest).await?;
    ensure!(
        maps.lines().count() == 1 && maps.contains("storagelink-naa."),
        "{maps}"
    );
    Ok(())
}

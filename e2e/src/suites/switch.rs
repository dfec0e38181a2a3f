//! Multipathing switched off and on again on a node in use, and what an administrator is told meanwhile: a volume keeps what it was staged with
//! until its next stage, and without multipathing it is one disk with everything that a volume can do.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    cluster::{Cluster, Form},
    leftovers::Before,
    volume::Volume,
};
use crate::{
    net::Fabric,
    report::Report,
    roles::{inspect, writer::Writer},
    wait,
};

const SIZE: i64 = 256 << 20;
const GROWN: i64 = 512 << 20;
const NODE: usize = 0;
const METRICS: &str = "--http-listen=127.0.0.1:9808";
/// For what the plugin tells after it has noticed something.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs the steps in order; the first that fails ends the suite. The node has its usual plugin again at the end.
pub async fn run(report: &Report, cluster: &mut Cluster) -> Result<()> {
    let outcome = steps(report, cluster).await;
    let again = cluster.restart_plugin(&[]).await;
    outcome.and(again)
}

async fn steps(report: &Report, cluster: &mut Cluster) -> Result<()> {
    let guest = cluster.guest(NODE);
    let before = Before::look(cluster).await?;
    let volume = cluster.create("switch", SIZE, Form::Mount("ext4")).await?;
    let context = volume.bring_up(cluster, NODE).await?;
    let writer = Writer::start(&cluster.lab, guest, "switch", &volume.data(), "direct").await?;
    report
        .step(
            "multipathing is switched off: the volume in use keeps its map and is pending restage",
            async {
                cluster.restart_plugin(&["--multipathing=false", METRICS]).await?;
                listed(cluster, &volume, "pending restage").await?;
                let paths = inspect::paths(cluster.guest(NODE), &volume.map()).await?;
                ensure!(paths.len() == 2, "{paths:?}");
                Ok(())
            },
        )
        .await?;
    report
        .step(
            "explain and the metrics say which path is lost, why and since when, and that it is back",
            lost_and_back(cluster, &volume),
        )
        .await?;
    let guest = cluster.guest(NODE);
    let summary = writer.stop(guest, LIMIT).await?;
    ensure!(summary.errors == 0, "{summary:?}");
    let single = report
        .step(
            "staged anew it lies on one disk, with all that was written",
            async {
                restage(cluster, &volume, &context).await?;
                writer.verify(guest, None).await?;
                one_disk(cluster, &volume).await?;
                let second =
                    Writer::start(&cluster.lab, guest, "switch-single", &second(&volume), "direct").await?;
                Ok(second)
            },
        )
        .await?;
    report
        .step("it outlives its plugin, and grows", async {
            cluster.restart_plugin(&["--multipathing=true", METRICS]).await?;
            cluster.stage(&volume, NODE, &context).await?;
            one_disk(cluster, &volume).await?;
            listed(cluster, &volume, "without multipathing  pending restage").await?;
            let bytes = cluster.expand(&volume, NODE, GROWN).await?;
            ensure!(bytes >= GROWN, "NodeExpandVolume answered {bytes} bytes");
            Ok(())
        })
        .await?;
    report
        .step(
            "its only path is lost and back: I/O waits and no error reaches the writer",
            only_path(cluster, &volume, &single),
        )
        .await?;
    report
        .step(
            "staged anew it has a map with both paths, with all that was written",
            async {
                let guest = cluster.guest(NODE);
                let summary = single.stop(guest, LIMIT).await?;
                ensure!(summary.errors == 0, "{summary:?}");
                restage(cluster, &volume, &context).await?;
                writer.verify(guest, None).await?;
                single.verify(guest, None).await?;
                let paths = inspect::paths(guest, &volume.map()).await?;
                ensure!(paths.len() == 2, "{paths:?}");
                listed(cluster, &volume, &volume.map()).await
            },
        )
        .await?;
    report
        .step("nothing is left on the node and on the array", async {
            volume.take_down(cluster, NODE).await?;
            cluster.delete(&volume).await?;
            before.nothing_left(cluster).await
        })
        .await
}

/// Another file than that of the first writer.
fn second(volume: &Volume) -> String {
    format!("{}-single", volume.data())
}

async fn restage(cluster: &Cluster, volume: &Volume, context: &HashMap<String, String>) -> Result<()> {
    cluster.unpublish(volume, NODE).await?;
    cluster.unstage(volume, NODE).await?;
    cluster.stage(volume, NODE, context).await?;
    cluster.publish(volume, NODE, context).await.map_err(Into::into)
}

/// Waits until `mpathutil list` says it in the volume's line.
async fn listed(cluster: &Cluster, volume: &Volume, words: &str) -> Result<()> {
    let program = cluster.lab.program("mpathutil");
    wait::until(&format!("mpathutil list says {words:?}"), LIMIT, async || {
        let list = cluster.guest(NODE).exec(&[&program, "list"]).await?;
        let line = list.lines().find(|line| line.starts_with(&volume.map()));
        Ok(line.is_some_and(|line| line.contains(words)))
    })
    .await
    .map(drop)
}

async fn explained(cluster: &Cluster, volume: &Volume) -> Result<Value> {
    let program = cluster.lab.program("mpathutil");
    let argv = [&program, "explain", &volume.id, "-o", "json"];
    let json = cluster.guest(NODE).exec(&argv).await?;
    serde_json::from_str(&json).context("mpathutil's JSON")
}

async fn metrics(cluster: &Cluster) -> Result<String> {
    let ask = "exec 3<>/dev/tcp/127.0.0.1/9808; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    cluster.guest(NODE).shell(ask).await
}

/// What the plugin has told of the path over this fabric.
fn path_over<'a>(told: &'a Value, portal: &str) -> Option<&'a Value> {
    let paths = told.pointer("/told/map/paths")?.as_array()?;
    paths.iter().find(|path| path["portal"] == portal)
}

async fn lost_and_back(cluster: &Cluster, volume: &Volume) -> Result<()> {
    let guest = cluster.guest(NODE);
    let portal = format!("{}:3260", cluster.lab.array().address(Fabric::A));
    guest.cut(Fabric::A).await?;
    let outcome = lost(cluster, volume, &portal).await;
    guest.heal(Fabric::A).await?;
    outcome?;
    wait::until("explain says that the path is back", LIMIT, async || {
        let told = explained(cluster, volume).await?;
        let path = path_over(&told, &portal);
        Ok(path.is_some_and(|path| path["usable"] == true && path["reinstatements"].as_u64() >= Some(1)))
    })
    .await?;
    let text = metrics(cluster).await?;
    let usable = format!("path=\"{portal}\"}} 1");
    ensure!(
        text.lines()
            .any(|line| line.starts_with("storagelink_path_usable") && line.ends_with(&usable)),
        "{text}"
    );
    Ok(())
}

async fn lost(cluster: &Cluster, volume: &Volume, portal: &str) -> Result<()> {
    let mut reason = String::new();
    wait::until("explain says why the path is lost", LIMIT, async || {
        let told = explained(cluster, volume).await?;
        let Some(path) = path_over(&told, portal) else {
            return Ok(false);
        };
        reason = path["reason"].as_str().unwrap_or_default().to_owned();
        Ok(path["usable"] == false && path["since_ms"].as_u64() > Some(0))
    })
    .await?;
    ensure!(reason.contains("did not answer"), "the reason is {reason:?}");
    let program = cluster.lab.program("mpathutil");
    let text = cluster
        .guest(NODE)
        .exec(&[&program, "explain", &volume.map()])
        .await?;
    ensure!(
        text.contains("1 of 2 paths usable") && text.contains("lost since") && text.contains(&reason),
        "{text}"
    );
    let text = metrics(cluster).await?;
    let lost = format!("path=\"{portal}\"}} 1");
    ensure!(
        text.lines()
            .any(|line| line.starts_with("storagelink_path_losses_total") && line.ends_with(&lost)),
        "{text}"
    );
    Ok(())
}

/// No map, one SCSI disk, which is what is mounted.
async fn one_disk(cluster: &Cluster, volume: &Volume) -> Result<()> {
    let guest = cluster.guest(NODE);
    let script = format!(
        "ls -d /sys/block/dm-* 2>/dev/null | wc -l; ls -d /sys/block/sd* | wc -l; grep ' {} ' /proc/self/mountinfo",
        volume.staging()
    );
    let seen = guest.shell(&script).await?;
    let mut lines = seen.lines();
    ensure!(lines.next() == Some("0") && lines.next() == Some("1"), "{seen}");
    let mount = lines.next().unwrap_or_default();
    ensure!(mount.contains(&format!("/dev/{} ", volume.map())), "{mount}");
    Ok(())
}

async fn only_path(cluster: &Cluster, volume: &Volume, writer: &Writer) -> Result<()> {
    let guest = cluster.guest(NODE);
    let told = explained(cluster, volume).await?;
    let portal = told.pointer("/told/disk/portal").and_then(Value::as_str);
    let portal = portal.context("explain names no portal")?;
    let fabric = [Fabric::A, Fabric::B]
        .into_iter()
        .find(|fabric| portal.starts_with(&cluster.lab.array().address(*fabric)))
        .context("no fabric of this portal")?;
    guest.cut(fabric).await?;
    let noticed = wait::until("explain says that the only path is lost", LIMIT, async || {
        Ok(explained(cluster, volume).await?["disk_state"] != "running")
    })
    .await;
    guest.heal(fabric).await?;
    noticed?;
    let acknowledged = writer.acknowledged(guest).await?.len();
    wait::until("the writer goes on", LIMIT, async || {
        Ok(writer.acknowledged(guest).await?.len() > acknowledged + 20)
    })
    .await
    .map(drop)
}

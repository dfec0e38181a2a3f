//! Paths that are lost in odd ways, under the writer.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{BACK, Bed, SIZE};
use crate::{
    net::Fabric,
    report::Report,
    roles::{inspect, node},
    suites::cluster::Victim,
    wait,
};

/// Runs the steps in order; the first that fails ends them.
pub(super) async fn run(report: &Report, bed: &Bed<'_>) -> Result<()> {
    report
        .step("1: a third of the packets is lost on one fabric", loss(bed))
        .await?;
    report
        .step("1: a fabric comes and goes every 2 s", flapping(bed))
        .await?;
    report
        .step(
            "2: both fabrics are lost for 10 s, and come back one by one",
            both_lost(bed),
        )
        .await?;
    report
        .step(
            "5: the SCSI device of a path is deleted and found again as another one",
            deleted(bed),
        )
        .await?;
    report
        .step(
            "3, 17: the volume grows with a path down, and has both when it is back",
            grown(bed),
        )
        .await?;
    report
        .step(
            "22: iscsid is killed, a path is lost, and back with the next iscsid",
            iscsid(bed),
        )
        .await
}

/// Waits until so many more writes are acknowledged.
async fn written(bed: &Bed<'_>, more: usize) -> Result<()> {
    let before = bed.writer.acknowledged(bed.guest()).await?.len();
    wait::until("writes go on", BACK, async || {
        Ok(bed.writer.acknowledged(bed.guest()).await?.len() >= before + more)
    })
    .await
    .map(drop)
}

async fn loss(bed: &Bed<'_>) -> Result<()> {
    let guest = bed.guest();
    guest
        .shell("modprobe sch_netem; tc qdisc add dev eth0 root netem loss 30%")
        .await?;
    // Time for several of TCP's retransmissions to be lost as well; what is shown is that no write fails meanwhile.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let outcome = written(bed, 50).await;
    guest.shell("tc qdisc del dev eth0 root").await?;
    outcome?;
    bed.both_carry().await
}

async fn flapping(bed: &Bed<'_>) -> Result<()> {
    let guest = bed.guest();
    for _ in 0..3 {
        guest.cut(Fabric::A).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        guest.heal(Fabric::A).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    bed.both_carry().await
}

/// Shorter than a map holds its I/O without a path (60 s).
async fn both_lost(bed: &Bed<'_>) -> Result<()> {
    let guest = bed.guest();
    guest.cut(Fabric::A).await?;
    guest.cut(Fabric::B).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = bed.writer.acknowledged(guest).await?.len();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let after = bed.writer.acknowledged(guest).await?.len();
    ensure!(before == after, "writes are acknowledged without a path");
    guest.heal(Fabric::B).await?;
    written(bed, 20).await?;
    guest.heal(Fabric::A).await?;
    bed.both_carry().await
}

async fn deleted(bed: &Bed<'_>) -> Result<()> {
    let guest = bed.guest();
    let map = bed.volume.map();
    let paths = inspect::paths(guest, &map).await?;
    let disk = &paths[0].disk;
    let address = guest
        .shell(&format!("basename $(readlink -f /sys/block/{disk}/device)"))
        .await?;
    let words: Vec<&str> = address.split(':').collect();
    let [host, channel, target, lun] = words[..] else {
        anyhow::bail!("{address:?} is no SCSI address")
    };
    // At once: a session of ours without any device is logged out by the plugin's next sweep.
    guest
        .shell(&format!(
            "echo 1 > /sys/block/{disk}/device/delete; \
             echo {channel} {target} {lun} > /sys/class/scsi_host/host{host}/scan"
        ))
        .await?;
    written(bed, 50).await?;
    // Its old number stays in the table until it is changed: a new plugin looks for missing paths.
    bed.cluster.end(Victim::Plugin).await?;
    bed.next_plugin().await?;
    wait::until("the new device is a path", BACK, async || {
        let now = inspect::paths(guest, &map).await?;
        Ok(now.len() == 2 && now.iter().all(|path| path.state == "running"))
    })
    .await?;
    bed.both_carry().await
}

async fn grown(bed: &Bed<'_>) -> Result<()> {
    let guest = bed.guest();
    guest.cut(Fabric::A).await?;
    let wanted = 2 * SIZE;
    // A kubelet repeats until it works; no call may hang, and none may say that it worked when it did not.
    let early = bed.cluster.expand(&bed.volume, super::NODE, wanted).await;
    ensure!(early.as_ref().map_or(true, |bytes| *bytes >= wanted), "{early:?}");
    written(bed, 20).await?;
    guest.heal(Fabric::A).await?;
    wait::until("the volume has grown", BACK, async || {
        Ok(bed.cluster.expand(&bed.volume, super::NODE, wanted).await? >= wanted)
    })
    .await?;
    bed.both_carry().await
}

async fn iscsid(bed: &Bed<'_>) -> Result<()> {
    let guest = bed.guest();
    guest
        .kill("iscsid", nix::sys::signal::Signal::SIGKILL as i32)
        .await?;
    guest.wait("iscsid", BACK).await?;
    guest.cut(Fabric::A).await?;
    written(bed, 200).await?;
    guest.heal(Fabric::A).await?;
    node::start_iscsid(guest).await?;
    bed.both_carry().await
}

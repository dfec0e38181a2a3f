//! Maps that others hold, suspend or have the names of.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{BACK, Bed, NODE, SIZE};
use crate::{
    report::Report,
    suites::{
        cluster::{Form, Victim},
        volume::Volume,
    },
    wait,
};

/// Runs the steps in order; the first that fails ends them.
pub(super) async fn run(report: &Report, bed: &Bed<'_>) -> Result<()> {
    report
        .step(
            "15: a map that somebody left suspended runs again with the next plugin",
            suspended(bed),
        )
        .await?;
    let volume = bed.cluster.create("edges-raw", SIZE, Form::Block).await?;
    report
        .step(
            "18: a map of somebody else with the volume's name is in the way, and named",
            foreign(bed, &volume),
        )
        .await?;
    report
        .step(
            "18: a partition table inside a raw volume hinders nothing",
            partitions(bed, &volume),
        )
        .await?;
    report
        .step(
            "16: a map that is held open stays, and goes when it is closed",
            held(bed, &volume),
        )
        .await?;
    report
        .step("26: a volume is staged four times at once", at_once(bed, &volume))
        .await?;
    bed.cluster.delete(&volume).await.map_err(Into::into)
}

async fn suspended(bed: &Bed<'_>) -> Result<()> {
    let guest = bed.guest();
    bed.cluster.end(Victim::Plugin).await?;
    guest
        .exec(&[
            "dmsetup",
            "--noudevsync",
            "suspend",
            "--nolockfs",
            "--noflush",
            &bed.volume.map(),
        ])
        .await?;
    let before = bed.writer.acknowledged(guest).await?.len();
    bed.next_plugin().await?;
    wait::until("writes go on", BACK, async || {
        Ok(bed.writer.acknowledged(guest).await?.len() > before + 20)
    })
    .await
    .map(drop)
}

async fn foreign(bed: &Bed<'_>, volume: &Volume) -> Result<()> {
    let (cluster, guest) = (bed.cluster, bed.guest());
    let name = volume.map();
    let create = [
        "dmsetup",
        "--noudevsync",
        "create",
        &name,
        "--uuid",
        "somebody-else",
        "--table",
        "0 2048 error",
    ];
    guest.exec(&create).await?;
    let context = cluster.attach(volume, NODE).await?;
    volume.make_directories(guest).await?;
    let refused = cluster.stage(volume, NODE, &context).await;
    guest.exec(&["dmsetup", "--noudevsync", "remove", &name]).await?;
    match refused {
        Ok(()) => anyhow::bail!("staged over somebody else's map"),
        Err(refused) => ensure!(refused.message.contains("somebody-else"), "{refused}"),
    }
    volume.bring_up(cluster, NODE).await.map(drop)
}

async fn partitions(bed: &Bed<'_>, volume: &Volume) -> Result<()> {
    let (cluster, guest) = (bed.cluster, bed.guest());
    // One partition from sector 2048, in the form of a PC's boot record.
    let script = format!(
        "import struct; d = open('{}', 'r+b'); d.seek(446); d.write(struct.pack('<8BII', 0, 0, 0, 0, 0x83, 0, 0, 0, 2048, 65536)); \
         d.seek(510); d.write(b'\\x55\\xaa'); d.flush()",
        volume.data()
    );
    guest.exec(&["python3", "-c", &script]).await?;
    volume.take_down(cluster, NODE).await?;
    volume.bring_up(cluster, NODE).await?;
    let disks = guest
        .shell("ls /sys/block | tr '\\n' ' '; cat /proc/partitions")
        .await?;
    ensure!(
        guest.exec(&["dmsetup", "ls"]).await?.lines().count() == 2,
        "a map over the partition: {disks}"
    );
    Ok(())
}

async fn held(bed: &Bed<'_>, volume: &Volume) -> Result<()> {
    let (cluster, guest) = (bed.cluster, bed.guest());
    let numbers = guest
        .shell(&format!(
            "for d in /sys/block/dm-*; do grep -qx {} $d/dm/name && tr : ' ' < $d/dev; done; true",
            volume.map()
        ))
        .await?;
    guest
        .shell(&format!("mknod /run/edges-held b {}", numbers.trim()))
        .await?;
    let holder = ["bash", "-c", "exec 3</run/edges-held; exec sleep 600"];
    guest.spawn("edges-holder", &holder, &[]).await?;
    let opened = format!("dmsetup info -c --noheadings -o open {}", volume.map());
    // The bind mount of a block volume does not open it.
    wait::until("the map is open", BACK, async || {
        Ok(guest.shell(&opened).await?.trim() != "0")
    })
    .await?;
    cluster.unpublish(volume, NODE).await?;
    let refused = cluster.unstage(volume, NODE).await;
    ensure!(refused.is_err(), "unstaged while it is open: {refused:?}");
    guest.shell(&opened).await?;
    guest
        .kill("edges-holder", nix::sys::signal::Signal::SIGKILL as i32)
        .await?;
    guest.wait("edges-holder", BACK).await?;
    cluster.unstage(volume, NODE).await?;
    guest.exec(&["rm", "/run/edges-held"]).await?;
    Ok(())
}

async fn at_once(bed: &Bed<'_>, volume: &Volume) -> Result<()> {
    let (cluster, guest) = (bed.cluster, bed.guest());
    let context = cluster.attach(volume, NODE).await?;
    let stage = || cluster.stage(volume, NODE, &context);
    let answers: [_; 4] = tokio::join!(stage(), stage(), stage(), stage()).into();
    let mut staged = 0;
    for answer in answers {
        match answer {
            Ok(()) => staged += 1,
            // CSI: an operation is pending for the volume.
            Err(refused) => ensure!(refused.code == tonic::Code::Aborted, "{refused}"),
        }
    }
    ensure!(staged > 0, "none of four calls staged it");
    cluster.unstage(volume, NODE).await?;
    volume.remove_directories(guest).await?;
    cluster.detach(volume, NODE).await?;
    // Nothing waits for it any more.
    wait::until("its devices are gone", Duration::from_secs(10), async || {
        Ok(guest.exec(&["dmsetup", "ls"]).await?.lines().count() == 1)
    })
    .await
    .map(drop)
}

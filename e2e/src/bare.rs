//! What nobody can save: the kernel's scan of a LUN's addresses, `mkfs.ext4` and the mount, with nothing around them. Behind `lab-maps bare`, beside
//! which `make bench-stage` sets a stage.
//!
//! Proves no identity, makes no map, looks at nothing: only for a LUN of the lab's own.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount, umount};
use storagelink_multipath::{Hctl, Host, ScsiDisk, scsi_device};
use tokio::task::JoinSet;

use crate::programs;

const LIMIT: Duration = Duration::from_secs(60);

/// Scans the LUN over every iSCSI session of this host at once, makes an ext4 on the disk if it is to, mounts it, and takes all of that back; how long
/// it took until it was mounted.
pub async fn stage(host: &Host, lun: u64, make: bool, directory: &Path) -> Result<Duration> {
    let names = host.sysfs.list("class/iscsi_host").context("iSCSI hosts")?;
    let hosts = names
        .iter()
        .filter_map(|name| name.strip_prefix("host")?.parse().ok());
    let start = Instant::now();
    let mut scans = JoinSet::new();
    for number in hosts {
        let host = host.clone();
        let hctl = Hctl {
            host: number,
            channel: 0,
            target: 0,
            lun,
        };
        scans.spawn(async move { scsi_device::scan(&host, &hctl, LIMIT).await });
    }
    let disks: Vec<ScsiDisk> = scans
        .join_all()
        .await
        .into_iter()
        .collect::<Result<_, _>>()
        .context("scan")?;
    let first = disks.first().context("no iSCSI session")?;
    let node = Path::new("/dev").join(&first.name);
    if make {
        make_ext4(&node).await?;
    }
    let took = mounted(node, directory.to_owned(), start).await?;
    for disk in &disks {
        scsi_device::delete(host, disk).context("delete the disk")?;
    }
    Ok(took)
}

/// As the node plugin makes it.
async fn make_ext4(node: &Path) -> Result<()> {
    let node = node.to_string_lossy();
    let argv = ["mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", &node];
    let done = programs::run(&argv, &HashMap::new(), b"", LIMIT).await?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.exit == 0, "mkfs.ext4: exit {}: {said}", done.exit);
    Ok(())
}

async fn mounted(node: PathBuf, directory: PathBuf, start: Instant) -> Result<Duration> {
    let work = move || {
        mount(
            Some(&node),
            &directory,
            Some("ext4"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("mount")?;
        let took = start.elapsed();
        umount(&directory).context("unmount")?;
        Ok(took)
    };
    tokio::task::spawn_blocking(work).await?
}

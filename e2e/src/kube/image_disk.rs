//! The disk that workers boot with: containerd's own directory with every image unpacked in it.
//!
//! Unpacking in an emulated guest takes half a minute for each 60 MB; here it is done once, natively, for all guests.
//! They see it copy-on-write.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::images::Images;
use crate::{
    programs::{self, output},
    wait,
};

/// Free space of the disk beyond what the images take: pods' writable layers.
const ROOM_MIB: u64 = 4096;
/// Disks that are kept in the cache.
const KEEP: usize = 3;

/// Finds or makes the disk for these images.
pub async fn prepare(images: &Images, cache: &Path) -> Result<PathBuf> {
    let disk = cache.join(format!("worker-images-{}.raw", key(images)?));
    if disk.exists() {
        // Young again: pruning goes by age.
        fs::File::open(&disk)
            .and_then(|file| file.set_modified(std::time::SystemTime::now()))
            .context("touch the worker disk")?;
        return Ok(disk);
    }
    let work = tempfile::Builder::new()
        .prefix("worker-images-")
        .tempdir_in(cache)
        .context("make a directory for the worker disk")?;
    unpack(images, work.path()).await?;
    let root = work.path().join("root");
    let used = output(&["du", "-sm", &root.to_string_lossy()]).await?;
    let used: u64 = used
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .context("du printed no size")?;
    let new = work.path().join("disk.raw");
    output(&[
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-d",
        &root.to_string_lossy(),
        &new.to_string_lossy(),
        &format!("{}M", used * 5 / 4 + ROOM_MIB),
    ])
    .await?;
    fs::rename(&new, &disk).with_context(|| format!("put the worker disk to {}", disk.display()))?;
    prune(cache)?;
    Ok(disk)
}

fn key(images: &Images) -> Result<String> {
    let mut hash = Sha256::new();
    for archive in &images.archives {
        hash.update(fs::read(archive).with_context(|| format!("read {}", archive.display()))?);
    }
    Ok(format!("{:x}", hash.finalize())[..16].to_owned())
}

/// Imports every archive with a containerd of its own below `work`.
async fn unpack(images: &Images, work: &Path) -> Result<()> {
    let place = |name: &str| work.join(name).to_string_lossy().into_owned();
    let socket = place("containerd.sock");
    let configuration = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\n  address = {socket:?}\n",
        place("root"),
        place("state")
    );
    fs::write(work.join("containerd.toml"), configuration).context("write containerd's configuration")?;
    let log = fs::File::create(work.join("containerd.log")).context("make containerd's log")?;
    let argv = ["containerd", "-c", &place("containerd.toml")].map(str::to_owned);
    let mut containerd =
        programs::background(&argv, &HashMap::new(), log, true).context("start containerd")?;
    wait::until("containerd", Duration::from_secs(30), async || {
        Ok(output(&["ctr", "-a", &socket, "version"]).await.is_ok())
    })
    .await?;
    for archive in &images.archives {
        let archive = archive.to_string_lossy();
        output(&["ctr", "-a", &socket, "-n", "k8s.io", "images", "import", &archive]).await?;
    }
    // A clean end writes its database.
    if let Some(pid) = containerd.id() {
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).context("stop containerd")?;
    }
    tokio::time::timeout(Duration::from_secs(30), containerd.wait())
        .await
        .context("containerd does not stop")?
        .context("wait for containerd")
        .map(drop)
}

/// Removes the oldest disks of earlier images.
fn prune(cache: &Path) -> Result<()> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(cache).context("read the cache")? {
        let path = entry.context("read the cache")?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("worker-images-")
            && path.extension().is_some_and(|e| e == "raw")
            && let Ok(age) = path.metadata().and_then(|meta| meta.modified())
        {
            disks.push((age, path));
        }
    }
    disks.sort();
    let extra = disks.len().saturating_sub(KEEP);
    for (_, path) in disks.into_iter().take(extra) {
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

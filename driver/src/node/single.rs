//! A volume that is staged without multipathing: one SCSI disk that has proved the volume's identity, and no map.
//!
//! The kernel says which disk it is: what is mounted of the volume was mounted by a node of the plugin's own whose name has the volume's
//! UUID, and a mounted disk keeps its number. Only a raw block volume that is staged and not published is nowhere in the kernel; its record names
//! the disk by number, address and sequence number of this boot, which no other disk ever has.
//!
//! It must never take a disk for the volume's because of its name alone, and never delete one that says that it is another.

use std::{
    collections::BTreeSet, fs::OpenOptions, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration,
};

use nix::libc;
use serde::{Deserialize, Serialize};
use storagelink_multipath::{
    Hctl, Host, Map, ScsiDisk, Wwid,
    engine::ProveError,
    host::DevNo,
    iscsi_session, scsi_device,
    worker::{self, WorkerError},
};
use tonic::Code;
use uuid::Uuid;

use super::{Inner, fault::Fault, journal::Entry, unstage::UnstageError};
use crate::{
    codes::chain,
    mount::{Kind, MountPoint},
};

/// Time limit of a look at sysfs.
const LOOK: Duration = Duration::from_secs(10);
/// Time limit of the identity check.
pub(super) const PROVE: Duration = Duration::from_secs(10);
/// Time limit of writing out what is dirty.
const FLUSH: Duration = Duration::from_secs(30);
/// Time limit of a new look of the kernel at the disk's size.
const RESCAN: Duration = Duration::from_secs(60);
/// How long a lost session of a single path may stay away before its I/O fails, in seconds: open-iscsi's own default. There is no other path to send
/// it over, so that waiting is all that can be done; with multipathing it is 0.
pub(super) const PATIENCE: u32 = 120;

/// The disk of a volume, as it was when it proved the volume's identity at its stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SingleDisk {
    /// SCSI address.
    pub hctl: String,
    /// Block device number.
    pub devno: String,
    /// Sequence number of the disk.
    pub diskseq: u64,
    /// Boot of the machine in which these are true.
    pub boot: String,
    /// What the time was that its session may stay away, in seconds, before it was given [`PATIENCE`]; none when it has no session.
    pub patience_was: Option<u32>,
}

impl SingleDisk {
    pub(super) fn new(disk: &ScsiDisk, boot: &str) -> Self {
        Self {
            hctl: disk.hctl.to_string(),
            devno: disk.devno.to_string(),
            diskseq: disk.diskseq,
            boot: boot.to_owned(),
            patience_was: None,
        }
    }

    /// The disk, when it still is there and the same one. Reads sysfs only.
    pub(super) fn find(&self, host: &Host, boot: &str) -> Option<ScsiDisk> {
        let hctl: Hctl = self.hctl.parse().ok()?;
        let disk = scsi_device::find(host, &hctl).filter(|_| self.boot == boot)?;
        let same = disk.devno.to_string() == self.devno && disk.diskseq == self.diskseq;
        same.then_some(disk)
    }
}

/// A volume without a map on this node.
#[derive(Clone, Debug)]
pub(super) struct Single {
    /// Number of its disk.
    pub(super) devno: DevNo,
    /// Its disk; `None` when it is gone and only a mount of it is left.
    pub(super) disk: Option<ScsiDisk>,
    /// It is the one that the record names, or it was mounted ever since.
    pub(super) noted: bool,
}

impl Single {
    /// Writes are refused.
    pub(super) fn read_only(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.read_only)
    }

    /// Commands to it would sleep until its path is back.
    pub(super) fn is_blocked(&self) -> bool {
        self.disk.as_ref().is_some_and(ScsiDisk::is_blocked)
    }

    /// State of its device; `gone` without one.
    pub(super) fn state(&self) -> &str {
        self.disk.as_ref().map_or("gone", |disk| disk.state.as_str())
    }

    /// Kernel name, or the number of a disk that is gone.
    pub(super) fn name(&self) -> String {
        self.disk
            .as_ref()
            .map_or_else(|| self.devno.to_string(), |disk| disk.name.clone())
    }
}

fn fault(code: Code, source: impl std::error::Error + Send + Sync + 'static) -> Fault {
    step("look for its disk", code, source)
}

fn overdue(source: WorkerError) -> Fault {
    fault(Code::DeadlineExceeded, source)
}

impl Inner {
    /// The volume's disk, when it is staged without a map.
    pub(super) async fn single(&self, volume: Uuid) -> Result<Option<Single>, Fault> {
        let entry = self.journal.get(volume).await;
        let entry = entry.map_err(|error| fault(Code::Internal, error))?;
        let noted = entry.and_then(|entry| entry.single);
        let mounted = self.mounted_disk(volume).await?;
        let (host, boot) = (self.host.clone(), self.boot.clone());
        worker::run("find-disk", LOOK, move || {
            let disk = noted.as_ref().and_then(|noted| noted.find(&host, &boot));
            match (mounted, disk) {
                // The record is of another stage, or lost: the mount decides.
                (Some(devno), disk) if disk.as_ref().is_none_or(|disk| disk.devno != devno) => Some(Single {
                    devno,
                    noted: noted.is_none(),
                    disk: scsi_device::find_by_devno(&host, devno).filter(|_| noted.is_none()),
                }),
                (_, Some(disk)) => Some(Single {
                    devno: disk.devno,
                    noted: true,
                    disk: Some(disk),
                }),
                (_, None) => None,
            }
        })
        .await
        .map_err(overdue)
    }

    /// Number of the device that is mounted by the volume's own node, as a file system or as a node that is bound somewhere.
    async fn mounted_disk(&self, volume: Uuid) -> Result<Option<DevNo>, Fault> {
        let name = self.host.names.map_name(&volume.to_string());
        let node = self.host.block.own_path(&name);
        let elsewhere = self.config.host_root.as_deref();
        let failed = |error: crate::mount::MountError| match &error {
            crate::mount::MountError::Overdue { .. } => fault(Code::DeadlineExceeded, error),
            crate::mount::MountError::Io { .. } => fault(Code::Internal, error),
        };
        for mount in self.mounter.list().await.map_err(failed)? {
            if elsewhere.is_some_and(|root| mount.path.starts_with(root)) {
                continue;
            }
            let place = match by_node(&mount, &node) {
                Some(ByNode::FileSystem) if mount.devno.major != 0 => return Ok(Some(mount.devno)),
                // btrfs shows an anonymous number: its source is the node.
                Some(ByNode::FileSystem) => &mount.source,
                Some(ByNode::Bound) => &mount.path,
                None => continue,
            };
            if let Kind::Block(devno) = self.mounter.kind(place).await.map_err(failed)? {
                return Ok(Some(devno));
            }
        }
        Ok(None)
    }

    /// Writes out what is dirty of a disk that is mounted nowhere, and answers it when it may be deleted: when it is the volume's, or cannot
    /// be asked and is the very disk that was the volume's at its stage.
    pub(super) async fn let_go(
        &self,
        volume: Uuid,
        single: &Single,
        entry: Option<&Entry>,
    ) -> Result<Option<ScsiDisk>, UnstageError> {
        let Some(disk) = single.disk.clone() else {
            return Ok(None);
        };
        if let Some(user) = self.user_of(volume, single, &disk).await? {
            let source = format!("{} is {user}", disk.name).into();
            return Err(UnstageError::InUse { volume, source });
        }
        let mut unwritten = None;
        if disk.is_running() && !disk.read_only {
            let (block, devno, name) = (self.host.block.clone(), disk.devno, disk.name.clone());
            let flushed = worker::run("flush-disk", FLUSH, move || block.flush(devno, &name)).await;
            let unavailable = |source: Fault| UnstageError::Engine { volume, source };
            match flushed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    unwritten = Some(unavailable(step("flush its disk", Code::Unavailable, error)));
                }
                Err(error) => return Err(unavailable(step("flush its disk", Code::DeadlineExceeded, error))),
            }
        }
        let was = entry
            .and_then(|entry| entry.single.as_ref())
            .and_then(|single| single.patience_was);
        self.lose_patience(volume, &disk, was).await;
        let wwid: Option<Wwid> = entry
            .and_then(|entry| entry.publish_context.get("wwid"))
            .and_then(|wwid| wwid.parse().ok());
        let left = match (disk.is_running(), wwid) {
            (true, Some(wwid)) => match self.engine.prove(disk.hctl, &wwid, PROVE).await {
                // It is there: what it did not take may be taken by the next try.
                Ok(_) => return unwritten.map_or(Ok(Some(disk)), Err),
                Err(error @ ProveError::Mismatch { .. }) => chain(&error),
                // Nobody knows better what it is than the record.
                Err(_) if single.noted => return Ok(Some(disk)),
                Err(error) => chain(&error),
            },
            (false, Some(_)) if single.noted => return Ok(Some(disk)),
            _ => "nothing is known of its identity".to_owned(),
        };
        tracing::error!(volume.id = %volume, device = disk.name, hctl = %disk.hctl, why = left,
            "the disk that the volume was on is not known to be the volume: it is left as it is");
        Ok(None)
    }

    /// What still uses the disk. A map is guarded by the kernel against a removal under its users; a disk is not: it goes under a mount too.
    async fn user_of(
        &self,
        volume: Uuid,
        single: &Single,
        disk: &ScsiDisk,
    ) -> Result<Option<String>, UnstageError> {
        if !disk.holders.is_empty() {
            return Ok(Some(format!("held by {}", disk.holders.join(", "))));
        }
        let mount = |source| UnstageError::Mount { volume, source };
        let held = super::held::Held::Single(single.clone());
        let node = self.disk(volume, &held).await.map_err(mount)?;
        let seen = self.look(Some(&node)).await.map_err(mount)?;
        if let Some(first) = seen.uses.first() {
            return Ok(Some(format!("mounted at {}", first.mount.path.display())));
        }
        // Mounts in other namespaces, swap, and whoever has claimed it: the kernel refuses an exclusive open (block/bdev.c, bd_may_claim). One
        // that does not take commands is not opened.
        if !disk.is_running() {
            return Ok(None);
        }
        let claimed = worker::run("claim-disk", LOOK, move || claimed(&node.node)).await;
        match claimed {
            Ok(claimed) => {
                Ok(claimed.then(|| "mounted or claimed by something else on this host".to_owned()))
            }
            Err(source) => Err(UnstageError::Engine {
                volume,
                source: overdue(source),
            }),
        }
    }

    /// Reads the size of the disk again; its size in bytes.
    pub(super) async fn rescan(&self, disk: &ScsiDisk) -> Result<u64, Fault> {
        let (host, disk) = (self.host.clone(), disk.clone());
        let done = worker::run("rescan-disk", RESCAN, move || {
            if !disk.is_running() {
                return Err(std::io::Error::other(format!("{} is {}", disk.name, disk.state)));
            }
            let now = scsi_device::rescan(&host, &disk)?;
            let gone = || std::io::Error::other(format!("{} is gone", disk.name));
            now.map(|now| now.size_bytes).ok_or_else(gone)
        });
        match done.await {
            Ok(size) => size.map_err(|error| step("ask its disk for its size", Code::Unavailable, error)),
            Err(error) => Err(step("ask its disk for its size", Code::DeadlineExceeded, error)),
        }
    }

    /// The time that the session of a disk may stay away before its I/O fails, as it is without singles on it.
    pub(super) async fn patience_of(&self, disk: &ScsiDisk) -> Option<u32> {
        let of_host = disk.hctl.host;
        // Another volume's disk on the same session: the time was changed then, not before now.
        for (_, entry) in self.journal.list().await.unwrap_or_default() {
            let on_it = entry.single.filter(|single| {
                let hctl = single.hctl.parse::<Hctl>();
                single.boot == self.boot && hctl.is_ok_and(|hctl| hctl.host == of_host)
            });
            if let Some(single) = on_it {
                return single.patience_was;
            }
        }
        let (host, disk) = (self.host.clone(), disk.clone());
        let read = worker::run("session-timer", LOOK, move || {
            let session = iscsi_session::of_disk(&host, &disk)?;
            host.sysfs.read(&timer(session)).ok()?.parse().ok()
        });
        read.await.ok().flatten()
    }

    /// The sessions that carry paths of maps. Where they cannot be read: none.
    pub(super) async fn mapped_sessions(&self) -> BTreeSet<u32> {
        let maps = self.engine.maps().await.unwrap_or_default();
        maps.iter()
            .flat_map(Map::paths)
            .filter_map(|path| path.session)
            .collect()
    }

    /// Gives the session of a single path time to come back, unless it also carries paths of maps: those are better off without. iscsid sets
    /// its own time again with each login, so this is repeated.
    pub(super) async fn have_patience(&self, disk: &ScsiDisk, was: Option<u32>, mapped: &BTreeSet<u32>) {
        let Some(was) = was else { return };
        let (host, disk) = (self.host.clone(), disk.clone());
        let read = worker::run("session-timer", LOOK, move || {
            let session = iscsi_session::of_disk(&host, &disk)?;
            Some((session, host.sysfs.read(&timer(session)).ok()?))
        });
        let Ok(Some((session, now))) = read.await else {
            return;
        };
        let wanted = match mapped.contains(&session) {
            true => was,
            false => was.max(PATIENCE),
        }
        .to_string();
        if now != wanted {
            self.set_timer(session, wanted).await;
        }
    }

    /// Puts the time of a disk's session back, when no other volume needs it.
    async fn lose_patience(&self, volume: Uuid, disk: &ScsiDisk, was: Option<u32>) {
        let Some(was) = was else { return };
        let needed = |single: &SingleDisk| {
            let hctl = single.hctl.parse::<Hctl>();
            single.boot == self.boot && hctl.is_ok_and(|hctl| hctl.host == disk.hctl.host)
        };
        let entries = self.journal.list().await.unwrap_or_default();
        let mut others = entries.iter().filter(|(other, _)| *other != volume);
        if others.any(|(_, entry)| entry.single.as_ref().is_some_and(needed)) {
            return;
        }
        let (host, disk) = (self.host.clone(), disk.clone());
        let session = worker::run("session-timer", LOOK, move || {
            iscsi_session::of_disk(&host, &disk)
        });
        if let Ok(Some(session)) = session.await {
            self.set_timer(session, was.to_string()).await;
        }
    }

    async fn set_timer(&self, session: u32, seconds: String) {
        let host = self.host.clone();
        let set = worker::run("session-timer", LOOK, move || {
            host.sysfs.write(&timer(session), &seconds)
        });
        // EBUSY while the session is away: the next look tries again.
        if let Ok(Err(error)) = set.await {
            tracing::debug!(%error, "cannot set the time that the session of a single path may stay away");
        }
    }
}

fn step(step: &'static str, code: Code, source: impl std::error::Error + Send + Sync + 'static) -> Fault {
    Fault {
        step,
        code,
        source: Box::new(source),
    }
}

/// Somebody has an exclusive claim on the device behind this node. Blocks like any open of a device.
fn claimed(node: &Path) -> bool {
    let flags = libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(node);
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// Where the time is that a session may stay away before its I/O fails, in seconds (drivers/scsi/scsi_transport_iscsi.c).
fn timer(session: u32) -> String {
    format!("class/iscsi_session/session{session}/recovery_tmo")
}

/// How a mount shows a node.
enum ByNode {
    /// The file system on the device was mounted by it.
    FileSystem,
    /// The node itself is bound.
    Bound,
}

/// `node`: `<state directory>/dev/<name>`. A bound one is told from the root of its mount, which starts at the file system that holds it.
fn by_node(mount: &MountPoint, node: &Path) -> Option<ByNode> {
    if mount.source == node {
        return Some(ByNode::FileSystem);
    }
    let mut names = node.components().rev();
    let (name, directory) = (names.next()?, names.next()?);
    let mut root = mount.root.components().rev();
    (root.next() == Some(name) && root.next() == Some(directory)).then_some(ByNode::Bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_volumes_own_node_names_its_mounts() {
        let node = Path::new("/var/lib/storagelink-csi/dev/storagelink-v");
        let mount = |source: &str, root: &str| MountPoint {
            id: 1,
            parent: 0,
            devno: DevNo { major: 8, minor: 16 },
            root: root.into(),
            path: "/k".into(),
            options: "rw".into(),
            fs_type: "ext4".into(),
            source: source.into(),
            super_options: "rw".into(),
        };
        let of = |source: &str, root: &str| by_node(&mount(source, root), node);
        assert!(matches!(
            of("/var/lib/storagelink-csi/dev/storagelink-v", "/"),
            Some(ByNode::FileSystem)
        ));
        assert!(matches!(
            of("/dev/vda1", "/lib/storagelink-csi/dev/storagelink-v"),
            Some(ByNode::Bound)
        ));
        // A map of that name, and another volume.
        assert!(of("/dev/mapper/storagelink-v", "/").is_none());
        assert!(of("/dev/vda1", "/lib/storagelink-csi/dev/storagelink-w").is_none());
        assert!(of("devtmpfs", "/mapper/storagelink-v").is_none());
    }
}

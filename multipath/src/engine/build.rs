//! Building, extending and resizing a map. Blocking; runs on a worker thread under the volume's lock.
//!
//! Rules of the kernel that decide the order here (drivers/md/dm-mpath.c, dm-ioctl.c; measured on 6.1 and 6.12):
//! - a table swap waits for the I/O of the old table: never swap while a path has I/O that does not come back;
//! - a swap that the kernel refuses leaves the map suspended; a second plain resume brings the old table back;
//! - every swap makes failed paths active again: their marks are sent again at once, and one that leads to another disk is not in the new table.

use std::collections::BTreeMap;

use super::{BuildError, Map, MapSpec, ProveError, ProvenPath, view};
use crate::{
    Host, ScsiDisk, Wwid,
    host::{DevNo, DmError, TargetLine},
    names, scsi_device,
    status::MultipathStatus,
    table::MultipathTable,
};

/// A map being changed.
struct Change<'a> {
    host: &'a Host,
    name: &'a str,
}

impl Change<'_> {
    fn kernel(&self) -> impl Fn(DmError) -> BuildError + '_ {
        |source| BuildError::Kernel {
            name: self.name.to_owned(),
            source,
        }
    }

    fn line(&self, size_bytes: u64, paths: &[DevNo]) -> TargetLine {
        TargetLine {
            start: 0,
            length: size_bytes / 512,
            target: "multipath".to_owned(),
            params: MultipathTable::round_robin(paths.iter().copied()).to_string(),
        }
    }

    /// Paths of the live table.
    fn paths(&self) -> Result<Vec<DevNo>, BuildError> {
        let table = self.host.dm.table(self.name).map_err(self.kernel())?;
        let Some(line) = table.first() else {
            return Ok(vec![]);
        };
        let table: MultipathTable = line.params.parse().map_err(|source| BuildError::Table {
            name: self.name.to_owned(),
            source,
        })?;
        Ok(table.paths().collect())
    }

    /// Paths that the target has failed.
    fn failed(&self) -> Result<Vec<DevNo>, BuildError> {
        let status = self.host.dm.status(self.name).map_err(self.kernel())?;
        let Some(line) = status.first() else {
            return Ok(vec![]);
        };
        let status: MultipathStatus = line.params.parse().map_err(|source| BuildError::Table {
            name: self.name.to_owned(),
            source,
        })?;
        Ok(status
            .paths()
            .filter(|path| !path.active)
            .map(|path| path.devno)
            .collect())
    }

    /// Failed paths among these that have been exchanged for another disk: in a new table they would take I/O again for a moment.
    fn misled(&self, wwid: &Wwid, paths: &[DevNo]) -> Result<Vec<ScsiDisk>, BuildError> {
        let failed = self.failed()?;
        let misled = paths
            .iter()
            .filter(|devno| failed.contains(devno))
            .filter_map(|devno| scsi_device::find_by_devno(self.host, *devno))
            .filter(ScsiDisk::is_running)
            .filter(|disk| {
                matches!(
                    super::prove(self.host, disk.hctl, wwid),
                    Err(ProveError::Mismatch { .. })
                )
            });
        Ok(misled.collect())
    }

    /// Puts a new table in place of the live one, without flushing what is queued.
    fn swap(&self, size_bytes: u64, paths: &[DevNo], read_only: bool) -> Result<(), BuildError> {
        let failed = self.failed()?;
        self.host
            .dm
            .load(self.name, &[self.line(size_bytes, paths)], read_only)
            .map_err(self.kernel())?;
        let swapped = self.host.dm.resume(self.name, false);
        if swapped.is_err() {
            // The old table is still there, suspended: run it again, whatever else fails. The new one goes first if the kernel kept it, or
            // the resume would try it once more.
            let cleared = self.host.dm.clear(self.name);
            let revived = self.host.dm.resume(self.name, false);
            if let Err(error) = revived.and(cleared) {
                tracing::error!(
                    dm.name = self.name,
                    error = super::full(&error),
                    "the map could not be brought back after a refused table"
                );
            }
        }
        // After a refusal, too: a table that could not be cleared was swapped in by the second resume.
        for devno in failed.into_iter().filter(|devno| paths.contains(devno)) {
            if let Err(error) = self.host.dm.message(self.name, &format!("fail_path {devno}")) {
                tracing::warn!(dm.name = self.name, path = %devno, %error, "cannot mark the path as failed again");
            }
        }
        swapped.map_err(self.kernel())
    }

    /// Refuses while a path of the live table holds I/O. Answers the disks that are still there.
    fn reloadable(&self, paths: &[DevNo]) -> Result<Vec<ScsiDisk>, BuildError> {
        let mut disks = Vec::new();
        for devno in paths {
            // A disk that is gone has given its I/O back.
            let Some(disk) = scsi_device::find_by_devno(self.host, *devno) else {
                continue;
            };
            if disk.is_blocked() {
                return Err(blocked(self.name, &disk));
            }
            disks.push(disk);
        }
        Ok(disks)
    }
}

fn blocked(map: &str, disk: &ScsiDisk) -> BuildError {
    BuildError::PathBlocked {
        name: map.to_owned(),
        devno: disk.devno,
        device: disk.name.clone(),
        state: disk.state.clone(),
    }
}

/// Runs a suspended map again and drops a table that was never swapped in.
pub(super) fn settle(host: &Host, name: &str) -> Result<(), BuildError> {
    let change = Change { host, name };
    let Some(info) = host.dm.info(name).map_err(change.kernel())? else {
        return Ok(());
    };
    // First: a resume would swap the inactive table in.
    if info.inactive_table {
        host.dm.clear(name).map_err(change.kernel())?;
    }
    if info.suspended && info.live_table {
        host.dm.resume(name, false).map_err(change.kernel())?;
    }
    Ok(())
}

pub(super) fn build(host: &Host, spec: &MapSpec, paths: &[ProvenPath]) -> Result<Map, BuildError> {
    if paths.is_empty() {
        return Err(BuildError::NoPath {
            wwid: spec.wwid.clone(),
        });
    }
    let uuid = names::map_uuid(&spec.wwid);
    let disks = check(host, &spec.wwid, paths, &uuid)?;
    let name = names::map_name(&spec.volume);
    let change = Change { host, name: &name };
    let existing = host.dm.list().map_err(change.kernel())?;
    if let Some(other) = existing
        .iter()
        .find(|info| info.uuid == uuid && info.name != name)
    {
        return Err(BuildError::OtherVolume {
            wwid: spec.wwid.clone(),
            name: other.name.clone(),
            wanted: name,
        });
    }
    if let Some(other) = existing
        .iter()
        .find(|info| info.name == name && info.uuid != uuid)
    {
        return Err(BuildError::OtherIdentity {
            name,
            uuid: other.uuid.clone(),
        });
    }
    if !spec.read_only
        && let Some(disk) = disks.iter().find(|disk| disk.read_only)
    {
        return Err(BuildError::ReadOnly {
            device: disk.name.clone(),
            wwid: spec.wwid.clone(),
        });
    }
    let known = existing.iter().any(|info| info.name == name);
    if known {
        settle(host, &name)?;
    }
    let live = known
        && host
            .dm
            .info(&name)
            .map_err(change.kernel())?
            .is_some_and(|info| info.live_table);
    if live {
        let map = find(host, &spec.wwid)?;
        fits(&map, &disks)?;
        extend(&change, &disks, &map, spec.read_only)?;
    } else {
        let devnos: Vec<DevNo> = disks.iter().map(|disk| disk.devno).collect();
        let size = common_size(&spec.wwid, disks)?;
        if !known {
            host.dm.create(&name, &uuid).map_err(change.kernel())?;
        }
        let started = host
            .dm
            .load(&name, &[change.line(size, &devnos)], spec.read_only)
            .and_then(|()| host.dm.resume(&name, false));
        if let Err(error) = started {
            // An empty device is of no use to anybody and would keep the name.
            if let Err(error) = host.dm.remove(&name) {
                tracing::warn!(dm.name = name, %error, "cannot remove the map that could not be started");
            }
            return Err(change.kernel()(error));
        }
    }
    find(host, &spec.wwid)
}

pub(super) fn join(host: &Host, wwid: &Wwid, path: &ProvenPath) -> Result<Map, BuildError> {
    let map = find(host, wwid)?;
    let disks = check(host, wwid, std::slice::from_ref(path), &map.uuid)?;
    fits(&map, &disks)?;
    let change = Change {
        host,
        name: &map.name,
    };
    extend(&change, &disks, &map, map.read_only)?;
    find(host, wwid)
}

/// A path that is shorter than the map would be refused at the swap. A longer one is a volume that has grown and waits for its resize.
fn fits(map: &Map, disks: &[ScsiDisk]) -> Result<(), BuildError> {
    match disks.iter().find(|disk| disk.size_bytes < map.size_bytes) {
        None => Ok(()),
        Some(disk) => Err(BuildError::Sizes {
            wwid: map.wwid.clone(),
            sizes: format!(
                "map {} bytes, {} {} bytes",
                map.size_bytes, disk.name, disk.size_bytes
            ),
        }),
    }
}

/// Brings proven paths into the live table, and drops those whose disk is gone or another one.
fn extend(change: &Change<'_>, proven: &[ScsiDisk], map: &Map, read_only: bool) -> Result<(), BuildError> {
    let old = change.paths()?;
    let misled = change.misled(&map.wwid, &old)?;
    let mut wanted: Vec<DevNo> = old
        .iter()
        .copied()
        .filter(|devno| scsi_device::find_by_devno(change.host, *devno).is_some())
        .filter(|devno| misled.iter().all(|disk| disk.devno != *devno))
        .collect();
    for disk in proven {
        if !wanted.contains(&disk.devno) {
            wanted.push(disk.devno);
        }
    }
    if wanted == old && read_only == map.read_only {
        return Ok(());
    }
    change.reloadable(&old)?;
    change.swap(map.size_bytes, &wanted, read_only)
}

/// Takes failed paths that lead to other disks out of the live table; their disks. The only paths of a map stay, failed.
pub(super) fn shed(host: &Host, wwid: &Wwid) -> Result<Vec<ScsiDisk>, BuildError> {
    let map = find(host, wwid)?;
    let change = Change {
        host,
        name: &map.name,
    };
    let old = change.paths()?;
    let misled = change.misled(wwid, &old)?;
    let mut rest = old.clone();
    rest.retain(|devno| misled.iter().all(|disk| disk.devno != *devno));
    if rest.is_empty() || rest == old {
        return Ok(Vec::new());
    }
    change.reloadable(&old)?;
    change.swap(map.size_bytes, &rest, map.read_only)?;
    Ok(misled)
}

pub(super) fn resize(host: &Host, wwid: &Wwid) -> Result<u64, BuildError> {
    let map = find(host, wwid)?;
    let change = Change {
        host,
        name: &map.name,
    };
    let paths = change.paths()?;
    for disk in change.reloadable(&paths)? {
        if !disk.is_running() {
            continue;
        }
        host.sysfs
            .write(&format!("class/scsi_device/{}/device/rescan", disk.hctl), "1")
            .map_err(|source| BuildError::Rescan {
                device: disk.name.clone(),
                source,
            })?;
    }
    // A disk that is gone keeps its old size in the kernel: it must not be in the new table.
    let mut disks = change.reloadable(&paths)?;
    let misled = change.misled(wwid, &paths)?;
    disks.retain(|disk| misled.iter().all(|other| other.devno != disk.devno));
    if disks.is_empty() {
        return Err(BuildError::NoPath { wwid: wwid.clone() });
    }
    let paths: Vec<DevNo> = disks.iter().map(|disk| disk.devno).collect();
    let size = disks
        .iter()
        .map(|disk| disk.size_bytes)
        .min()
        .unwrap_or(map.size_bytes);
    // A table longer than one of its paths would be refused at the swap.
    if disks.iter().any(|disk| disk.size_bytes != size) {
        // One that is down has the size of before.
        if let Some(down) = disks.iter().find(|disk| !disk.is_running()) {
            return Err(blocked(&map.name, down));
        }
        let sizes = disks
            .into_iter()
            .map(|disk| (disk.name, disk.size_bytes))
            .collect();
        return Err(BuildError::Sizes {
            wwid: wwid.clone(),
            sizes: show_sizes(&sizes),
        });
    }
    if size > map.size_bytes {
        change.swap(size, &paths, map.read_only)?;
    }
    Ok(size.max(map.size_bytes))
}

fn find(host: &Host, wwid: &Wwid) -> Result<Map, BuildError> {
    let uuid = names::map_uuid(wwid);
    let maps = view::those(host, |info| info.uuid == uuid).map_err(|source| BuildError::Kernel {
        name: uuid.clone(),
        source,
    })?;
    maps.into_iter()
        .next()
        .ok_or_else(|| BuildError::NoMap { wwid: wwid.clone() })
}

fn show_sizes(sizes: &BTreeMap<String, u64>) -> String {
    sizes
        .iter()
        .map(|(name, size)| format!("{name} {size} bytes"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Everything that can be known to be wrong with the paths before the kernel is asked. Answers their disks, each once, as they are now.
fn check(host: &Host, wwid: &Wwid, paths: &[ProvenPath], uuid: &str) -> Result<Vec<ScsiDisk>, BuildError> {
    let mut disks: Vec<ScsiDisk> = Vec::new();
    for path in paths {
        let disk = &path.disk;
        if path.wwid != *wwid {
            return Err(BuildError::WrongPath {
                device: disk.name.clone(),
                proven: path.wwid.clone(),
                wwid: wwid.clone(),
            });
        }
        // Read again: the proof is older than what happened since, and names are used again.
        let Some(now) = scsi_device::find(host, &disk.hctl).filter(|now| now.is_same(disk)) else {
            return Err(BuildError::Gone {
                device: disk.name.clone(),
                hctl: disk.hctl,
            });
        };
        for holder in &now.holders {
            let held_by = host
                .sysfs
                .read(&format!("block/{holder}/dm/uuid"))
                .unwrap_or_default();
            if held_by != uuid {
                return Err(BuildError::Held {
                    device: now.name,
                    holder: holder.clone(),
                    uuid: held_by,
                });
            }
        }
        if !disks.iter().any(|known| known.is_same(&now)) {
            disks.push(now);
        }
    }
    Ok(disks)
}

/// The size of a map that is to be made over these disks: theirs.
fn common_size(wwid: &Wwid, disks: Vec<ScsiDisk>) -> Result<u64, BuildError> {
    let first = disks.first().map_or(0, |disk| disk.size_bytes);
    if first == 0 || disks.iter().any(|disk| disk.size_bytes != first) {
        let sizes = disks
            .into_iter()
            .map(|disk| (disk.name, disk.size_bytes))
            .collect();
        return Err(BuildError::Sizes {
            wwid: wwid.clone(),
            sizes: show_sizes(&sizes),
        });
    }
    Ok(first)
}

//! Building, extending, regrouping and resizing a map. Blocking; runs on a worker thread under the volume's lock.
//!
//! Never lets a path in that has not proved the volume's identity, and never swaps a table but by [`Change`], which knows the kernel's rules.

use std::collections::{BTreeMap, BTreeSet};

use super::{BuildError, Map, MapSpec, ProvenPath, change::Change, view};
use crate::{Host, Policy, RemotePort, ScsiDisk, Wwid, host::DevNo, scsi_device};

/// Runs a suspended map again and drops a table that was never swapped in.
pub(super) fn settle(host: &Host, name: &str) -> Result<(), BuildError> {
    let change = Change::of(host, name, Policy::default());
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
    let uuid = host.names.map_uuid(&spec.wwid);
    let disks = check(host, &spec.wwid, paths, &uuid)?;
    let name = host.names.map_name(&spec.volume);
    let change = Change::of(host, &name, spec.policy);
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
        extend(&change, paths, &map, spec.read_only)?;
    } else {
        let devnos: Vec<DevNo> = disks.iter().map(|disk| disk.devno).collect();
        let size = common_size(&spec.wwid, &disks)?;
        let groups = change.arrange(&devnos, paths, &[]);
        if !known {
            host.dm.create(&name, &uuid).map_err(change.kernel())?;
        }
        let started = change
            .load(size, &groups, spec.read_only)
            .and_then(|()| host.dm.resume(&name, false).map_err(change.kernel()));
        if let Err(error) = started {
            // An empty device is of no use to anybody and would keep the name.
            if let Err(error) = host.dm.remove(&name) {
                tracing::warn!(dm.name = name, %error, "cannot remove the map that could not be started");
            }
            return Err(error);
        }
    }
    built(host, &spec.wwid)
}

/// The map whose paths have just come.
fn built(host: &Host, wwid: &Wwid) -> Result<Map, BuildError> {
    let map = find(host, wwid)?;
    give_back_soon(host, &map);
    Ok(map)
}

/// Sees to it that the kernel does not keep the I/O of a lost Fibre Channel port longer than it must.
pub(super) fn give_back_soon(host: &Host, map: &Map) {
    let ports: BTreeSet<RemotePort> = map.paths().filter_map(|path| path.remote_port).collect();
    ports.into_iter().for_each(|port| port.give_back_soon(host));
}

pub(super) fn join(host: &Host, wwid: &Wwid, path: &ProvenPath, policy: Policy) -> Result<Map, BuildError> {
    let map = find(host, wwid)?;
    let path = fresh_size(host, path, map.size_bytes)?;
    let paths = std::slice::from_ref(&path);
    fits(&map, &check(host, wwid, paths, &map.uuid)?)?;
    let change = Change::of(host, &map.name, policy);
    extend(&change, paths, &map, map.read_only)?;
    built(host, wwid)
}

/// The path with its size read again, if it shows less than the map has: a disk that was down while the volume grew keeps its old size.
fn fresh_size(host: &Host, path: &ProvenPath, size_bytes: u64) -> Result<ProvenPath, BuildError> {
    if path.disk.size_bytes >= size_bytes {
        return Ok(path.clone());
    }
    let now = rescan(host, &path.disk)?;
    Ok(ProvenPath {
        disk: now.unwrap_or_else(|| path.disk.clone()),
        ..path.clone()
    })
}

fn rescan(host: &Host, disk: &ScsiDisk) -> Result<Option<ScsiDisk>, BuildError> {
    scsi_device::rescan(host, disk).map_err(|source| BuildError::Rescan {
        device: disk.name.clone(),
        source,
    })
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
fn extend(change: &Change<'_>, proven: &[ProvenPath], map: &Map, read_only: bool) -> Result<(), BuildError> {
    let before = change.layout()?;
    let old: Vec<DevNo> = before.iter().flatten().copied().collect();
    let survey = change.survey(&map.wwid, &old);
    let mut wanted: Vec<DevNo> = old
        .iter()
        .copied()
        .filter(|devno| scsi_device::find_by_devno(change.host, *devno).is_some())
        .filter(|devno| !survey.is_misled(*devno))
        .collect();
    for path in proven {
        if !wanted.contains(&path.disk.devno) {
            wanted.push(path.disk.devno);
        }
    }
    let known: Vec<ProvenPath> = proven.iter().cloned().chain(survey.proven).collect();
    let groups = change.arrange(&wanted, &known, &before);
    if groups == before && read_only == map.read_only {
        return Ok(());
    }
    change.reloadable(&old)?;
    change.swap(map.size_bytes, &groups, read_only)
}

/// Takes paths that lead to other disks out of the live table; their disks. The only paths of a map stay, failed.
pub(super) fn shed(host: &Host, wwid: &Wwid, policy: Policy) -> Result<Vec<ScsiDisk>, BuildError> {
    let map = find(host, wwid)?;
    let change = Change::of(host, &map.name, policy);
    let before = change.layout()?;
    let old: Vec<DevNo> = before.iter().flatten().copied().collect();
    let survey = change.survey(wwid, &old);
    let rest = only(&before, |path| !survey.is_misled(path));
    if rest.is_empty() || rest == before {
        return Ok(Vec::new());
    }
    change.reloadable(&old)?;
    change.swap(map.size_bytes, &rest, map.read_only)?;
    Ok(survey.misled)
}

/// Puts the map's paths into these groups; nothing happens when the map has other paths by now.
pub(super) fn regroup(
    host: &Host,
    wwid: &Wwid,
    policy: Policy,
    groups: &[Vec<DevNo>],
) -> Result<bool, BuildError> {
    let map = find(host, wwid)?;
    let change = Change::of(host, &map.name, policy);
    let before = change.layout()?;
    let sorted = |groups: &[Vec<DevNo>]| {
        let mut paths: Vec<DevNo> = groups.iter().flatten().copied().collect();
        paths.sort_unstable();
        paths
    };
    if before == groups || sorted(&before) != sorted(groups) {
        return Ok(false);
    }
    change.reloadable(before.iter().flatten())?;
    change.swap(map.size_bytes, groups, map.read_only)?;
    Ok(true)
}

/// The groups without the paths that are not wanted.
fn only(groups: &[Vec<DevNo>], wanted: impl Fn(DevNo) -> bool) -> Vec<Vec<DevNo>> {
    groups
        .iter()
        .map(|paths| paths.iter().copied().filter(|path| wanted(*path)).collect())
        .filter(|paths: &Vec<DevNo>| !paths.is_empty())
        .collect()
}

/// What a resize came to.
pub(super) struct Resized {
    /// Size of the map in bytes.
    pub(super) size_bytes: u64,
    /// Disks that were down and still have the old size: they are in the map no more.
    pub(super) left_out: Vec<ScsiDisk>,
}

pub(super) fn resize(host: &Host, wwid: &Wwid, policy: Policy) -> Result<Resized, BuildError> {
    let map = find(host, wwid)?;
    let change = Change::of(host, &map.name, policy);
    let before = change.layout()?;
    let paths: Vec<DevNo> = before.iter().flatten().copied().collect();
    let survey = change.survey(wwid, &paths);
    for disk in change.reloadable(&paths)?.iter().filter(|disk| disk.is_running()) {
        rescan(host, disk)?;
    }
    // A disk that is gone keeps its old size in the kernel: it must not be in the new table.
    let disks = change.reloadable(&paths)?;
    let (up, down): (Vec<ScsiDisk>, Vec<ScsiDisk>) = disks
        .into_iter()
        .filter(|disk| !survey.is_misled(disk.devno))
        .partition(ScsiDisk::is_running);
    let Some(size) = up.iter().map(|disk| disk.size_bytes).min() else {
        return Err(BuildError::NoPath { wwid: wwid.clone() });
    };
    // A table longer than one of its paths would be refused at the swap.
    if up.iter().any(|disk| disk.size_bytes != size) {
        return Err(sizes_differ(wwid, &up));
    }
    let (fit, left_out): (Vec<ScsiDisk>, Vec<ScsiDisk>) =
        down.into_iter().partition(|disk| disk.size_bytes >= size);
    if size <= map.size_bytes {
        return Ok(Resized {
            size_bytes: map.size_bytes,
            left_out: Vec::new(),
        });
    }
    let groups = only(&before, |path| {
        up.iter().chain(&fit).any(|disk| disk.devno == path)
    });
    change.swap(size, &groups, map.read_only)?;
    Ok(Resized {
        size_bytes: size,
        left_out,
    })
}

fn find(host: &Host, wwid: &Wwid) -> Result<Map, BuildError> {
    let uuid = host.names.map_uuid(wwid);
    let maps = view::those(host, |info| info.uuid == uuid).map_err(|source| BuildError::Kernel {
        name: uuid.clone(),
        source,
    })?;
    maps.into_iter()
        .next()
        .ok_or_else(|| BuildError::NoMap { wwid: wwid.clone() })
}

fn sizes_differ(wwid: &Wwid, disks: &[ScsiDisk]) -> BuildError {
    let sizes: BTreeMap<&str, u64> = disks
        .iter()
        .map(|disk| (disk.name.as_str(), disk.size_bytes))
        .collect();
    BuildError::Sizes {
        wwid: wwid.clone(),
        sizes: sizes
            .iter()
            .map(|(name, size)| format!("{name} {size} bytes"))
            .collect::<Vec<_>>()
            .join(", "),
    }
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
fn common_size(wwid: &Wwid, disks: &[ScsiDisk]) -> Result<u64, BuildError> {
    let first = disks.first().map_or(0, |disk| disk.size_bytes);
    if first == 0 || disks.iter().any(|disk| disk.size_bytes != first) {
        return Err(sizes_differ(wwid, disks));
    }
    Ok(first)
}

//! What the node plugin knows of its volumes and the kernel does not, in one small file per volume, for `mpathutil`: how a volume is staged, whether
//! that is what is wanted now, and why its paths are as they are.
//!
//! The plugin writes, `mpathutil` reads; nothing is decided by these files. They are as old as their last change: the kernel is asked for everything
//! that it knows itself. A file that cannot be understood counts as none.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::engine::{MapRecord, PathRecord};

/// The directory below the plugin's state directory.
pub const DIRECTORY: &str = "told";

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The CSI volume id; only its UUID part when the plugin has no record of it.
    pub volume_id: String,
    /// The UUID part.
    pub volume: String,
    /// Identity of the volume; empty when it is not known.
    pub wwid: String,
    /// It was staged with multipathing: over a map. Otherwise over one disk.
    pub multipathing: bool,
    /// The node's setting is another one now: it takes effect at the next stage.
    pub pending_restage: bool,
    /// The disk of a volume that was staged without multipathing.
    pub disk: Option<Disk>,
    /// What the plugin has seen of the map.
    pub map: Option<MapHistory>,
}

/// The one disk of a volume that was staged without multipathing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Kernel name.
    pub device: String,
    /// SCSI address.
    pub hctl: String,
    /// Block device number.
    pub devno: String,
    /// Sequence number of the disk.
    pub diskseq: u64,
    /// Address and port of the portal; empty when it has none.
    pub portal: String,
    /// SCSI device state; `gone` when there is none.
    pub state: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// What the plugin has seen of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapHistory {
    /// See [`crate::engine::MapState::name`].
    pub state: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// When I/O was failed for want of a path, and until when, in milliseconds since 1970.
    pub failed_io_ms: Option<(u64, Option<u64>)>,
    /// How long I/O was held in all, in milliseconds; what is held now is not in it.
    pub held_ms: u64,
    /// How often no path was usable, without a time that has not ended.
    pub stalls: u64,
    /// How often a path led to another disk.
    pub mismatches: u64,
    /// Its paths.
    pub paths: Vec<PathHistory>,
}

/// What the plugin has seen of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathHistory {
    /// Block device number.
    pub devno: String,
    /// Kernel name, now or last.
    pub device: String,
    /// SCSI address, now or last.
    pub hctl: String,
    /// Address and port of the portal, or the WWPN of the remote port; empty when it has neither.
    pub portal: String,
    /// It carried I/O.
    pub usable: bool,
    /// Why it was so.
    pub reason: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// How often it was lost.
    pub losses: u64,
    /// How often it was put back to work.
    pub reinstatements: u64,
    /// How often the kernel failed it, over all tables.
    pub failures: u64,
    /// What the last check of it found, when that was in vain.
    pub last_check: Option<String>,
}

/// Milliseconds since 1970.
#[must_use]
pub fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl From<&MapRecord> for MapHistory {
    fn from(record: &MapRecord) -> Self {
        Self {
            state: record.state.name().to_owned(),
            since_ms: millis(record.since),
            failed_io_ms: record
                .failed_io
                .map(|(from, until)| (millis(from), until.map(millis))),
            // Whole: only what has ended changes the file.
            held_ms: if record.state == crate::engine::MapState::Holding {
                0
            } else {
                u64::try_from(record.held.as_millis()).unwrap_or(u64::MAX)
            },
            stalls: record.stalls.iter().sum(),
            mismatches: record.mismatches,
            paths: record.paths.iter().map(PathHistory::from).collect(),
        }
    }
}

impl From<&PathRecord> for PathHistory {
    fn from(record: &PathRecord) -> Self {
        Self {
            devno: record.devno.to_string(),
            device: record.device.clone(),
            hctl: record.hctl.clone(),
            portal: record.portal.clone(),
            usable: record.usable,
            reason: record.reason.clone(),
            since_ms: millis(record.since),
            losses: record.losses,
            reinstatements: record.reinstatements,
            failures: record.failures,
            last_check: record.last_check.clone(),
        }
    }
}

fn file(state_dir: &Path, volume: &str) -> PathBuf {
    state_dir.join(DIRECTORY).join(format!("{volume}.json"))
}

/// Writes one volume's file, whole or not at all. Blocking.
///
/// # Errors
/// The file system refused.
pub fn write(state_dir: &Path, volume: &Volume) -> io::Result<()> {
    let path = file(state_dir, &volume.volume);
    fs::create_dir_all(state_dir.join(DIRECTORY))?;
    let new = path.with_extension("new");
    // Without fsync: after a crash of the machine nothing of this is true any more.
    fs::File::create(&new)?.write_all(&serde_json::to_vec(volume)?)?;
    fs::rename(&new, &path)
}

/// True when there is a file of this volume. Blocking.
#[must_use]
pub fn is_told(state_dir: &Path, volume: &str) -> bool {
    file(state_dir, volume).exists()
}

/// Removes one volume's file; a missing one is fine. Blocking.
///
/// # Errors
/// The file system refused.
pub fn remove(state_dir: &Path, volume: &str) -> io::Result<()> {
    match fs::remove_file(file(state_dir, volume)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the files of volumes that are not among these. Blocking.
///
/// # Errors
/// The file system refused.
pub fn keep(state_dir: &Path, volumes: &[&str]) -> io::Result<()> {
    for entry in directory(state_dir)? {
        let stem = entry
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or_default();
        if !volumes.contains(&stem) {
            fs::remove_file(&entry)?;
        }
    }
    Ok(())
}

/// Everything that is told. Blocking.
#[must_use]
pub fn read(state_dir: &Path) -> Vec<Volume> {
    let files = directory(state_dir).unwrap_or_default();
    let json = files
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "json"));
    let mut all: Vec<Volume> = json
        .filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok())
        .collect();
    all.sort_by(|a, b| a.volume.cmp(&b.volume));
    all
}

fn directory(state_dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(state_dir.join(DIRECTORY)) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str) -> Volume {
        Volume {
            volume_id: format!("{name}@array"),
            volume: name.to_owned(),
            wwid: "naa.6001405123456789abc4def812345678".to_owned(),
            multipathing: false,
            pending_restage: true,
            disk: None,
            map: None,
        }
    }

    #[test]
    fn what_is_written_is_read_and_what_is_gone_or_damaged_is_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), []);
        for name in ["b", "a", "c"] {
            write(dir.path(), &volume(name)).unwrap();
        }
        fs::write(file(dir.path(), "c"), "{").unwrap();
        fs::write(file(dir.path(), "d").with_extension("new"), "{}").unwrap();
        assert_eq!(read(dir.path()), [volume("a"), volume("b")]);
        keep(dir.path(), &["b"]).unwrap();
        assert_eq!(read(dir.path()), [volume("b")]);
        assert_eq!(directory(dir.path()).unwrap().len(), 1, "nothing else is left");
    }
}

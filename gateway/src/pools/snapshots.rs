//! Snapshots of an aggregate: each a directory with its record and a data file that shares blocks with the volume's.
//!
//! A snapshot's data is never changed and never served; it is as independent of its volume as any other file.

use std::{collections::BTreeMap, fs::OpenOptions, io, os::unix::fs::OpenOptionsExt, path::PathBuf};

use super::{
    ReflinkPool, filesystem,
    reflink::{DATA, MARK, mark},
};
use crate::{
    adapter::AdapterError,
    files,
    records::{Provision, SnapshotRecord, VolumeRecord},
};

/// The directory of all snapshots.
pub(super) const SNAPSHOTS: &str = "snapshots";

impl ReflinkPool {
    /// The data file of a snapshot.
    #[must_use]
    pub fn snapshot_data(&self, snapshot: &str) -> PathBuf {
        self.home(SNAPSHOTS).join(snapshot).join(DATA)
    }

    /// Reads all records of snapshots, as [`Self::records`] does those of volumes.
    ///
    /// # Errors
    /// The aggregate is closed, or a record cannot be read.
    pub fn snapshot_records(&self) -> Result<BTreeMap<String, SnapshotRecord>, AdapterError> {
        self.records_in(SNAPSHOTS)
    }

    /// Writes a snapshot's record.
    ///
    /// # Errors
    /// The aggregate is closed, or the file system refused.
    pub fn save_snapshot(&self, record: &SnapshotRecord) -> Result<(), AdapterError> {
        self.save_in(SNAPSHOTS, record)
    }

    /// Takes the content of the volume at this moment. One that a crash left behind is taken anew.
    ///
    /// # Errors
    /// The volume's data is not what its record says, no space, or the file system refused; no file is there then.
    pub fn take_snapshot(&self, record: &SnapshotRecord, volume: &VolumeRecord) -> Result<(), AdapterError> {
        let id = self.checked()?;
        self.check_data(volume)?;
        let path = self.snapshot_data(&record.id);
        let take = || -> io::Result<()> {
            files::remove_file_if_there(&path)?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(&path)?;
            // It is never written: sharing is all that it needs.
            filesystem::share_content(&self.data(&volume.id), &file, Provision::Thin)?;
            xattr::FileExt::set_xattr(&file, MARK, mark(id, &record.id).as_bytes())?;
            file.sync_all()?;
            files::sync_directory(&self.home(SNAPSHOTS).join(&record.id))
        };
        take().map_err(|source| {
            let _ = files::remove_file_if_there(&path);
            self.space_or_io(
                "take",
                path.clone(),
                (record.size_bytes, record.provision),
                source,
            )
        })
    }

    /// Whether a snapshot's data file is its own, and whole.
    ///
    /// # Errors
    /// [`AdapterError::Data`] says what is wrong.
    pub fn check_snapshot(&self, record: &SnapshotRecord) -> Result<(), AdapterError> {
        let id = self.checked()?;
        let path = self.snapshot_data(&record.id);
        let wrong = |problem: String| AdapterError::Data {
            id: record.id.clone(),
            problem: format!("{}: {problem}", path.display()),
        };
        let length = std::fs::metadata(&path)
            .map_err(|error| wrong(error.to_string()))?
            .len();
        let found = xattr::get(&path, MARK).map_err(|error| wrong(error.to_string()))?;
        if found.as_deref() != Some(mark(id, &record.id).as_bytes()) {
            return Err(wrong("it has another owner mark".to_owned()));
        }
        if length < record.size_bytes {
            return Err(wrong(format!(
                "it has {length} bytes, {} are recorded",
                record.size_bytes
            )));
        }
        Ok(())
    }

    /// Removes a snapshot: the data, then the record, then the directory.
    ///
    /// # Errors
    /// The aggregate is closed, or the file system refused: call again.
    pub fn remove_snapshot(&self, snapshot: &str) -> Result<(), AdapterError> {
        self.remove_in(SNAPSHOTS, snapshot)
    }
}

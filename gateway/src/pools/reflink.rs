//! An aggregate in a directory on XFS or btrfs: one directory per volume with its record and its data file.
//!
//! ```text
//! <path>/.storagelink-aggregate.json    whose directory this is
//! <path>/volumes/<volume id>/record.json
//! <path>/volumes/<volume id>/data       owner mark in the extended attribute user.storagelink
//! <path>/snapshots/<snapshot id>/       the same for a snapshot, see [`super::snapshots`]
//! ```
//! A directory that lost its marker is an unmounted file system: nothing is served from it and nothing is made in it. A data file is only
//! handed out when its owner mark and size are right: the kernel would make an empty one for a missing one.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};
use storagelink_proto::storagelink::v1::{self, ProvisionType};
use uuid::Uuid;

use super::{filesystem, snapshots::SNAPSHOTS};
use crate::{
    adapter::AdapterError,
    config::AggregateConfig,
    files,
    records::{self, Provision, Record, VolumeRecord},
};

/// Volume sizes are multiples of this: file systems and partition tables align to it.
pub const GRANULARITY: u64 = 1 << 20;
/// The largest volume: what ext4 with its usual block size can fill.
pub const MAXIMUM: u64 = 16 << 40;
const MARKER: &str = ".storagelink-aggregate.json";
pub(super) const VOLUMES: &str = "volumes";
/// Name of the data file in a volume's directory.
pub(super) const DATA: &str = "data";
/// The owner mark on a data file.
pub(super) const MARK: &str = "user.storagelink";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    id: Uuid,
    system: String,
    aggregate: String,
}

/// One aggregate.
#[derive(Debug)]
pub struct ReflinkPool {
    system: String,
    pub(super) config: AggregateConfig,
    /// Where the gateway remembers the aggregate's identity.
    remembered: PathBuf,
    /// Set at start and then fixed; an error keeps the aggregate closed until the next start.
    id: Result<Uuid, String>,
}

impl ReflinkPool {
    /// Opens the aggregate, and makes it its own at the very first start. Problems do not fail the gateway: the aggregate says why it is closed.
    #[must_use]
    pub fn open(system: &str, config: AggregateConfig, state_dir: &Path) -> Self {
        let remembered = state_dir.join(format!("aggregate-{system}-{}.json", config.name));
        let mut pool = Self {
            system: system.to_owned(),
            config,
            remembered,
            id: Ok(Uuid::nil()),
        };
        pool.id = pool.identify();
        if let Err(reason) = &pool.id {
            tracing::error!(
                system,
                aggregate = pool.config.name,
                reason,
                "aggregate is closed"
            );
        }
        pool
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    fn identify(&self) -> Result<Uuid, String> {
        let path = &self.config.path;
        let shown = path.display();
        // Tests run on whatever file system there is; none of them clones.
        #[cfg(not(test))]
        filesystem::supports_reflink(path)?;
        let read = |file: &Path| -> Result<Option<Marker>, String> {
            match fs::read(file) {
                Ok(text) => serde_json::from_slice(&text)
                    .map(Some)
                    .map_err(|e| format!("{}: {e}", file.display())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(format!("{}: {error}", file.display())),
            }
        };
        let marker = match (read(&path.join(MARKER))?, read(&self.remembered)?) {
            (Some(here), Some(known)) if here == known => here,
            (Some(here), None) if here.system == self.system && here.aggregate == self.config.name => {
                self.write(&self.remembered, &here)?;
                here
            }
            (Some(here), _) => {
                return Err(format!(
                    "{shown} belongs to aggregate `{}` of system `{}` ({})",
                    here.aggregate, here.system, here.id
                ));
            }
            (None, Some(known)) => {
                return Err(format!(
                    "{shown} does not hold aggregate {}: is its file system mounted?",
                    known.id
                ));
            }
            (None, None) => {
                if path.join(VOLUMES).exists() {
                    return Err(format!("{shown} holds volumes but no {MARKER}"));
                }
                let new = Marker {
                    id: Uuid::new_v4(),
                    system: self.system.clone(),
                    aggregate: self.config.name.clone(),
                };
                self.write(&path.join(MARKER), &new)?;
                self.write(&self.remembered, &new)?;
                new
            }
        };
        for kind in [VOLUMES, SNAPSHOTS] {
            let home = self.home(kind);
            match fs::DirBuilder::new().mode(0o700).create(&home) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(format!("{}: {error}", home.display()));
                }
                _ => {}
            }
        }
        Ok(marker.id)
    }

    fn write(&self, file: &Path, marker: &Marker) -> Result<(), String> {
        let text = serde_json::to_vec_pretty(marker).map_err(|error| error.to_string())?;
        files::write_durably(file, &text, 0o600).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// The identity, if the directory is still the aggregate's.
    pub(super) fn checked(&self) -> Result<Uuid, AdapterError> {
        let closed = |reason: String| AdapterError::Unavailable {
            aggregate: self.config.name.clone(),
            reason,
        };
        let id = self.id.as_ref().map_err(|reason| closed(reason.clone()))?;
        if !self.config.path.join(MARKER).exists() {
            let path = self.config.path.display();
            return Err(closed(format!(
                "{path} lost its marker: is its file system mounted?"
            )));
        }
        Ok(*id)
    }

    /// True when nothing is known to be wrong with it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.checked().is_ok()
    }

    fn directory(&self, volume: &str) -> PathBuf {
        self.home(VOLUMES).join(volume)
    }

    /// Where all volumes, or all snapshots, are.
    pub(super) fn home(&self, kind: &str) -> PathBuf {
        self.config.path.join(kind)
    }

    /// The data file of a volume.
    #[must_use]
    pub fn data(&self, volume: &str) -> PathBuf {
        self.directory(volume).join(DATA)
    }

    /// Reads all records. Directories without a record are what a crash left of a creation: they go.
    ///
    /// # Errors
    /// The aggregate is closed, or a record cannot be read: nothing is guessed then.
    pub fn records(&self) -> Result<BTreeMap<String, VolumeRecord>, AdapterError> {
        self.records_in(VOLUMES)
    }

    pub(super) fn records_in<R: Record>(&self, kind: &str) -> Result<BTreeMap<String, R>, AdapterError> {
        self.checked()?;
        let home = self.home(kind);
        let wrap = |source| AdapterError::Io {
            action: "read",
            path: home.clone(),
            source,
        };
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(&home).map_err(wrap)? {
            let directory = entry.map_err(wrap)?.path();
            match records::read::<R>(&directory)? {
                Some(record) => {
                    all.insert(record.identity().1.to_owned(), record);
                }
                None if directory.join(DATA).exists() => {
                    tracing::error!(path = %directory.display(), "data without a record: left alone, not served");
                }
                None => {
                    let _ = files::remove_file_if_there(
                        &directory.join(format!("{}.new", crate::records::RECORD)),
                    );
                    if let Err(error) = fs::remove_dir(&directory) {
                        tracing::warn!(path = %directory.display(), %error, "cannot remove an empty directory");
                    }
                }
            }
        }
        Ok(all)
    }

    /// Writes a volume's record, making its directory if need be.
    ///
    /// # Errors
    /// The aggregate is closed, or the file system refused.
    pub fn save(&self, record: &VolumeRecord) -> Result<(), AdapterError> {
        self.save_in(VOLUMES, record)
    }

    pub(super) fn save_in(&self, kind: &str, record: &impl Record) -> Result<(), AdapterError> {
        self.checked()?;
        let directory = self.home(kind).join(record.identity().1);
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                return Err(AdapterError::Io {
                    action: "make",
                    path: directory,
                    source,
                });
            }
        }
        Ok(records::write(record, &directory)?)
    }

    /// Makes a volume's data file of the record's size, with the owner mark and the content of `from`. One that a crash left
    /// behind is made anew.
    ///
    /// # Errors
    /// No space, or the file system refused; no file is there then.
    pub fn make_data(&self, record: &VolumeRecord, from: Option<&Path>) -> Result<(), AdapterError> {
        let id = self.checked()?;
        let path = self.data(&record.id);
        let make = || -> io::Result<()> {
            files::remove_file_if_there(&path)?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            if let Some(from) = from {
                filesystem::share_content(from, &file, record.provision)?;
            }
            filesystem::set_length(&file, record.size_bytes, record.provision)?;
            xattr::FileExt::set_xattr(&file, MARK, mark(id, &record.id).as_bytes())?;
            file.sync_all()?;
            files::sync_directory(&self.directory(&record.id))
        };
        make().map_err(|source| {
            let _ = files::remove_file_if_there(&path);
            self.space_or_io(
                "make",
                path.clone(),
                (record.size_bytes, record.provision),
                source,
            )
        })
    }

    /// Makes the data file longer; never shorter.
    ///
    /// # Errors
    /// No space, or the file system refused.
    pub fn grow_data(&self, record: &VolumeRecord, size_bytes: u64) -> Result<(), AdapterError> {
        self.check_data(record)?;
        let path = self.data(&record.id);
        let grow = || -> io::Result<()> {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            if file.metadata()?.len() < size_bytes {
                filesystem::set_length(&file, size_bytes, record.provision)?;
            }
            file.sync_all()
        };
        grow().map_err(|source| {
            self.space_or_io(
                "grow",
                path.clone(),
                (record.size_bytes, record.provision),
                source,
            )
        })
    }

    pub(super) fn space_or_io(
        &self,
        action: &'static str,
        path: PathBuf,
        (wanted, provision): (u64, Provision),
        source: io::Error,
    ) -> AdapterError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                self.full(wanted, self.free(), provision)
            }
            _ => AdapterError::Io { action, path, source },
        }
    }

    /// Whether the data file is the volume's: there, marked, and as long as the record says.
    ///
    /// # Errors
    /// [`AdapterError::Data`] says what is wrong.
    pub fn check_data(&self, record: &VolumeRecord) -> Result<(), AdapterError> {
        let id = self.checked()?;
        let path = self.data(&record.id);
        let wrong = |problem: String| AdapterError::Data {
            id: record.id.clone(),
            problem,
        };
        let meta =
            fs::symlink_metadata(&path).map_err(|error| wrong(format!("{}: {error}", path.display())))?;
        if !meta.is_file() {
            return Err(wrong(format!("{} is not a file", path.display())));
        }
        let found = xattr::get(&path, MARK).map_err(|error| wrong(format!("{}: {error}", path.display())))?;
        if found.as_deref() != Some(mark(id, &record.id).as_bytes()) {
            let found = found.map_or_else(
                || "none".to_owned(),
                |found| String::from_utf8_lossy(&found).into_owned(),
            );
            return Err(wrong(format!(
                "{} has the owner mark `{found}`, not `{}`",
                path.display(),
                mark(id, &record.id)
            )));
        }
        if meta.len() < record.size_bytes {
            return Err(wrong(format!(
                "{} has {} bytes, {} are recorded",
                path.display(),
                meta.len(),
                record.size_bytes
            )));
        }
        Ok(())
    }

    /// Bytes that a volume's data takes now.
    #[must_use]
    pub fn used(&self, volume: &str) -> u64 {
        // st_blocks counts units of 512 bytes (stat(2)).
        fs::metadata(self.data(volume)).map_or(0, |meta| meta.blocks() * 512)
    }

    /// Removes a volume: the data, then the record, then the directory.
    ///
    /// # Errors
    /// The aggregate is closed, or the file system refused: call again.
    pub fn remove(&self, volume: &str) -> Result<(), AdapterError> {
        self.remove_in(VOLUMES, volume)
    }

    pub(super) fn remove_in(&self, kind: &str, id: &str) -> Result<(), AdapterError> {
        self.checked()?;
        let directory = self.home(kind).join(id);
        let remove = || -> io::Result<()> {
            super::adopt::give_back(&directory.join(DATA))?;
            files::remove_file_if_there(&directory.join(crate::records::RECORD))?;
            match fs::remove_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            files::sync_directory(&self.home(kind))
        };
        remove().map_err(|source| AdapterError::Io {
            action: "remove",
            path: directory.clone(),
            source,
        })
    }

    /// Physical bytes that volumes may still take.
    fn free(&self) -> u64 {
        let space =
            statvfs(&self.config.path).map_or(0, |s| s.blocks_available().saturating_mul(s.fragment_size()));
        space.saturating_sub(self.config.reserve)
    }

    fn full(&self, wanted: u64, left: u64, provision: Provision) -> AdapterError {
        AdapterError::Full {
            system: self.system.clone(),
            aggregate: self.config.name.clone(),
            wanted,
            left,
            kind: match provision {
                Provision::Thin => "thin",
                Provision::Thick => "thick",
            },
        }
    }

    /// The size that a volume gets for these bounds.
    ///
    /// # Errors
    /// [`AdapterError::Limit`].
    pub fn round(&self, size_bytes: u64, limit_bytes: u64) -> Result<u64, AdapterError> {
        let size = size_bytes
            .max(1)
            .checked_next_multiple_of(GRANULARITY)
            .unwrap_or(u64::MAX);
        let limit = if limit_bytes == 0 {
            MAXIMUM
        } else {
            limit_bytes.min(MAXIMUM)
        };
        if size > limit {
            Err(AdapterError::Limit {
                size,
                granularity: GRANULARITY,
                limit,
            })
        } else {
            Ok(size)
        }
    }

    /// Whether so many more bytes may be promised, given what is promised already.
    ///
    /// # Errors
    /// [`AdapterError::Full`] with the figures.
    pub fn check_room(&self, more: u64, promised: u64, provision: Provision) -> Result<(), AdapterError> {
        self.checked()?;
        let space = self.space(promised);
        let left = match provision {
            Provision::Thin => space.provisionable_bytes,
            Provision::Thick => space.provisionable_bytes.min(space.free_bytes),
        };
        if more > left || (more > 0 && space.free_bytes == 0) {
            return Err(self.full(more, left, provision));
        }
        Ok(())
    }

    /// Its space, given what is promised to its volumes.
    #[must_use]
    pub fn space(&self, promised: u64) -> v1::Aggregate {
        let size = statvfs(&self.config.path).map_or(0, |s| s.blocks().saturating_mul(s.fragment_size()));
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let promisable = (size.saturating_sub(self.config.reserve) as f64 * self.config.overcommit) as u64;
        let open = self.checked();
        let usable = |bytes: u64| if open.is_ok() { bytes } else { 0 };
        let provisionable = usable(promisable.saturating_sub(promised));
        v1::Aggregate {
            name: self.config.name.clone(),
            system: self.system.clone(),
            size_bytes: usable(size),
            free_bytes: usable(self.free()),
            provisioned_bytes: promised,
            provisionable_bytes: provisionable,
            maximum_volume_bytes: provisionable.min(MAXIMUM) / GRANULARITY * GRANULARITY,
            granularity_bytes: GRANULARITY,
            provision_types: vec![ProvisionType::Thin.into(), ProvisionType::Thick.into()],
            unavailable_reason: open.err().map(|error| error.to_string()).unwrap_or_default(),
        }
    }
}

pub(super) fn mark(aggregate: Uuid, volume: &str) -> String {
    format!("{aggregate}/{volume}")
}

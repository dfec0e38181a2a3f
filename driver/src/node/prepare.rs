//! From a mapped disk to a mountable file system: looks at what is on it, checks it, or formats it when it is blank.
//!
//! It must never format a disk that is not blank, and never write to one that is staged read-only. Blank means that our
//! own look at the disk ([`blank`]) *and* blkid's probe find nothing. The one exception is a disk that this node found
//! blank and began to format a short while ago without coming to the end ([`Entry::may_format_again`]).
//!
//! Read-only means no replay of a journal either: another node may be writing, or may mount it read-only as well. The
//! map itself is read-only then, so the kernel could not replay; the file system is told not to try. What was only in
//! the journal is not seen: the content is as old as the last checkpoint.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nix::mount::MsFlags;
use storagelink_multipath::{
    host::{BlockDevices, DevNo},
    worker::{self, WorkerError},
};
use tonic::Code;
use uuid::Uuid;

use super::journal::{Entry, Journal, JournalError, now};
use crate::{
    codes::Coded,
    mount::{
        FsType, MountOptions, Request, blank,
        filesystem::{self, FsError},
        superblock::{self, Content, HEAD_BYTES, Superblock},
    },
    programs::Programs,
};

/// Time limit of reading what is looked at of a disk: at most 8 MiB in about 70 pieces.
const READ: Duration = Duration::from_secs(60);

/// A mapped disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its number.
    pub devno: DevNo,
    /// Kernel name, `dm-3`.
    pub name: String,
    /// Name of its map.
    pub map: String,
    /// A node that this process and its programs can open.
    pub node: PathBuf,
    /// Size in bytes.
    pub size: u64,
}

/// Why a disk cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// It could not be read.
    #[error("volume {volume}: read {disk}")]
    Read {
        /// Which volume.
        volume: Uuid,
        /// Kernel name of its disk.
        disk: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A read did not come back.
    #[error("volume {volume}: read {disk}")]
    Overdue {
        /// Which volume.
        volume: Uuid,
        /// Kernel name of its disk.
        disk: String,
        /// How long it was waited for.
        #[source]
        source: WorkerError,
    },
    /// Another file system than the one asked for.
    #[error(
        "volume {volume} holds {found}, not the {wanted} that volume_capability.mount.fs_type asks for; it is not formatted again"
    )]
    Different {
        /// Which volume.
        volume: Uuid,
        /// What is on it.
        found: String,
        /// What was asked for.
        wanted: FsType,
    },
    /// Something that is neither blank nor a known file system.
    #[error("volume {volume} is not blank ({what}); it is never formatted over data")]
    NotBlank {
        /// Which volume.
        volume: Uuid,
        /// What was found.
        what: String,
    },
    /// Nothing is on it, and nothing may be written to it.
    #[error(
        "volume {volume} is blank and is to be staged read-only: it must be staged writable once to get its file system"
    )]
    BlankReadOnly {
        /// Which volume.
        volume: Uuid,
    },
    /// It was somebody's LUN and holds nothing that is known: what it holds is their business.
    #[error(
        "volume {volume} is an adopted LUN without a file system: an adopted LUN is never formatted; make one on it by hand, or use it as a raw block volume"
    )]
    BlankAdopted {
        /// Which volume.
        volume: Uuid,
    },
    /// What the maker left is not the file system.
    #[error("volume {volume}: after mkfs for {wanted} the disk shows {found}")]
    NotMade {
        /// Which volume.
        volume: Uuid,
        /// What was asked for.
        wanted: FsType,
        /// What is there.
        found: String,
    },
    /// blkid, a maker or a checker.
    #[error("volume {volume}")]
    Fs {
        /// Which volume.
        volume: Uuid,
        /// What.
        #[source]
        source: FsError,
    },
    /// The format could not be noted.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Coded for PrepareError {
    fn code(&self) -> Code {
        match self {
            Self::Overdue { .. } => Code::DeadlineExceeded,
            Self::Different { .. }
            | Self::NotBlank { .. }
            | Self::BlankReadOnly { .. }
            | Self::BlankAdopted { .. } => Code::FailedPrecondition,
            Self::Fs {
                source: FsError::Damaged { .. },
                ..
            } => Code::FailedPrecondition,
            Self::Read { .. } | Self::NotMade { .. } | Self::Fs { .. } | Self::Journal(_) => Code::Internal,
        }
    }
}

/// What is needed to look at a disk and to write a file system to it.
pub struct Preparer<'a> {
    /// The block layer.
    pub block: Arc<dyn BlockDevices>,
    /// mkfs and friends.
    pub programs: &'a dyn Programs,
    /// Where a format is noted before it is begun.
    pub journal: &'a Journal,
    /// Which volume.
    pub volume: Uuid,
    /// A blank one may get a file system.
    pub may_format: bool,
}

impl Preparer<'_> {
    /// Makes sure that the disk holds a sound file system of type `fs` and tells about it.
    pub async fn prepare(
        &self,
        disk: &Disk,
        fs: FsType,
        read_only: bool,
        entry: &mut Entry,
    ) -> Result<Superblock, PrepareError> {
        match superblock::detect(&self.head(disk).await?) {
            Content::One(found) if found.fs == fs => {
                if found.needs_check && !read_only {
                    tracing::warn!(volume.id = %self.volume, "its ext4 file system asks for a check");
                    filesystem::check(self.programs, &disk.node)
                        .await
                        .map_err(|e| self.fs(e))?;
                }
                Ok(found)
            }
            found @ (Content::One(_) | Content::Several(_)) => Err(PrepareError::Different {
                volume: self.volume,
                found: found.to_string(),
                wanted: fs,
            }),
            Content::Unknown => self.format(disk, fs, read_only, entry).await,
        }
    }

    async fn format(
        &self,
        disk: &Disk,
        fs: FsType,
        read_only: bool,
        entry: &mut Entry,
    ) -> Result<Superblock, PrepareError> {
        // Both look at the same time: blkid reads what is on its way already.
        let (content, signature) = tokio::join!(
            self.first_content(disk),
            filesystem::signature(self.programs, &disk.node)
        );
        let content = content?;
        let again = content.is_some() && entry.may_format_again();
        if let Some(at) = content
            && !again
        {
            // blkid only names it: what is not zero is not formatted, whether that is known or not.
            let what = signature.ok().flatten();
            return Err(PrepareError::NotBlank {
                volume: self.volume,
                what: what.unwrap_or_else(|| format!("data at byte {at}")),
            });
        }
        if !self.may_format {
            return Err(PrepareError::BlankAdopted { volume: self.volume });
        }
        if read_only {
            return Err(PrepareError::BlankReadOnly { volume: self.volume });
        }
        if let Some(what) = signature.map_err(|e| self.fs(e))? {
            return Err(PrepareError::NotBlank {
                volume: self.volume,
                what,
            });
        }
        entry.formatting = Some(now());
        self.journal.put(self.volume, entry).await?;
        tracing::info!(volume.id = %self.volume, %fs, again, "the volume is blank: making its file system");
        filesystem::make(self.programs, fs, &disk.node, again)
            .await
            .map_err(|e| self.fs(e))?;
        match superblock::detect(&self.head(disk).await?) {
            Content::One(made) if made.fs == fs => {
                entry.formatting = None;
                self.journal.put(self.volume, entry).await?;
                Ok(made)
            }
            found => Err(PrepareError::NotMade {
                volume: self.volume,
                wanted: fs,
                found: found.to_string(),
            }),
        }
    }

    fn fs(&self, source: FsError) -> PrepareError {
        PrepareError::Fs {
            volume: self.volume,
            source,
        }
    }

    async fn head(&self, disk: &Disk) -> Result<Vec<u8>, PrepareError> {
        let length = HEAD_BYTES.min(usize::try_from(disk.size).unwrap_or(HEAD_BYTES));
        self.read(disk, move |block, disk| {
            block.read_at(disk.devno, &disk.name, 0, length)
        })
        .await
    }

    async fn first_content(&self, disk: &Disk) -> Result<Option<u64>, PrepareError> {
        self.read(disk, |block, disk| {
            blank::first_content(block, disk.devno, &disk.name, disk.size)
        })
        .await
    }

    async fn read<T: Send + 'static>(
        &self,
        disk: &Disk,
        f: impl FnOnce(&dyn BlockDevices, &Disk) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, PrepareError> {
        let (volume, name) = (self.volume, disk.name.clone());
        let (block, disk) = (self.block.clone(), disk.clone());
        match worker::run("read-disk", READ, move || f(block.as_ref(), &disk)).await {
            Ok(result) => result.map_err(|source| PrepareError::Read {
                volume,
                disk: name,
                source,
            }),
            Err(source) => Err(PrepareError::Overdue {
                volume,
                disk: name,
                source,
            }),
        }
    }
}

/// The mount that this disk, file system and capability need.
#[must_use]
pub fn mount_request(
    disk: &Disk,
    found: Superblock,
    options: &MountOptions,
    read_only: bool,
    target: PathBuf,
) -> Request {
    let mut data = options.data.clone();
    let mut flags = options.flags;
    if read_only {
        flags |= MsFlags::MS_RDONLY;
        let quiet = match found.fs {
            FsType::Ext4 if found.needs_replay => Some("noload"),
            // XFS does not tell beforehand whether its log is clean; with a clean one the option changes nothing.
            FsType::Xfs => Some("norecovery"),
            // Linux 5.9 and later.
            FsType::Btrfs if found.needs_replay => Some("rescue=nologreplay"),
            FsType::Ext4 | FsType::Btrfs => None,
        };
        data.extend(quiet.map(str::to_owned));
    }
    Request {
        node: disk.node.clone(),
        target,
        fs: found.fs,
        flags,
        data: data.join(","),
    }
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;

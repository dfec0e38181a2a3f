//! NodeExpandVolume: gives a volume that grew on the array its new size on this node, online.
//!
//! Paths first, then the map, then the file system. It must never shrink anything, and never call a volume grown whose
//! disk does not show the size that was asked for.

use std::{path::PathBuf, time::Duration};

use tonic::Code;
use uuid::Uuid;

use super::{
    Inner,
    fault::Fault,
    guard::Guard,
    held::Held,
    view::{self, Top},
};
use crate::{
    codes::Coded,
    fields::Range,
    ids::VolumeId,
    mount::{
        MountError,
        filesystem::{self, FsError},
    },
};

/// Time limit of asking every path for its size and loading the longer table.
const RESIZE: Duration = Duration::from_secs(60);

/// Why a volume did not grow.
#[derive(Debug, thiserror::Error)]
pub enum ExpandError {
    /// It is not on this node.
    #[error("volume {volume} is not staged on this node")]
    NotHere {
        /// Which volume.
        volume: Uuid,
    },
    /// The path does not show it.
    #[error("volume_path {}: volume {volume} is not there", path.display())]
    NotAtPath {
        /// Which volume.
        volume: Uuid,
        /// The path.
        path: PathBuf,
    },
    /// The array still shows the old size.
    #[error(
        "volume {volume}: its paths show {actual} bytes, capacity_range.required_bytes is {required}; it must grow on the array first"
    )]
    NotGrown {
        /// Which volume.
        volume: Uuid,
        /// Bytes of the map.
        actual: u64,
        /// Bytes asked for.
        required: u64,
    },
    /// It is larger than it may be.
    #[error(
        "volume {volume}: has {actual} bytes, capacity_range.limit_bytes is {limit}; volumes do not shrink"
    )]
    TooLarge {
        /// Which volume.
        volume: Uuid,
        /// Bytes of the map.
        actual: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The file system is mounted read-only and cannot grow.
    #[error("volume {volume}: its file system is mounted read-only")]
    ReadOnly {
        /// Which volume.
        volume: Uuid,
    },
    /// The multipath engine.
    #[error("volume {volume}")]
    Engine {
        /// Which volume.
        volume: Uuid,
        /// Which step, and why.
        #[source]
        source: Fault,
    },
    /// The mount table.
    #[error("volume {volume}")]
    Mount {
        /// Which volume.
        volume: Uuid,
        /// Why.
        #[source]
        source: MountError,
    },
    /// The file system.
    #[error("volume {volume}")]
    Fs {
        /// Which volume.
        volume: Uuid,
        /// Why.
        #[source]
        source: FsError,
    },
}

impl Coded for ExpandError {
    fn code(&self) -> Code {
        match self {
            Self::NotHere { .. } | Self::NotAtPath { .. } => Code::NotFound,
            Self::NotGrown { .. } | Self::ReadOnly { .. } => Code::FailedPrecondition,
            Self::TooLarge { .. } => Code::OutOfRange,
            Self::Mount {
                source: MountError::Overdue { .. },
                ..
            } => Code::DeadlineExceeded,
            Self::Engine { source, .. } => source.code,
            Self::Mount { .. } | Self::Fs { .. } => Code::Internal,
        }
    }
}

impl Inner {
    /// Grows a volume and what is on it; returns its size in bytes. Repeating it changes nothing.
    pub(super) async fn expand(
        &self,
        id: &VolumeId,
        path: PathBuf,
        range: Range,
        guard: Guard,
    ) -> Result<u64, ExpandError> {
        let volume = id.uuid();
        let mount = |source| ExpandError::Mount { volume, source };
        let engine = |source| ExpandError::Engine { volume, source };
        let held = self.held(volume).await.map_err(engine)?;
        let held = held.ok_or(ExpandError::NotHere { volume })?;
        let path = self.mounter.resolve(&path).await.map_err(mount)?;
        let disk = self.disk(volume, &held).await.map_err(mount)?;
        let seen = self.look(Some(&disk)).await.map_err(mount)?;
        // A block volume is nowhere to be seen before it is published: then the staging path alone names it.
        let here = match seen.at(&path) {
            Top::Ours(here) => Some(here),
            Top::Free if seen.uses.iter().all(|u| u.block) && self.is_staging(volume, &path).await => None,
            Top::Free | Top::Foreign(_) => return Err(ExpandError::NotAtPath { volume, path }),
        };
        let actual = match &held {
            Held::Map(map) => {
                let resized = self.engine.resize(&map.wwid, RESIZE).await;
                resized.map_err(|e| engine(Fault::build("grow its map", e)))?
            }
            Held::Single(single) => {
                let disk = single.disk.as_ref().ok_or(ExpandError::NotHere { volume })?;
                self.rescan(disk).await.map_err(engine)?
            }
        };
        if let Some(required) = range.required.filter(|&r| r > actual) {
            return Err(ExpandError::NotGrown {
                volume,
                actual,
                required,
            });
        }
        if let Some(limit) = range.limit.filter(|&l| l < actual) {
            return Err(ExpandError::TooLarge {
                volume,
                actual,
                limit,
            });
        }
        let Some(fs) = here.and_then(view::Use::fs) else {
            return Ok(actual);
        };
        // A read-only publication of a writable volume: its file system is grown where it is mounted writable.
        let writable = seen.uses.iter().find(|u| !u.block && !u.mount.read_only());
        let writable = writable.ok_or(ExpandError::ReadOnly { volume })?;
        let grown = filesystem::grow(self.programs.as_ref(), fs, &disk.node, &writable.mount.path).await;
        drop(guard);
        grown.map_err(|source| ExpandError::Fs { volume, source })?;
        Ok(actual)
    }

    async fn is_staging(&self, volume: Uuid, path: &std::path::Path) -> bool {
        let entry = self.journal.get(volume).await.ok().flatten();
        entry.is_some_and(|e| e.staged && e.staging_path == path)
    }
}

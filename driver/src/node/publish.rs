//! NodePublishVolume and NodeUnpublishVolume: shows a staged volume at a workload's path and takes it away again.
//!
//! It must never publish what is not staged, never cover another mount, and never remove anything but an unmounted file
//! or an empty directory.

use std::path::{Path, PathBuf};

use storagelink_proto::csi::v1::volume_capability::access_mode::Mode;
use tonic::Code;
use uuid::Uuid;

use super::{
    Inner,
    fault::Fault,
    guard::Guard,
    validate::{Access, Publish},
    view::Top,
};
use crate::{
    codes::Coded,
    ids::VolumeId,
    mount::{Kind, MountError},
};

/// More mounts than this on top of one another are not ours.
const STACK: usize = 16;

/// Why a volume is not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It is not staged, or not there.
    #[error("volume {volume} is not staged at staging_target_path {}: {problem}", path.display())]
    NotStaged {
        /// Which volume.
        volume: Uuid,
        /// The staging path.
        path: PathBuf,
        /// What is there instead.
        problem: String,
    },
    /// It is published at the target, but otherwise.
    #[error("volume {volume} is already published at {} {how}", path.display())]
    Conflict {
        /// Which volume.
        volume: Uuid,
        /// The target path.
        path: PathBuf,
        /// How.
        how: &'static str,
    },
    /// Something else is at the target.
    #[error("target_path {}: {what} is in the way of volume {volume}", path.display())]
    Occupied {
        /// Which volume.
        volume: Uuid,
        /// The target path.
        path: PathBuf,
        /// What.
        what: String,
    },
    /// A single writer has it elsewhere.
    #[error("volume {volume} has access mode SINGLE_NODE_SINGLE_WRITER and is published at {}", path.display())]
    SingleWriter {
        /// Which volume.
        volume: Uuid,
        /// Where.
        path: PathBuf,
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
}

impl Coded for PublishError {
    fn code(&self) -> Code {
        match self {
            Self::NotStaged { .. } | Self::Occupied { .. } | Self::SingleWriter { .. } => {
                Code::FailedPrecondition
            }
            Self::Conflict { .. } => Code::AlreadyExists,
            Self::Mount {
                source: MountError::Overdue { .. },
                ..
            } => Code::DeadlineExceeded,
            Self::Engine { source, .. } => source.code,
            Self::Mount { .. } => Code::Internal,
        }
    }
}

/// Why a target still shows something.
#[derive(Debug, thiserror::Error)]
pub enum UnpublishError {
    /// Another mount than the volume's.
    #[error("target_path {}: what is mounted there is not volume {volume} ({source_name})", path.display())]
    Foreign {
        /// Which volume.
        volume: Uuid,
        /// The target path.
        path: PathBuf,
        /// What.
        source_name: String,
    },
    /// The workload still uses it, or the directory below it is not empty.
    #[error("volume {volume} is busy")]
    InUse {
        /// Which volume.
        volume: Uuid,
        /// Why.
        #[source]
        source: MountError,
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
}

impl Coded for UnpublishError {
    fn code(&self) -> Code {
        match self {
            Self::Foreign { .. } | Self::InUse { .. } => Code::FailedPrecondition,
            Self::Mount {
                source: MountError::Overdue { .. },
                ..
            } => Code::DeadlineExceeded,
            Self::Engine { source, .. } => source.code,
            Self::Mount { .. } => Code::Internal,
        }
    }
}

impl Inner {
    /// Publishes a volume. Repeating it changes nothing.
    pub(super) async fn publish(&self, request: Publish, guard: Guard) -> Result<(), PublishError> {
        let volume = request.volume.uuid();
        let mount = |source| PublishError::Mount { volume, source };
        let staging = self.mounter.resolve(&request.staging).await.map_err(mount)?;
        let target = self.mounter.resolve(&request.target).await.map_err(mount)?;
        let not_staged = |problem: String| PublishError::NotStaged {
            volume,
            path: staging.clone(),
            problem,
        };
        let held = self
            .held(volume)
            .await
            .map_err(|source| PublishError::Engine { volume, source })?;
        let Some(held) = held else {
            return Err(not_staged("it has no device on this node".to_owned()));
        };
        let disk = self.disk(volume, &held).await.map_err(mount)?;
        let seen = self.look(Some(&disk)).await.map_err(mount)?;
        let block = request.capability.access == Access::Block;
        let from = match (seen.at(&staging), &request.capability.access) {
            (Top::Ours(here), Access::Mount { fs, .. }) if here.fs() == Some(*fs) => staging.clone(),
            (Top::Ours(here), _) => return Err(not_staged(format!("it is staged as {}", here.form()))),
            (_, Access::Block) => disk.node.clone(),
            (Top::Free, _) => return Err(not_staged("nothing is mounted there".to_owned())),
            (Top::Foreign(other), _) => {
                return Err(not_staged(format!("{} is mounted there", other.source.display())));
            }
        };
        if !request.read_only && held.read_only() {
            return Err(not_staged(
                "it is staged read-only, and a writable publication was asked for".to_owned(),
            ));
        }
        match seen.at(&target) {
            Top::Ours(here) => {
                let how = match (here.block == block, has_ro(&here.mount) == request.read_only) {
                    (true, true) => return Ok(()),
                    (true, false) if request.read_only => "writable",
                    (true, false) => "read-only",
                    (false, _) if here.block => "as block",
                    (false, _) => "as a file system",
                };
                return Err(PublishError::Conflict {
                    volume,
                    path: target,
                    how,
                });
            }
            Top::Foreign(other) => {
                let what = format!("a mount of {}", other.source.display());
                return Err(PublishError::Occupied {
                    volume,
                    path: target,
                    what,
                });
            }
            Top::Free => {}
        }
        if request.capability.mode == Mode::SingleNodeSingleWriter
            && let Some(path) = seen.besides(&[&staging, &target]).first()
        {
            return Err(PublishError::SingleWriter {
                volume,
                path: path.to_path_buf(),
            });
        }
        let wanted = if block { Kind::File } else { Kind::Directory };
        let kind = self.mounter.kind(&target).await.map_err(mount)?;
        if kind != Kind::Missing && kind != wanted {
            return Err(PublishError::Occupied {
                volume,
                path: target,
                what: format!("{kind:?}").to_lowercase(),
            });
        }
        let made = if block {
            self.mounter.make_file(&target).await
        } else {
            self.mounter.make_directory(&target).await
        };
        made.map_err(mount)?;
        // A bound device node does not stop a writer of the device: for a block volume the container runtime withholds
        // the right to write, and a volume staged read-only has a read-only map.
        let bound = self.mounter.bind(from, &target, request.read_only, guard).await;
        if let Err(error @ MountError::Io { .. }) = bound {
            if kind == Kind::Missing
                && let Err(error) = self.mounter.remove(&target).await
            {
                tracing::warn!(volume.id = %volume, error = crate::codes::chain(&error), "cannot remove an unused target");
            }
            return Err(mount(error));
        }
        bound.map_err(mount)
    }

    /// Takes a volume away from a target and removes the target. Repeating it changes nothing.
    pub(super) async fn unpublish(
        &self,
        id: &VolumeId,
        target: PathBuf,
        guard: Guard,
    ) -> Result<(), UnpublishError> {
        let volume = id.uuid();
        let mount = |source| UnpublishError::Mount { volume, source };
        let target = self.mounter.resolve(&target).await.map_err(mount)?;
        let held = self
            .held(volume)
            .await
            .map_err(|source| UnpublishError::Engine { volume, source })?;
        let disk = match &held {
            Some(held) => Some(self.disk(volume, held).await.map_err(mount)?),
            None => None,
        };
        for _ in 0..STACK {
            let seen = self.look(disk.as_ref()).await.map_err(mount)?;
            match seen.at(&target) {
                Top::Free => break,
                Top::Ours(_) => {}
                // The node of a device that is gone: a bound node does not hold its device.
                Top::Foreign(_) if disk.is_none() && self.is_node(&target).await.map_err(mount)? => {}
                Top::Foreign(other) => {
                    let source_name = other.source.display().to_string();
                    return Err(UnpublishError::Foreign {
                        volume,
                        path: target,
                        source_name,
                    });
                }
            }
            match self.mounter.unmount(&target, guard.clone()).await {
                Ok(_) => {}
                Err(source) if source.errno() == Some(nix::libc::EBUSY) => {
                    return Err(UnpublishError::InUse { volume, source });
                }
                Err(source) => return Err(mount(source)),
            }
        }
        self.mounter
            .remove(&target)
            .await
            .map_err(|source| match source.errno() {
                Some(nix::libc::ENOTEMPTY | nix::libc::EBUSY) => UnpublishError::InUse { volume, source },
                _ => mount(source),
            })
    }

    async fn is_node(&self, path: &Path) -> Result<bool, MountError> {
        Ok(matches!(self.mounter.kind(path).await?, Kind::Block(_)))
    }
}

/// Read-only by this mount's own options: what the publication asked for, whatever the file system itself says.
fn has_ro(mount: &crate::mount::MountPoint) -> bool {
    mount.options.split(',').any(|o| o == "ro")
}

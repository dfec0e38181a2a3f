//! The fields of the Node calls, checked and typed. Nothing on the node is looked at, so nothing can have changed when a
//! check fails; the refusal names the field and what is allowed.
//!
//! A volume id that is well formed but not one of ours is no bad argument: there is no such volume.

use std::path::{Component, Path, PathBuf};

use storagelink_proto::csi::v1::{
    NodePublishVolumeRequest, NodeStageVolumeRequest, VolumeCapability,
    volume_capability::{AccessType, access_mode::Mode},
};
use tonic::Code;

use crate::{
    codes::Coded,
    fields::{self, FieldError},
    ids::VolumeId,
    mount::{FsType, MountOptions},
    publish_context::{ContextError, PublishContext},
};

/// Longest path in bytes, without its end mark (PATH_MAX of linux/limits.h).
pub const MAX_PATH_BYTES: usize = 4095;

/// Why a request is refused before anything is looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The publish context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// An id that this driver has not given out.
    #[error("volume {0:?} does not exist: its id is not one of this driver")]
    Unknown(String),
    /// A place where no volume can be.
    #[error("volume_path {0:?}: is not an absolute path, so no volume is there")]
    Nowhere(String),
}

impl Coded for Refusal {
    fn code(&self) -> Code {
        match self {
            Self::Field(_) | Self::Context(_) => Code::InvalidArgument,
            Self::Unknown(_) | Self::Nowhere(_) => Code::NotFound,
        }
    }
}

/// In which form the volume is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// As a raw block device.
    Block,
    /// Through a file system.
    Mount {
        /// Which.
        fs: FsType,
        /// With which options.
        options: MountOptions,
    },
}

impl Access {
    /// `block` or the file system's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Mount { fs, .. } => fs.name(),
        }
    }
}

/// A checked `volume_capability`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Form.
    pub access: Access,
    /// Who else may use it.
    pub mode: Mode,
}

impl Capability {
    /// True when the mode, or the option `ro`, forbids every write from this node.
    #[must_use]
    pub fn read_only(&self) -> bool {
        let by_mode = matches!(self.mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly);
        by_mode || matches!(&self.access, Access::Mount { options, .. } if options.read_only)
    }
}

/// A checked NodeStageVolume.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Which volume.
    pub volume: VolumeId,
    /// How it is reached.
    pub context: PublishContext,
    /// Where.
    pub staging: PathBuf,
    /// How it is used.
    pub capability: Capability,
}

impl Stage {
    /// True when nothing may be written to the volume from this node.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.capability.read_only() || self.context.read_only
    }
}

/// A checked NodePublishVolume.
#[derive(Clone, Debug)]
pub struct Publish {
    /// Which volume.
    pub volume: VolumeId,
    /// Where it is staged.
    pub staging: PathBuf,
    /// Where the workload wants it.
    pub target: PathBuf,
    /// How it is used.
    pub capability: Capability,
    /// Without the right to write.
    pub read_only: bool,
}

/// The volume id.
pub fn volume(id: &str) -> Result<VolumeId, Refusal> {
    fields::volume_id(id)?;
    id.parse().map_err(|_| Refusal::Unknown(id.to_owned()))
}

/// A path that must be there: absolute, at most [`MAX_PATH_BYTES`], not the root, without `..`. Doubled and trailing
/// slashes are taken out, as the mount table has none.
pub fn path(field: &'static str, value: &str) -> Result<PathBuf, FieldError> {
    fields::text(field, value, MAX_PATH_BYTES)?;
    let given = Path::new(value);
    if !given.is_absolute() {
        return Err(FieldError::new(field, "is not an absolute path"));
    }
    // `components` drops a `.`, so it is looked for in the text.
    if value.split('/').any(|name| name == "." || name == "..") {
        return Err(FieldError::new(
            field,
            "has a component `.` or `..`, which is not allowed",
        ));
    }
    let clean: PathBuf = given.components().collect();
    if !clean.components().any(|c| matches!(c, Component::Normal(_))) {
        return Err(FieldError::new(field, "is the root directory"));
    }
    Ok(clean)
}

/// The path of a volume that is asked about. CSI has NOT_FOUND for a volume that is not at the path: a relative path is
/// such a place, not a malformed field (csi-sanity asks for it so).
pub fn volume_path(value: &str) -> Result<PathBuf, Refusal> {
    fields::text("volume_path", value, MAX_PATH_BYTES)?;
    if !value.starts_with('/') {
        return Err(Refusal::Nowhere(value.to_owned()));
    }
    Ok(path("volume_path", value)?)
}

/// A path that may be missing.
pub fn optional_path(field: &'static str, value: &str) -> Result<Option<PathBuf>, FieldError> {
    if value.is_empty() {
        Ok(None)
    } else {
        path(field, value).map(Some)
    }
}

/// The capability that Stage and Publish need.
pub fn capability(given: Option<&VolumeCapability>) -> Result<Capability, FieldError> {
    let given = given.ok_or_else(|| FieldError::new("volume_capability", "is required"))?;
    let access = match &given.access_type {
        None => {
            return Err(FieldError::new(
                "volume_capability.access_type",
                "is required: block or mount",
            ));
        }
        Some(AccessType::Block(_)) => Access::Block,
        Some(AccessType::Mount(mount)) => {
            let at = "volume_capability.mount.fs_type";
            let fs = mount
                .fs_type
                .parse()
                .map_err(|e: crate::mount::filesystem::FsTypeError| FieldError::new(at, e.to_string()))?;
            let at = "volume_capability.mount.mount_flags";
            let options =
                MountOptions::parse(&mount.mount_flags).map_err(|e| FieldError::new(at, e.to_string()))?;
            if !mount.volume_mount_group.is_empty() {
                let at = "volume_capability.mount.volume_mount_group";
                return Err(FieldError::new(at, "is not supported: must be empty"));
            }
            Access::Mount { fs, options }
        }
    };
    let at = "volume_capability.access_mode";
    let mode = given
        .access_mode
        .as_ref()
        .ok_or_else(|| FieldError::new(at, "is required"))?
        .mode();
    match mode {
        Mode::Unknown => Err(FieldError::new(at, "is unknown")),
        // Two nodes that mount one of these file systems, one of them writing, destroy it.
        Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter if access != Access::Block => {
            Err(FieldError::new(
                at,
                format!("{} is possible only with access type block", mode.as_str_name()),
            ))
        }
        _ => Ok(Capability { access, mode }),
    }
}

/// NodeStageVolume.
pub fn stage(request: &NodeStageVolumeRequest) -> Result<Stage, Refusal> {
    fields::volume_id(&request.volume_id)?;
    let staging = path("staging_target_path", &request.staging_target_path)?;
    let capability = capability(request.volume_capability.as_ref())?;
    let volume = volume(&request.volume_id)?;
    fields::map("publish_context", &request.publish_context)?;
    let context = PublishContext::from_map(&request.publish_context)?;
    Ok(Stage {
        volume,
        context,
        staging,
        capability,
    })
}

/// NodePublishVolume. The staging path is required: this driver stages.
pub fn publish(request: &NodePublishVolumeRequest) -> Result<Publish, Refusal> {
    fields::volume_id(&request.volume_id)?;
    let target = path("target_path", &request.target_path)?;
    let capability = capability(request.volume_capability.as_ref())?;
    let volume = volume(&request.volume_id)?;
    let Some(staging) = optional_path("staging_target_path", &request.staging_target_path)? else {
        return Err(Refusal::Field(FieldError::new(
            "staging_target_path",
            "is required",
        )));
    };
    if target == staging {
        return Err(Refusal::Field(FieldError::new(
            "target_path",
            "is the same as staging_target_path",
        )));
    }
    let read_only = request.readonly || capability.read_only();
    Ok(Publish {
        volume,
        staging,
        target,
        capability,
        read_only,
    })
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;

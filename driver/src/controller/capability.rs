//! A VolumeCapability: whether it is well formed, whether the driver can give it, and what it means on the array.

use storagelink_proto::csi::v1::VolumeCapability;
use storagelink_proto::csi::v1::volume_capability::AccessType;
use storagelink_proto::csi::v1::volume_capability::access_mode::Mode;

use crate::fields::{FieldError, MAX_MAP_BYTES};
use crate::parameters::check_fs_type;

/// A well-formed capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capability {
    block: bool,
    mode: Mode,
}

impl Capability {
    /// Checks the shape: what is malformed is malformed whatever the driver can do.
    pub(super) fn parse(capability: &VolumeCapability) -> Result<Self, FieldError> {
        let block = match &capability.access_type {
            None => {
                return Err(FieldError::new(
                    "volume_capability.access_type",
                    "is required: block or mount",
                ));
            }
            Some(AccessType::Block(_)) => true,
            Some(AccessType::Mount(mount)) => {
                check_fs_type("volume_capability.mount.fs_type", &mount.fs_type)?;
                let bytes: usize = mount.mount_flags.iter().map(String::len).sum();
                if bytes > MAX_MAP_BYTES {
                    let problem = format!("have {bytes} bytes, at most {MAX_MAP_BYTES} are allowed");
                    return Err(FieldError::new("volume_capability.mount.mount_flags", problem));
                }
                let bad = |flag: &String| flag.is_empty() || flag.chars().any(char::is_control);
                if mount.mount_flags.iter().any(bad) {
                    let problem = "hold one that is empty or has a control character";
                    return Err(FieldError::new("volume_capability.mount.mount_flags", problem));
                }
                if !mount.volume_mount_group.is_empty() {
                    let problem = "is not supported: the orchestrator changes the group (fsGroupPolicy File)";
                    return Err(FieldError::new(
                        "volume_capability.mount.volume_mount_group",
                        problem,
                    ));
                }
                false
            }
        };
        let mode = capability
            .access_mode
            .as_ref()
            .map(|mode| Mode::try_from(mode.mode));
        match mode {
            None | Some(Ok(Mode::Unknown)) => {
                Err(FieldError::new("volume_capability.access_mode", "is required"))
            }
            Some(Err(_)) => Err(FieldError::new(
                "volume_capability.access_mode",
                "is not known to CSI 1.12",
            )),
            Some(Ok(mode)) => Ok(Self { block, mode }),
        }
    }

    /// A whole list; it must not be empty.
    pub(super) fn parse_all(capabilities: &[VolumeCapability]) -> Result<Vec<Self>, FieldError> {
        if capabilities.is_empty() {
            return Err(FieldError::new(
                "volume_capabilities",
                "is required: at least one",
            ));
        }
        capabilities.iter().map(Self::parse).collect()
    }

    /// Refuses what a file system on one LUN cannot survive.
    pub(super) fn supported(self) -> Result<(), FieldError> {
        if !self.block
            && matches!(
                self.mode,
                Mode::MultiNodeMultiWriter | Mode::MultiNodeSingleWriter
            )
        {
            let problem = format!(
                "{} with a file system is not possible: ext4, xfs and btrfs are destroyed when one node writes while \
                 another has them mounted; use a block volume, or one node at a time",
                self.mode.as_str_name()
            );
            return Err(FieldError::new("volume_capability.access_mode", problem));
        }
        Ok(())
    }

    /// Only one node may have the volume.
    pub(super) fn exclusive(self) -> bool {
        match self.mode {
            Mode::SingleNodeWriter
            | Mode::SingleNodeReaderOnly
            | Mode::SingleNodeSingleWriter
            | Mode::SingleNodeMultiWriter
            | Mode::Unknown => true,
            Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => false,
        }
    }

    /// Nobody may write.
    pub(super) fn read_only(self) -> bool {
        matches!(self.mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly)
    }
}

#[cfg(test)]
mod tests {
    use storagelink_proto::csi::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};

    use super::*;

    fn capability(access_type: Option<AccessType>, mode: i32) -> VolumeCapability {
        VolumeCapability {
            access_type,
            access_mode: Some(AccessMode { mode }),
        }
    }

    /// mode, mount possible, block possible, exclusive, read only.
    const MODES: [(Mode, bool, bool, bool, bool); 7] = [
        (Mode::SingleNodeWriter, true, true, true, false),
        (Mode::SingleNodeReaderOnly, true, true, true, true),
        (Mode::SingleNodeSingleWriter, true, true, true, false),
        (Mode::SingleNodeMultiWriter, true, true, true, false),
        (Mode::MultiNodeReaderOnly, true, true, false, true),
        (Mode::MultiNodeSingleWriter, false, true, false, false),
        (Mode::MultiNodeMultiWriter, false, true, false, false),
    ];

    #[test]
    fn every_mode() {
        for (mode, mount, block, exclusive, read_only) in MODES {
            let as_mount = capability(Some(AccessType::Mount(MountVolume::default())), mode.into());
            let as_block = capability(Some(AccessType::Block(BlockVolume {})), mode.into());
            for (capability, possible) in [(as_mount, mount), (as_block, block)] {
                let parsed = Capability::parse(&capability).unwrap();
                assert_eq!(parsed.supported().is_ok(), possible, "{mode:?}");
                assert_eq!(
                    (parsed.exclusive(), parsed.read_only()),
                    (exclusive, read_only),
                    "{mode:?}"
                );
            }
        }
    }

    #[test]
    fn malformed_ones_name_their_field() {
        let mount = |mount: MountVolume| Some(AccessType::Mount(mount));
        let flags = |flags: &[&str]| MountVolume {
            mount_flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..Default::default()
        };
        let long = "x".repeat(MAX_MAP_BYTES + 1);
        for (bad, field) in [
            (capability(None, 1), "access_type"),
            (
                capability(Some(AccessType::Block(BlockVolume {})), 0),
                "access_mode",
            ),
            (
                capability(Some(AccessType::Block(BlockVolume {})), 99),
                "access_mode",
            ),
            (
                VolumeCapability {
                    access_type: Some(AccessType::Block(BlockVolume {})),
                    access_mode: None,
                },
                "access_mode",
            ),
            (
                capability(
                    mount(MountVolume {
                        fs_type: "ntfs".to_owned(),
                        ..Default::default()
                    }),
                    1,
                ),
                "fs_type",
            ),
            (capability(mount(flags(&[""])), 1), "mount_flags"),
            (capability(mount(flags(&["a\nb"])), 1), "mount_flags"),
            (capability(mount(flags(&[&long])), 1), "mount_flags"),
            (
                capability(
                    mount(MountVolume {
                        volume_mount_group: "7".to_owned(),
                        ..Default::default()
                    }),
                    1,
                ),
                "volume_mount_group",
            ),
        ] {
            let error = Capability::parse(&bad).unwrap_err();
            assert!(error.field.ends_with(field), "{error}");
        }
        assert_eq!(
            Capability::parse_all(&[]).unwrap_err().field,
            "volume_capabilities"
        );
    }
}

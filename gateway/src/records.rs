//! What is known of a volume: one `record.json` in the volume's own directory, written before the array is touched.
//!
//! The record is the truth; kernel objects are made from it. It holds no secret.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use storagelink_proto::storagelink::v1::{self, ProvisionType};

use crate::files;

/// Name of the record in a volume's directory.
pub const RECORD: &str = "record.json";
/// Version of the form written here; another one is refused, never guessed at.
pub const VERSION: u32 = 1;

/// Where a volume is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// Nobody has been told of it: a crash here undoes it.
    Creating,
    /// In use.
    Ready,
    /// Its deletion was accepted: a crash here finishes it.
    Deleting,
}

impl std::fmt::Display for Life {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
        })
    }
}

/// How space is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provision {
    /// When it is written.
    Thin,
    /// At creation.
    Thick,
}

impl Provision {
    /// From the protocol; unspecified is thin.
    #[must_use]
    pub fn from_wire(kind: ProvisionType) -> Self {
        match kind {
            ProvisionType::Unspecified | ProvisionType::Thin => Self::Thin,
            ProvisionType::Thick => Self::Thick,
        }
    }

    /// For the protocol.
    #[must_use]
    pub fn to_wire(self) -> ProvisionType {
        match self {
            Self::Thin => ProvisionType::Thin,
            Self::Thick => ProvisionType::Thick,
        }
    }
}

/// A host that may reach the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MappingRecord {
    /// The cluster's name for the host.
    pub host: String,
    /// Its IQN.
    pub iscsi_initiator: String,
    /// Without the right to write.
    pub read_only: bool,
}

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    /// [`VERSION`].
    pub version: u32,
    /// UUID, given by the caller.
    pub id: String,
    /// The caller's name for it.
    pub name: String,
    /// Name of the aggregate.
    pub aggregate: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// How space is taken.
    pub provision: Provision,
    /// Unit serial number.
    pub serial: String,
    /// LUN number on the target, for life.
    pub lun: u32,
    /// Where it is in its life.
    pub life: Life,
    /// The caller's pairs.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Who may reach it.
    #[serde(default)]
    pub mappings: Vec<MappingRecord>,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("record {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a record that this version understands.
    #[error("record {path} is not understood")]
    Form {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It belongs somewhere else.
    #[error("record {path} is of version {version} and volume {id}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// Its volume.
        id: String,
    },
}

impl VolumeRecord {
    /// Reads the record in a volume's directory; `None` when there is none.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn read(directory: &Path) -> Result<Option<Self>, RecordError> {
        let path = directory.join(RECORD);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Io { path, source }),
        };
        let record: Self = serde_json::from_slice(&text).map_err(|source| RecordError::Form {
            path: path.clone(),
            source,
        })?;
        let home = directory.file_name().and_then(|name| name.to_str());
        if record.version != VERSION || home != Some(record.id.as_str()) {
            return Err(RecordError::Foreign {
                path,
                version: record.version,
                id: record.id,
            });
        }
        Ok(Some(record))
    }

    /// Writes it durably into a volume's directory.
    ///
    /// # Errors
    /// See [`RecordError`]; the old record stands then.
    pub fn write(&self, directory: &Path) -> Result<(), RecordError> {
        let path = directory.join(RECORD);
        let text = serde_json::to_vec_pretty(self).map_err(|source| RecordError::Form {
            path: path.clone(),
            source,
        })?;
        files::write_durably(&path, &text, 0o600).map_err(|source| RecordError::Io { path, source })
    }

    /// As the protocol shows it.
    #[must_use]
    pub fn to_volume(&self, system: &str) -> v1::Volume {
        v1::Volume {
            id: self.id.clone(),
            system: system.to_owned(),
            aggregate: self.aggregate.clone(),
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            provision_type: self.provision.to_wire().into(),
            wwid: crate::ids::wwid(&self.serial),
            serial: self.serial.clone(),
            attributes: self.attributes.clone().into_iter().collect(),
            mappings: self
                .mappings
                .iter()
                .map(|mapping| mapping.to_wire(self.lun))
                .collect(),
            used_bytes: 0,
            abnormal_reason: String::new(),
        }
    }
}

impl MappingRecord {
    /// As the protocol shows it.
    #[must_use]
    pub fn to_wire(&self, lun: u32) -> v1::Mapping {
        v1::Mapping {
            host: Some(v1::Host {
                name: self.host.clone(),
                iscsi_initiator: self.iscsi_initiator.clone(),
                fc_initiators: vec![],
            }),
            lun,
            read_only: self.read_only,
            protocol: v1::Protocol::Iscsi.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(id: String) -> impl Strategy<Value = VolumeRecord> {
        let mapping = ("[a-z0-9.-]{1,20}", "iqn\\.[a-z0-9.:-]{1,30}", any::<bool>()).prop_map(
            |(host, iscsi_initiator, read_only)| MappingRecord {
                host,
                iscsi_initiator,
                read_only,
            },
        );
        let life = prop_oneof![Just(Life::Creating), Just(Life::Ready), Just(Life::Deleting)];
        let provision = prop_oneof![Just(Provision::Thin), Just(Provision::Thick)];
        let mappings = proptest::collection::vec(mapping, 0..3);
        let attributes = proptest::collection::btree_map(".{0,10}", ".{0,10}", 0..3);
        (
            ".{1,40}",
            any::<u64>(),
            any::<u32>(),
            life,
            provision,
            mappings,
            attributes,
        )
            .prop_map(
                move |(name, size_bytes, lun, life, provision, mappings, attributes)| VolumeRecord {
                    version: VERSION,
                    id: id.clone(),
                    name,
                    aggregate: "a".to_owned(),
                    size_bytes,
                    provision,
                    serial: "s".to_owned(),
                    lun,
                    life,
                    attributes,
                    mappings,
                },
            )
    }

    proptest! {
        #[test]
        fn round_trip(record in record("v1".to_owned())) {
            let home = tempfile::tempdir().unwrap();
            let directory = home.path().join("v1");
            std::fs::create_dir(&directory).unwrap();
            record.write(&directory).unwrap();
            prop_assert_eq!(VolumeRecord::read(&directory).unwrap(), Some(record));
        }
    }

    #[test]
    fn a_strange_record_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("v1");
        assert!(VolumeRecord::read(&directory).unwrap().is_none());
        std::fs::create_dir(&directory).unwrap();
        for text in ["", "{}", "{\"version\":1}"] {
            std::fs::write(directory.join(RECORD), text).unwrap();
            assert!(
                matches!(VolumeRecord::read(&directory), Err(RecordError::Form { .. })),
                "{text}"
            );
        }
    }
}

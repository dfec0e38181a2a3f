//! What is known of a volume or a snapshot: one `record.json` in its own directory, written before the array is touched.
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

/// What a volume was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A clone of the volume with this id.
    Volume(String),
    /// The content of the snapshot with this id.
    Snapshot(String),
    /// It is the LUN that somebody else made under this name.
    Lun(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Volume(id) => write!(f, "volume {id}"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
            Self::Lun(name) => write!(f, "LUN `{name}`"),
        }
    }
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
    /// What it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Of an adopted LUN: the old name of its data file, until it is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_file: Option<PathBuf>,
}

/// The record of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRecord {
    /// [`VERSION`].
    pub version: u32,
    /// UUID, given by the caller.
    pub id: String,
    /// The caller's name for it.
    pub name: String,
    /// The volume it was taken of.
    pub volume: String,
    /// Name of the aggregate.
    pub aggregate: String,
    /// The volume's size then, in bytes.
    pub size_bytes: u64,
    /// How the volume's space was taken.
    pub provision: Provision,
    /// Milliseconds since 1970.
    pub taken_unix_ms: u64,
    /// Where it is in its life.
    pub life: Life,
}

/// What lies beside data as its record.
pub trait Record: Serialize + serde::de::DeserializeOwned {
    /// Version of its form, and the id of what it is about: the name of its directory.
    fn identity(&self) -> (u32, &str);
}

impl Record for VolumeRecord {
    fn identity(&self) -> (u32, &str) {
        (self.version, &self.id)
    }
}

impl Record for SnapshotRecord {
    fn identity(&self) -> (u32, &str) {
        (self.version, &self.id)
    }
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
    #[error("record {path} is of version {version} and of {id}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// What it is about.
        id: String,
    },
}

/// Reads the record in a directory; `None` when there is none.
///
/// # Errors
/// See [`RecordError`].
pub fn read<R: Record>(directory: &Path) -> Result<Option<R>, RecordError> {
    let path = directory.join(RECORD);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Io { path, source }),
    };
    let record: R = serde_json::from_slice(&text).map_err(|source| RecordError::Form {
        path: path.clone(),
        source,
    })?;
    let home = directory.file_name().and_then(|name| name.to_str());
    let (version, id) = record.identity();
    if version != VERSION || home != Some(id) {
        return Err(RecordError::Foreign {
            path,
            version,
            id: id.to_owned(),
        });
    }
    Ok(Some(record))
}

/// Writes a record durably into its directory.
///
/// # Errors
/// See [`RecordError`]; the old record stands then.
pub fn write(record: &impl Record, directory: &Path) -> Result<(), RecordError> {
    let path = directory.join(RECORD);
    let text = serde_json::to_vec_pretty(record).map_err(|source| RecordError::Form {
        path: path.clone(),
        source,
    })?;
    files::write_durably(&path, &text, 0o600).map_err(|source| RecordError::Io { path, source })
}

impl SnapshotRecord {
    /// As the protocol shows it.
    #[must_use]
    pub fn to_snapshot(&self, system: &str) -> v1::Snapshot {
        v1::Snapshot {
            id: self.id.clone(),
            system: system.to_owned(),
            aggregate: self.aggregate.clone(),
            volume_id: self.volume.clone(),
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            taken_unix_ms: self.taken_unix_ms,
            provision_type: self.provision.to_wire().into(),
        }
    }
}

impl VolumeRecord {
    /// As the protocol shows it.
    #[must_use]
    pub fn to_volume(&self, system: &str) -> v1::Volume {
        let mut volume = v1::Volume {
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
            ..v1::Volume::default()
        };
        match self.source.clone() {
            None => {}
            Some(Source::Volume(id)) => volume.source_volume_id = id,
            Some(Source::Snapshot(id)) => volume.source_snapshot_id = id,
            Some(Source::Lun(name)) => volume.source_lun = name,
        }
        volume
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
                    source: None,
                    former_file: None,
                },
            )
    }

    proptest! {
        #[test]
        fn round_trip(record in record("v1".to_owned())) {
            let home = tempfile::tempdir().unwrap();
            let directory = home.path().join("v1");
            std::fs::create_dir(&directory).unwrap();
            write(&record, &directory).unwrap();
            prop_assert_eq!(read::<VolumeRecord>(&directory).unwrap(), Some(record));
        }
    }

    #[test]
    fn a_strange_record_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("v1");
        assert!(read::<VolumeRecord>(&directory).unwrap().is_none());
        std::fs::create_dir(&directory).unwrap();
        for text in ["", "{}", "{\"version\":1}"] {
            std::fs::write(directory.join(RECORD), text).unwrap();
            assert!(
                matches!(read::<VolumeRecord>(&directory), Err(RecordError::Form { .. })),
                "{text}"
            );
        }
    }
}

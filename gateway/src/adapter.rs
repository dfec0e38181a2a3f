//! What an array must be able to do to stand behind the gateway.
//!
//! One module per kind of array implements [`Adapter`]. Every method blocks and may be repeated with the same arguments; the service calls it on
//! threads for blocking work. Volume ids are UUIDs that the caller chose and the service has checked.

use std::{io, path::PathBuf};

use storagelink_proto::storagelink::v1;

use crate::records::{Provision, RecordError, Source};

/// A volume to be made.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// UUID.
    pub id: String,
    /// Name of the aggregate.
    pub aggregate: String,
    /// The caller's name for it.
    pub name: String,
    /// At least so many bytes; more than 0.
    pub size_bytes: u64,
    /// At most so many bytes; 0: no limit.
    pub limit_bytes: u64,
    /// How space is taken.
    pub provision: Provision,
    /// The caller's pairs.
    pub attributes: std::collections::BTreeMap<String, String>,
    /// What it begins with; `None`: nothing.
    pub source: Option<Source>,
}

/// A snapshot to be taken.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// UUID.
    pub id: String,
    /// The volume.
    pub volume: String,
    /// The caller's name for it.
    pub name: String,
}

/// A host to be let in.
#[derive(Clone, Debug)]
pub struct Access {
    /// The cluster's name for it.
    pub host: String,
    /// Its IQN.
    pub iscsi_initiator: String,
    /// Without the right to write.
    pub read_only: bool,
    /// Refuse when another host has the volume.
    pub exclusive: bool,
}

/// Why an adapter refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// No such volume.
    #[error("there is no volume {0}")]
    NoVolume(String),
    /// No such snapshot.
    #[error("there is no snapshot {0}")]
    NoSnapshot(String),
    /// A volume cannot be made from this.
    #[error("a volume cannot be made from {from}: {problem}")]
    Source {
        /// Volume or snapshot.
        from: Source,
        /// Why not.
        problem: String,
    },
    /// No LUN of somebody else has this name.
    #[error(
        "aggregate `{aggregate}` of system `{system}` has no LUN `{lun}` of somebody else; it has: {choices}"
    )]
    NoLunNamed {
        /// System.
        system: String,
        /// Aggregate.
        aggregate: String,
        /// What was asked for.
        lun: String,
        /// What there is.
        choices: String,
    },
    /// Somebody may still be using a LUN, or its content may not be what it seems.
    #[error("LUN `{lun}` is not adopted, nothing of it was changed: {problem}")]
    InDoubt {
        /// Its name.
        lun: String,
        /// What is in doubt, and how to clear it.
        problem: String,
    },
    /// No such aggregate.
    #[error("system `{system}` has no aggregate `{aggregate}`; it has: {choices}")]
    NoAggregate {
        /// System.
        system: String,
        /// What was asked for.
        aggregate: String,
        /// What there is.
        choices: String,
    },
    /// The id is taken by a volume that differs.
    #[error("{id} exists with {differs}")]
    Differs {
        /// Volume or snapshot.
        id: String,
        /// In what.
        differs: String,
    },
    /// The host has the volume in another way.
    #[error("volume {id} is mapped to {host} {how}")]
    MappedDifferently {
        /// Volume.
        id: String,
        /// Host.
        host: String,
        /// How it has it.
        how: &'static str,
    },
    /// Somebody has it.
    #[error("volume {id} is mapped to {hosts}")]
    Mapped {
        /// Volume.
        id: String,
        /// Hosts.
        hosts: String,
    },
    /// Two hosts say that they are the same initiator.
    #[error(
        "initiator {initiator} is already known as host `{known}`, and cannot be `{host}` too: give each host its own InitiatorName"
    )]
    SharedInitiator {
        /// IQN.
        initiator: String,
        /// First host.
        known: String,
        /// Second host.
        host: String,
    },
    /// The aggregate cannot promise so much.
    #[error(
        "aggregate `{aggregate}` of system `{system}` is full: {wanted} bytes wanted, {left} bytes left for {kind} volumes"
    )]
    Full {
        /// System.
        system: String,
        /// Aggregate.
        aggregate: String,
        /// Asked for.
        wanted: u64,
        /// Left.
        left: u64,
        /// `thin` or `thick`.
        kind: &'static str,
    },
    /// No size satisfies what was asked.
    #[error("size {size} bytes (a multiple of {granularity}) is above the limit of {limit} bytes")]
    Limit {
        /// The rounded size.
        size: u64,
        /// Sizes are multiples of this.
        granularity: u64,
        /// The limit asked for.
        limit: u64,
    },
    /// The data is not what the record says: it is not served.
    #[error("data of volume {id}: {problem}")]
    Data {
        /// Volume.
        id: String,
        /// What is wrong.
        problem: String,
    },
    /// The aggregate takes no calls now.
    #[error("aggregate `{aggregate}`: {reason}")]
    Unavailable {
        /// Aggregate.
        aggregate: String,
        /// Why.
        reason: String,
    },
    /// All LUN numbers are taken.
    #[error("system `{0}` has no free LUN number")]
    NoLun(String),
    /// The record could not be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The file system or the kernel refused.
    #[error("{action} {path}")]
    Io {
        /// What was done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A storage system.
pub trait Adapter: Send + Sync {
    /// Name, kind and transports.
    fn system(&self) -> v1::System;
    /// Its aggregates with their space.
    fn aggregates(&self) -> Vec<v1::Aggregate>;
    /// The ports that hosts reach it by.
    fn target_ports(&self) -> Vec<v1::TargetPort>;
    /// Makes a volume; the same again answers the same.
    ///
    /// # Errors
    /// See [`AdapterError`]; a volume that was not there before is not there after an error.
    fn create(&self, new: &NewVolume) -> Result<v1::Volume, AdapterError>;
    /// Deletes a volume; one that is not there is success.
    ///
    /// # Errors
    /// It is mapped, or the array failed: the deletion goes on when it is asked for again, and at the next start.
    fn delete(&self, id: &str) -> Result<(), AdapterError>;
    /// One volume; `None` when there is none.
    ///
    /// # Errors
    /// The array failed.
    fn get(&self, id: &str) -> Result<Option<v1::Volume>, AdapterError>;
    /// All volumes, in the order of their ids.
    ///
    /// # Errors
    /// The array failed.
    fn list(&self) -> Result<Vec<v1::Volume>, AdapterError>;
    /// Grows a volume to at least `size_bytes`; it never shrinks.
    ///
    /// # Errors
    /// See [`AdapterError`].
    fn expand(&self, id: &str, size_bytes: u64, limit_bytes: u64) -> Result<v1::Volume, AdapterError>;
    /// Lets a host reach a volume. Answers the volume with all its mappings.
    ///
    /// # Errors
    /// See [`AdapterError`].
    fn map(&self, id: &str, access: &Access) -> Result<v1::Volume, AdapterError>;
    /// Takes a snapshot of a volume; the same again answers the same.
    ///
    /// # Errors
    /// See [`AdapterError`]; a snapshot that was not there before is not there after an error.
    fn take_snapshot(&self, new: &NewSnapshot) -> Result<v1::Snapshot, AdapterError>;
    /// Deletes a snapshot; one that is not there is success.
    ///
    /// # Errors
    /// The array failed: the deletion goes on when it is asked for again, and at the next start.
    fn delete_snapshot(&self, id: &str) -> Result<(), AdapterError>;
    /// All snapshots, in the order of their ids.
    ///
    /// # Errors
    /// The array failed.
    fn snapshots(&self) -> Result<Vec<v1::Snapshot>, AdapterError>;
    /// Takes a volume from one host, or from all. What is not mapped, or not there, is success.
    ///
    /// # Errors
    /// The array failed.
    fn unmap(&self, id: &str, host: Option<&str>) -> Result<(), AdapterError>;
}

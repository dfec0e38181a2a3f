//! What can go wrong with a map, one enum per operation.

use std::{io, time::Duration};

use crate::{
    Hctl, Wwid,
    host::{DevNo, DmError, ScsiError},
    table::GrammarError,
    worker::WorkerError,
    wwid::VpdError,
};

/// Why a path could not prove that it leads to the volume.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// No disk at the address.
    #[error("there is no disk at {hctl}")]
    Missing {
        /// Address.
        hctl: Hctl,
    },
    /// The disk of a path is gone.
    #[error("there is no disk {devno} any more")]
    Gone {
        /// Block device number.
        devno: DevNo,
    },
    /// The device does not take commands now.
    #[error("{device} at {hctl} is {state}")]
    NotRunning {
        /// Address.
        hctl: Hctl,
        /// Kernel name.
        device: String,
        /// SCSI device state.
        state: String,
    },
    /// The device is not ready for I/O.
    #[error("TEST UNIT READY to {device} at {hctl}")]
    NotReady {
        /// Address.
        hctl: Hctl,
        /// Kernel name.
        device: String,
        /// Why.
        #[source]
        source: ScsiError,
    },
    /// The device would not tell its identity.
    #[error("INQUIRY of VPD page 0x83 to {device} at {hctl}")]
    Inquiry {
        /// Address.
        hctl: Hctl,
        /// Kernel name.
        device: String,
        /// Why.
        #[source]
        source: ScsiError,
    },
    /// It told something that is not a VPD page 0x83.
    #[error("{device} at {hctl} gave no valid identity")]
    Page {
        /// Address.
        hctl: Hctl,
        /// Kernel name.
        device: String,
        /// Why.
        #[source]
        source: VpdError,
    },
    /// It is another disk.
    #[error("{device} at {hctl} is {found}, not {expected}")]
    Mismatch {
        /// Address.
        hctl: Hctl,
        /// Kernel name.
        device: String,
        /// The volume's identity.
        expected: Wwid,
        /// What the device says it is; `no identity` when it names none.
        found: String,
    },
    /// The device did not answer in time.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

impl ProveError {
    /// The device answers, and its port is in standby.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        matches!(self, Self::NotReady { source, .. } if source.is_standby())
    }
}

/// Why a map could not be built or changed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Nothing to build from.
    #[error("no path of {wwid} proved its identity")]
    NoPath {
        /// Identity of the volume.
        wwid: Wwid,
    },
    /// A path was proven for another volume.
    #[error("{device} was proven to be {proven}, not {wwid}")]
    WrongPath {
        /// Kernel name.
        device: String,
        /// What was proven.
        proven: Wwid,
        /// Identity of the volume.
        wwid: Wwid,
    },
    /// The disk went away after it had proved itself.
    #[error("{device} at {hctl} is gone")]
    Gone {
        /// Kernel name.
        device: String,
        /// Address.
        hctl: Hctl,
    },
    /// The array refuses writes.
    #[error("{device} is read-only, and {wwid} is to be written")]
    ReadOnly {
        /// Kernel name.
        device: String,
        /// Identity of the volume.
        wwid: Wwid,
    },
    /// Paths disagree about the size.
    #[error("paths of {wwid} differ in size: {sizes}")]
    Sizes {
        /// Identity of the volume.
        wwid: Wwid,
        /// Names and sizes.
        sizes: String,
    },
    /// Somebody else uses the disk.
    #[error(
        "{device} is used by {holder} ({uuid}): {}",
        if uuid.starts_with("mpath-") { "multipathd took it; exclude it there (the chart's node.installHostConfig, or multipath.conf), then flush that map with multipath -f" } else { "it must not be used by anything else on this host" }
    )]
    Held {
        /// Kernel name of the disk.
        device: String,
        /// Kernel name of what is built on it.
        holder: String,
        /// Its device-mapper uuid; empty when it is none.
        uuid: String,
    },
    /// The map exists for another volume.
    #[error("the map of {wwid} is `{name}`, not `{wanted}`")]
    OtherVolume {
        /// Identity of the volume.
        wwid: Wwid,
        /// Name of the existing map.
        name: String,
        /// Name that was to be built.
        wanted: String,
    },
    /// A name of ours with another identity.
    #[error("the map `{name}` belongs to {uuid}")]
    OtherIdentity {
        /// Name of the existing map.
        name: String,
        /// Its uuid.
        uuid: String,
    },
    /// The map is not there.
    #[error("there is no map of {wwid}")]
    NoMap {
        /// Identity of the volume.
        wwid: Wwid,
    },
    /// A path has I/O that does not come back; exchanging the table would stall the whole map.
    #[error("path {devno} ({device}) of `{name}` is {state}: the table is left as it is until it recovers")]
    PathBlocked {
        /// Name of the map.
        name: String,
        /// Device number of the path.
        devno: DevNo,
        /// Kernel name of the path.
        device: String,
        /// SCSI device state.
        state: String,
    },
    /// A path refused to read its size again.
    #[error("rescan of {device}")]
    Rescan {
        /// Kernel name.
        device: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("map `{name}`")]
    Kernel {
        /// Name of the map.
        name: String,
        /// Why.
        #[source]
        source: DmError,
    },
    /// The kernel printed a table that is not understood.
    #[error("map `{name}` has a table that is not understood")]
    Table {
        /// Name of the map.
        name: String,
        /// Why.
        #[source]
        source: GrammarError,
    },
    /// The kernel did not answer in time.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// Why a map could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Something has it open.
    #[error("map `{name}` is still open ({open_count} times) after {waited:?}")]
    Busy {
        /// Name of the map.
        name: String,
        /// How often.
        open_count: u32,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Its data could not be written out.
    #[error("flush of map `{name}`")]
    Flush {
        /// Name of the map.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("map `{name}`")]
    Kernel {
        /// Name of the map.
        name: String,
        /// Why.
        #[source]
        source: DmError,
    },
    /// The kernel did not answer in time.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

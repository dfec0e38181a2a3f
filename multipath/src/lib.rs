//! Dynamic multipathing: builds one device-mapper multipath map per volume when it comes into use, and only then.
//!
//! # Layout
//! - pure, without I/O: [`wwid`] (VPD page 0x83), [`table`] and [`status`] (the multipath target's grammars), [`alua`] (path groups), [`policy`]
//!   (a volume's settings), [`hctl`], [`sense`];
//! - [`host`]: the seam to the kernel, a real side and a simulated one;
//! - [`worker`]: the threads on which blocking kernel calls live;
//! - [`scsi_device`]: one SCSI disk: find, scan, delete;
//! - [`iscsi_session`], [`fc_remote_port`]: the session, or the remote port, that a disk came by, as sysfs shows it;
//! - [`told`]: what the node plugin tells `mpathutil`, in files;
//! - [`engine`]: prove a path, build, extend, resize, watch and remove a map.
//!
//! It owns only maps whose uuid starts with [`names::UUID_PREFIX`] and must never touch another, never scan more than one
//! H:C:T:L, and never put a path into a table that has not proved the volume's identity.

pub mod alua;
pub mod engine;
pub mod fc_remote_port;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod hctl;
pub mod host;
pub mod iscsi_session;
pub mod names;
pub mod policy;
pub mod scsi_device;
pub mod sense;
pub mod status;
pub mod table;
pub mod told;
pub mod worker;
pub mod wwid;

pub use engine::{Engine, Map, MapSpec, PathView, ProvenPath};
pub use fc_remote_port::RemotePort;
pub use hctl::Hctl;
pub use host::Host;
pub use policy::Policy;
pub use scsi_device::ScsiDisk;
pub use wwid::Wwid;

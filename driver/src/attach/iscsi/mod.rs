//! iSCSI through the host's open-iscsi: from the portals of a publish context to SCSI devices and back.
//!
//! It owns the sessions that it opened, and knows which they are (module `record`). A session that somebody else opened
//! is used as it is: never changed, never logged out. It must never scan, delete or log out by host or by target: one
//! portal, one LUN, one device at a time.
//!
//! Order of things for one path: count as a user of the session, look in sysfs, write the record, log in, scan one LUN,
//! prove what is there. And back: delete the device, see that nobody uses the session, log out, delete open-iscsi's
//! entry, remove the record. Killed anywhere in between, [`Initiator::sweep`] finds the rest by record and sysfs.

mod attach;
mod claim;
mod detach;
mod error;
mod initiator;
mod interface;
mod iscsiadm;
mod lun;
mod portal;
mod probe;
mod record;
mod session;
mod slots;
#[cfg(test)]
mod tests;

pub use attach::Attached;
pub use detach::DetachError;
pub use error::{AttachError, PortalError};
pub use initiator::{Config, Initiator};
pub use interface::Interface;
pub use iscsiadm::SessionTimers;
pub use probe::{Network, Probe, Probing};
pub use record::RecordError;

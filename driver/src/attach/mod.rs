//! Brings a published LUN's paths onto this node and takes them away again, one module per transport.
//!
//! It owns sessions and SCSI devices up to the point where a device-mapper map is built over them. It must never touch a
//! session or a device that belongs to somebody else, never scan more than the one address it was told of, and never
//! wait for a dead portal when a live one is there.

pub mod iscsi;

//! Why a path, or a whole attach, did not come about, and which gRPC code says so.

use std::{io, time::Duration};

use storagelink_multipath::{worker::WorkerError, wwid::WwidError};
use tonic::Code;

use super::record::RecordError;
use crate::{codes::chain, programs::ProgramError, publish_context::Portal};

/// Why one path is not there.
#[derive(Debug, thiserror::Error)]
pub enum PortalError {
    /// iscsiadm is not installed.
    #[error("portal {portal}: iSCSI is not set up on this node")]
    NoInitiator {
        /// The path.
        portal: Box<Portal>,
        /// Names program and package.
        #[source]
        source: ProgramError,
    },
    /// iscsid does not answer (iscsiadm's codes 18 and 20).
    #[error(
        "portal {portal}: iscsid is not running on this node: systemctl enable --now iscsid (package open-iscsi, iscsi-initiator-utils on Red Hat), \
         or node.iscsid: container in the chart's values"
    )]
    NoDaemon {
        /// The path.
        portal: Box<Portal>,
        /// What iscsiadm said.
        #[source]
        source: ProgramError,
    },
    /// The kernel lacks the iSCSI transport (code 12).
    #[error("portal {portal}: the kernel module iscsi_tcp is not loaded on this node")]
    NoTransport {
        /// The path.
        portal: Box<Portal>,
        /// What iscsiadm said.
        #[source]
        source: ProgramError,
    },
    /// Nobody answers at the portal.
    #[error("portal {portal}: unreachable")]
    Unreachable {
        /// The path.
        portal: Box<Portal>,
        /// Refused, no route, no answer.
        #[source]
        source: io::Error,
    },
    /// The portal answers but the login did not come through (codes 4 and 8): open-iscsi reports a target name that is
    /// not served there in the same way as an array that is too slow.
    #[error("portal {portal}: the portal answers but does not log in to this target")]
    NotServed {
        /// The path.
        portal: Box<Portal>,
        /// What iscsiadm said.
        #[source]
        source: ProgramError,
    },
    /// The target does not let this initiator in (code 24): an unknown initiator name, or other credentials.
    #[error("portal {portal}: the target did not authorize this initiator")]
    Authentication {
        /// The path.
        portal: Box<Portal>,
        /// What iscsiadm said.
        #[source]
        source: ProgramError,
    },
    /// The target refused the login for another reason (codes 5 and 19): no such target, or not for this initiator.
    #[error("portal {portal}: the target refused the login")]
    Refused {
        /// The path.
        portal: Box<Portal>,
        /// What iscsiadm said.
        #[source]
        source: ProgramError,
    },
    /// iscsiadm failed in another way.
    #[error("portal {portal}: {step}")]
    Iscsiadm {
        /// The path.
        portal: Box<Portal>,
        /// What was being done.
        step: &'static str,
        /// What iscsiadm said.
        #[source]
        source: ProgramError,
    },
    /// There is a session, but its connection is down and did not come back in time.
    #[error("portal {portal}: its session is in state {state} and did not log in again within {} ms", budget.as_millis())]
    Down {
        /// The path.
        portal: Box<Portal>,
        /// State of the session.
        state: String,
        /// How long it was waited for.
        budget: Duration,
    },
    /// The path's time was over before it was there.
    #[error("portal {portal}: not there after {} ms", budget.as_millis())]
    TimedOut {
        /// The path.
        portal: Box<Portal>,
        /// How long it had.
        budget: Duration,
    },
    /// The target is logged in to but shows no device at the LUN.
    #[error("portal {portal}: the target presents no LUN {lun} to this initiator")]
    NoLun {
        /// The path.
        portal: Box<Portal>,
        /// The LUN.
        lun: u32,
        /// What the scan ended with.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another disk is at the LUN's address, and it is in use.
    #[error(
        "portal {portal}: LUN {lun} is {device} with identity {found}, not {expected}, and it is in use ({used_by})"
    )]
    Foreign {
        /// The path.
        portal: Box<Portal>,
        /// The LUN.
        lun: u32,
        /// Kernel name of the disk.
        device: String,
        /// Its live identity.
        found: String,
        /// The volume's identity.
        expected: String,
        /// By what.
        used_by: String,
    },
    /// The target presents another disk at the LUN.
    #[error("portal {portal}: LUN {lun} has identity {found}, not {expected}")]
    Mismatch {
        /// The path.
        portal: Box<Portal>,
        /// The LUN.
        lun: u32,
        /// Its live identity.
        found: String,
        /// The volume's identity.
        expected: String,
    },
    /// The publish context's identity is none that SCSI knows.
    #[error("portal {portal}: field publish_context.wwid")]
    Wwid {
        /// The path.
        portal: Box<Portal>,
        /// What is allowed.
        #[source]
        source: WwidError,
    },
    /// A SCSI step on the host failed.
    #[error("portal {portal}: {step}")]
    Device {
        /// The path.
        portal: Box<Portal>,
        /// What was being done.
        step: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// sysfs could not be read.
    #[error("portal {portal}: cannot read the host's iSCSI sessions")]
    Sysfs {
        /// The path.
        portal: Box<Portal>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A kernel call did not come back in time.
    #[error("portal {portal}: {step}")]
    Worker {
        /// The path.
        portal: Box<Portal>,
        /// What was being done.
        step: &'static str,
        /// Why.
        #[source]
        source: WorkerError,
    },
    /// The plugin's own state could not be kept.
    #[error("portal {portal}: cannot keep the record of its session")]
    Record {
        /// The path.
        portal: Box<Portal>,
        /// Why.
        #[source]
        source: RecordError,
    },
}

impl PortalError {
    /// The gRPC code that says what may help. `UNAVAILABLE`: another try; `FAILED_PRECONDITION`: somebody must change
    /// something first.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. }
            | Self::NotServed { .. }
            | Self::Down { .. }
            | Self::TimedOut { .. }
            | Self::Worker { .. } => Code::Unavailable,
            Self::Wwid { .. } => Code::InvalidArgument,
            Self::Authentication { .. } => Code::Unauthenticated,
            Self::NoInitiator { .. }
            | Self::NoDaemon { .. }
            | Self::NoTransport { .. }
            | Self::Refused { .. }
            | Self::NoLun { .. }
            | Self::Foreign { .. }
            | Self::Mismatch { .. } => Code::FailedPrecondition,
            Self::Iscsiadm { .. } | Self::Device { .. } | Self::Sysfs { .. } | Self::Record { .. } => {
                Code::Internal
            }
        }
    }
}

/// Why no path at all is there.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The publish context names no portal.
    #[error("field publish_context.portals names no portal")]
    NoPortals,
    /// No portal gave a path. Nothing of this attach is left on the node.
    #[error("no path to LUN {lun} ({wwid}): {}", joined(errors))]
    NoPath {
        /// The LUN.
        lun: u32,
        /// The volume's identity.
        wwid: String,
        /// One error per portal.
        errors: Vec<PortalError>,
    },
}

impl AttachError {
    /// The gRPC code of the whole: as soon as another try may help one portal, it is worth another try.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NoPortals => Code::InvalidArgument,
            Self::NoPath { errors, .. } => {
                let codes: Vec<_> = errors.iter().map(PortalError::code).collect();
                // A disk that is not ours is never a matter of patience.
                let wrong = |e: &&PortalError| {
                    matches!(e, PortalError::Mismatch { .. } | PortalError::Foreign { .. })
                };
                if errors.iter().any(|e| wrong(&e)) {
                    return Code::FailedPrecondition;
                }
                if codes.contains(&Code::Unavailable) {
                    return Code::Unavailable;
                }
                codes.first().copied().unwrap_or(Code::Internal)
            }
        }
    }
}

/// Every portal's error with its chain of causes: an enum has one source at most, so this is their edge.
fn joined(errors: &[PortalError]) -> String {
    errors
        .iter()
        .map(|error| chain(error))
        .collect::<Vec<_>>()
        .join("; ")
}

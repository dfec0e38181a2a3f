//! An answer of the multipath engine that is not success, with the code that tells a caller whether to try again.

use storagelink_multipath::engine::{BuildError, RemoveError, ViewError};
use tonic::Code;

/// A step of the engine that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct Fault {
    /// What was being done.
    pub step: &'static str,
    /// For the caller.
    pub code: Code,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl Fault {
    /// Maps could not be read.
    pub(super) fn view(source: ViewError) -> Self {
        let code = match source {
            ViewError::Worker(_) => Code::DeadlineExceeded,
            ViewError::Kernel(_) => Code::Internal,
        };
        Self {
            step: "look for its map",
            code,
            source: source.into(),
        }
    }

    /// A map could not be built or changed.
    pub(super) fn build(step: &'static str, source: BuildError) -> Self {
        let code = match source {
            BuildError::Worker(_) => Code::DeadlineExceeded,
            // Somebody has to let go of the disk, or something is wrong with who is who.
            BuildError::Held { .. }
            | BuildError::WrongPath { .. }
            | BuildError::ReadOnly { .. }
            | BuildError::OtherVolume { .. }
            | BuildError::OtherIdentity { .. } => Code::FailedPrecondition,
            // Passes by itself: a path that recovers, or that learns the new size.
            BuildError::PathBlocked { .. }
            | BuildError::Sizes { .. }
            | BuildError::Gone { .. }
            | BuildError::NoPath { .. }
            | BuildError::NoMap { .. } => Code::Unavailable,
            BuildError::Rescan { .. } | BuildError::Kernel { .. } | BuildError::Table { .. } => {
                Code::Internal
            }
        };
        Self {
            step,
            code,
            source: source.into(),
        }
    }

    /// A map could not be removed.
    pub(super) fn remove(source: RemoveError) -> Self {
        let code = match source {
            RemoveError::Worker(_) => Code::DeadlineExceeded,
            RemoveError::Busy { .. } => Code::FailedPrecondition,
            RemoveError::Flush { .. } => Code::Unavailable,
            RemoveError::Kernel { .. } => Code::Internal,
        };
        Self {
            step: "remove its map",
            code,
            source: source.into(),
        }
    }
}

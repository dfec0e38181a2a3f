//! One place that turns what went wrong into a gRPC code.

use tonic::{Code, Status};

use crate::adapter::AdapterError;

/// The code for an error.
pub(super) fn code(error: &AdapterError) -> Code {
    match error {
        AdapterError::NoVolume(_)
        | AdapterError::NoSnapshot(_)
        | AdapterError::NoLunNamed { .. }
        | AdapterError::NoAggregate { .. } => Code::NotFound,
        AdapterError::Source { .. } => Code::InvalidArgument,
        AdapterError::Differs { .. } | AdapterError::MappedDifferently { .. } => Code::AlreadyExists,
        AdapterError::Mapped { .. } | AdapterError::SharedInitiator { .. } | AdapterError::InDoubt { .. } => {
            Code::FailedPrecondition
        }
        AdapterError::Full { .. } | AdapterError::NoLun(_) => Code::ResourceExhausted,
        AdapterError::Limit { .. } => Code::OutOfRange,
        AdapterError::Data { .. } => Code::DataLoss,
        AdapterError::Unavailable { .. } => Code::Unavailable,
        AdapterError::Record(_) | AdapterError::Io { .. } => Code::Internal,
    }
}

/// The answer for an error; what is the gateway's own fault is logged here, once.
pub(super) fn status(error: &AdapterError) -> Status {
    let (code, text) = (code(error), crate::server::full(error));
    if matches!(code, Code::Internal | Code::DataLoss | Code::Unavailable) {
        tracing::error!(?code, error = text, "call failed");
    }
    Status::new(code, text)
}

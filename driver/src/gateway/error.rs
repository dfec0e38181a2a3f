//! What can go wrong between the controller and a gateway. The texts name the gateway, never a user or a password.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};

use super::connect::ConnectError;
use crate::codes::{Coded, Rpc, csi_code};
use crate::ids::Endpoint;

/// Longest text of the gateway that is passed on, in characters.
const MAX_MESSAGE: usize = 2000;

/// One call to a gateway failed.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// It was never reached.
    #[error("gateway {endpoint} is not reachable")]
    Unreachable {
        /// Host and port.
        endpoint: Endpoint,
        /// Which step failed.
        #[source]
        source: ConnectError,
    },
    /// Somebody answers, but not the one that is configured.
    #[error("gateway {endpoint} is not the configured one: {reason}")]
    Certificate {
        /// Host and port.
        endpoint: Endpoint,
        /// What was presented.
        reason: String,
    },
    /// User or password.
    #[error("gateway {endpoint} refuses the user name or the password")]
    Password {
        /// Host and port.
        endpoint: Endpoint,
    },
    /// The call may still be running there.
    #[error("gateway {endpoint}: {call} was not answered within {} s", limit.as_secs())]
    Deadline {
        /// Host and port.
        endpoint: Endpoint,
        /// Which call.
        call: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection broke while the call was running.
    #[error("gateway {endpoint}: the connection was lost during {call}: {reason}")]
    Lost {
        /// Host and port.
        endpoint: Endpoint,
        /// Which call.
        call: &'static str,
        /// What the transport says.
        reason: String,
    },
    /// It answered with an error.
    #[error("gateway {endpoint}: {call}: {message}")]
    Refused {
        /// Host and port.
        endpoint: Endpoint,
        /// Which call.
        call: &'static str,
        /// Its code.
        code: Code,
        /// Its text.
        message: String,
    },
    /// It answered, but not with what the protocol promises.
    #[error("gateway {endpoint}: {call} answered {problem}")]
    Malformed {
        /// Host and port.
        endpoint: Endpoint,
        /// Which call.
        call: &'static str,
        /// What is wrong with the answer.
        problem: String,
    },
}

impl GatewayError {
    /// Sorts what tonic hands out: errors of the gateway, and errors on the way to it.
    pub(crate) fn from_status(endpoint: &Endpoint, call: &'static str, status: &Status) -> Self {
        let endpoint = endpoint.clone();
        let mut source = status.source();
        while let Some(error) = source {
            match error.downcast_ref::<ConnectError>() {
                Some(ConnectError::Certificate(reason)) => {
                    return Self::Certificate {
                        endpoint,
                        reason: reason.clone(),
                    };
                }
                Some(error) => {
                    return Self::Unreachable {
                        endpoint,
                        source: error.copy(),
                    };
                }
                None => source = error.source(),
            }
        }
        if status.source().is_some() {
            return Self::Lost {
                endpoint,
                call,
                reason: crate::codes::chain(status.source().unwrap_or(status)),
            };
        }
        if status.code() == Code::Unauthenticated {
            return Self::Password { endpoint };
        }
        let message = match status.message() {
            "" => format!("{:?} without a text", status.code()),
            text => text.chars().take(MAX_MESSAGE).collect(),
        };
        Self::Refused {
            endpoint,
            call,
            code: status.code(),
            message,
        }
    }

    /// Whether the connection is of no more use.
    pub(crate) fn breaks_connection(&self) -> bool {
        matches!(self, Self::Deadline { .. } | Self::Lost { .. })
    }

    /// The answer as one of the gateway's codes: what [`csi_code`] starts from.
    pub fn answer(&self) -> Code {
        match self {
            Self::Unreachable { .. } | Self::Lost { .. } => Code::Unavailable,
            Self::Certificate { .. } => Code::FailedPrecondition,
            Self::Password { .. } => Code::Unauthenticated,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Refused { code, .. } => *code,
            Self::Malformed { .. } => Code::Ok,
        }
    }

    /// Joined with the call that was on its way, which decides the code.
    pub fn during(self, rpc: Rpc) -> CallError {
        CallError { rpc, error: self }
    }
}

impl ConnectError {
    /// The same error once more: the original stays inside the transport's.
    fn copy(&self) -> Self {
        let io = |error: &std::io::Error| std::io::Error::new(error.kind(), error.to_string());
        match self {
            Self::Timeout(limit) => Self::Timeout(*limit),
            Self::Tcp(error) => Self::Tcp(io(error)),
            Self::Tls(error) => Self::Tls(io(error)),
            Self::Certificate(reason) => Self::Certificate(reason.clone()),
        }
    }
}

/// A gateway's error, seen from the CSI call that met it. It reads like the gateway's error itself.
#[derive(Debug)]
pub struct CallError {
    rpc: Rpc,
    error: GatewayError,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for CallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

impl Coded for CallError {
    fn code(&self) -> Code {
        csi_code(self.rpc, self.error.answer())
    }
}

//! The pre-flight check `storagelink-csi doctor`: what this host, the service and the cluster need, and what to do about what is missing.
//!
//! It looks and asks, and changes nothing. The node plugin makes the host's part of it at its start.

mod cluster;
pub mod host;
mod rights;
mod run;
mod service;

pub use run::{Args, run};

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Good,
    /// Volumes work, but not as they should.
    Warning,
    /// Volumes cannot work.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What was looked at.
    pub what: String,
    /// What was found, and what to do about it.
    pub found: String,
}

impl Finding {
    fn new(severity: Severity, what: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            severity,
            what: what.into(),
            found: found.into(),
        }
    }

    fn good(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Severity::Good, what, found)
    }

    fn warning(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Severity::Warning, what, found)
    }

    fn failure(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(Severity::Failure, what, found)
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = match self.severity {
            Severity::Good => "ok  ",
            Severity::Warning => "WARN",
            Severity::Failure => "FAIL",
        };
        write!(f, "{word}  {}: {}", self.what, self.found)
    }
}

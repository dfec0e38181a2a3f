//! The CSI Identity service: name, version, capabilities, readiness.

//! The CSI Node service: stages, publishes and expands volumes on this host. It never calls the gateway.

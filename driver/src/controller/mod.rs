//! The CSI Controller service: what the orchestrator wants of the array, in terms of the gateway. It keeps no state.

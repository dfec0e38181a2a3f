//! The CSI driver `csi.storagelink.io`: the controller service and the node service of one binary.
//!
//! # Layout
//!
//! - [`server`]: gRPC on a private unix socket, one log line per call, drain on SIGTERM.
//! - [`http`]: /livez, /readyz and /metrics.
//! - [`listen`]: all of that, started and stopped together.
//! - [`identity`]: the CSI Identity service, common to both subcommands.
//! - [`controller`], [`gateway`], [`parameters`]: the array side; keeps no state.
//! - [`node`], [`attach`], [`mount`], [`programs`]: the host side.
//! - [`fields`]: checks of the fields of a request.
//! - [`ids`], [`publish_context`]: the strings that travel between both sides.
//! - [`codes`]: which gRPC code an answer of the gateway becomes.

pub mod attach;
pub mod codes;
pub mod controller;
pub mod doctor;
pub mod fabrics;
pub mod fields;
pub mod gateway;
pub mod http;
pub mod identity;
pub mod ids;
pub mod listen;
pub mod metrics;
pub mod mount;
pub mod node;
pub mod parameters;
pub mod programs;
pub mod publish_context;
pub mod server;

/// The name under which Kubernetes knows the driver (CSI `GetPluginInfo`, object `CSIDriver`).
pub const DRIVER_NAME: &str = "csi.storagelink.io";
/// The version that `GetPluginInfo` reports.
pub const DRIVER_VERSION: &str = env!("CARGO_PKG_VERSION");

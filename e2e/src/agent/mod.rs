//! The guest's side: first process and the service the harness drives the guest through.
//!
//! Knows nothing of arrays, nodes or suites; the harness decides what runs.

pub mod forward;
pub mod init;
pub mod processes;
pub mod server;

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
/// The agent's protocol.
pub mod proto {
    tonic::include_proto!("storagelink.lab.v1");
}

/// TCP port of the agent on the guest's management address.
pub const AGENT_PORT: u16 = 7000;
/// TCP port on the machine's management address where an agent says its guest's name once it serves.
pub const READY_PORT: u16 = 7001;
/// The machine's address on the management network.
pub const MACHINE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(198, 18, 2, 254);
/// The results directory of a guest as the guest sees it; writes reach the machine at once.
pub const RESULTS: &str = "/lab";

/// Largest message either side takes: logs and test files go through it.
pub const MESSAGE_LIMIT: usize = 64 << 20;

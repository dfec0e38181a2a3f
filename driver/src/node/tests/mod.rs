//! The node on the simulated host.

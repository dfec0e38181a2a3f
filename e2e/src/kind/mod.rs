//! `make e2e-kind`: the whole product on one host with Docker: a container is the array, a kind cluster has the nodes.
//!
//! Everything shares the host's kernel: the array's target, the initiator's sessions, the maps. What is made here carries names of its
//! own, and only what carries them is ever removed: containers, networks and cluster by [`settings`], the kernel's objects by
//! [`configfs`] and [`leftovers`].
//!
//! # Layout
//! - [`settings`]: names, addresses, and what the environment may change
//! - [`needs`]: what the host must have, looked at before anything is made
//! - [`docker`]: networks, images and the container that is the array; [`target`]: what runs in it (binary `kind-target`)
//! - [`cluster`]: the kind cluster and the chart in it
//! - [`configfs`], [`leftovers`]: what could be left in the host's kernel, found and removed
//! - [`paths`]: what mpathutil says of a volume's paths
//! - [`walk`]: the steps; [`run`]: the whole, from the look at the host to the last thing removed; [`logs`]: what a failure leaves

pub mod cluster;
pub mod configfs;
pub mod docker;
pub mod leftovers;
pub mod logs;
pub mod needs;
pub mod paths;
pub mod run;
pub mod settings;
pub mod target;
pub mod tool;
pub mod walk;

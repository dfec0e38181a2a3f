//! The cluster lab: a real Kubernetes on the lab's guests.
//!
//! The control plane runs natively in the lab's network namespace, each worker guest runs containerd and
//! kubelet, and the array guest runs the gateway. One boot serves every suite of a run. Nothing is pulled from a
//! registry: what pods run is built into a disk that the workers boot with.

pub mod binaries;
pub mod bundle;
pub mod cluster;
pub mod control_plane;
pub mod external;
pub mod image_disk;
pub mod images;
pub mod kubectl;
pub mod leftovers;
pub mod objects;
pub mod pki;
pub mod suites;
pub mod worker;
pub mod writers;

//! The lab: real kernels in QEMU guests, a SAN of two fabrics between them, and the suites that run on it.
//!
//! # Layout
//!
//! - `isolate`: the namespaces everything runs in, so that nothing can be left behind
//! - `artifacts`: the guest kernel and the initramfs, made once; `packages`: programs that only guests may have
//! - `net`, `qemu`, `qmp`, `guest`, `lab`: fabrics, guests, and the lab made of them
//! - `agent`: what runs inside a guest (binary `lab-agent`)
//! - `roles`: a guest as array, a guest as node
//! - `kind`: the product on a host with Docker and kind (binaries `e2e-kind`, `kind-target`)
//! - `kube`: a Kubernetes cluster on those guests, and its suites
//! - `kind_lab`: the walk of `make e2e-kind` in a guest
//! - `writer`: the checksummed writer (binary `lab-writer`)
//! - `suites`: what is proved; `demo`: the main job to watch
//! - `maps`: the engine alone in a guest, `bare`: not even that (binary `lab-maps`)
//! - `bench`: figures beside the usual way; `figures`: how they get into `docs/benchmarks.md`

pub mod agent;
pub mod artifacts;
pub mod bare;
pub mod bench;
mod by_hand;
pub mod check;
pub mod cpio;
pub mod demo;
pub mod figures;
mod gateway_configuration;
pub mod guest;
pub mod isolate;
pub mod kind;
pub mod kind_lab;
pub mod kube;
pub mod lab;
pub mod maps;
pub mod net;
pub mod packages;
pub mod programs;
pub mod qemu;
pub mod qmp;
pub mod report;
pub mod roles;
pub mod suites;
pub mod wait;
pub mod writer;

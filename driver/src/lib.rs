//! The CSI driver: controller and node plugin.

pub mod programs;

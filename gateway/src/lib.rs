//! storagelinkd: the StorageLink gateway, one service in front of the arrays.
//!
//! # Layout
//! - [`config`]: the configuration file;
//! - [`server`], [`tls`], [`auth`]: TLS always, a password on every call;
//! - [`service`]: the protocol (proto/storagelink/v1) over the adapters;
//! - [`adapter`]: what an array must be able to do; [`adapters::lio`] does it with the Linux kernel target;
//! - [`pools`]: where volumes' data lie; [`records`]: what is known of each volume, beside its data.
//!
//! Truth is the records. Kernel state is made to match them at start. Never hands out an empty disk for one that should hold data,
//! and never touches a target or backstore that it did not make.

pub mod adapter;
pub mod adapters;
pub mod auth;
pub mod config;
pub mod files;
pub mod ids;
pub mod pools;
pub mod records;
pub mod server;
pub mod service;
pub mod tls;

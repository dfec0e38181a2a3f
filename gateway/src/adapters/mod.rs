//! The kinds of arrays.

pub mod lio;

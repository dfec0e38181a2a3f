//! The checksummed writer: writes blocks whose content says who wrote them, logs each one the kernel acknowledged, and later
//! proves that every acknowledged write can be read back.
//!
//! Never repairs, never retries: what the kernel answers is what a database would have seen.

pub mod block;
pub mod verify;
pub mod write;

//! Where volumes' data lie.

mod filesystem;
pub mod reflink;
mod snapshots;

pub use reflink::ReflinkPool;

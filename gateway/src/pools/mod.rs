//! Where volumes' data lie.

mod adopt;
mod filesystem;
pub mod reflink;
mod snapshots;

pub use reflink::ReflinkPool;

//! Where volumes' data lie.

mod filesystem;
pub mod reflink;

pub use reflink::ReflinkPool;

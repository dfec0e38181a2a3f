//! Where volumes' data lie.

pub mod reflink;

pub use reflink::ReflinkPool;

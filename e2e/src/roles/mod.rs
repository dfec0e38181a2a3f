//! What turns a booted guest into an array or a node.

pub mod array;
pub mod fibre_channel;
pub mod inspect;
pub mod multipathd;
pub mod node;
pub mod port_groups;
pub mod writer;

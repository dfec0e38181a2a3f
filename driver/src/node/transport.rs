//! The seam to the transports: what brings a published LUN's SCSI devices onto this node and takes them away.
//!
//! It decides by the publish context which transport serves a volume. It must never build or change a map.

use std::{future::Future, pin::Pin, time::Duration};

#[cfg(doc)]
use storagelink_multipath::engine::PROOF;
use storagelink_multipath::{ProvenPath, ScsiDisk};
use tonic::Code;

use crate::publish_context::{Portal, PublishContext};

/// What an attach brought.
#[derive(Debug)]
pub struct Attached {
    /// The paths, each proven by its live identity within the last second ([`PROOF`]). At least one.
    pub paths: Vec<ProvenPath>,
    /// The portals that gave none yet, each with the reason in words.
    pub missing: Vec<(Portal, String)>,
}

/// A transport step that failed: the code says whether another try may help.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct TransportError {
    /// `attach`, `detach`, or the portal.
    pub step: String,
    /// For the caller.
    pub code: Code,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The answer of a [`Transport`].
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, TransportError>> + Send + 'a>>;

/// A transport, or a simulation of one.
pub trait Transport: Send + Sync {
    /// Brings up as many of the volume's paths as come quickly. One is success; none is an error that leaves nothing.
    fn attach<'a>(&'a self, context: &'a PublishContext, deadline: Duration) -> Answer<'a, Attached>;
    /// Brings up the path through one portal. Must have ended before the volume is detached.
    fn attach_one<'a>(&'a self, portal: &'a Portal, context: &'a PublishContext) -> Answer<'a, ProvenPath>;
    /// Deletes these devices, and with a context every other device of the volume; then ends the sessions that are ours
    /// and that nobody uses. Nothing there is success.
    fn detach<'a>(&'a self, disks: &'a [ScsiDisk], context: Option<&'a PublishContext>) -> Answer<'a, ()>;
    /// Ends what a crash left: sessions of ours that nobody uses.
    fn sweep(&self) -> Answer<'_, ()>;
}

//! iSCSI as a [`Transport`]: only a translation of errors.

use std::time::Duration;

use storagelink_multipath::{ProvenPath, ScsiDisk};
use tonic::Code;

use super::transport::{Answer, Attached, Transport, TransportError};
use crate::{
    attach::iscsi::Initiator,
    codes::chain,
    publish_context::{Portal, PublishContext},
};

impl Transport for Initiator {
    fn attach<'a>(&'a self, context: &'a PublishContext, deadline: Duration) -> Answer<'a, Attached> {
        Box::pin(async move {
            let attached = Self::attach(self, context, deadline)
                .await
                .map_err(|error| TransportError {
                    step: "attach".to_owned(),
                    code: error.code(),
                    source: error.into(),
                })?;
            let missing = attached
                .missing
                .into_iter()
                .map(|(portal, error)| (portal, chain(&error)));
            Ok(Attached {
                paths: attached.paths,
                missing: missing.collect(),
            })
        })
    }

    fn attach_one<'a>(&'a self, portal: &'a Portal, context: &'a PublishContext) -> Answer<'a, ProvenPath> {
        Box::pin(async move {
            Self::attach_one(self, portal, context)
                .await
                .map_err(|error| TransportError {
                    step: format!("bring up the path through {portal}"),
                    code: error.code(),
                    source: error.into(),
                })
        })
    }

    fn detach<'a>(&'a self, disks: &'a [ScsiDisk], context: Option<&'a PublishContext>) -> Answer<'a, ()> {
        Box::pin(async move {
            Self::detach(self, disks, context)
                .await
                .map_err(|error| TransportError {
                    step: "detach".to_owned(),
                    // What is left is tried again; nothing was decided for good.
                    code: Code::Unavailable,
                    source: error.into(),
                })
        })
    }

    fn sweep(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            Self::sweep(self).await.map_err(|error| TransportError {
                step: "sweep".to_owned(),
                code: Code::Unavailable,
                source: error.into(),
            })
        })
    }
}

//! A transport over the simulated kernel: a session per portal, a scan of one LUN, and all of it back.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use storagelink_multipath::{
    Engine, Hctl, Host, ProvenPath, ScsiDisk, engine::Scanned, host::sim::SimKernel, scsi_device,
};
use tokio::sync::Semaphore;
use tonic::Code;

use super::host::Fuse;
use crate::{
    node::transport::{Answer, Attached, Transport, TransportError},
    publish_context::{Portal, PublishContext},
};

const SCAN: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct SimTransport {
    pub(super) kernel: SimKernel,
    pub(super) host: Host,
    pub(super) fuse: Fuse,
    /// Addresses that do not answer.
    pub(super) dead: Arc<Mutex<BTreeSet<String>>>,
    /// How many volumes the host brings up at the same time; one more never comes to its end in time.
    pub(super) crowd: Arc<Semaphore>,
}

fn error(text: &str) -> TransportError {
    TransportError {
        step: "simulated transport".to_owned(),
        code: Code::Unavailable,
        source: text.to_owned().into(),
    }
}

impl SimTransport {
    fn session(&self, portal: &Portal) -> Option<u32> {
        let address = portal.address.ip().to_string();
        self.kernel
            .sessions(&portal.target, &address, portal.address.port())
            .first()
            .copied()
    }

    fn hctl(session: u32, context: &PublishContext) -> Hctl {
        Hctl {
            host: session,
            channel: 0,
            target: 0,
            lun: u64::from(context.lun),
        }
    }

    async fn one(&self, portal: &Portal, context: &PublishContext) -> Result<ProvenPath, TransportError> {
        let address = portal.address.ip().to_string();
        if self.dead.lock().unwrap().contains(&address) {
            return Err(error("unreachable"));
        }
        let session = match self.session(portal) {
            Some(session) => session,
            None => {
                self.fuse.spend().map_err(|_| error("killed"))?;
                self.kernel.login(&portal.target, &address, portal.address.port())
            }
        };
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| TransportError {
            step: "scan".into(),
            code: Code::FailedPrecondition,
            source,
        };
        let (hctl, wwid) = (Self::hctl(session, context), context.wwid.parse().unwrap());
        let scanned = Engine::new(self.host.clone()).scan(hctl, &wwid, SCAN).await;
        let Scanned { disk, proof } = scanned.map_err(|error| refused(error.into()))?;
        // As the real one: what is not the volume does not stay.
        if proof.is_err() {
            scsi_device::delete(&self.host, &disk).map_err(|e| error(&e.to_string()))?;
        }
        proof.map_err(|error| refused(error.into()))
    }
}

impl Transport for SimTransport {
    fn attach<'a>(&'a self, context: &'a PublishContext, _: Duration) -> Answer<'a, Attached> {
        Box::pin(async move {
            let _place = self.crowd.try_acquire().map_err(|_| error("not there in time"))?;
            tokio::task::yield_now().await;
            let (mut paths, mut missing, mut last) = (Vec::new(), Vec::new(), None);
            for portal in &context.portals {
                match self.one(portal, context).await {
                    Ok(hctl) => paths.push(hctl),
                    Err(error) => {
                        missing.push((portal.clone(), error.to_string()));
                        last = Some(error);
                    }
                }
            }
            if paths.is_empty() {
                self.detach(&[], Some(context)).await?;
                return Err(last.unwrap_or_else(|| error("no portal")));
            }
            Ok(Attached { paths, missing })
        })
    }

    fn attach_one<'a>(&'a self, portal: &'a Portal, context: &'a PublishContext) -> Answer<'a, ProvenPath> {
        Box::pin(self.one(portal, context))
    }

    fn detach<'a>(&'a self, disks: &'a [ScsiDisk], context: Option<&'a PublishContext>) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut all = disks.to_vec();
            let portals = context.map(|c| c.portals.clone()).unwrap_or_default();
            for session in portals.iter().filter_map(|p| self.session(p)) {
                all.extend(context.and_then(|c| scsi_device::find(&self.host, &Self::hctl(session, c))));
            }
            let mut hosts: BTreeSet<u32> = portals.iter().filter_map(|p| self.session(p)).collect();
            for disk in all {
                scsi_device::delete(&self.host, &disk).map_err(|e| error(&e.to_string()))?;
                hosts.insert(disk.hctl.host);
            }
            for host in hosts {
                if !self.kernel.disks().iter().any(|d| d.host == host) {
                    self.fuse.spend().map_err(|_| error("killed"))?;
                    self.kernel.logout(host);
                }
            }
            // A dead process sees an empty host, and does not go on from that.
            if self.fuse.burnt() {
                Err(error("killed"))
            } else {
                Ok(())
            }
        })
    }

    fn sweep(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

//! One LUN behind one session: from its address to a proven SCSI device, and away again.

use std::time::Duration;

use storagelink_multipath::{
    Engine, Hctl, ProvenPath, Wwid,
    engine::{ProveError, Scanned},
    host::Host,
    scsi_device::{self, ScsiDisk},
    worker,
};

use super::{claim, error::PortalError, initiator::Initiator, session::Session};
use crate::publish_context::{Portal, PublishContext};

/// Time limit of one SCSI step: a look, a scan, an identity check, a delete. Generous, since the session is up: only a
/// path that dies under the step comes near it.
const STEP: Duration = Duration::from_secs(10);

/// The LUN of one volume, seen through one portal.
pub(super) struct Lun<'a> {
    host: &'a Host,
    engine: &'a Engine,
    portal: &'a Portal,
    hctl: Hctl,
    lun: u32,
    wwid: Wwid,
    size: u64,
}

impl<'a> Lun<'a> {
    pub(super) fn new(
        initiator: &'a Initiator,
        portal: &'a Portal,
        session: &Session,
        context: &PublishContext,
    ) -> Result<Self, PortalError> {
        let wwid = context.wwid.parse().map_err(|source| PortalError::Wwid {
            portal: portal.clone().into(),
            source,
        })?;
        // Software iSCSI has one channel and one target per host, both 0.
        let hctl = Hctl {
            host: session.host,
            channel: 0,
            target: 0,
            lun: context.lun.into(),
        };
        Ok(Self {
            host: &initiator.0.host,
            engine: &initiator.0.engine,
            portal,
            hctl,
            lun: context.lun,
            wwid,
            size: context.size_bytes,
        })
    }

    /// Makes sure that the device at this address is there and is the volume.
    ///
    /// What was left there by another volume is deleted, unless it is in use, and the address is scanned again, once:
    /// arrays reuse LUNs, and the kernel goes on believing what it read of the disk before, even when the device leads
    /// to our volume by now.
    pub(super) async fn reach(&self) -> Result<ProvenPath, PortalError> {
        if let Some(disk) = self.find().await? {
            let found = match self.identity().await? {
                Ok(path) => match self.stale(&disk).await? {
                    None => return Ok(path),
                    Some(known) => known,
                },
                Err(found) => found,
            };
            self.purge(disk, found).await?;
        }
        let Scanned { disk, proof } =
            self.engine
                .scan(self.hctl, &self.wwid, STEP)
                .await
                .map_err(|source| PortalError::NoLun {
                    portal: self.portal.clone().into(),
                    lun: self.lun,
                    source: Box::new(source),
                })?;
        match self.named(proof) {
            Ok(Ok(path)) => Ok(path),
            // What was just made must not stay.
            Ok(Err(found)) => {
                self.delete(disk).await?;
                Err(PortalError::Mismatch {
                    portal: self.portal.clone().into(),
                    lun: self.lun,
                    found,
                    expected: self.wwid.to_string(),
                })
            }
            Err(error) => {
                self.delete(disk).await?;
                Err(error)
            }
        }
    }

    /// Deletes the device at this address when it is the volume and nobody holds it. No device is success.
    pub(super) async fn remove(&self) -> Result<(), PortalError> {
        let Some(disk) = self.find().await? else {
            return Ok(());
        };
        if !disk.holders.is_empty() || self.identity().await?.is_err() {
            return Ok(());
        }
        self.delete(disk).await
    }

    async fn find(&self) -> Result<Option<ScsiDisk>, PortalError> {
        let (host, hctl) = (self.host.clone(), self.hctl);
        worker::run("iscsi-find", STEP, move || scsi_device::find(&host, &hctl))
            .await
            .map_err(|source| self.failed("cannot look for its SCSI device", source))
    }

    /// The path when the device's live identity is the volume's, otherwise what it is.
    async fn identity(&self) -> Result<Result<ProvenPath, String>, PortalError> {
        self.named(self.engine.prove(self.hctl, &self.wwid, STEP).await)
    }

    fn named(
        &self,
        proof: Result<ProvenPath, ProveError>,
    ) -> Result<Result<ProvenPath, String>, PortalError> {
        match proof {
            Ok(path) => Ok(Ok(path)),
            Err(ProveError::Mismatch { found, .. }) => Ok(Err(found)),
            Err(error) => Err(self.failed("cannot read the identity of its SCSI device", error)),
        }
    }

    /// What the kernel believes a device to be that is the volume in truth; `None` when it believes the same, or when
    /// the volume is in use through it, with an older size perhaps.
    async fn stale(&self, disk: &ScsiDisk) -> Result<Option<String>, PortalError> {
        let (host, hctl) = (self.host.clone(), self.hctl);
        let known = worker::run("iscsi-wwid", STEP, move || {
            host.sysfs
                .read(&format!("class/scsi_device/{hctl}/device/wwid"))
                .ok()
        })
        .await
        .map_err(|source| self.failed("cannot look at its SCSI device", source))?;
        // The kernel prefers other designators than we do for disks that have several kinds: only an identity of the
        // same kind says something.
        let kind = self.wwid.as_str().split_once('.').map(|(kind, _)| kind);
        if let Some(known) = known.map(|k| k.trim().to_ascii_lowercase())
            && known.split_once('.').map(|(kind, _)| kind) == kind
            && known != self.wwid.as_str()
        {
            return Ok(Some(known));
        }
        if disk.size_bytes == self.size || self.used_by(disk).await?.is_some() {
            return Ok(None);
        }
        Ok(Some(format!("{} with {} bytes", self.wwid, disk.size_bytes)))
    }

    async fn used_by(&self, disk: &ScsiDisk) -> Result<Option<String>, PortalError> {
        let (host, seen) = (self.host.clone(), disk.clone());
        worker::run("iscsi-claim", STEP, move || claim::used_by(&host, &seen))
            .await
            .map_err(|source| self.failed("cannot see whether its SCSI device is in use", source))?
            .map_err(|source| self.failed("cannot see whether its SCSI device is in use", source))
    }

    /// Deletes somebody's leftover at this address, if it is one.
    async fn purge(&self, disk: ScsiDisk, found: String) -> Result<(), PortalError> {
        let used_by = self.used_by(&disk).await?;
        if let Some(used_by) = used_by {
            return Err(PortalError::Foreign {
                portal: self.portal.clone().into(),
                lun: self.lun,
                device: disk.name,
                found,
                expected: self.wwid.to_string(),
                used_by,
            });
        }
        tracing::info!(portal = %self.portal, hctl = %self.hctl, found, "deletes a stale device at this address");
        self.delete(disk).await
    }

    async fn delete(&self, disk: ScsiDisk) -> Result<(), PortalError> {
        let host = self.host.clone();
        worker::run("iscsi-delete", STEP, move || scsi_device::delete(&host, &disk))
            .await
            .map_err(|source| self.failed("cannot delete its SCSI device", source))?
            .map_err(|source| self.failed("cannot delete its SCSI device", source))
    }

    fn failed(
        &self,
        step: &'static str,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> PortalError {
        PortalError::Device {
            portal: self.portal.clone().into(),
            step,
            source: Box::new(source),
        }
    }
}

//! From the former paths of a map to nothing: devices, then sessions that nobody uses, then entries and records.

use std::{collections::BTreeSet, time::Duration};

use storagelink_multipath::{
    scsi_device::{self, ScsiDisk},
    worker,
};

use super::{error::PortalError, initiator::Initiator, lun::Lun, record::RecordError, session::Session};
use crate::{
    codes::chain,
    publish_context::{Portal, PublishContext},
};

/// Time limit of the deletion of one device: its cache is synchronised first when its path is up.
const DELETE: Duration = Duration::from_secs(30);

/// What could not be taken away. The rest has been; another try goes on from there.
#[derive(Debug, thiserror::Error)]
#[error("cannot detach: {}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct DetachError {
    /// One text per device or session, with its causes.
    errors: Vec<String>,
}

impl Initiator {
    /// Deletes the former paths of a volume's map, and logs out of the sessions that this leaves unused, if they are
    /// ours. Idempotent; one failure does not keep the others from being taken away.
    ///
    /// `paths` are deleted only as the same disks that they were: see [`scsi_device::delete`]. With `context`, devices
    /// of the volume at its published addresses are deleted too, mapped or not: what a crash between scan and map
    /// leaves, or a path that came late. They are proven to be the volume's by their live identity first.
    ///
    /// End every [`Initiator::attach_one`] of the volume before.
    pub async fn detach(
        &self,
        paths: &[ScsiDisk],
        context: Option<&PublishContext>,
    ) -> Result<(), DetachError> {
        let mut errors = Vec::new();
        // Which path a host belongs to must be known before its last device goes.
        let mut portals = match self.portals_of(paths).await {
            Ok(portals) => portals,
            Err(error) => {
                errors.push(chain(&error));
                BTreeSet::new()
            }
        };
        let deleted = all(paths.iter().cloned().map(|disk| self.clone().delete(disk))).await;
        errors.extend(deleted.into_iter().filter_map(Result::err));
        if let Some(context) = context {
            let luns = context
                .portals
                .iter()
                .cloned()
                .map(|portal| self.clone().remove_lun(portal, context.clone()));
            errors.extend(
                all(luns)
                    .await
                    .into_iter()
                    .filter_map(Result::err)
                    .map(|error| chain(&error)),
            );
            portals.extend(context.portals.iter().cloned());
        }
        errors.extend(self.release_all(portals).await);
        if errors.is_empty() {
            Ok(())
        } else {
            Err(DetachError { errors })
        }
    }

    /// Logs out of every session that is ours and that nobody uses, and removes what crashes left of others. To be
    /// called at start and whenever there is time; it touches nothing that is in use.
    pub async fn sweep(&self) -> Result<(), DetachError> {
        let (records, unreadable) = self.records().await.map_err(|error| DetachError {
            errors: vec![chain(&error)],
        })?;
        let mut errors: Vec<_> = unreadable.iter().map(|error| chain(error)).collect();
        errors.extend(
            self.release_all(records.into_iter().map(|record| record.portal))
                .await,
        );
        self.remove_unused_interface().await;
        if errors.is_empty() {
            Ok(())
        } else {
            Err(DetachError { errors })
        }
    }

    async fn release_all(&self, portals: impl IntoIterator<Item = Portal>) -> Vec<String> {
        let tasks = portals.into_iter().map(|portal| {
            let this = self.clone();
            async move { this.release(&portal).await }
        });
        all(tasks)
            .await
            .into_iter()
            .filter_map(Result::err)
            .map(|error| chain(&error))
            .collect()
    }

    /// The paths that we opened and whose sessions these disks are on.
    async fn portals_of(&self, disks: &[ScsiDisk]) -> Result<BTreeSet<Portal>, RecordError> {
        let hosts: BTreeSet<u32> = disks.iter().map(|disk| disk.hctl.host).collect();
        let (records, _) = self.records().await?;
        let mut portals = BTreeSet::new();
        for record in records {
            // A path whose sessions cannot be read is left to the sweep.
            let sessions = self.sessions(&record.portal).await.unwrap_or_default();
            if sessions.iter().any(|session| hosts.contains(&session.host)) {
                portals.insert(record.portal);
            }
        }
        Ok(portals)
    }

    async fn delete(self, disk: ScsiDisk) -> Result<(), String> {
        let label = format!("SCSI device {} ({})", disk.hctl, disk.name);
        let host = self.0.host.clone();
        match worker::run("iscsi-delete", DELETE, move || scsi_device::delete(&host, &disk)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("{label}: {}", chain(&error))),
            Err(error) => Err(format!("{label}: {}", chain(&error))),
        }
    }

    /// Only on sessions that are up: an identity check on another would wait for it.
    async fn remove_lun(self, portal: Portal, context: PublishContext) -> Result<(), PortalError> {
        for session in self
            .sessions(&portal)
            .await?
            .into_iter()
            .filter(Session::logged_in)
        {
            Lun::new(&self, &portal, &session, &context)?.remove().await?;
        }
        Ok(())
    }
}

/// Runs all of them at once. They go on when the caller goes away: nothing is left half deleted.
async fn all<T, F>(futures: impl IntoIterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = futures.into_iter().map(tokio::spawn).collect();
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        match task.await {
            Ok(result) => results.push(result),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    results
}

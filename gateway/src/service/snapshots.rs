//! The protocol's calls on snapshots.

use storagelink_proto::storagelink::v1;
use tonic::Status;

use super::{Service, check, codes, page};
use crate::adapter::{AdapterError, NewSnapshot};

impl Service {
    pub(super) async fn take_snapshot(
        &self,
        request: v1::CreateSnapshotRequest,
    ) -> Result<v1::Snapshot, Status> {
        check::snapshot(&request)?;
        // One that exists may outlive its volume, and is compared where it is.
        let system = match self.snapshot(&request.id).await? {
            Some(existing) => self.named(&existing.system)?,
            None => self.held(&request.volume_id).await?,
        };
        let new = NewSnapshot {
            id: request.id,
            volume: request.volume_id,
            name: request.name,
        };
        let snapshot = Self::run(move || system.take_snapshot(&new)).await?;
        tracing::info!(
            snapshot.id = snapshot.id,
            volume.id = snapshot.volume_id,
            "snapshot is there"
        );
        Ok(snapshot)
    }

    pub(super) async fn remove_snapshot(&self, id: String) -> Result<(), Status> {
        check::volume_id(&id)?;
        let (systems, deleted) = (self.systems.clone(), id.clone());
        // Every system: one that is half deleted is in no answer of `snapshots`.
        Self::run(move || {
            systems
                .iter()
                .try_for_each(|system| system.delete_snapshot(&deleted))
        })
        .await?;
        tracing::info!(snapshot.id = id, "snapshot is gone");
        Ok(())
    }

    pub(super) async fn find_snapshot(&self, id: String) -> Result<v1::Snapshot, Status> {
        check::volume_id(&id)?;
        let found = self.snapshot(&id).await?;
        found.ok_or_else(|| codes::status(&AdapterError::NoSnapshot(id)))
    }

    pub(super) async fn page_of_snapshots(
        &self,
        request: v1::ListSnapshotsRequest,
    ) -> Result<v1::ListSnapshotsResponse, Status> {
        let mut snapshots = self.snapshots().await?;
        snapshots.retain(|snapshot| request.volume_id.is_empty() || snapshot.volume_id == request.volume_id);
        let next_page_token = page(
            &mut snapshots,
            |snapshot| &snapshot.id,
            request.page_size,
            &request.page_token,
        )?;
        Ok(v1::ListSnapshotsResponse {
            snapshots,
            next_page_token,
        })
    }

    async fn snapshot(&self, id: &str) -> Result<Option<v1::Snapshot>, Status> {
        Ok(self
            .snapshots()
            .await?
            .into_iter()
            .find(|snapshot| snapshot.id == id))
    }

    /// Those of all systems, in the order of their ids.
    async fn snapshots(&self) -> Result<Vec<v1::Snapshot>, Status> {
        let systems = self.systems.clone();
        Self::run(move || {
            let mut all = Vec::new();
            for system in systems.iter() {
                all.extend(system.snapshots()?);
            }
            all.sort_by(|a, b| a.id.cmp(&b.id));
            Ok(all)
        })
        .await
    }
}

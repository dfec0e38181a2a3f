//! The protocol over the adapters: checks requests, finds the system, runs the adapter on a thread for blocking work, turns errors into codes.
//!
//! Keeps nothing. A system is found by name in creations and by asking each for the volume in all other calls.

mod check;
mod codes;
mod snapshots;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use storagelink_proto::storagelink::v1::{self, storage_link_server::StorageLink};
use tonic::{Request, Response, Status};

use crate::{
    adapter::{Access, Adapter, AdapterError, NewVolume},
    records::Provision,
};

/// Volumes on a page when the caller does not say.
const PAGE: usize = 500;

/// The service.
#[derive(Clone)]
pub struct Service {
    systems: Arc<Vec<Arc<dyn Adapter>>>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Over these systems.
    #[must_use]
    pub fn new(systems: Vec<Arc<dyn Adapter>>) -> Self {
        Self {
            systems: Arc::new(systems),
        }
    }

    fn choices(&self) -> String {
        self.systems
            .iter()
            .map(|system| system.system().name)
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn named(&self, name: &str) -> Result<Arc<dyn Adapter>, Status> {
        if name.is_empty() {
            return Err(Status::invalid_argument(format!(
                "system is missing; there are: {}",
                self.choices()
            )));
        }
        let found = self.systems.iter().find(|system| system.system().name == name);
        found.cloned().ok_or_else(|| {
            Status::not_found(format!(
                "there is no system `{name}`; there are: {}",
                self.choices()
            ))
        })
    }

    /// Runs blocking work, and turns its error into a code.
    async fn run<T: Send + 'static>(
        work: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
    ) -> Result<T, Status> {
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result.map_err(|error| codes::status(&error)),
            Err(_) => Err(Status::internal("the call ended without a result")),
        }
    }

    /// The system that has this volume.
    async fn holder(&self, id: &str) -> Result<Option<(Arc<dyn Adapter>, v1::Volume)>, Status> {
        check::volume_id(id)?;
        let (systems, id) = (self.systems.clone(), id.to_owned());
        Self::run(move || {
            for system in systems.iter() {
                if let Some(volume) = system.get(&id)? {
                    return Ok(Some((system.clone(), volume)));
                }
            }
            Ok(None)
        })
        .await
    }

    async fn held(&self, id: &str) -> Result<Arc<dyn Adapter>, Status> {
        let found = self.holder(id).await?.map(|(system, _)| system);
        found.ok_or_else(|| codes::status(&AdapterError::NoVolume(id.to_owned())))
    }
}

/// Keeps one page of what is sorted by id, and says the token of the next one, empty on the last. The token is the id of the
/// last one given: pages stay right while volumes come and go.
fn page<T>(all: &mut Vec<T>, id: impl Fn(&T) -> &String, size: u32, token: &str) -> Result<String, Status> {
    if !token.is_empty() && !crate::ids::is_volume_id(token) {
        return Err(Status::invalid_argument(
            "page_token: is not one that this service gave",
        ));
    }
    all.retain(|one| id(one).as_str() > token);
    let size = match usize::try_from(size).unwrap_or(PAGE) {
        0 => PAGE,
        size => size,
    };
    let more = all.len() > size;
    all.truncate(size);
    Ok(all
        .last()
        .filter(|_| more)
        .map(|last| id(last).clone())
        .unwrap_or_default())
}

#[tonic::async_trait]
impl StorageLink for Service {
    async fn get_service_info(
        &self,
        _: Request<v1::GetServiceInfoRequest>,
    ) -> Answer<v1::GetServiceInfoResponse> {
        Ok(Response::new(v1::GetServiceInfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn list_systems(&self, _: Request<v1::ListSystemsRequest>) -> Answer<v1::ListSystemsResponse> {
        let systems = self.systems.iter().map(|system| system.system()).collect();
        Ok(Response::new(v1::ListSystemsResponse { systems }))
    }

    async fn list_aggregates(
        &self,
        request: Request<v1::ListAggregatesRequest>,
    ) -> Answer<v1::ListAggregatesResponse> {
        let system = self.named(&request.into_inner().system)?;
        let aggregates = Self::run(move || Ok(system.aggregates())).await?;
        Ok(Response::new(v1::ListAggregatesResponse { aggregates }))
    }

    async fn list_target_ports(
        &self,
        request: Request<v1::ListTargetPortsRequest>,
    ) -> Answer<v1::ListTargetPortsResponse> {
        let request = request.into_inner();
        let protocol = check::protocol(request.protocol)?;
        let mut ports = self.named(&request.system)?.target_ports();
        ports.retain(|port| protocol == v1::Protocol::Unspecified || port.protocol() == protocol);
        Ok(Response::new(v1::ListTargetPortsResponse { ports }))
    }

    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Answer<v1::CreateVolumeResponse> {
        let request = request.into_inner();
        check::create(&request)?;
        let source = check::source(&request)?;
        let system = self.named(&request.system)?;
        if let Some((_, existing)) = self.holder(&request.id).await?
            && existing.system != request.system
        {
            let differs = format!("system `{}`", existing.system);
            return Err(codes::status(&AdapterError::Differs {
                id: format!("volume {}", request.id),
                differs,
            }));
        }
        let provision = Provision::from_wire(request.provision_type());
        let new = NewVolume {
            id: request.id,
            aggregate: request.aggregate,
            name: request.name,
            size_bytes: request.size_bytes,
            limit_bytes: request.limit_bytes,
            provision,
            attributes: request.attributes.into_iter().collect(),
            source,
        };
        let volume = Self::run(move || system.create(&new)).await?;
        tracing::info!(
            volume.id = volume.id,
            aggregate = volume.aggregate,
            size = volume.size_bytes,
            "volume is there"
        );
        Ok(Response::new(v1::CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Answer<v1::DeleteVolumeResponse> {
        let id = request.into_inner().id;
        check::volume_id(&id)?;
        let systems = self.systems.clone();
        let deleted = id.clone();
        // Every system: one that is half deleted is in no answer of `get`.
        Self::run(move || systems.iter().try_for_each(|system| system.delete(&deleted))).await?;
        tracing::info!(volume.id = id, "volume is gone");
        Ok(Response::new(v1::DeleteVolumeResponse {}))
    }

    async fn get_volume(&self, request: Request<v1::GetVolumeRequest>) -> Answer<v1::GetVolumeResponse> {
        let id = request.into_inner().id;
        match self.holder(&id).await? {
            Some((_, volume)) => Ok(Response::new(v1::GetVolumeResponse { volume: Some(volume) })),
            None => Err(codes::status(&AdapterError::NoVolume(id))),
        }
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Answer<v1::ListVolumesResponse> {
        let request = request.into_inner();
        let systems = self.systems.clone();
        let mut volumes = Self::run(move || {
            let mut volumes = Vec::new();
            for system in systems.iter() {
                volumes.extend(system.list()?);
            }
            volumes.sort_by(|a, b| a.id.cmp(&b.id));
            Ok(volumes)
        })
        .await?;
        let next_page_token = page(
            &mut volumes,
            |volume| &volume.id,
            request.page_size,
            &request.page_token,
        )?;
        Ok(Response::new(v1::ListVolumesResponse {
            volumes,
            next_page_token,
        }))
    }

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Answer<v1::CreateSnapshotResponse> {
        let snapshot = self.take_snapshot(request.into_inner()).await?;
        let snapshot = Some(snapshot);
        Ok(Response::new(v1::CreateSnapshotResponse { snapshot }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Answer<v1::DeleteSnapshotResponse> {
        self.remove_snapshot(request.into_inner().id).await?;
        Ok(Response::new(v1::DeleteSnapshotResponse {}))
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Answer<v1::GetSnapshotResponse> {
        let snapshot = self.find_snapshot(request.into_inner().id).await?;
        let snapshot = Some(snapshot);
        Ok(Response::new(v1::GetSnapshotResponse { snapshot }))
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Answer<v1::ListSnapshotsResponse> {
        self.page_of_snapshots(request.into_inner())
            .await
            .map(Response::new)
    }

    async fn expand_volume(
        &self,
        request: Request<v1::ExpandVolumeRequest>,
    ) -> Answer<v1::ExpandVolumeResponse> {
        let request = request.into_inner();
        check::expand(&request)?;
        let system = self.held(&request.id).await?;
        let volume =
            Self::run(move || system.expand(&request.id, request.size_bytes, request.limit_bytes)).await?;
        tracing::info!(
            volume.id = volume.id,
            size = volume.size_bytes,
            "volume has its new size"
        );
        Ok(Response::new(v1::ExpandVolumeResponse { volume: Some(volume) }))
    }

    async fn map_volume(&self, request: Request<v1::MapVolumeRequest>) -> Answer<v1::MapVolumeResponse> {
        let request = request.into_inner();
        let host = check::map(&request)?;
        let access = Access {
            host: host.name.clone(),
            iscsi_initiator: host.iscsi_initiator.clone(),
            read_only: request.read_only,
            exclusive: request.exclusive,
        };
        let system = self.held(&request.id).await?;
        let ports = system.target_ports();
        let (name, id) = (access.host.clone(), request.id.clone());
        let volume = Self::run(move || system.map(&id, &access)).await?;
        let mapping = volume
            .mappings
            .into_iter()
            .find(|m| m.host.as_ref().is_some_and(|host| host.name == name));
        tracing::info!(volume.id = request.id, host = name, "volume is mapped");
        Ok(Response::new(v1::MapVolumeResponse {
            mapping,
            wwid: volume.wwid,
            ports,
            size_bytes: volume.size_bytes,
        }))
    }

    async fn unmap_volume(
        &self,
        request: Request<v1::UnmapVolumeRequest>,
    ) -> Answer<v1::UnmapVolumeResponse> {
        let request = request.into_inner();
        check::volume_id(&request.id)?;
        let systems = self.systems.clone();
        let id = request.id.clone();
        let host = (!request.host_name.is_empty()).then_some(request.host_name);
        Self::run(move || {
            systems
                .iter()
                .try_for_each(|system| system.unmap(&id, host.as_deref()))
        })
        .await?;
        tracing::info!(volume.id = request.id, "volume is unmapped");
        Ok(Response::new(v1::UnmapVolumeResponse {}))
    }
}

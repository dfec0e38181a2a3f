//! The CSI Controller service: what the orchestrator wants of the array, in terms of the gateway.
//!
//! It keeps no state: volume ids derive from CSI names, and everything else is asked of the gateway at each call. It
//! never touches a node, and it chooses an aggregate only on an explicit wish.

mod capabilities;
mod capability;
mod capacity;
mod create;
mod delete;
mod expand;
mod list;
mod offers;
mod place;
mod publish;
mod run;
mod snapshot;
mod source;
mod topology;
mod validate;

use storagelink_proto::csi::v1::controller_server::{Controller, ControllerServer};
use storagelink_proto::csi::v1::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse, CreateVolumeRequest,
    CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse, DeleteVolumeRequest,
    DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse,
    ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
};
use tonic::{Code, Request, Response, Status};

use crate::codes::{Coded, Rpc, status};
use crate::fields::FieldError;
use crate::gateway::error::CallError;
use crate::gateway::{Client, GatewayError, Gateways, SelectError};
use crate::ids::VolumeId;
use crate::server::note_volume;

pub use capabilities::CAPABILITIES;
pub use run::{Args, run};

/// The service.
#[derive(Clone)]
pub struct ControllerService {
    gateways: Gateways,
}

impl ControllerService {
    /// Works on these gateways.
    pub fn new(gateways: Gateways) -> Self {
        Self { gateways }
    }

    /// The service for [`crate::server::Services::with`].
    pub fn server(self) -> ControllerServer<Self> {
        ControllerServer::new(self)
    }
}

/// What every operation may fail with before it does its own work.
#[derive(Debug, thiserror::Error)]
enum CommonError {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    Select(#[from] SelectError),
    #[error(transparent)]
    Gateway(#[from] CallError),
    #[error("volume {0} does not exist")]
    NoVolume(String),
}

impl Coded for CommonError {
    fn code(&self) -> Code {
        match self {
            Self::Field(error) => error.code(),
            Self::Select(error) => error.code(),
            Self::Gateway(error) => error.code(),
            Self::NoVolume(_) => Code::NotFound,
        }
    }
}

/// A volume of a request, and the gateway that it is on.
struct Located {
    id: VolumeId,
    client: Client,
}

impl Located {
    /// Reads `volume_id`. A text that cannot be one of our ids names a volume that does not exist.
    fn parse(text: &str) -> Result<VolumeId, CommonError> {
        crate::fields::volume_id(text)?;
        note_volume(text);
        text.parse().map_err(|_| CommonError::NoVolume(text.to_owned()))
    }

    async fn find(
        gateways: &Gateways,
        volume_id: &str,
        secrets: &std::collections::HashMap<String, String>,
    ) -> Result<Self, CommonError> {
        let id = Self::parse(volume_id)?;
        let client = gateways.for_volume(&id, secrets).await?;
        Ok(Self { id, client })
    }

    /// The volume as it is now on the gateway.
    async fn volume(&self, rpc: Rpc) -> Result<storagelink_proto::storagelink::v1::Volume, CommonError> {
        match self.client.volume(self.id.uuid()).await {
            Ok(Some(volume)) => Ok(volume),
            Ok(None) => Err(self.missing()),
            Err(error) => Err(error.during(rpc).into()),
        }
    }

    fn missing(&self) -> CommonError {
        CommonError::NoVolume(self.id.to_string())
    }

    /// The gateway's NOT_FOUND for a call on the volume itself means this volume.
    fn failed(&self, rpc: Rpc, error: GatewayError) -> CommonError {
        match error {
            GatewayError::Refused {
                code: Code::NotFound, ..
            } => self.missing(),
            error => error.during(rpc).into(),
        }
    }
}

fn answer<T>(result: Result<T, impl Coded>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status(&error))
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        answer(create::create_volume(&self.gateways, request.into_inner()).await)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        answer(delete::delete_volume(&self.gateways, request.into_inner()).await)
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        answer(publish::publish_volume(&self.gateways, request.into_inner()).await)
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        answer(publish::unpublish_volume(&self.gateways, request.into_inner()).await)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        answer(validate::validate(&self.gateways, request.into_inner()).await)
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        answer(list::list_volumes(&self.gateways, request.into_inner()).await)
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        answer(capacity::get_capacity(&self.gateways, request.into_inner()).await)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        Ok(Response::new(capabilities::answer()))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        answer(expand::expand_volume(&self.gateways, request.into_inner()).await)
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        answer(snapshot::create_snapshot(&self.gateways, request.into_inner()).await)
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        answer(snapshot::delete_snapshot(&self.gateways, request.into_inner()).await)
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        answer(snapshot::get_snapshot(&self.gateways, request.into_inner()).await)
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        answer(snapshot::list_snapshots(&self.gateways, request.into_inner()).await)
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        answer(list::get_volume(&self.gateways, request.into_inner()).await)
    }
}

//! The calls to one gateway with one password. Every call has a deadline; a connection that broke is made anew.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use secrecy::ExposeSecret;
use storagelink_proto::storagelink::v1 as api;
use storagelink_proto::storagelink::v1::storage_link_client::StorageLinkClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::error::GatewayError;
use super::{Credentials, Shared};
use crate::ids::Endpoint;

/// One page of volumes.
pub type VolumePage = (Vec<api::Volume>, String);

/// A gateway, ready to be called.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    authorization: Option<MetadataValue<Ascii>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn new(shared: Arc<Shared>, endpoint: Endpoint, credentials: &Credentials) -> Self {
        let pair = format!(
            "{}:{}",
            credentials.username,
            credentials.password.expose_secret()
        );
        let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
        // Base64 is always a valid value; without one the gateway would refuse the call.
        let authorization = MetadataValue::try_from(text).ok().map(|mut value| {
            value.set_sensitive(true);
            value
        });
        Self {
            shared,
            endpoint,
            authorization,
        }
    }

    /// Where it is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Proves address, certificate and password; answers the gateway's version.
    pub async fn version(&self) -> Result<String, GatewayError> {
        let request = api::GetServiceInfoRequest {};
        let call = |mut client: Stub, request| async move { client.get_service_info(request).await };
        Ok(self.read("GetServiceInfo", request, call).await?.version)
    }

    /// The storage systems.
    pub async fn systems(&self) -> Result<Vec<api::System>, GatewayError> {
        let call = |mut client: Stub, request| async move { client.list_systems(request).await };
        Ok(self
            .read("ListSystems", api::ListSystemsRequest {}, call)
            .await?
            .systems)
    }

    /// The aggregates of a system.
    pub async fn aggregates(&self, system: &str) -> Result<Vec<api::Aggregate>, GatewayError> {
        let request = api::ListAggregatesRequest {
            system: system.to_owned(),
        };
        let call = |mut client: Stub, request| async move { client.list_aggregates(request).await };
        Ok(self.read("ListAggregates", request, call).await?.aggregates)
    }

    /// The ports of a system that hosts reach it by.
    pub async fn target_ports(
        &self,
        system: &str,
        protocol: api::Protocol,
    ) -> Result<Vec<api::TargetPort>, GatewayError> {
        let request = api::ListTargetPortsRequest {
            system: system.to_owned(),
            protocol: protocol.into(),
        };
        let call = |mut client: Stub, request| async move { client.list_target_ports(request).await };
        Ok(self.read("ListTargetPorts", request, call).await?.ports)
    }

    /// A volume, or none.
    pub async fn volume(&self, id: Uuid) -> Result<Option<api::Volume>, GatewayError> {
        let request = api::GetVolumeRequest { id: id.to_string() };
        let call = |mut client: Stub, request| async move { client.get_volume(request).await };
        match self.read("GetVolume", request, call).await {
            Ok(answer) => self.checked("GetVolume", id, answer.volume).map(Some),
            Err(GatewayError::Refused {
                code: Code::NotFound, ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One page of volumes and the token of the next page, empty on the last.
    pub async fn volumes(&self, page_size: u32, page_token: String) -> Result<VolumePage, GatewayError> {
        let request = api::ListVolumesRequest {
            page_size,
            page_token,
        };
        let call = |mut client: Stub, request| async move { client.list_volumes(request).await };
        let answer = self.read("ListVolumes", request, call).await?;
        Ok((answer.volumes, answer.next_page_token))
    }

    /// Makes a volume, or finds it made.
    pub async fn create(
        &self,
        id: Uuid,
        request: api::CreateVolumeRequest,
    ) -> Result<api::Volume, GatewayError> {
        let call = |mut client: Stub, request| async move { client.create_volume(request).await };
        let answer = self.change("CreateVolume", request, call).await?;
        self.checked("CreateVolume", id, answer.volume)
    }

    /// Deletes a volume, or finds it deleted.
    pub async fn delete(&self, id: Uuid) -> Result<(), GatewayError> {
        let request = api::DeleteVolumeRequest { id: id.to_string() };
        let call = |mut client: Stub, request| async move { client.delete_volume(request).await };
        self.change("DeleteVolume", request, call).await.map(drop)
    }

    /// Grows a volume; `limit` 0 is none.
    pub async fn expand(&self, id: Uuid, size: u64, limit: u64) -> Result<api::Volume, GatewayError> {
        let request = api::ExpandVolumeRequest {
            id: id.to_string(),
            size_bytes: size,
            limit_bytes: limit,
        };
        let call = |mut client: Stub, request| async move { client.expand_volume(request).await };
        let answer = self.change("ExpandVolume", request, call).await?;
        self.checked("ExpandVolume", id, answer.volume)
    }

    /// Takes a snapshot, or finds it taken.
    pub async fn take_snapshot(
        &self,
        request: api::CreateSnapshotRequest,
    ) -> Result<api::Snapshot, GatewayError> {
        let id = request.id.clone();
        let call = |mut client: Stub, request| async move { client.create_snapshot(request).await };
        match self.change("CreateSnapshot", request, call).await?.snapshot {
            Some(snapshot) if snapshot.id == id => Ok(snapshot),
            _ => Err(self.malformed("CreateSnapshot", "without the snapshot")),
        }
    }

    /// Deletes a snapshot, or finds it deleted.
    pub async fn delete_snapshot(&self, id: Uuid) -> Result<(), GatewayError> {
        let request = api::DeleteSnapshotRequest { id: id.to_string() };
        let call = |mut client: Stub, request| async move { client.delete_snapshot(request).await };
        self.change("DeleteSnapshot", request, call).await.map(drop)
    }

    /// A snapshot, or none.
    pub async fn snapshot(&self, id: Uuid) -> Result<Option<api::Snapshot>, GatewayError> {
        let request = api::GetSnapshotRequest { id: id.to_string() };
        let call = |mut client: Stub, request| async move { client.get_snapshot(request).await };
        match self.read("GetSnapshot", request, call).await {
            Ok(answer) => match answer.snapshot {
                Some(snapshot) if snapshot.id == id.to_string() => Ok(Some(snapshot)),
                _ => Err(self.malformed("GetSnapshot", "without the snapshot")),
            },
            Err(GatewayError::Refused {
                code: Code::NotFound, ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One page of snapshots, of one volume or of all, and the token of the next page, empty on the last.
    pub async fn snapshots(
        &self,
        request: api::ListSnapshotsRequest,
    ) -> Result<(Vec<api::Snapshot>, String), GatewayError> {
        let call = |mut client: Stub, request| async move { client.list_snapshots(request).await };
        let answer = self.read("ListSnapshots", request, call).await?;
        Ok((answer.snapshots, answer.next_page_token))
    }

    /// Lets a host reach a volume.
    pub async fn map(&self, request: api::MapVolumeRequest) -> Result<api::MapVolumeResponse, GatewayError> {
        let call = |mut client: Stub, request| async move { client.map_volume(request).await };
        self.change("MapVolume", request, call).await
    }

    /// Takes a volume from a host, or from all when the name is empty.
    pub async fn unmap(&self, id: Uuid, host_name: &str) -> Result<(), GatewayError> {
        let request = api::UnmapVolumeRequest {
            id: id.to_string(),
            host_name: host_name.to_owned(),
        };
        let call = |mut client: Stub, request| async move { client.unmap_volume(request).await };
        self.change("UnmapVolume", request, call).await.map(drop)
    }

    /// An answer that breaks the protocol's promises.
    pub fn malformed(&self, call: &'static str, problem: impl Into<String>) -> GatewayError {
        GatewayError::Malformed {
            endpoint: self.endpoint.clone(),
            call,
            problem: problem.into(),
        }
    }

    /// A volume must be there, be the one that was asked for, and have a size that CSI can express.
    fn checked(
        &self,
        call: &'static str,
        id: Uuid,
        volume: Option<api::Volume>,
    ) -> Result<api::Volume, GatewayError> {
        match volume {
            None => Err(self.malformed(call, "without a volume")),
            Some(volume) if volume.id != id.to_string() => Err(self.malformed(call, "with another volume")),
            Some(volume) if volume.size_bytes == 0 || i64::try_from(volume.size_bytes).is_err() => {
                Err(self.malformed(call, format!("with a size of {} bytes", volume.size_bytes)))
            }
            Some(volume) => Ok(volume),
        }
    }

    async fn read<Q, A, F>(
        &self,
        name: &'static str,
        message: Q,
        call: impl FnOnce(Stub, Request<Q>) -> F,
    ) -> Result<A, GatewayError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.call(name, self.shared.deadlines().read, message, call).await
    }

    async fn change<Q, A, F>(
        &self,
        name: &'static str,
        message: Q,
        call: impl FnOnce(Stub, Request<Q>) -> F,
    ) -> Result<A, GatewayError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.call(name, self.shared.deadlines().change, message, call)
            .await
    }

    async fn call<Q, A, F>(
        &self,
        name: &'static str,
        limit: Duration,
        message: Q,
        call: impl FnOnce(Stub, Request<Q>) -> F,
    ) -> Result<A, GatewayError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        // The gateway is told a little more than is waited here, so that its own timeout, which looks like any other
        // cancellation, does not come first.
        request.set_timeout(limit + Duration::from_secs(1));
        let stub = StorageLinkClient::new(self.shared.channel(&self.endpoint));
        let error = match tokio::time::timeout(limit, call(stub, request)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => GatewayError::from_status(&self.endpoint, name, &status),
            Err(_) => GatewayError::Deadline {
                endpoint: self.endpoint.clone(),
                call: name,
                limit,
            },
        };
        if error.breaks_connection() {
            self.shared.forget(&self.endpoint);
        }
        Err(error)
    }
}

type Stub = StorageLinkClient<Channel>;

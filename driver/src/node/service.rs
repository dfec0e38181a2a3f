//! The gRPC side of the node: fields are checked, the volume's guard is taken, the operation runs as a task of its own
//! so that it comes to its end when the caller goes away, and its error becomes a status.

use std::future::Future;

use storagelink_proto::csi::v1::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse,
    node_server::{Node as NodeRpc, NodeServer},
    node_service_capability::{Rpc, Type, rpc},
};
use tonic::{Request, Response, Status};
use tracing::Instrument;
use uuid::Uuid;

use super::{
    Node,
    guard::Guard,
    info::{self, InfoError},
    validate,
};
use crate::{
    codes::{Coded, status},
    fields::Range,
    server::note_volume,
};

/// What the node can do.
const CAPABILITIES: [rpc::Type; 5] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::ExpandVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::SingleNodeMultiWriter,
];

/// The CSI Node service.
#[derive(Clone)]
pub struct NodeService(Node);

impl NodeService {
    /// Serves a node.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self(node)
    }

    /// For [`crate::server::Services::with`].
    #[must_use]
    pub fn server(self) -> NodeServer<Self> {
        NodeServer::new(self)
    }

    fn guard(&self, volume: Uuid) -> Result<Guard, Status> {
        self.0.0.guards.take(volume).map_err(|e| status(&e))
    }

    /// Runs an operation to its end, whether or not its caller waits for it.
    async fn run<T, E, F>(&self, operation: impl FnOnce(Node) -> F) -> Result<T, Status>
    where
        T: Send + 'static,
        E: Coded + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let task = operation(self.0.clone()).in_current_span();
        match tokio::spawn(task).await {
            Ok(result) => result.map_err(|e| status(&e)),
            // The panic is in the log already; what was begun is found by the next call.
            Err(_) => Err(Status::internal(
                "the operation ended unexpectedly; see the log of the node plugin",
            )),
        }
    }
}

fn refuse<T, E: Coded>(result: Result<T, E>) -> Result<T, Status> {
    result.map_err(|e| status(&e))
}

#[tonic::async_trait]
impl NodeRpc for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        note_volume(&request.volume_id);
        let stage = refuse(validate::stage(&request))?;
        let guard = self.guard(stage.volume.uuid())?;
        self.run(|node| async move { node.0.stage(stage, guard).await })
            .await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        note_volume(&request.volume_id);
        refuse(crate::fields::volume_id(&request.volume_id))?;
        let staging = refuse(validate::path(
            "staging_target_path",
            &request.staging_target_path,
        ))?;
        let volume = refuse(validate::volume(&request.volume_id))?;
        let guard = self.guard(volume.uuid())?;
        self.run(|node| async move { node.0.unstage(&volume, staging, guard).await })
            .await?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        note_volume(&request.volume_id);
        let publish = refuse(validate::publish(&request))?;
        let guard = self.guard(publish.volume.uuid())?;
        self.run(|node| async move { node.0.publish(publish, guard).await })
            .await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        note_volume(&request.volume_id);
        refuse(crate::fields::volume_id(&request.volume_id))?;
        let target = refuse(validate::path("target_path", &request.target_path))?;
        let volume = refuse(validate::volume(&request.volume_id))?;
        let guard = self.guard(volume.uuid())?;
        self.run(|node| async move { node.0.unpublish(&volume, target, guard).await })
            .await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        note_volume(&request.volume_id);
        refuse(crate::fields::volume_id(&request.volume_id))?;
        let path = refuse(validate::volume_path(&request.volume_path))?;
        refuse(validate::optional_path(
            "staging_target_path",
            &request.staging_target_path,
        ))?;
        let volume = refuse(validate::volume(&request.volume_id))?;
        // Only reads: it takes no guard, so that it answers while another operation hangs.
        let answer = self
            .run(|node| async move { node.0.stats(&volume, path).await })
            .await?;
        Ok(Response::new(answer))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        note_volume(&request.volume_id);
        refuse(crate::fields::volume_id(&request.volume_id))?;
        let path = refuse(validate::volume_path(&request.volume_path))?;
        refuse(validate::optional_path(
            "staging_target_path",
            &request.staging_target_path,
        ))?;
        let range = match request.capacity_range {
            Some(range) => refuse(Range::parse(range))?,
            None => Range::default(),
        };
        if request.volume_capability.is_some() {
            refuse(validate::capability(request.volume_capability.as_ref()))?;
        }
        let volume = refuse(validate::volume(&request.volume_id))?;
        let guard = self.guard(volume.uuid())?;
        let bytes = self
            .run(|node| async move { node.0.expand(&volume, path, range, guard).await })
            .await?;
        let capacity_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let of = |kind: rpc::Type| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let capabilities = CAPABILITIES.into_iter().map(of).collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let (config, host) = (self.0.0.config.clone(), self.0.0.host.clone());
        let read = tokio::task::spawn_blocking(move || {
            let shared = host.names.node().is_some();
            let id = info::node_id(&config.node_name, &config.initiator_name_file, shared)?;
            let topology = info::topology(&config.fabrics, &host.network.namespace())?;
            Ok::<_, InfoError>((id, topology))
        });
        let read = read
            .await
            .map_err(|_| Status::internal("reading initiator name and routes ended unexpectedly"))?;
        let (id, accessible_topology) = refuse(read)?;
        Ok(Response::new(NodeGetInfoResponse {
            node_id: id.to_string(),
            // No limit known.
            max_volumes_per_node: 0,
            accessible_topology,
        }))
    }
}

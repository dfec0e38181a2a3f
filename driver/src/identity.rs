//! The CSI Identity service: name, version, capabilities, readiness. The same on every socket of the driver.
//!
//! Probe never asks the gateway: a gateway that is away must not make Kubernetes restart the driver.

use storagelink_proto::csi::v1::identity_server::{Identity, IdentityServer};
use storagelink_proto::csi::v1::plugin_capability::{
    self, Service, VolumeExpansion, service, volume_expansion,
};
use storagelink_proto::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};
use tonic::{Request, Response, Status};

use crate::{DRIVER_NAME, DRIVER_VERSION};

/// Who answers.
#[derive(Debug, Default, Clone)]
pub struct IdentityService {
    topology: bool,
}

impl IdentityService {
    /// `topology`: whether volumes are bound to the nodes that reach them.
    pub fn new(topology: bool) -> Self {
        Self { topology }
    }

    /// The service for [`crate::server::Services::with`].
    pub fn server(self) -> IdentityServer<Self> {
        IdentityServer::new(self)
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: DRIVER_VERSION.to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        use plugin_capability::Type;
        let controller = Type::Service(Service {
            r#type: service::Type::ControllerService.into(),
        });
        let online = Type::VolumeExpansion(VolumeExpansion {
            r#type: volume_expansion::Type::Online.into(),
        });
        let topology = self.topology.then_some(Type::Service(Service {
            r#type: service::Type::VolumeAccessibilityConstraints.into(),
        }));
        let capabilities = [Some(controller), Some(online), topology]
            .into_iter()
            .flatten()
            .map(|capability| PluginCapability {
                r#type: Some(capability),
            })
            .collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

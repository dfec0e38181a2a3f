//! Registration with the kubelet: the plugin tells it on a socket of its own where CSI is served.
//!
//! The kubelet finds the socket in its plugin registry directory, asks, connects to the CSI socket, and tells the
//! outcome; it asks again by itself after a failure and after its own restart. So nothing is retried here, and a refusal
//! is only kept for `/readyz` and the log.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use storagelink_proto::pluginregistration::v1::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::{Registration, RegistrationServer},
};
use tonic::{Request, Response, Status};

/// The type of a CSI driver (k8s.io/kubelet/pkg/apis/pluginregistration/v1, `CSIPlugin`).
const CSI_PLUGIN: &str = "CSIPlugin";
/// Version of CSI as the kubelet's check wants it: any 1.x.
const CSI_VERSION: &str = "1.0.0";

/// Name of the socket. The kubelet's gRPC library sends the socket's path, percent-encoded, as `:authority`
/// (kubelet `pluginmanager/operationexecutor`, `dial`; grpc-go `encodeAuthority`), and an authority may have percent
/// signs in front of an `@` only (RFC 3986, 3.2): without one the call is refused before it reaches this service.
const SOCKET_NAME: &str = "registration@csi.storagelink.io";

/// Where the registration socket is in the kubelet's plugin registry directory.
#[must_use]
pub fn socket_in(registry: &Path) -> PathBuf {
    registry.join(SOCKET_NAME)
}

/// The registration service. Clones share what the kubelet said.
#[derive(Clone, Debug)]
pub struct Registrar {
    socket: PathBuf,
    outcome: Arc<Mutex<Result<(), String>>>,
}

impl Registrar {
    /// Tells the kubelet that CSI is served at `socket`, a path that is the same inside and outside of a container.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        let waiting = Err("the kubelet has not asked for this plugin yet".to_owned());
        Self {
            socket,
            outcome: Arc::new(Mutex::new(waiting)),
        }
    }

    /// The service for [`crate::server::Services::with`].
    #[must_use]
    pub fn server(&self) -> RegistrationServer<Self> {
        RegistrationServer::new(self.clone())
    }

    /// What the kubelet said last; an error until it accepted.
    pub fn registered(&self) -> Result<(), String> {
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: CSI_PLUGIN.to_owned(),
            name: crate::DRIVER_NAME.to_owned(),
            endpoint: self.socket.display().to_string(),
            supported_versions: vec![CSI_VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let outcome = if status.plugin_registered {
            tracing::info!("registered with the kubelet");
            Ok(())
        } else {
            tracing::error!(error = status.error, "the kubelet refused this plugin");
            Err(format!("the kubelet refused this plugin: {}", status.error))
        };
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_that_the_kubelet_sends_is_an_authority() {
        let path = socket_in(Path::new("/var/lib/kubelet/plugins_registry"));
        let sent = path.display().to_string().replace('/', "%2F");
        let authority: axum::http::uri::Authority = sent.parse().expect("an authority");
        assert_eq!(authority.host(), crate::DRIVER_NAME);
        assert!(
            sent.replace('@', "-")
                .parse::<axum::http::uri::Authority>()
                .is_err()
        );
    }

    #[tokio::test]
    async fn the_kubelet_is_told_where_csi_is_and_its_answer_is_kept() {
        let registrar = Registrar::new("/var/lib/kubelet/plugins/x/csi.sock".into());
        assert!(registrar.registered().is_err(), "nobody has asked yet");
        let info = registrar
            .get_info(Request::new(InfoRequest {}))
            .await
            .expect("an answer")
            .into_inner();
        assert_eq!(
            (info.r#type.as_str(), info.name.as_str()),
            ("CSIPlugin", "csi.storagelink.io")
        );
        assert_eq!(info.endpoint, "/var/lib/kubelet/plugins/x/csi.sock");
        let notify = async |plugin_registered, error: &str| {
            registrar
                .notify_registration_status(Request::new(RegistrationStatus {
                    plugin_registered,
                    error: error.to_owned(),
                }))
                .await
                .expect("an answer");
        };
        notify(false, "no such driver").await;
        assert!(
            registrar
                .registered()
                .expect_err("refused")
                .contains("no such driver")
        );
        notify(true, "").await;
        assert_eq!(registrar.registered(), Ok(()));
    }
}

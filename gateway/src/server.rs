//! Starts the gateway: opens the systems, then serves over TLS until it is told to stop.

use std::{future::Future, net::SocketAddr, os::unix::fs::PermissionsExt, sync::Arc};

use storagelink_proto::storagelink::v1::storage_link_server::StorageLinkServer;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::{
    adapter::{Adapter, AdapterError},
    adapters::lio::{KernelConfigFs, Lio},
    auth::Authenticate,
    config::{Config, ConfigError},
    service::Service,
    tls::{self, TlsError},
};

/// Why the gateway does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory cannot be made.
    #[error("state_dir {path}")]
    StateDir {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No certificate.
    #[error("certificate")]
    Tls(#[from] TlsError),
    /// A system cannot be opened.
    #[error("system `{system}`")]
    System {
        /// Its name.
        system: String,
        /// Why.
        #[source]
        source: AdapterError,
    },
    /// The port cannot be had.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Serving failed.
    #[error("serve")]
    Transport(#[from] tonic::transport::Error),
}

/// An error with its causes, in one line.
#[must_use]
pub fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent variants repeat their source.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A gateway that is ready to serve.
pub struct Gateway {
    service: Service,
    authenticate: Authenticate,
    tls: tls::Tls,
    listen: SocketAddr,
}

impl Gateway {
    /// Prepares everything. Blocking: call it before the runtime serves anybody.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn open(config: &Config) -> Result<Self, ServeError> {
        let users = config.read_users()?;
        let state = |source| ServeError::StateDir {
            path: config.state_dir.clone(),
            source,
        };
        std::fs::create_dir_all(&config.state_dir).map_err(state)?;
        std::fs::set_permissions(&config.state_dir, std::fs::Permissions::from_mode(0o700)).map_err(state)?;
        let tls = tls::load(&config.tls, &config.state_dir, config.listen)?;
        let mut systems: Vec<Arc<dyn Adapter>> = Vec::new();
        for system in &config.systems {
            let opened = Lio::open(system.clone(), &config.state_dir, Box::new(KernelConfigFs::new()));
            let opened = opened.map_err(|source| ServeError::System {
                system: system.name.clone(),
                source,
            })?;
            systems.push(Arc::new(opened));
        }
        Ok(Self {
            service: Service::new(systems),
            authenticate: Authenticate::new(users),
            tls,
            listen: config.listen,
        })
    }

    /// A gateway over these systems, for tests.
    #[cfg(test)]
    pub(crate) fn with_systems(
        systems: Vec<Arc<dyn Adapter>>,
        authenticate: Authenticate,
        tls: tls::Tls,
    ) -> Self {
        Self {
            service: Service::new(systems),
            authenticate,
            tls,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    /// What clients pin.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.tls.fingerprint
    }

    /// Serves until `stop` is done and the calls under way have ended. `ready` is told the address.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn serve(
        self,
        stop: impl Future<Output = ()>,
        ready: impl FnOnce(SocketAddr),
    ) -> Result<(), ServeError> {
        let listen = |source| ServeError::Listen {
            address: self.listen,
            source,
        };
        let listener = TcpListener::bind(self.listen).await.map_err(listen)?;
        ready(listener.local_addr().map_err(listen)?);
        Server::builder()
            .tls_config(self.tls.config)?
            .http2_keepalive_interval(Some(std::time::Duration::from_secs(30)))
            .add_service(StorageLinkServer::with_interceptor(
                self.service,
                self.authenticate,
            ))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop)
            .await?;
        Ok(())
    }
}

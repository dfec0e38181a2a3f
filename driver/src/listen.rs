//! Everything that one process of the driver listens on, started and stopped together.
//!
//! When one of them cannot be had, the others stop and the error is returned: a driver that is half reachable would be
//! believed to work.

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

use crate::{
    http::{self, HttpError, Ready},
    metrics::Metrics,
    server::{ServeError, Services, serve},
};

/// Why the process does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A unix socket.
    #[error(transparent)]
    Socket(#[from] ServeError),
    /// HTTP.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// What to listen on.
pub struct Listen {
    /// Where CSI is served: `unix:///<absolute path>`.
    pub endpoint: String,
    /// What is served there.
    pub csi: Services,
    /// The socket for the kubelet, and what is served there.
    pub registration: Option<(PathBuf, Services)>,
    /// Address of /livez, /readyz and /metrics.
    pub http: Option<SocketAddr>,
    /// What /readyz says.
    pub ready: Ready,
    /// What /metrics shows.
    pub metrics: Metrics,
}

impl Listen {
    /// Listens until `stop` is ready or `stopping` is cancelled, or until one of the servers fails.
    pub async fn until(
        self,
        stop: impl Future<Output = ()>,
        stopping: &CancellationToken,
    ) -> Result<(), ListenError> {
        let csi = async {
            serve(&self.endpoint, self.csi, stopping.cancelled())
                .await
                .map_err(ListenError::from)
        };
        let registration = async {
            match self.registration {
                Some((socket, services)) => {
                    serve(&unix(&socket), services, stopping.cancelled()).await?;
                }
                None => stopping.cancelled().await,
            }
            Ok(())
        };
        let http = async {
            match self.http {
                Some(address) => {
                    let stop = stopping.clone().cancelled_owned();
                    http::serve(address, self.ready, self.metrics, stop).await?;
                }
                None => stopping.cancelled().await,
            }
            Ok(())
        };
        let signal = async {
            tokio::select! {
                () = stop => stopping.cancel(),
                () = stopping.cancelled() => {}
            }
            Ok(())
        };
        let served = tokio::try_join!(csi, registration, http, signal).map(drop);
        stopping.cancel();
        served
    }
}

fn unix(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(endpoint: String, http: Option<SocketAddr>) -> Listen {
        Listen {
            endpoint,
            csi: Services::new(),
            registration: None,
            http,
            ready: std::sync::Arc::new(|| Ok(())),
            metrics: Metrics::of_controller(),
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_ends_the_process_and_names_the_option() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("an address");
        let endpoint = unix(&dir.path().join("csi.sock"));
        let error = listen(endpoint, Some(address))
            .until(std::future::pending(), &CancellationToken::new())
            .await
            .expect_err("the port is taken");
        assert!(error.to_string().contains("--http-listen"), "{error}");
    }

    #[tokio::test]
    async fn it_stops_when_it_is_told_to() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("csi.sock");
        listen(unix(&socket), Some(([127, 0, 0, 1], 0).into()))
            .until(std::future::ready(()), &CancellationToken::new())
            .await
            .expect("stopped");
        assert!(!socket.exists(), "its socket is gone");
    }
}

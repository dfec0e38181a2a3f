//! TCP and TLS to a gateway. tonic's own TLS cannot pin a certificate, and hides which step failed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint as Transport};

use crate::ids::Endpoint;

/// A silent connection is probed after this long while a call is running on it.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Which step of connecting failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No answer at all within the time.
    #[error("no connection within {} s", .0.as_secs())]
    Timeout(Duration),
    /// Name resolution or TCP.
    #[error("cannot connect")]
    Tcp(#[source] io::Error),
    /// Something else than TLS answers there, or speaks another version of it.
    #[error("TLS handshake failed")]
    Tls(#[source] io::Error),
    /// The certificate is not believed.
    #[error("{0}")]
    Certificate(String),
}

/// A connection that is made at the first call, and again at the next call after it was lost.
pub(crate) fn channel(endpoint: &Endpoint, tls: Arc<ClientConfig>, limit: Duration) -> Channel {
    let target = endpoint.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let (target, tls) = (target.clone(), Arc::clone(&tls));
        async move {
            match tokio::time::timeout(limit, connect(&target, tls)).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => Err(ConnectError::Timeout(limit)),
            }
        }
    });
    // The URI is only what the HTTP/2 requests say; the connector goes where it was told. An endpoint's text is always
    // a URI's authority: a DNS name or an address, and a port.
    let transport = match Uri::try_from(format!("http://{endpoint}")) {
        Ok(uri) => Transport::from(uri),
        Err(_) => Transport::from_static("http://gateway.invalid"),
    };
    transport
        .http2_keep_alive_interval(PROBE_INTERVAL)
        .keep_alive_timeout(PROBE_INTERVAL)
        .connect_with_connector_lazy(connector)
}

async fn connect(endpoint: &Endpoint, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, ConnectError> {
    let stream = TcpStream::connect((endpoint.host(), endpoint.port()))
        .await
        .map_err(ConnectError::Tcp)?;
    stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
    let name = ServerName::try_from(endpoint.host().to_owned())
        .map_err(|error| ConnectError::Tcp(io::Error::other(error)))?;
    TlsConnector::from(tls)
        .connect(name, stream)
        .await
        .map_err(classify)
}

fn classify(error: io::Error) -> ConnectError {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
            ConnectError::Certificate(other.0.to_string())
        }
        Some(rustls::Error::InvalidCertificate(why)) => {
            ConnectError::Certificate(format!("its certificate is not valid here: {why}"))
        }
        _ => ConnectError::Tls(error),
    }
}

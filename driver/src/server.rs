//! gRPC on a unix socket: the socket file, the routing between services, the log line of each call, the drain.
//!
//! The socket is private from its first moment on. Nothing of a request is ever logged but the volume id, which the
//! handler hands over with [`note_volume`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt};

use crate::metrics::Calls;

/// How long calls may go on after the signal to stop. Kubernetes grants 30 s before it kills.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(25);

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The text of `--endpoint`.
    #[error("endpoint {0:?} is not unix:///<absolute path>")]
    Endpoint(String),
    /// Something that is not ours to remove is where the socket must be.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The socket file.
    #[error("socket {}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The gRPC server itself.
    #[error("gRPC server")]
    Transport(#[source] tonic::transport::Error),
}

/// The path of a CSI endpoint `unix:///run/csi.sock`; `unix:/run/csi.sock` and the bare path are the same.
pub fn socket_path(endpoint: &str) -> Result<PathBuf, ServeError> {
    let path = endpoint
        .strip_prefix("unix://")
        .or_else(|| endpoint.strip_prefix("unix:"))
        .unwrap_or(endpoint);
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(ServeError::Endpoint(endpoint.to_owned()));
    }
    Ok(PathBuf::from(path))
}

/// Listens at `path`, mode 0600 from the start. A socket that a killed predecessor left there is removed; anything
/// else there is an error. The socket's own directory is made; the one above it must be there, or the path is wrong.
pub fn listen_private(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |source: io::Error| ServeError::Socket {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent() {
        match fs::DirBuilder::new().mode(0o750).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).map_err(failed)?,
        Ok(_) => return Err(ServeError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
    .map_err(|error| failed(error.into()))?;
    // bind(2) gives the file the mode of the socket's inode (net/unix/af_unix.c), so there is no moment at which
    // others could connect.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|error| failed(error.into()))?;
    let address = UnixAddr::new(path).map_err(|error| failed(error.into()))?;
    bind(fd.as_raw_fd(), &address).map_err(|error| failed(error.into()))?;
    listen(&fd, Backlog::MAXCONN).map_err(|error| failed(error.into()))?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(fd)).map_err(failed)
}

type Route = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// The gRPC services of one socket.
#[derive(Clone, Default)]
pub struct Services {
    routes: HashMap<&'static str, Route>,
    calls: Option<Calls>,
}

impl Services {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts the calls.
    #[must_use]
    pub fn counted(mut self, calls: Calls) -> Self {
        self.calls = Some(calls);
        self
    }

    /// Adds a generated `…Server`.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.routes.insert(S::NAME, BoxCloneSyncService::new(service));
        self
    }
}

impl Service<Request<Body>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().to_owned();
        let service = method
            .split('/')
            .nth(1)
            .and_then(|name| self.routes.get(name))
            .cloned();
        let Some(service) = service else {
            // Not logged with its name: anybody can make up names.
            tracing::warn!(grpc.code = ?Code::Unimplemented, "call to a service that is not here");
            let answer = Status::unimplemented("this socket does not have that service").into_http();
            return Box::pin(std::future::ready(Ok(answer)));
        };
        let volume = Arc::new(OnceLock::new());
        let line = LogLine {
            method,
            volume: Arc::clone(&volume),
            calls: self.calls.clone(),
            start: Instant::now(),
            written: false,
        };
        Box::pin(CALL.scope(volume, async move {
            let mut line = line;
            let answer = service.oneshot(request).await?;
            line.write(&answer);
            Ok(answer)
        }))
    }
}

tokio::task_local! {
    static CALL: Arc<OnceLock<String>>;
}

/// Tells the log which volume the running call is about. What does not look like an id is not logged.
pub fn note_volume(id: &str) {
    if id.len() <= crate::ids::MAX_VOLUME_ID_BYTES && id.bytes().all(|b| b.is_ascii_graphic()) {
        // Outside of a call (a unit test) there is no line to put it on.
        let _ = CALL.try_with(|volume| volume.set(id.to_owned()));
    }
}

/// The one line that each call writes, also when the caller goes away before the answer.
struct LogLine {
    method: String,
    volume: Arc<OnceLock<String>>,
    calls: Option<Calls>,
    start: Instant,
    written: bool,
}

impl LogLine {
    fn count(&self, code: Code) {
        if let Some(calls) = &self.calls {
            calls.ended(&self.method, code, self.start.elapsed());
        }
    }

    fn write(&mut self, answer: &Response<Body>) {
        self.written = true;
        // An error comes in the header; success comes in the trailers, which are still to be sent.
        let status = Status::from_header_map(answer.headers());
        let code = status.as_ref().map_or(Code::Ok, Status::code);
        let volume = self.volume.get().map(String::as_str);
        let duration = self.start.elapsed().as_secs_f64() * 1000.0;
        let method = self.method.as_str();
        self.count(code);
        match status {
            Some(status) if code != Code::Ok => {
                let error = status.message();
                tracing::warn!(grpc.method = method, volume.id = volume, grpc.code = ?code, duration_ms = duration, error, "call failed");
            }
            // Every sidecar asks these all the time.
            _ if method.ends_with("/Probe") || method.ends_with("Capabilities") => {
                tracing::debug!(grpc.method = method, grpc.code = ?code, duration_ms = duration, "call");
            }
            _ => {
                tracing::info!(grpc.method = method, volume.id = volume, grpc.code = ?code, duration_ms = duration, "call");
            }
        }
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        if !self.written {
            self.count(Code::Cancelled);
            let volume = self.volume.get().map(String::as_str);
            let duration = self.start.elapsed().as_secs_f64() * 1000.0;
            tracing::warn!(grpc.method = self.method.as_str(), volume.id = volume, grpc.code = ?Code::Cancelled, duration_ms = duration, "call given up by its caller");
        }
    }
}

/// Serves until `stop` is ready, then lets running calls end within [`DRAIN_LIMIT`] and removes the socket.
pub async fn serve(
    endpoint: &str,
    services: Services,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let path = socket_path(endpoint)?;
    let listener = listen_private(&path)?;
    let inode = fs::symlink_metadata(&path)
        .map(|file| (file.dev(), file.ino()))
        .ok();
    tracing::info!(socket = %path.display(), "listening");
    let draining = tokio_util::sync::CancellationToken::new();
    let stopped = {
        let draining = draining.clone();
        async move {
            stop.await;
            tracing::info!("stopping");
            draining.cancel();
        }
    };
    let server = tonic::transport::Server::builder().serve_with_incoming_shutdown(
        services,
        UnixListenerStream::new(listener),
        stopped,
    );
    let late = async {
        draining.cancelled().await;
        tokio::time::sleep(DRAIN_LIMIT).await;
    };
    let served = tokio::select! {
        served = server => served.map_err(ServeError::Transport),
        () = late => {
            tracing::warn!(limit = ?DRAIN_LIMIT, "calls are still running: leaving them");
            Ok(())
        }
    };
    // A successor may have put its own socket there in the meantime.
    if inode.is_some()
        && fs::symlink_metadata(&path)
            .map(|file| (file.dev(), file.ino()))
            .ok()
            == inode
    {
        let _ = fs::remove_file(&path);
    }
    served
}

/// Ready when the process is told to stop (SIGTERM) or interrupted at a terminal (SIGINT).
pub fn termination() -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

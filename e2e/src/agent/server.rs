//! The agent's service.

use std::{io, net::Ipv4Addr, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::{
    AGENT_PORT, MACHINE, MESSAGE_LIMIT, READY_PORT, RESULTS, forward,
    init::Identity,
    processes::Processes,
    proto::{
        ExecRequest, ExecResponse, ForwardRequest, ForwardResponse, KillRequest, KillResponse,
        ReadFileRequest, ReadFileResponse, SpawnRequest, SpawnResponse, WaitRequest, WaitResponse,
        WriteFileRequest, WriteFileResponse,
        agent_server::{Agent, AgentServer},
    },
};
use crate::programs;

struct Service {
    address: Ipv4Addr,
    processes: Processes,
}

/// Serves until the guest ends; tells the machine that it does.
pub async fn serve() -> anyhow::Result<()> {
    let identity = Identity::read()?;
    let address = Ipv4Addr::new(198, 18, 2, identity.index);
    let listener = TcpListener::bind((address, AGENT_PORT))
        .await
        .context("bind the agent's port")?;
    let service = Service {
        address,
        processes: Processes::new(std::path::Path::new(RESULTS)),
    };
    let service = AgentServer::new(service)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let server = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    let announce = async {
        // The port is open by now: whoever connects waits in its queue.
        let mut machine = TcpStream::connect((MACHINE, READY_PORT))
            .await
            .context("reach the machine")?;
        machine
            .write_all(format!("{}\n", identity.name).as_bytes())
            .await
            .context("announce the guest")
    };
    let (served, announced) = tokio::join!(server, announce);
    announced?;
    served.context("serve")
}

fn status(context: &str, error: &io::Error) -> Status {
    let text = format!("{context}: {error}");
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(text),
        io::ErrorKind::TimedOut => Status::deadline_exceeded(text),
        io::ErrorKind::AlreadyExists => Status::already_exists(text),
        io::ErrorKind::InvalidInput => Status::invalid_argument(text),
        _ => Status::internal(text),
    }
}

#[tonic::async_trait]
impl Agent for Service {
    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        let request = request.into_inner();
        let limit = Duration::from_millis(request.timeout_ms);
        let done = programs::run(&request.argv, &request.env, &request.stdin, limit)
            .await
            .map_err(|error| status(&request.argv.join(" "), &error))?;
        Ok(Response::new(ExecResponse {
            exit: done.exit,
            stdout: done.stdout,
            stderr: done.stderr,
        }))
    }

    async fn spawn(&self, request: Request<SpawnRequest>) -> Result<Response<SpawnResponse>, Status> {
        let request = request.into_inner();
        let pid = self
            .processes
            .start(&request.name, &request.argv, &request.env)
            .map_err(|error| status(&request.argv.join(" "), &error))?;
        Ok(Response::new(SpawnResponse { pid }))
    }

    async fn kill(&self, request: Request<KillRequest>) -> Result<Response<KillResponse>, Status> {
        let request = request.into_inner();
        let signal = Signal::try_from(request.signal).map_err(|_| Status::invalid_argument("signal"))?;
        let sent = self
            .processes
            .signal(&request.name, signal)
            .map_err(|error| status(&request.name, &error))?;
        if sent {
            Ok(Response::new(KillResponse {}))
        } else {
            Err(Status::not_found(request.name))
        }
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let request = request.into_inner();
        let mut exit = self
            .processes
            .exit(&request.name)
            .ok_or_else(|| Status::not_found(&request.name))?;
        let limit = Duration::from_millis(request.timeout_ms);
        let ended = tokio::time::timeout(limit, exit.wait_for(Option::is_some))
            .await
            .map_err(|_| Status::deadline_exceeded(format!("{} still runs", request.name)))?;
        let exit = ended.ok().and_then(|code| *code).unwrap_or(-1);
        Ok(Response::new(WaitResponse { exit }))
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<ReadFileResponse>, Status> {
        let path = request.into_inner().path;
        let data = tokio::fs::read(&path)
            .await
            .map_err(|error| status(&path, &error))?;
        Ok(Response::new(ReadFileResponse { data }))
    }

    async fn write_file(
        &self,
        request: Request<WriteFileRequest>,
    ) -> Result<Response<WriteFileResponse>, Status> {
        let request = request.into_inner();
        let path = PathBuf::from(&request.path);
        let mode = if request.mode == 0 { 0o644 } else { request.mode };
        let write = async {
            if let Some(parent) = path.parent() {
                tokio::fs::create_dir_all(parent).await?;
            }
            tokio::fs::write(&path, &request.data).await?;
            // A sysfs or configfs attribute keeps its own mode.
            if !path.starts_with("/sys") {
                tokio::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).await?;
            }
            Ok(())
        };
        write
            .await
            .map_err(|error: io::Error| status(&request.path, &error))?;
        Ok(Response::new(WriteFileResponse {}))
    }

    async fn forward(&self, request: Request<ForwardRequest>) -> Result<Response<ForwardResponse>, Status> {
        let request = request.into_inner();
        let limit = Duration::from_millis(request.timeout_ms);
        let port = forward::forward(self.address, PathBuf::from(&request.socket), limit)
            .await
            .map_err(|error| status(&request.socket, &error))?;
        Ok(Response::new(ForwardResponse {
            port: u32::from(port),
        }))
    }
}

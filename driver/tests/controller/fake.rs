//! A stateful gateway in this process, behind real TLS on loopback, with faults to order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use sha2::{Digest, Sha256};
use storagelink_proto::storagelink::v1::storage_link_server::StorageLinkServer;
use storagelink_proto::storagelink::v1::*;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Request, Status};

pub(crate) const USER: &str = "csi";
pub(crate) const PASSWORD: &str = "s3cret-of-the-tests";
pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const STEP: u64 = 1 << 20;

/// What happens to the next call of a name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Refused before anything is done.
    Refuse(Code),
    /// Done, but the answer is this.
    DoneBut(Code),
    /// Done, but there is never an answer.
    DoneButSilent,
    /// An answer without its content.
    Empty,
}

#[derive(Default)]
pub(crate) struct Array {
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) snapshots: BTreeMap<String, Snapshot>,
    pub(crate) systems: BTreeMap<String, Vec<Aggregate>>,
    pub(crate) ports: Vec<TargetPort>,
    pub(crate) faults: HashMap<&'static str, VecDeque<Fault>>,
    /// The calls that arrived, with the user that made them.
    pub(crate) calls: Vec<(&'static str, String)>,
    pub(crate) next_lun: u32,
}

#[derive(Clone)]
pub(crate) struct Fake {
    array: Arc<Mutex<Array>>,
}

/// The listening side; goes away when dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) fingerprint: String,
    pub(crate) certificate_pem: String,
    tls: TlsAcceptor,
    task: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

pub(crate) fn aggregate(system: &str, name: &str, free: u64) -> Aggregate {
    Aggregate {
        name: name.to_owned(),
        system: system.to_owned(),
        size_bytes: 20 * GIB,
        free_bytes: free,
        provisioned_bytes: 0,
        provisionable_bytes: 2 * free,
        maximum_volume_bytes: free,
        granularity_bytes: STEP,
        provision_types: vec![ProvisionType::Thin.into(), ProvisionType::Thick.into()],
        unavailable_reason: String::new(),
    }
}

impl Fake {
    /// Systems `lab` (aggregates `fast` 10 GiB, `slow` 15 GiB) and `other` (`pool` 5 GiB).
    pub(crate) fn new() -> Self {
        let lab = vec![
            aggregate("lab", "fast", 10 * GIB),
            aggregate("lab", "slow", 15 * GIB),
        ];
        let other = vec![aggregate("other", "pool", 5 * GIB)];
        let port = |portal: &str, tag| TargetPort {
            protocol: Protocol::Iscsi.into(),
            target: "iqn.2026-01.io.example:lab".to_owned(),
            portal: portal.to_owned(),
            portal_group_tag: tag,
        };
        let array = Array {
            systems: BTreeMap::from([("lab".to_owned(), lab), ("other".to_owned(), other)]),
            ports: vec![port("10.0.1.1:3260", 1), port("[fd00::1]:3260", 2)],
            ..Default::default()
        };
        Self {
            array: Arc::new(Mutex::new(array)),
        }
    }

    pub(crate) fn array(&self) -> MutexGuard<'_, Array> {
        self.array.lock().unwrap()
    }

    pub(crate) fn order(&self, call: &'static str, fault: Fault) {
        self.array().faults.entry(call).or_default().push_back(fault);
    }

    /// Serves on a free port of loopback with a fresh self-signed certificate for `localhost`.
    pub(crate) async fn serve(&self) -> Running {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                rustls_pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()).into(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Running {
            address: listener.local_addr().unwrap(),
            fingerprint: hex::encode(Sha256::digest(key.cert.der())),
            certificate_pem: key.cert.pem(),
            task: Some(self.start(listener, tls.clone())),
            tls,
        }
    }

    /// Breaks every connection and listens again at the same address.
    pub(crate) async fn restart(&self, running: &mut Running) {
        self.stop(running).await;
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(running.address).unwrap();
        running.task = Some(self.start(socket.listen(16).unwrap(), running.tls.clone()));
    }

    /// Breaks every connection.
    pub(crate) async fn stop(&self, running: &mut Running) {
        if let Some(task) = running.task.take() {
            task.abort();
            let _ = task.await;
        }
    }

    fn start(&self, listener: TcpListener, tls: TlsAcceptor) -> JoinHandle<()> {
        let service = StorageLinkServer::new(self.clone());
        tokio::spawn(async move {
            // Owned by this task: aborting it ends every connection.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                connections.spawn(connection(stream, tls.clone(), service.clone()));
            }
        })
    }

    pub(crate) fn enter<T>(&self, call: &'static str, request: &Request<T>) -> Result<Option<Fault>, Status> {
        let header = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        let pair = header
            .and_then(|header| header.strip_prefix("Basic "))
            .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .unwrap_or_default();
        let (user, password) = pair.split_once(':').unwrap_or_default();
        if password != PASSWORD {
            return Err(Status::unauthenticated("wrong user name or password"));
        }
        let mut array = self.array();
        array.calls.push((call, user.to_owned()));
        match array.faults.get_mut(call).and_then(VecDeque::pop_front) {
            Some(Fault::Refuse(code)) => Err(Status::new(code, "ordered by the test")),
            fault => Ok(fault),
        }
    }
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, service: StorageLinkServer<Fake>) {
    if let Ok(stream) = tls.accept(stream).await {
        let one = tokio_stream::once(Ok::<_, std::io::Error>(stream));
        let _ = tonic::transport::Server::builder()
            .serve_with_incoming(service, one)
            .await;
    }
}

//! A stateful gateway in this process, behind real TLS on loopback, with faults to order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use sha2::{Digest, Sha256};
use storagelink_proto::storagelink::v1::storage_link_server::{StorageLink, StorageLinkServer};
use storagelink_proto::storagelink::v1::*;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Request, Response, Status};

pub(crate) const USER: &str = "csi";
pub(crate) const PASSWORD: &str = "s3cret-of-the-tests";
pub(crate) const GIB: u64 = 1 << 30;
const STEP: u64 = 1 << 20;

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
    next_lun: u32,
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

    fn enter<T>(&self, call: &'static str, request: &Request<T>) -> Result<Option<Fault>, Status> {
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

async fn leave<T: Default>(fault: Option<Fault>, answer: T) -> Result<Response<T>, Status> {
    match fault {
        None | Some(Fault::Refuse(_)) => Ok(Response::new(answer)),
        Some(Fault::DoneBut(code)) => Err(Status::new(code, "ordered by the test, after the work")),
        Some(Fault::DoneButSilent) => std::future::pending().await,
        Some(Fault::Empty) => Ok(Response::new(T::default())),
    }
}

fn no_volume(id: &str) -> Status {
    Status::not_found(format!("no volume {id}"))
}

#[tonic::async_trait]
impl StorageLink for Fake {
    async fn get_service_info(
        &self,
        request: Request<GetServiceInfoRequest>,
    ) -> Result<Response<GetServiceInfoResponse>, Status> {
        let fault = self.enter("GetServiceInfo", &request)?;
        leave(
            fault,
            GetServiceInfoResponse {
                version: "fake".to_owned(),
            },
        )
        .await
    }

    async fn list_systems(
        &self,
        request: Request<ListSystemsRequest>,
    ) -> Result<Response<ListSystemsResponse>, Status> {
        let fault = self.enter("ListSystems", &request)?;
        let system = |name: &String| System {
            name: name.clone(),
            adapter: "fake".to_owned(),
            protocols: vec![Protocol::Iscsi.into()],
            description: String::new(),
        };
        let systems = self.array().systems.keys().map(system).collect();
        leave(fault, ListSystemsResponse { systems }).await
    }

    async fn list_target_ports(
        &self,
        request: Request<ListTargetPortsRequest>,
    ) -> Result<Response<ListTargetPortsResponse>, Status> {
        let fault = self.enter("ListTargetPorts", &request)?;
        let name = request.into_inner().system;
        let known = self.array().systems.contains_key(&name);
        if !known {
            return Err(Status::not_found("no such system"));
        }
        let ports = self.array().ports.clone();
        leave(fault, ListTargetPortsResponse { ports }).await
    }

    async fn list_aggregates(
        &self,
        request: Request<ListAggregatesRequest>,
    ) -> Result<Response<ListAggregatesResponse>, Status> {
        let fault = self.enter("ListAggregates", &request)?;
        let name = request.into_inner().system;
        let aggregates = self.array().systems.get(&name).cloned();
        let aggregates = aggregates.ok_or_else(|| Status::not_found("no such system"))?;
        leave(fault, ListAggregatesResponse { aggregates }).await
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let fault = self.enter("CreateVolume", &request)?;
        let request = request.into_inner();
        let volume = {
            let mut array = self.array();
            let size = request.size_bytes.next_multiple_of(STEP);
            if request.limit_bytes > 0 && size > request.limit_bytes {
                return Err(Status::out_of_range("limit_bytes"));
            }
            if let Some(volume) = array.volumes.get(&request.id) {
                if (&volume.aggregate, volume.size_bytes) != (&request.aggregate, size) {
                    return Err(Status::already_exists("the id exists and differs"));
                }
            } else {
                let aggregates = array.systems.get_mut(&request.system).unwrap();
                let aggregate = aggregates
                    .iter_mut()
                    .find(|a| a.name == request.aggregate)
                    .unwrap();
                if size > aggregate.free_bytes {
                    return Err(Status::resource_exhausted("the aggregate is full"));
                }
                aggregate.free_bytes -= size;
                aggregate.maximum_volume_bytes = aggregate.free_bytes;
                let wwid = format!("naa.6001405{}", &request.id.replace('-', "")[..25]);
                let volume = Volume {
                    id: request.id.clone(),
                    system: request.system,
                    aggregate: request.aggregate,
                    name: request.name,
                    size_bytes: size,
                    provision_type: request.provision_type,
                    wwid,
                    attributes: request.attributes,
                    source_volume_id: request.source_volume_id,
                    source_snapshot_id: request.source_snapshot_id,
                    source_lun: request.source_lun,
                    ..Default::default()
                };
                array.volumes.insert(request.id.clone(), volume);
            }
            array.volumes[&request.id].clone()
        };
        leave(fault, CreateVolumeResponse { volume: Some(volume) }).await
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let fault = self.enter("CreateSnapshot", &request)?;
        let request = request.into_inner();
        let snapshot = {
            let mut array = self.array();
            if let Some(existing) = array.snapshots.get(&request.id) {
                if existing.volume_id != request.volume_id {
                    return Err(Status::already_exists("another source volume"));
                }
                existing.clone()
            } else {
                let volume = array
                    .volumes
                    .get(&request.volume_id)
                    .ok_or_else(|| no_volume(&request.volume_id))?;
                let snapshot = Snapshot {
                    id: request.id.clone(),
                    system: volume.system.clone(),
                    aggregate: volume.aggregate.clone(),
                    volume_id: request.volume_id,
                    name: request.name,
                    size_bytes: volume.size_bytes,
                    taken_unix_ms: 1_500,
                    provision_type: volume.provision_type,
                };
                array.snapshots.insert(request.id, snapshot.clone());
                snapshot
            }
        };
        let snapshot = Some(snapshot);
        leave(fault, CreateSnapshotResponse { snapshot }).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let fault = self.enter("DeleteSnapshot", &request)?;
        self.array().snapshots.remove(&request.into_inner().id);
        leave(fault, DeleteSnapshotResponse {}).await
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        let fault = self.enter("GetSnapshot", &request)?;
        let found = self.array().snapshots.get(&request.into_inner().id).cloned();
        match found {
            None => Err(Status::not_found("no such snapshot")),
            snapshot => leave(fault, GetSnapshotResponse { snapshot }).await,
        }
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let fault = self.enter("ListSnapshots", &request)?;
        let request = request.into_inner();
        if !request.page_token.is_empty() && request.page_token.len() != 36 {
            return Err(Status::invalid_argument("page_token"));
        }
        let mut snapshots: Vec<Snapshot> = self.array().snapshots.values().cloned().collect();
        snapshots.retain(|s| request.volume_id.is_empty() || s.volume_id == request.volume_id);
        snapshots.retain(|s| s.id > request.page_token);
        let mut next_page_token = String::new();
        if request.page_size > 0 && snapshots.len() > request.page_size as usize {
            snapshots.truncate(request.page_size as usize);
            next_page_token = snapshots[snapshots.len() - 1].id.clone();
        }
        let answer = ListSnapshotsResponse {
            snapshots,
            next_page_token,
        };
        leave(fault, answer).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let fault = self.enter("DeleteVolume", &request)?;
        let id = request.into_inner().id;
        {
            let mut array = self.array();
            if array
                .volumes
                .get(&id)
                .is_some_and(|volume| !volume.mappings.is_empty())
            {
                return Err(Status::failed_precondition("the volume is mapped to node-a"));
            }
            array.volumes.remove(&id);
        }
        leave(fault, DeleteVolumeResponse {}).await
    }

    async fn get_volume(
        &self,
        request: Request<GetVolumeRequest>,
    ) -> Result<Response<GetVolumeResponse>, Status> {
        let fault = self.enter("GetVolume", &request)?;
        let id = request.into_inner().id;
        let volume = self
            .array()
            .volumes
            .get(&id)
            .cloned()
            .ok_or_else(|| no_volume(&id))?;
        leave(fault, GetVolumeResponse { volume: Some(volume) }).await
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let fault = self.enter("ListVolumes", &request)?;
        let request = request.into_inner();
        let start = match request.page_token.as_str() {
            "" => 0,
            token => token
                .parse::<usize>()
                .map_err(|_| Status::invalid_argument("page_token"))?,
        };
        let all: Vec<Volume> = self.array().volumes.values().cloned().collect();
        let size = if request.page_size == 0 {
            100
        } else {
            request.page_size as usize
        };
        let volumes: Vec<Volume> = all.iter().skip(start).take(size).cloned().collect();
        let end = start + volumes.len();
        let next_page_token = if end < all.len() {
            end.to_string()
        } else {
            String::new()
        };
        leave(
            fault,
            ListVolumesResponse {
                volumes,
                next_page_token,
            },
        )
        .await
    }

    async fn expand_volume(
        &self,
        request: Request<ExpandVolumeRequest>,
    ) -> Result<Response<ExpandVolumeResponse>, Status> {
        let fault = self.enter("ExpandVolume", &request)?;
        let request = request.into_inner();
        let volume = {
            let mut array = self.array();
            let volume = array
                .volumes
                .get_mut(&request.id)
                .ok_or_else(|| no_volume(&request.id))?;
            let size = request.size_bytes.next_multiple_of(STEP);
            if request.limit_bytes > 0 && size > request.limit_bytes {
                return Err(Status::out_of_range("limit_bytes"));
            }
            volume.size_bytes = volume.size_bytes.max(size);
            volume.clone()
        };
        leave(fault, ExpandVolumeResponse { volume: Some(volume) }).await
    }

    async fn map_volume(
        &self,
        request: Request<MapVolumeRequest>,
    ) -> Result<Response<MapVolumeResponse>, Status> {
        let fault = self.enter("MapVolume", &request)?;
        let request = request.into_inner();
        let host = request.host.unwrap();
        let answer = {
            let mut array = self.array();
            let lun = array.next_lun;
            let ports = array.ports.clone();
            let volume = array
                .volumes
                .get_mut(&request.id)
                .ok_or_else(|| no_volume(&request.id))?;
            let name_of = |mapping: &Mapping| mapping.host.as_ref().unwrap().name.clone();
            let found = volume
                .mappings
                .iter()
                .find(|mapping| name_of(mapping) == host.name)
                .cloned();
            let mapping = match found {
                Some(mapping) => mapping,
                None if request.exclusive && !volume.mappings.is_empty() => {
                    return Err(Status::failed_precondition("another host holds the volume"));
                }
                None => {
                    let mapping = Mapping {
                        host: Some(host),
                        lun,
                        read_only: request.read_only,
                        protocol: request.protocol,
                    };
                    volume.mappings.push(mapping.clone());
                    mapping
                }
            };
            let (wwid, size_bytes) = (volume.wwid.clone(), volume.size_bytes);
            array.next_lun += 1;
            MapVolumeResponse {
                mapping: Some(mapping),
                wwid,
                ports,
                size_bytes,
            }
        };
        leave(fault, answer).await
    }

    async fn unmap_volume(
        &self,
        request: Request<UnmapVolumeRequest>,
    ) -> Result<Response<UnmapVolumeResponse>, Status> {
        let fault = self.enter("UnmapVolume", &request)?;
        let request = request.into_inner();
        {
            let mut array = self.array();
            let volume = array
                .volumes
                .get_mut(&request.id)
                .ok_or_else(|| no_volume(&request.id))?;
            let other = |mapping: &Mapping| mapping.host.as_ref().unwrap().name != request.host_name;
            volume
                .mappings
                .retain(|mapping| !request.host_name.is_empty() && other(mapping));
        }
        leave(fault, UnmapVolumeResponse {}).await
    }
}

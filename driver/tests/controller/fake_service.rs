//! What the gateway of the tests answers to each call.

use storagelink_proto::storagelink::v1::storage_link_server::StorageLink;
use storagelink_proto::storagelink::v1::*;
use tonic::{Request, Response, Status};

use crate::fake::{Fake, Fault, STEP};

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

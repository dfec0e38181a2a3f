//! CreateSnapshot, DeleteSnapshot, GetSnapshot and ListSnapshots. A snapshot lives behind the gateway of its volume, and its
//! id says so in the same way as the volume's.

use std::collections::HashMap;

use storagelink_proto::csi::v1::list_snapshots_response::Entry;
use storagelink_proto::csi::v1::{
    CreateSnapshotRequest, CreateSnapshotResponse, DeleteSnapshotRequest, DeleteSnapshotResponse,
    GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest, ListSnapshotsResponse,
    Snapshot as CsiSnapshot,
};
use storagelink_proto::storagelink::v1::{self as api, Snapshot};
use tonic::Code;
use uuid::Uuid;

use super::{CommonError, Located};
use crate::codes::{Coded, Rpc};
use crate::fields::{self, FieldError, MAX_MAP_BYTES, MAX_STRING_BYTES};
use crate::gateway::Gateways;
use crate::ids::{Endpoint, SnapshotId, VolumeId};
use crate::server::note_volume;

#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    #[error(transparent)]
    Common(#[from] CommonError),
    #[error("snapshot {0} does not exist")]
    NoSnapshot(String),
}

impl Coded for SnapshotError {
    fn code(&self) -> Code {
        match self {
            Self::Common(error) => error.code(),
            Self::NoSnapshot(_) => Code::NotFound,
        }
    }
}

impl From<FieldError> for SnapshotError {
    fn from(error: FieldError) -> Self {
        Self::Common(error.into())
    }
}

pub(super) async fn create_snapshot(
    gateways: &Gateways,
    request: CreateSnapshotRequest,
) -> Result<CreateSnapshotResponse, SnapshotError> {
    fields::text("name", &request.name, MAX_STRING_BYTES)?;
    fields::text("source_volume_id", &request.source_volume_id, MAX_STRING_BYTES)?;
    no_parameters(&request.parameters)?;
    let located = Located::find(gateways, &request.source_volume_id, &request.secrets).await?;
    let mut id = SnapshotId::from_name(&request.name);
    if let Some(endpoint) = located.id.endpoint() {
        id = id
            .at(endpoint.clone())
            .map_err(|error| fields::id_error("source_volume_id", &error))?;
    }
    let taken = located
        .client
        .take_snapshot(api::CreateSnapshotRequest {
            id: id.uuid().to_string(),
            volume_id: located.id.uuid().to_string(),
            name: request.name,
        })
        .await
        .map_err(|error| located.failed(Rpc::Snapshot, error))?;
    Ok(CreateSnapshotResponse {
        snapshot: Some(csi_snapshot(&id, &taken)),
    })
}

/// A class's parameters: there are none yet, and a key that is not known is refused by its name.
fn no_parameters(parameters: &HashMap<String, String>) -> Result<(), FieldError> {
    fields::map("parameters", parameters)?;
    let mut keys: Vec<&str> = parameters
        .keys()
        .map(String::as_str)
        // What external-snapshotter adds by itself (--extra-create-metadata).
        .filter(|key| !key.starts_with("csi.storage.k8s.io/volumesnapshot"))
        .collect();
    keys.sort_unstable();
    match keys.is_empty() {
        true => Ok(()),
        false => Err(FieldError::new(
            "parameters",
            format!("unknown: {}; a VolumeSnapshotClass has none", keys.join(", ")),
        )),
    }
}

pub(super) async fn delete_snapshot(
    gateways: &Gateways,
    request: DeleteSnapshotRequest,
) -> Result<DeleteSnapshotResponse, SnapshotError> {
    fields::text("snapshot_id", &request.snapshot_id, MAX_STRING_BYTES)?;
    // An id that we never gave away is of a snapshot that does not exist.
    let Ok(id) = request.snapshot_id.parse::<SnapshotId>() else {
        return Ok(DeleteSnapshotResponse {});
    };
    let client = gateways
        .for_volume(&id, &request.secrets)
        .await
        .map_err(CommonError::from)?;
    client
        .delete_snapshot(id.uuid())
        .await
        .map_err(|error| CommonError::from(error.during(Rpc::Snapshot)))?;
    Ok(DeleteSnapshotResponse {})
}

pub(super) async fn get_snapshot(
    gateways: &Gateways,
    request: GetSnapshotRequest,
) -> Result<GetSnapshotResponse, SnapshotError> {
    fields::text("snapshot_id", &request.snapshot_id, MAX_STRING_BYTES)?;
    match find(gateways, &request.snapshot_id, &request.secrets).await? {
        Some(snapshot) => Ok(GetSnapshotResponse {
            snapshot: Some(snapshot),
        }),
        None => Err(SnapshotError::NoSnapshot(request.snapshot_id)),
    }
}

/// Those of one volume are asked of its own gateway; all of them of the configured one, as with ListVolumes.
pub(super) async fn list_snapshots(
    gateways: &Gateways,
    request: ListSnapshotsRequest,
) -> Result<ListSnapshotsResponse, SnapshotError> {
    let page_size = u32::try_from(request.max_entries)
        .map_err(|_| FieldError::new("max_entries", format!("{} is negative", request.max_entries)))?;
    if request.starting_token.len() > MAX_MAP_BYTES {
        let problem = format!("has more than {MAX_MAP_BYTES} bytes");
        return Err(FieldError::new("starting_token", problem).into());
    }
    if !request.snapshot_id.is_empty() {
        let found = find(gateways, &request.snapshot_id, &request.secrets).await?;
        let entries = found
            .filter(|snapshot| {
                request.source_volume_id.is_empty() || snapshot.source_volume_id == request.source_volume_id
            })
            .map(|snapshot| Entry {
                snapshot: Some(snapshot),
            });
        return Ok(ListSnapshotsResponse {
            entries: entries.into_iter().collect(),
            next_token: String::new(),
        });
    }
    let (client, volume) = match request.source_volume_id.as_str() {
        "" => (gateways.configured().await, None),
        text => {
            note_volume(text);
            // A volume that cannot be ours has no snapshot.
            let Ok(id) = text.parse::<VolumeId>() else {
                return Ok(ListSnapshotsResponse::default());
            };
            (gateways.for_volume(&id, &request.secrets).await, Some(id))
        }
    };
    let client = client.map_err(CommonError::from)?;
    let (snapshots, next_token) = client
        .snapshots(api::ListSnapshotsRequest {
            page_size,
            page_token: request.starting_token,
            volume_id: volume
                .as_ref()
                .map(|id| id.uuid().to_string())
                .unwrap_or_default(),
        })
        .await
        .map_err(|error| CommonError::from(error.during(Rpc::List)))?;
    let endpoint = volume.as_ref().and_then(VolumeId::endpoint);
    let entries = snapshots
        .iter()
        .filter_map(|snapshot| {
            let id = id_at(&snapshot.id, endpoint)?;
            Some(Entry {
                snapshot: Some(csi_snapshot(&id, snapshot)),
            })
        })
        .collect();
    Ok(ListSnapshotsResponse { entries, next_token })
}

async fn find(
    gateways: &Gateways,
    snapshot_id: &str,
    secrets: &HashMap<String, String>,
) -> Result<Option<CsiSnapshot>, CommonError> {
    let Ok(id) = snapshot_id.parse::<SnapshotId>() else {
        return Ok(None);
    };
    let client = gateways.for_volume(&id, secrets).await?;
    let found = client
        .snapshot(id.uuid())
        .await
        .map_err(|error| error.during(Rpc::Get))?;
    Ok(found.map(|snapshot| csi_snapshot(&id, &snapshot)))
}

/// The id of what a gateway knows by this UUID.
fn id_at(uuid: &str, endpoint: Option<&Endpoint>) -> Option<VolumeId> {
    let id = VolumeId::from_uuid(Uuid::try_parse(uuid).ok()?);
    match endpoint {
        Some(endpoint) => id.at(endpoint.clone()).ok(),
        None => Some(id),
    }
}

fn csi_snapshot(id: &SnapshotId, snapshot: &Snapshot) -> CsiSnapshot {
    let (seconds, milliseconds) = (snapshot.taken_unix_ms / 1000, snapshot.taken_unix_ms % 1000);
    CsiSnapshot {
        size_bytes: i64::try_from(snapshot.size_bytes).unwrap_or(i64::MAX),
        snapshot_id: id.to_string(),
        source_volume_id: id_at(&snapshot.volume_id, id.endpoint())
            .map(|id| id.to_string())
            .unwrap_or_default(),
        creation_time: Some(prost_types::Timestamp {
            seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
            nanos: i32::try_from(milliseconds * 1_000_000).unwrap_or(0),
        }),
        // The gateway answers when the copy is whole.
        ready_to_use: true,
        group_snapshot_id: String::new(),
    }
}

//! ControllerExpandVolume: grows a volume on the array, in use or not. The node then grows its map and file system.

use storagelink_proto::csi::v1::{ControllerExpandVolumeRequest, ControllerExpandVolumeResponse};
use tonic::Code;

use super::capability::Capability;
use super::{CommonError, Located};
use crate::codes::{Coded, Rpc};
use crate::fields::{FieldError, Range};
use crate::gateway::Gateways;

#[derive(Debug, thiserror::Error)]
pub(super) enum ExpandError {
    #[error(transparent)]
    Common(#[from] CommonError),
    #[error(
        "volume {id} has {size} bytes already, more than capacity_range.limit_bytes {limit}; volumes do not shrink"
    )]
    Larger { id: String, size: u64, limit: u64 },
}

impl Coded for ExpandError {
    fn code(&self) -> Code {
        match self {
            Self::Common(error) => error.code(),
            Self::Larger { .. } => Code::OutOfRange,
        }
    }
}

impl From<FieldError> for ExpandError {
    fn from(error: FieldError) -> Self {
        Self::Common(error.into())
    }
}

pub(super) async fn expand_volume(
    gateways: &Gateways,
    request: ControllerExpandVolumeRequest,
) -> Result<ControllerExpandVolumeResponse, ExpandError> {
    crate::fields::volume_id(&request.volume_id)?;
    let range = match request.capacity_range {
        Some(range) => Range::parse(range)?,
        None => return Err(FieldError::new("capacity_range", "is required").into()),
    };
    if let Some(capability) = &request.volume_capability {
        Capability::parse(capability)?.supported()?;
    }
    let located = Located::find(gateways, &request.volume_id, &request.secrets).await?;
    let mut volume = located.volume(Rpc::Expand).await?;
    if let Some(limit) = range.limit
        && volume.size_bytes > limit
    {
        return Err(ExpandError::Larger {
            id: request.volume_id,
            size: volume.size_bytes,
            limit,
        });
    }
    if let Some(required) = range.required
        && volume.size_bytes < required
    {
        volume = located
            .client
            .expand(located.id.uuid(), required, range.limit.unwrap_or(0))
            .await
            .map_err(|error| located.failed(Rpc::Expand, error))?;
    }
    Ok(ControllerExpandVolumeResponse {
        capacity_bytes: i64::try_from(volume.size_bytes).unwrap_or(i64::MAX),
        // Also for a block volume: the paths and the map have to take the new size. And also when nothing changed:
        // the call before may have grown the array's side only.
        node_expansion_required: true,
    })
}

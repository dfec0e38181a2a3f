//! DeleteVolume. What does not exist is deleted already; what a node still has is not deleted.

use storagelink_proto::csi::v1::{DeleteVolumeRequest, DeleteVolumeResponse};

use super::{CommonError, Located};
use crate::codes::Rpc;
use crate::gateway::Gateways;

pub(super) async fn delete_volume(
    gateways: &Gateways,
    request: DeleteVolumeRequest,
) -> Result<DeleteVolumeResponse, CommonError> {
    let located = match Located::find(gateways, &request.volume_id, &request.secrets).await {
        // An id that we never gave away.
        Err(CommonError::NoVolume(_)) => return Ok(DeleteVolumeResponse {}),
        located => located?,
    };
    match located
        .client
        .delete(located.id.uuid())
        .await
        .map_err(|error| located.failed(Rpc::Delete, error))
    {
        Ok(()) | Err(CommonError::NoVolume(_)) => Ok(DeleteVolumeResponse {}),
        Err(error) => Err(error),
    }
}

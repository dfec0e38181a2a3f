//! ValidateVolumeCapabilities: whether an existing volume can be used as asked.

use storagelink_multipath::policy;
use storagelink_proto::csi::v1::validate_volume_capabilities_response::Confirmed;
use storagelink_proto::csi::v1::{ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse};
use storagelink_proto::storagelink::v1::Volume;

use super::capability::Capability;
use super::list::volume_context;
use super::{CommonError, Located};
use crate::codes::Rpc;
use crate::fields;
use crate::gateway::Gateways;
use crate::ids::VolumeId;
use crate::parameters::{Parameters, policy_of, provision_type_name};

pub(super) async fn validate(
    gateways: &Gateways,
    request: ValidateVolumeCapabilitiesRequest,
) -> Result<ValidateVolumeCapabilitiesResponse, CommonError> {
    fields::volume_id(&request.volume_id)?;
    let capabilities = Capability::parse_all(&request.volume_capabilities)?;
    fields::map("volume_context", &request.volume_context)?;
    fields::map("parameters", &request.parameters)?;
    fields::map("mutable_parameters", &request.mutable_parameters)?;
    let located = Located::find(gateways, &request.volume_id, &request.secrets).await?;
    let volume = located.volume(Rpc::Validate).await?;
    let objection = capabilities
        .iter()
        .find_map(|capability| capability.supported().err())
        .map(|error| error.to_string())
        .or_else(|| objection(&request, &located.id, &volume));
    Ok(match objection {
        Some(message) => ValidateVolumeCapabilitiesResponse {
            confirmed: None,
            message,
        },
        None => ValidateVolumeCapabilitiesResponse {
            confirmed: Some(Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        },
    })
}

/// Why context or parameters are not those of the volume. Not an error: CSI wants an answer that confirms nothing.
fn objection(request: &ValidateVolumeCapabilitiesRequest, id: &VolumeId, volume: &Volume) -> Option<String> {
    let context = volume_context(id, volume);
    // external-provisioner puts keys of its own (with a slash) into the context of every volume.
    let ours = request
        .volume_context
        .iter()
        .filter(|(key, _)| !key.contains('/'));
    // How nodes use the volume is not the array's to know: any policy fits.
    if let Err(error) = policy_of("volume_context", &request.volume_context) {
        return Some(error.to_string());
    }
    let ours = ours.filter(|(key, _)| !policy::KEYS.contains(&key.as_str()));
    for (key, value) in ours {
        if context.get(key) != Some(value) {
            return Some(format!("volume_context[{key}] is not that of the volume"));
        }
    }
    if !request.mutable_parameters.is_empty() {
        return Some("mutable_parameters: are not supported".to_owned());
    }
    if request.parameters.is_empty() {
        return None;
    }
    let parameters = match Parameters::parse(&request.parameters) {
        Ok(parameters) => parameters,
        Err(error) => return Some(error.to_string()),
    };
    if parameters.system.is_some_and(|system| system != volume.system) {
        return Some(format!(
            "parameters[system]: the volume is on system {}",
            volume.system
        ));
    }
    if parameters
        .aggregate
        .is_some_and(|choice| !choice.allows(&volume.aggregate))
    {
        return Some(format!(
            "parameters[aggregate]: the volume is in aggregate {}",
            volume.aggregate
        ));
    }
    let kind = provision_type_name(volume.provision_type());
    if provision_type_name(parameters.provision_type) != kind {
        return Some(format!("parameters[provisionType]: the volume is {kind}"));
    }
    None
}

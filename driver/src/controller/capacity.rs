//! GetCapacity: what could still be made with a class. A class that names no system or aggregate is asked over all.

use std::collections::{HashMap, HashSet};

use storagelink_proto::csi::v1::{GetCapacityRequest, GetCapacityResponse};
use storagelink_proto::storagelink::v1::{Aggregate, ProvisionType};

use super::CommonError;
use super::capability::Capability;
use super::offers::{Offer, describe_aggregates, describe_offers, offers};
use super::place::provides;
use super::topology::reach;
use crate::codes::Rpc;
use crate::fields::FieldError;
use crate::gateway::Gateways;
use crate::parameters::Parameters;

pub(super) async fn get_capacity(
    gateways: &Gateways,
    request: GetCapacityRequest,
) -> Result<GetCapacityResponse, CommonError> {
    let parameters = Parameters::parse(&request.parameters)?;
    let capabilities: Vec<Capability> = request
        .volume_capabilities
        .iter()
        .map(Capability::parse)
        .collect::<Result<_, _>>()?;
    let topology = request
        .accessible_topology
        .filter(|topology| !topology.segments.is_empty());
    if topology.is_some() && gateways.fabrics().is_empty() {
        return Err(FieldError::new(
            "accessible_topology",
            "is not supported: the controller has no [fabrics]",
        )
        .into());
    }
    if capabilities
        .iter()
        .any(|capability| capability.supported().is_err())
    {
        // CSI: the capacity for volumes that have all of these; there can be none.
        return Ok(GetCapacityResponse {
            available_capacity: 0,
            ..Default::default()
        });
    }
    // The request has no secrets: a class for another gateway is asked with the controller's own password.
    let (client, _) = gateways.for_parameters(&parameters, &HashMap::new()).await?;
    let failed = |error: crate::gateway::GatewayError| error.during(Rpc::Capacity);
    let all = offers(&client, parameters.system.as_deref())
        .await
        .map_err(failed)?;
    if let (Some(system), true) = (&parameters.system, all.is_empty()) {
        let list = describe_offers(&offers(&client, None).await.map_err(failed)?);
        let problem = format!(
            "{system:?} is unknown; gateway {} offers {list}",
            client.endpoint()
        );
        return Err(FieldError::new("parameters[system]", problem).into());
    }
    let mut within_reach = HashSet::new();
    for Offer { system, .. } in &all {
        let reached = match &topology {
            Some(topology) => reach(gateways, &client, &system.name)
                .await
                .map_err(failed)?
                .is_none_or(|reach| reach.from(topology)),
            None => true,
        };
        if reached {
            within_reach.insert(system.name.clone());
        }
    }
    let all: Vec<Aggregate> = all.into_iter().flat_map(|offer| offer.aggregates).collect();
    if let Some(choice) = &parameters.aggregate
        && let Some(unknown) = choice
            .names()
            .iter()
            .find(|name| all.iter().all(|a| a.name != **name))
    {
        let problem = format!(
            "{unknown:?} is unknown; gateway {} offers {}",
            client.endpoint(),
            describe_aggregates(&all)
        );
        return Err(FieldError::new("parameters[aggregate]", problem).into());
    }
    let kind = parameters.provision_type;
    let usable = |aggregate: &&Aggregate| {
        aggregate.unavailable_reason.is_empty()
            && within_reach.contains(&aggregate.system)
            && provides(aggregate, kind)
            && parameters
                .aggregate
                .as_ref()
                .is_none_or(|choice| choice.allows(&aggregate.name))
    };
    let usable: Vec<&Aggregate> = all.iter().filter(usable).collect();
    let available = usable.iter().fold(0u64, |sum, aggregate| {
        sum.saturating_add(available(aggregate, kind))
    });
    Ok(GetCapacityResponse {
        available_capacity: signed(available),
        maximum_volume_size: usable
            .iter()
            .map(|aggregate| signed(aggregate.maximum_volume_bytes))
            .max(),
        minimum_volume_size: usable
            .iter()
            .map(|aggregate| signed(aggregate.granularity_bytes.max(1)))
            .min(),
    })
}

fn available(aggregate: &Aggregate, kind: ProvisionType) -> u64 {
    match kind {
        ProvisionType::Thick => aggregate.free_bytes,
        ProvisionType::Thin | ProvisionType::Unspecified => aggregate.provisionable_bytes,
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

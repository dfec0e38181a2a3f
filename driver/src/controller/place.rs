//! Where a new volume is made: what the class must name, the aggregates that take it, in which order.
//!
//! Nothing is ever chosen that the class does not ask to have chosen.

use storagelink_proto::storagelink::v1::{Aggregate, CreateVolumeRequest as Make, ProvisionType, Volume};
use tonic::Code;

use super::create::{CreateError, Wanted};
use super::offers::{describe, describe_aggregates, describe_offers, offers};
use super::source::{Found, Source};
use crate::fields::{FieldError, Range, human};
use crate::gateway::{Client, GatewayError};
use crate::ids::VolumeId;
use crate::parameters::{AggregateChoice, Parameters, provision_type_name};

/// Where the class wants its volumes. A class that does not say gets the list of what it could say.
pub(super) async fn place<'a>(
    client: &Client,
    parameters: &'a Parameters,
) -> Result<(&'a str, &'a AggregateChoice), CreateError> {
    let (field, system) = match (&parameters.system, &parameters.aggregate) {
        (Some(system), Some(choice)) => return Ok((system, choice)),
        (None, _) => ("parameters[system]", None),
        (Some(system), None) => ("parameters[aggregate]", Some(system)),
    };
    if let Some(system) = system {
        let aggregates = aggregates(client, system).await?;
        let list = describe_aggregates(&aggregates);
        let problem = format!(
            "is required; system {system} of gateway {} offers {list}",
            client.endpoint()
        );
        return Err(FieldError::new(field, problem).into());
    }
    let list = describe_offers(&offers(client, None).await?);
    Err(FieldError::new(
        field,
        format!("is required; gateway {} offers {list}", client.endpoint()),
    )
    .into())
}

/// The aggregates of a system that may be misspelt: then the answer is the list of those that exist.
async fn aggregates(client: &Client, system: &str) -> Result<Vec<Aggregate>, CreateError> {
    match offers(client, Some(system)).await?.pop() {
        Some(offer) => Ok(offer.aggregates),
        None => Err(unknown_system(client, system).await?.into()),
    }
}

/// What is said to a system that does not exist: those that do.
pub(super) async fn unknown_system(client: &Client, system: &str) -> Result<FieldError, GatewayError> {
    let list = describe_offers(&offers(client, None).await?);
    let problem = format!(
        "{system:?} is unknown; gateway {} offers {list}",
        client.endpoint()
    );
    Ok(FieldError::new("parameters[system]", problem))
}

/// Makes the volume in the first candidate that takes it.
pub(super) async fn make(
    client: &Client,
    id: &VolumeId,
    wanted: &Wanted,
    system: &str,
    choice: &AggregateChoice,
    source: Option<&Found>,
) -> Result<Volume, CreateError> {
    if let Some(lun) = &wanted.parameters.adopt {
        return adopt(client, id, wanted, (system, choice), lun).await;
    }
    let aggregates = aggregates(client, system).await?;
    // A copy is made where its source is: that much of the choice is made already.
    let there = source.map(|found| AggregateChoice::Named(found.aggregate.clone()));
    let candidates = candidates(
        client,
        &aggregates,
        wanted,
        system,
        there.as_ref().unwrap_or(choice),
    )?;
    let (source_volume_id, source_snapshot_id) = wanted.source.as_ref().map(Source::ids).unwrap_or_default();
    for (aggregate, size) in &candidates {
        let request = Make {
            source_volume_id: source_volume_id.clone(),
            source_snapshot_id: source_snapshot_id.clone(),
            ..request(id, wanted, system, &aggregate.name, *size)
        };
        match client.create(id.uuid(), request).await {
            Ok(volume) => {
                wanted.accepts(&volume, system, choice)?;
                return Ok(volume);
            }
            // Somebody else took the space since it was looked at: the next candidate, if the class names more.
            Err(GatewayError::Refused {
                code: Code::ResourceExhausted,
                ..
            }) if aggregate.name != candidates[candidates.len() - 1].0.name => {}
            // An earlier call of the same name has just ended, perhaps in another aggregate.
            Err(
                error @ GatewayError::Refused {
                    code: Code::AlreadyExists,
                    ..
                },
            ) => {
                let Some(volume) = client.volume(id.uuid()).await? else {
                    return Err(error.into());
                };
                wanted.accepts(&volume, system, choice)?;
                return Ok(volume);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(full(wanted, system, &aggregates))
}

/// A volume with no content.
fn request(id: &VolumeId, wanted: &Wanted, system: &str, aggregate: &str, size: u64) -> Make {
    Make {
        id: id.uuid().to_string(),
        system: system.to_owned(),
        aggregate: aggregate.to_owned(),
        name: wanted.name.clone(),
        size_bytes: size,
        provision_type: wanted.parameters.provision_type.into(),
        attributes: wanted.parameters.claim.clone().into_iter().collect(),
        limit_bytes: wanted.range.limit.unwrap_or(0),
        ..Make::default()
    }
}

/// Makes the LUN of somebody else the volume. It has its room already: only its name counts, and that nobody uses it.
async fn adopt(
    client: &Client,
    id: &VolumeId,
    wanted: &Wanted,
    (system, choice): (&str, &AggregateChoice),
    lun: &str,
) -> Result<Volume, CreateError> {
    let aggregate = choice.names().first().map_or("", String::as_str);
    let request = Make {
        source_lun: lun.to_owned(),
        ..request(id, wanted, system, aggregate, wanted.size())
    };
    let volume = client.create(id.uuid(), request).await?;
    wanted.accepts(&volume, system, choice)?;
    Ok(volume)
}

/// The aggregates in which the volume fits now, in the order in which they are tried, each with the rounded size.
fn candidates<'a>(
    client: &Client,
    aggregates: &'a [Aggregate],
    wanted: &Wanted,
    system: &str,
    choice: &AggregateChoice,
) -> Result<Vec<(&'a Aggregate, u64)>, CreateError> {
    let mut named: Vec<&Aggregate> = Vec::new();
    for name in choice.names() {
        match aggregates.iter().find(|aggregate| aggregate.name == *name) {
            Some(aggregate) => named.push(aggregate),
            None => {
                let list = describe_aggregates(aggregates);
                let problem = format!(
                    "{name:?} is unknown; system {system} of gateway {} offers {list}",
                    client.endpoint()
                );
                return Err(FieldError::new("parameters[aggregate]", problem).into());
            }
        }
    }
    if *choice == AggregateChoice::Auto {
        named.extend(aggregates);
        // Ties are broken by name, so that a repeated call tries the same order.
        named.sort_by(|a, b| b.free_bytes.cmp(&a.free_bytes).then_with(|| a.name.cmp(&b.name)));
    }
    let kind = wanted.parameters.provision_type;
    let able: Vec<&Aggregate> = named
        .iter()
        .copied()
        .filter(|aggregate| provides(aggregate, kind))
        .collect();
    if able.is_empty() && !named.is_empty() {
        let names: Vec<&str> = named.iter().map(|aggregate| aggregate.name.as_str()).collect();
        let problem = format!(
            "{} is not offered by {}",
            provision_type_name(kind),
            names.join(", ")
        );
        return Err(FieldError::new("parameters[provisionType]", problem).into());
    }
    let mut candidates = Vec::new();
    let mut steps = None;
    for aggregate in &able {
        let size = match rounded(wanted.size(), wanted.range, aggregate, system) {
            Ok(size) => size,
            Err(error) => {
                steps = Some(error);
                continue;
            }
        };
        if aggregate.unavailable_reason.is_empty() && size <= aggregate.maximum_volume_bytes {
            candidates.push((*aggregate, size));
        }
    }
    match (candidates.is_empty(), steps) {
        (false, _) => Ok(candidates),
        (true, Some(error)) => Err(error),
        (true, None) => {
            let looked_at: Vec<Aggregate> = able.into_iter().cloned().collect();
            Err(full(wanted, system, &looked_at))
        }
    }
}

/// Rounds up to the aggregate's steps, within the limit.
fn rounded(size: u64, range: Range, aggregate: &Aggregate, system: &str) -> Result<u64, CreateError> {
    let granularity = aggregate.granularity_bytes.max(1);
    let up = size.max(1).checked_next_multiple_of(granularity);
    // A default size is nobody's wish: it may also be rounded down into the limit.
    let down = range
        .limit
        .filter(|_| range.required.is_none())
        .map(|limit| limit - limit % granularity);
    let largest = range.limit.unwrap_or(i64::MAX as u64).min(i64::MAX as u64);
    match (up, down) {
        (Some(up), _) if up <= largest => Ok(up),
        (_, Some(down)) if down > 0 => Ok(down),
        _ => Err(CreateError::Steps {
            size,
            limit: largest,
            system: system.to_owned(),
            aggregate: aggregate.name.clone(),
            granularity,
        }),
    }
}

/// An aggregate that names no provision type is taken at its word when it refuses.
pub(super) fn provides(aggregate: &Aggregate, kind: ProvisionType) -> bool {
    aggregate.provision_types.is_empty() || aggregate.provision_types().any(|provided| provided == kind)
}

fn full(wanted: &Wanted, system: &str, aggregates: &[Aggregate]) -> CreateError {
    let largest = |aggregate: &Aggregate| {
        format!(
            "{}, largest volume now {}",
            describe(aggregate),
            human(aggregate.maximum_volume_bytes)
        )
    };
    CreateError::Full {
        size: wanted.size(),
        system: system.to_owned(),
        aggregates: match aggregates.len() {
            0 => "it has no aggregate".to_owned(),
            _ => aggregates
                .iter()
                .take(20)
                .map(largest)
                .collect::<Vec<_>>()
                .join("; "),
        },
    }
}

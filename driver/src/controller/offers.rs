//! What a gateway offers: the answer to a class that does not say, or says wrongly, where volumes are made.
//!
//! It only reads, and it never chooses.

use std::fmt::Write as _;

use storagelink_proto::storagelink::v1::{Aggregate, System};

use crate::fields::human;
use crate::gateway::{Client, GatewayError};

/// More than this is only counted: a status text must stay readable and below the limits of HTTP/2 headers.
const MAX_LISTED: usize = 20;

/// A system with its aggregates.
pub(super) struct Offer {
    pub(super) system: System,
    pub(super) aggregates: Vec<Aggregate>,
}

/// Asks for every system, or for one of them (none when it does not exist), and its aggregates.
pub(super) async fn offers(client: &Client, system: Option<&str>) -> Result<Vec<Offer>, GatewayError> {
    let mut offers = Vec::new();
    for found in client.systems().await? {
        if system.is_none_or(|name| name == found.name) {
            let aggregates = client.aggregates(&found.name).await?;
            offers.push(Offer {
                system: found,
                aggregates,
            });
        }
    }
    Ok(offers)
}

/// One aggregate for people.
pub(super) fn describe(aggregate: &Aggregate) -> String {
    if aggregate.unavailable_reason.is_empty() {
        format!(
            "{} ({} free of {})",
            aggregate.name,
            human(aggregate.free_bytes),
            human(aggregate.size_bytes)
        )
    } else {
        format!(
            "{} (unavailable: {})",
            aggregate.name, aggregate.unavailable_reason
        )
    }
}

/// The aggregates of one system for people.
pub(super) fn describe_aggregates(aggregates: &[Aggregate]) -> String {
    match aggregates.len() {
        0 => "no aggregate".to_owned(),
        _ => joined(aggregates.iter().map(describe), ", "),
    }
}

/// Everything for people: `lab: fast (1.5 GiB free of 2 GiB), slow (…); other: …`.
pub(super) fn describe_offers(offers: &[Offer]) -> String {
    match offers.len() {
        0 => "no system".to_owned(),
        _ => joined(
            offers.iter().map(|offer| {
                format!(
                    "{}: {}",
                    offer.system.name,
                    describe_aggregates(&offer.aggregates)
                )
            }),
            "; ",
        ),
    }
}

fn joined(items: impl ExactSizeIterator<Item = String>, separator: &str) -> String {
    let hidden = items.len().saturating_sub(MAX_LISTED);
    let mut text = items.take(MAX_LISTED).collect::<Vec<_>>().join(separator);
    if hidden > 0 {
        let _ = write!(text, "{separator}and {hidden} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aggregate(name: &str, free: u64, reason: &str) -> Aggregate {
        Aggregate {
            name: name.to_owned(),
            free_bytes: free,
            size_bytes: 2 << 30,
            unavailable_reason: reason.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn texts() {
        let offer = |aggregates| Offer {
            system: System {
                name: "lab".to_owned(),
                ..Default::default()
            },
            aggregates,
        };
        let two = vec![
            aggregate("fast", 3 << 29, ""),
            aggregate("slow", 0, "not mounted"),
        ];
        assert_eq!(
            describe_offers(&[offer(two), offer(Vec::new())]),
            "lab: fast (1.5 GiB free of 2 GiB), slow (unavailable: not mounted); lab: no aggregate"
        );
        assert_eq!(describe_offers(&[]), "no system");
        let many: Vec<_> = (0..30).map(|i| aggregate(&i.to_string(), 0, "")).collect();
        assert!(describe_aggregates(&many).ends_with("and 10 more"));
    }
}

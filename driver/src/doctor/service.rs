//! The service: does it answer, is it the right one, does it take the credentials, and can this host reach the portals of its systems?

use std::time::Duration;

use storagelink_proto::storagelink::v1::Protocol;
use tokio::net::TcpStream;

use super::Finding;
use crate::{
    codes::{chain, status},
    gateway::{Client, Config, Deadlines, Gateways},
};

/// A portal that answers does so in milliseconds.
const PORTAL: Duration = Duration::from_secs(3);

/// Everything about the service of a configuration.
pub(super) async fn check(config: Config) -> Vec<Finding> {
    let gateways = match Gateways::new(config, Deadlines::default()) {
        Ok(gateways) => gateways,
        Err(error) => return vec![Finding::failure("service", chain(&error))],
    };
    let client = match gateways.configured().await {
        Ok(client) => client,
        Err(error) => return vec![Finding::failure("service", status(&error).message())],
    };
    let mut all = Vec::new();
    match client.version().await {
        Ok(version) => {
            let found = format!("answers, version {version}, takes the credentials");
            all.push(Finding::good(format!("service {}", client.endpoint()), found));
        }
        Err(error) => {
            all.push(Finding::failure(
                format!("service {}", client.endpoint()),
                chain(&error),
            ));
            return all;
        }
    }
    match portals(&client).await {
        Ok(portals) if portals.is_empty() => {
            all.push(Finding::failure(
                "portals",
                "the service has no system with an iSCSI portal",
            ));
        }
        Ok(portals) => {
            for (system, portal) in portals {
                all.push(reach(&system, &portal).await);
            }
        }
        Err(error) => all.push(Finding::failure("portals", chain(&error))),
    }
    all
}

async fn portals(client: &Client) -> Result<Vec<(String, String)>, crate::gateway::GatewayError> {
    let mut all = Vec::new();
    for system in client.systems().await? {
        for port in client.target_ports(&system.name, Protocol::Iscsi).await? {
            all.push((system.name.clone(), port.portal));
        }
    }
    Ok(all)
}

async fn reach(system: &str, portal: &str) -> Finding {
    let what = format!("portal {portal} of system {system}");
    match tokio::time::timeout(PORTAL, TcpStream::connect(portal)).await {
        Ok(Ok(_)) => Finding::good(what, "answers"),
        Ok(Err(error)) => Finding::failure(
            what,
            format!("{error}: check address, route and firewall of this fabric"),
        ),
        Err(_) => Finding::failure(
            what,
            format!(
                "does not answer within {} s: check address, route and firewall of this fabric",
                PORTAL.as_secs()
            ),
        ),
    }
}

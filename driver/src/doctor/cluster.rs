//! The cluster: is the driver on its nodes, has each an initiator name of its own, and has the driver its rights?

use std::collections::BTreeMap;

use k8s_openapi::api::storage::v1::CSINode;
use kube::{Api, Client, api::ListParams};

use super::{Finding, rights};
use crate::{DRIVER_NAME, codes::chain, ids::NodeId};

/// Everything about the cluster that the environment names (a pod's service account, or a kubeconfig file); `namespace` is the
/// release's.
pub(super) async fn check(namespace: &str) -> Vec<Finding> {
    let client = match Client::try_default().await {
        Ok(client) => client,
        Err(error) => return vec![Finding::failure("cluster", chain(&error))],
    };
    let mut all = nodes(client.clone()).await;
    all.extend(rights::check(&client, namespace).await);
    all
}

async fn nodes(client: Client) -> Vec<Finding> {
    let nodes: Api<CSINode> = Api::all(client);
    match nodes.list(&ListParams::default()).await {
        Ok(list) => {
            let ids = list.items.into_iter().map(|node| {
                let name = node.metadata.name.unwrap_or_default();
                let driver = node
                    .spec
                    .drivers
                    .into_iter()
                    .find(|driver| driver.name == DRIVER_NAME);
                (name, driver.map(|driver| driver.node_id))
            });
            judge(ids.collect())
        }
        Err(error) => vec![Finding::failure(
            "cluster",
            format!(
                "cannot list CSINodes: {}: use credentials that may",
                chain(&error)
            ),
        )],
    }
}

/// `nodes`: each with the id that the driver has there, if it is there.
fn judge(nodes: Vec<(String, Option<String>)>) -> Vec<Finding> {
    let mut all = Vec::new();
    let mut by_initiator: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut there, mut without) = (0, Vec::new());
    for (node, id) in nodes {
        match id.and_then(|id| id.parse::<NodeId>().ok()) {
            Some(id) => {
                there += 1;
                by_initiator
                    .entry(id.initiator().to_owned())
                    .or_default()
                    .push(node);
            }
            None => without.push(node),
        }
    }
    if without.is_empty() {
        all.push(Finding::good(
            "nodes",
            format!("the driver is registered on all {there}"),
        ));
    } else {
        let found = format!(
            "the driver is not registered on {}: look at the log of its pod there",
            without.join(", ")
        );
        all.push(Finding::warning("nodes", found));
    }
    for (initiator, nodes) in by_initiator.into_iter().filter(|(_, nodes)| nodes.len() > 1) {
        let found = format!(
            "is that of {}: give each its own in /etc/iscsi/initiatorname.iscsi (iscsi-iname makes one), restart iscsid and the plugin",
            nodes.join(" and ")
        );
        all.push(Finding::failure(format!("initiator name {initiator}"), found));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn a_shared_initiator_name_and_a_node_without_the_driver_are_found() {
        let node = |name: &str, id: Option<&str>| (name.to_owned(), id.map(str::to_owned));
        let good = judge(vec![
            node("n1", Some("n1/iqn.2026-11.example:a")),
            node("n2", Some("n2/iqn.2026-11.example:b")),
        ]);
        assert!(good.iter().all(|f| f.severity == Severity::Good), "{good:?}");
        let bad = judge(vec![
            node("n1", Some("n1/iqn.2026-11.example:a")),
            node("n2", Some("n2/iqn.2026-11.example:a")),
            node("n3", None),
        ]);
        assert_eq!(bad[0].severity, Severity::Warning);
        assert!(bad[0].found.contains("n3"), "{}", bad[0]);
        assert_eq!(bad[1].severity, Severity::Failure);
        assert!(bad[1].found.contains("n1 and n2"), "{}", bad[1]);
    }
}

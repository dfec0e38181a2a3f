//! RBAC: may the driver's accounts do what no volume can do without?
//!
//! The API server is asked about each right (`SubjectAccessReview`, authorization.k8s.io/v1), so that roles of any origin count.
//! The chart's roles hold more: what is here is what makes volumes impossible when it is missing.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};

use super::Finding;
use crate::codes::chain;

/// A right: verb, resource, API group.
type Right = (&'static str, &'static str, &'static str);

/// ServiceAccounts of the chart, each with what its workload cannot do without.
const ACCOUNTS: [(&str, &[Right]); 2] = [
    (
        "storagelink-csi-controller",
        &[
            ("watch", "persistentvolumeclaims", ""),
            ("patch", "persistentvolumeclaims/status", ""),
            ("create", "persistentvolumes", ""),
            ("delete", "persistentvolumes", ""),
            ("watch", "storageclasses", "storage.k8s.io"),
            ("watch", "csinodes", "storage.k8s.io"),
            ("watch", "volumeattachments", "storage.k8s.io"),
            ("patch", "volumeattachments/status", "storage.k8s.io"),
            ("create", "events", ""),
            ("update", "leases", "coordination.k8s.io"),
            ("create", "csistoragecapacities", "storage.k8s.io"),
        ],
    ),
    (
        "storagelink-csi-node",
        &[
            ("create", "events", "events.k8s.io"),
            ("get", "persistentvolumes", ""),
            ("list", "pods", ""),
            ("watch", "nodes", ""),
        ],
    ),
];

/// Whether the accounts of `namespace` have their rights; what is not of a namespace is asked for all of them.
pub(super) async fn check(client: &Client, namespace: &str) -> Vec<Finding> {
    let mut all = Vec::new();
    for (account, rights) in ACCOUNTS {
        let mut missing = Vec::new();
        for right in rights {
            match may(client, namespace, account, right).await {
                Ok(true) => {}
                Ok(false) => missing.push(*right),
                Err(error) => {
                    let found = format!(
                        "cannot ask for rights: {}: use credentials that may create subjectaccessreviews",
                        chain(&error)
                    );
                    all.push(Finding::warning(what(namespace, account), found));
                    return all;
                }
            }
        }
        all.push(judge(namespace, account, rights.len(), &missing));
    }
    all
}

async fn may(client: &Client, namespace: &str, account: &str, right: &Right) -> kube::Result<bool> {
    let (verb, resource, group) = *right;
    let (resource, part) = match resource.split_once('/') {
        Some((resource, part)) => (resource, Some(part.to_owned())),
        None => (resource, None),
    };
    // Leases and capacities are the release's own; all others are looked for in the whole cluster.
    let own = matches!(resource, "leases" | "csistoragecapacities");
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{namespace}:{account}")),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: part,
                namespace: own.then(|| namespace.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

fn what(namespace: &str, account: &str) -> String {
    format!("rights of {namespace}/{account}")
}

fn judge(namespace: &str, account: &str, asked: usize, missing: &[Right]) -> Finding {
    let what = what(namespace, account);
    if missing.is_empty() {
        return Finding::good(what, format!("has the {asked} that volumes need"));
    }
    let missing: Vec<String> = missing
        .iter()
        .map(|(verb, resource, group)| match *group {
            "" => format!("{verb} {resource}"),
            group => format!("{verb} {resource}.{group}"),
        })
        .collect();
    let found = format!(
        "may not {}: helm upgrade brings the chart's roles back; is {namespace} the release's namespace (--namespace)?",
        missing.join(", ")
    );
    Finding::failure(what, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn what_an_account_may_not_do_is_named() {
        let good = judge("csi", "a", 3, &[]);
        assert_eq!(good.severity, Severity::Good);
        let missing = [("update", "leases", "coordination.k8s.io"), ("list", "pods", "")];
        let bad = judge("csi", "a", 3, &missing);
        assert_eq!(bad.severity, Severity::Failure);
        assert_eq!(bad.what, "rights of csi/a");
        assert!(
            bad.found
                .contains("may not update leases.coordination.k8s.io, list pods:"),
            "{bad}"
        );
    }
}

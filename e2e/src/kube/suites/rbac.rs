//! What the driver's accounts asked of the API server during the whole run, against what they are granted: nothing they
//! asked for was denied, and nothing is granted that nobody uses without a reason.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    kube::cluster::{Cluster, NAMESPACE},
    programs,
    report::Report,
};

/// The annotation of a Role or ClusterRole in which the chart says which rights a run may leave unused, and why: a line
/// `<verb> <resource>: <reason>` each.
const UNUSED: &str = "storagelink.io/unused-rights";

/// One request or right: account, verb, resource with its group.
type Right = (String, String, String);

/// Runs all steps.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let audit = requests(&cluster.control.audit()?)?;
    drop(
        report
            .step("no request of the driver's accounts was denied", async {
                let audit = requests(&cluster.control.audit_with_roles().await?)?;
                ensure!(!audit.is_empty(), "the audit log has no request of the driver");
                let denied: BTreeSet<&Right> = audit
                    .iter()
                    .filter(|(_, code)| *code == 403)
                    .map(|(right, _)| right)
                    .collect();
                ensure!(denied.is_empty(), "denied: {denied:?}");
                Ok(())
            })
            .await,
    );
    drop(
        report
            .step(
                "doctor finds nodes and rights good, and names a right that is taken away",
                cluster.control.without_roles(doctors(cluster)),
            )
            .await,
    );
    report
        .step("every granted right was used, or says why not", async {
            let used: BTreeSet<Right> = audit.iter().map(|(right, _)| right.clone()).collect();
            let (granted, excused) = granted(cluster).await?;
            ensure!(granted.len() > 20, "only {} rights are granted", granted.len());
            let unused: Vec<&Right> = granted
                .iter()
                .filter(|right| !used.contains(*right))
                .filter(|(_, verb, resource)| !excused.contains(&format!("{verb} {resource}")))
                .collect();
            ensure!(unused.is_empty(), "granted and not used: {unused:?}");
            Ok(())
        })
        .await
}

/// The pre-flight check of the cluster, by its administrator and in a node's plugin.
async fn doctors(cluster: &Cluster) -> Result<()> {
    let in_plugin = [
        "-n",
        NAMESPACE,
        "exec",
        "daemonset/storagelink-csi-node",
        "--",
        "storagelink-csi",
        "doctor",
        "--host-root",
        "/host",
        "--initiator-name-file",
        "/host/etc/iscsi/initiatorname.iscsi",
    ];
    let host = cluster.kubectl.run(&in_plugin).await?;
    ensure!(
        host.contains("ok    iscsid: runs") && !host.contains("FAIL"),
        "in a plugin: {host}"
    );
    let (exit, all) = doctor(cluster).await?;
    ensure!(
        exit == 0 && all.contains("registered on all 2") && all.contains("/storagelink-csi-node: has the"),
        "{all}"
    );
    cluster
        .kubectl
        .delete(&["clusterrolebinding", "storagelink-csi-node"])
        .await?;
    let without = doctor(cluster).await;
    cluster.install(&cluster.values()).await?;
    let (exit, all) = without?;
    ensure!(
        exit == 1
            && all.contains(
                "may not create events.events.k8s.io, get persistentvolumes, list pods, watch nodes"
            ),
        "{all}"
    );
    let (exit, all) = doctor(cluster).await?;
    ensure!(exit == 0, "after helm upgrade: {all}");
    Ok(())
}

/// `storagelink-csi doctor` on a workstation with the administrator's credentials: its exit code and what it prints.
async fn doctor(cluster: &Cluster) -> Result<(i32, String)> {
    let program = cluster.lab.program("storagelink-csi");
    let argv = [program.as_str(), "doctor", "--no-host", "--cluster"];
    let kubeconfig = cluster.kubectl.kubeconfig().display().to_string();
    let env = HashMap::from([("KUBECONFIG".to_owned(), kubeconfig)]);
    let done = programs::run(&argv, &env, &[], Duration::from_secs(60))
        .await
        .context("run doctor")?;
    Ok((done.exit, String::from_utf8_lossy(&done.stdout).into_owned()))
}

/// Every request in the audit log with its status code.
fn requests(log: &str) -> Result<Vec<(Right, u64)>> {
    let prefix = format!("system:serviceaccount:{NAMESPACE}:");
    let mut all = Vec::new();
    for line in log.lines().filter(|line| line.ends_with('}')) {
        let event: Value = serde_json::from_str(line).context("a line of the audit log")?;
        let Some(account) = event["user"]["username"]
            .as_str()
            .and_then(|user| user.strip_prefix(&prefix))
        else {
            continue;
        };
        // Discovery and the like: granted to everybody.
        let object = &event["objectRef"];
        let Some(resource) = object["resource"].as_str() else {
            continue;
        };
        let resource = full(
            object["apiGroup"].as_str().unwrap_or_default(),
            resource,
            object["subresource"].as_str(),
        );
        let verb = event["verb"].as_str().unwrap_or_default();
        let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
        all.push(((account.to_owned(), verb.to_owned(), resource), code));
    }
    Ok(all)
}

fn full(group: &str, resource: &str, part: Option<&str>) -> String {
    let resource = part.map_or_else(|| resource.to_owned(), |part| format!("{resource}/{part}"));
    if group.is_empty() {
        resource
    } else {
        format!("{resource}.{group}")
    }
}

/// What the roles grant to the accounts of the namespace, and which of it may stay unused.
async fn granted(cluster: &Cluster) -> Result<(BTreeSet<Right>, BTreeSet<String>)> {
    let mut rights = BTreeSet::new();
    let mut excused = BTreeSet::new();
    for (bindings, roles, scope) in [
        ("clusterrolebindings", "clusterrole", vec![]),
        ("rolebindings", "role", vec!["-n", NAMESPACE]),
    ] {
        let mut list = scope.clone();
        list.push(bindings);
        for binding in cluster.kubectl.list(&list).await? {
            let subjects = binding["subjects"].as_array().cloned().unwrap_or_default();
            let accounts: Vec<&str> = subjects
                .iter()
                .filter(|subject| subject["kind"] == "ServiceAccount" && subject["namespace"] == NAMESPACE)
                .filter_map(|subject| subject["name"].as_str())
                .collect();
            if accounts.is_empty() {
                continue;
            }
            let mut get = scope.clone();
            get.extend([roles, binding["roleRef"]["name"].as_str().unwrap_or_default()]);
            let role = cluster.kubectl.get(&get).await?;
            let reasons = role["metadata"]["annotations"][UNUSED]
                .as_str()
                .unwrap_or_default();
            for line in reasons.lines().filter(|line| !line.trim().is_empty()) {
                let (right, reason) = line
                    .split_once(": ")
                    .with_context(|| format!("{line:?} gives no reason"))?;
                ensure!(reason.len() > 10, "{line:?} gives no reason");
                excused.insert(right.trim().to_owned());
            }
            for rule in role["rules"].as_array().cloned().unwrap_or_default() {
                for account in &accounts {
                    expand(account, &rule, &mut rights)?;
                }
            }
        }
    }
    Ok((rights, excused))
}

fn expand(account: &str, rule: &Value, rights: &mut BTreeSet<Right>) -> Result<()> {
    let words = |key: &str| -> Vec<String> {
        rule[key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect()
    };
    for group in words("apiGroups") {
        for resource in words("resources") {
            for verb in words("verbs") {
                ensure!(
                    verb != "*" && resource != "*" && group != "*",
                    "a rule grants everything: {rule}"
                );
                let (name, part) = match resource.split_once('/') {
                    Some((name, part)) => (name, Some(part)),
                    None => (resource.as_str(), None),
                };
                rights.insert((account.to_owned(), verb, full(&group, name, part)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_audit_log_is_a_right_and_a_code() {
        let line = r#"{"user":{"username":"system:serviceaccount:storagelink-csi:c"},"verb":"patch","objectRef":{"resource":"persistentvolumeclaims","apiGroup":"","subresource":"status"},"responseStatus":{"code":403}}"#;
        let found = requests(&format!("{line}\n")).unwrap();
        let right = (
            "c".to_owned(),
            "patch".to_owned(),
            "persistentvolumeclaims/status".to_owned(),
        );
        assert_eq!(found, [(right, 403)]);
    }

    #[test]
    fn a_rule_is_every_combination_and_a_star_is_refused() {
        let mut rights = BTreeSet::new();
        let rule = serde_json::json!({"apiGroups": ["storage.k8s.io"], "resources": ["csinodes"], "verbs": ["get", "list"]});
        expand("c", &rule, &mut rights).unwrap();
        assert_eq!(rights.len(), 2);
        assert!(rights.contains(&(
            "c".to_owned(),
            "get".to_owned(),
            "csinodes.storage.k8s.io".to_owned()
        )));
        let star = serde_json::json!({"apiGroups": [""], "resources": ["*"], "verbs": ["get"]});
        assert!(expand("c", &star, &mut rights).is_err());
    }
}

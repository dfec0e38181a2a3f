//! The kind cluster and the chart in it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    docker::{self, Access},
    leftovers,
    settings::{CLUSTER, GATEWAY_PORT, HOST_ROOT, Settings, USER},
    tool::{self, SHORT},
};
use crate::{
    kube::{
        cluster::{NAMESPACE, RELEASE},
        kubectl::Kubectl,
    },
    programs, wait,
};

/// What kind does beside waiting: containers, kubeadm, the network.
const CREATE_SECONDS: u64 = 600;
const LOAD_SECONDS: u64 = 300;
const HELM_SECONDS: u64 = 300;

/// The nodes' names; the first is the control plane.
#[must_use]
pub fn nodes() -> [String; 3] {
    ["control-plane", "worker", "worker2"].map(|role| format!("{CLUSTER}-{role}"))
}

/// The cluster's kubectl.
#[must_use]
pub fn kubectl(settings: &Settings) -> Kubectl {
    Kubectl::new("kubectl".into(), settings.kubeconfig())
}

/// Makes the cluster; returns once its nodes are Ready.
pub async fn create(settings: &Settings) -> Result<()> {
    let (config, kubeconfig) = (settings.cluster.to_string_lossy(), settings.kubeconfig());
    let kubeconfig = kubeconfig.to_string_lossy();
    let mut argv = vec![
        "kind",
        "create",
        "cluster",
        "--name",
        CLUSTER,
        "--config",
        &config,
        "--kubeconfig",
        &kubeconfig,
        "--wait",
        &settings.wait,
    ];
    if let Some(image) = &settings.node_image {
        argv.extend(["--image", image]);
    }
    // Nodes and logs of one that fails are for the folder of logs.
    argv.push("--retain");
    tool::run(&argv, settings.kind_wait() + settings.limit(CREATE_SECONDS)).await?;
    for node in nodes() {
        // kind's entrypoint makes it read-only, so that systemd starts no udev; the driver scans for disks and deletes them by it.
        docker::docker(&["exec", &node, "mount", "-o", "remount,rw", "/sys"]).await?;
    }
    let kubectl = kubectl(settings);
    kubectl
        .wait(&["nodes", "--all"], "condition=Ready", settings.limit(300))
        .await?;
    let nodes = kubectl.list(&["nodes"]).await?;
    ensure!(nodes.len() == 3, "{} nodes instead of 3", nodes.len());
    Ok(())
}

/// Whether the cluster, or a part of it, is there.
pub async fn exists() -> Result<bool> {
    let clusters = tool::finish(&["kind", "get", "clusters"], SHORT).await?;
    let clusters = String::from_utf8_lossy(&clusters.stdout).into_owned();
    Ok(clusters.lines().any(|name| name == CLUSTER))
}

/// Deletes the cluster, if it is there.
pub async fn delete(settings: &Settings) -> Result<()> {
    if !exists().await? {
        return Ok(());
    }
    let kubeconfig = settings.kubeconfig();
    let kubeconfig = kubeconfig.to_string_lossy();
    let argv = [
        "kind",
        "delete",
        "cluster",
        "--name",
        CLUSTER,
        "--kubeconfig",
        &kubeconfig,
    ];
    tool::run(&argv, settings.limit(180)).await.map(drop)
}

/// Brings the images of the pods to the nodes.
pub async fn load_images(settings: &Settings, version: &str) -> Result<()> {
    if settings.images_loaded {
        return Ok(());
    }
    let images = docker::pod_images(version);
    let mut argv = vec!["kind", "load", "docker-image", "--name", CLUSTER];
    argv.extend(images.iter().map(String::as_str));
    tool::run(&argv, settings.limit(LOAD_SECONDS)).await.map(drop)
}

/// The chart's values: where the array is, and that the nodes share the host's kernel.
#[must_use]
pub fn values(array: &Access) -> Value {
    json!({
        "service": {
            "target": array.address, "port": GATEWAY_PORT,
            "fingerprint": array.fingerprint, "existingSecret": "array-credentials",
        },
        "node": {
            "sharedKernel": true,
            "iscsiNetns": leftovers::handle(),
            "hostRoot": HOST_ROOT,
        },
        "controller": {"replicas": 1, "podDisruptionBudget": false},
        // Asks for CustomResourceDefinitions that a kind cluster does not have.
        "sidecars": {"snapshotter": {"enabled": false}},
    })
}

/// Applies an object. An API server that has just come up is busy for a while: it is asked again.
async fn apply(settings: &Settings, object: &Value) -> Result<()> {
    let (kubectl, object) = (kubectl(settings), object.to_string());
    wait::until("the API server takes an object", settings.limit(60), async || {
        kubectl.apply(&object).await?;
        Ok(true)
    })
    .await
    .map(drop)
}

/// Installs the chart; returns once everything is Ready.
pub async fn install(settings: &Settings, array: &Access) -> Result<()> {
    let kubectl = kubectl(settings);
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
    });
    apply(settings, &namespace).await?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "array-credentials", "namespace": NAMESPACE},
        "stringData": {"username": USER, "password": array.password},
    });
    apply(settings, &secret).await?;
    let limit = settings.limit(HELM_SECONDS);
    let chart = settings.checkout.join("charts/storagelink-csi");
    let (chart, timeout) = (chart.to_string_lossy(), format!("--timeout={}s", limit.as_secs()));
    let arguments = ["install", RELEASE, &chart, "--values=-", "--wait", &timeout];
    let done = helm(settings, &arguments, &values(array).to_string(), limit).await?;
    if done.exit != 0 {
        let pods = kubectl.run(&["-n", NAMESPACE, "describe", "pods"]).await;
        return Err(anyhow::anyhow!("{}", pods.unwrap_or_default()))
            .with_context(|| format!("helm install: exit {}: {}", done.exit, tool::said(&done)));
    }
    Ok(())
}

/// Uninstalls the chart: the node plugins end their sessions' interfaces.
pub async fn uninstall(settings: &Settings) -> Result<()> {
    let limit = settings.limit(HELM_SECONDS);
    let timeout = format!("--timeout={}s", limit.as_secs());
    let done = helm(settings, &["uninstall", RELEASE, "--wait", &timeout], "", limit).await?;
    ensure!(
        done.exit == 0,
        "helm uninstall: exit {}: {}",
        done.exit,
        tool::said(&done)
    );
    // helm does not wait for pods.
    kubectl(settings)
        .delete(&["-n", NAMESPACE, "pods", "--all"])
        .await
}

async fn helm(
    settings: &Settings,
    arguments: &[&str],
    stdin: &str,
    limit: Duration,
) -> Result<programs::Finished> {
    let kubeconfig = settings.kubeconfig();
    let kubeconfig = kubeconfig.to_string_lossy();
    let mut argv = vec!["helm", "--kubeconfig", &kubeconfig, "--namespace", NAMESPACE];
    argv.extend(arguments);
    programs::run(
        &argv,
        &std::collections::HashMap::new(),
        stdin.as_bytes(),
        limit + SHORT,
    )
    .await
    .context("run helm")
}

#[cfg(test)]
mod tests {
    use super::{nodes, values};
    use crate::kind::docker::Access;

    #[test]
    fn the_chart_is_told_of_the_array_and_of_the_shared_kernel() {
        let values = values(&Access {
            address: "172.18.0.5".to_owned(),
            password: "secret".to_owned(),
            fingerprint: "ab".repeat(32),
        });
        assert_eq!(values["service"]["target"], "172.18.0.5");
        assert_eq!(values["node"]["sharedKernel"], true);
        assert_eq!(values["node"]["iscsiNetns"], "/run/storagelink/host-netns");
        assert!(
            !values.to_string().contains("secret\""),
            "the password is in no value: {values}"
        );
    }

    #[test]
    fn a_nodes_name_fits_into_the_uuid_of_a_map() {
        // storagelink_multipath::names::MAX_NODE_BYTES of nodes that share a kernel.
        assert!(nodes().iter().all(|node| node.len() <= 40));
    }
}

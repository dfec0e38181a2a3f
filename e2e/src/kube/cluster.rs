//! The whole: guests, control plane, workers, gateway, and the product installed by its chart.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    binaries::Binaries, control_plane::ControlPlane, image_disk, images::Images, kubectl::Kubectl, worker,
};
use crate::{
    artifacts::Artifacts,
    guest::Guest,
    lab::{Lab, LabSpec, Places},
    net::Fabric,
    programs,
    roles::array::{self, Array},
    wait,
};

/// Namespace of the product.
pub const NAMESPACE: &str = "storagelink-csi";
/// Name of the helm release.
pub const RELEASE: &str = "storagelink-csi";
/// The driver.
pub const DRIVER: &str = "csi.storagelink.io";
/// Provisioner, attacher, resizer and snapshotter.
const SIDECARS: usize = 4;
const NODES_LIMIT: Duration = Duration::from_secs(180);
const HELM_LIMIT: Duration = Duration::from_secs(300);
/// Sparse: volumes are thin, and 50 of them are made at once.
const ARRAY_DISK: u64 = 256 << 30;

/// What was prepared before the lab's namespaces existed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepared {
    /// Programs.
    pub binaries: Binaries,
    /// The product's images, as `make images` left them.
    pub product_images: PathBuf,
    /// The checkout: the chart, and what Kubernetes' own suite is told of the driver.
    pub checkout: PathBuf,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The guests.
    pub lab: Lab,
    /// The control plane.
    pub control: ControlPlane,
    /// The gateway's access.
    pub array: Array,
    /// kubectl as administrator.
    pub kubectl: Kubectl,
    /// Programs and places.
    pub prepared: Prepared,
}

impl Cluster {
    /// Boots everything but the product; returns once both workers are Ready.
    pub async fn start(
        name: &str,
        artifacts: &Artifacts,
        places: &Places,
        prepared: Prepared,
    ) -> Result<Self> {
        crate::net::up().await?;
        let work = tempfile::tempdir().context("make a directory for images")?;
        let binaries = &prepared.binaries;
        let images = Images::make(binaries, &places.programs, &prepared.product_images, work.path())?;
        let disk = image_disk::prepare(&images, binaries.cache()).await?;
        drop(work);
        let spec = LabSpec {
            node_memory_mib: 2560,
            // Two of an emulator's processors wait for each other: with one each, helm's installation is Ready in half the time.
            processors: 1,
            node_disk: Some(disk),
            node_modules: worker::MODULES.to_vec(),
            array_disk_bytes: ARRAY_DISK,
            ..LabSpec::new(name, 2)
        };
        let results = places.results.join(format!(".{name}.control-plane"));
        let _ = std::fs::remove_dir_all(&results);
        let names: Vec<String> = (1..=spec.nodes).map(|number| format!("node{number}")).collect();
        let (lab, control) = tokio::try_join!(
            Lab::start(&spec, artifacts, places),
            ControlPlane::start(binaries, &results, &names)
        )?;
        let gateway = async {
            array::prepare(lab.array()).await?;
            array::start_gateway(&lab).await
        };
        let (array, (), ()) = tokio::try_join!(
            gateway,
            worker::start(lab.node(0), &control, binaries, false),
            worker::start(lab.node(1), &control, binaries, true)
        )?;
        let kubectl = control.kubectl();
        let cluster = Self {
            lab,
            control,
            array,
            kubectl,
            prepared,
        };
        cluster.nodes_ready().await?;
        Ok(cluster)
    }

    /// Waits until every worker is Ready, and its kubelet answers: a node stays Ready while its kubelet restarts.
    pub async fn nodes_ready(&self) -> Result<Duration> {
        wait::until("both workers are Ready", NODES_LIMIT, async || {
            let nodes = self.kubectl.list(&["nodes"]).await?;
            let ready = nodes.iter().filter(|node| condition(node, "Ready")).count();
            if ready != self.lab.nodes().len() {
                return Ok(false);
            }
            for node in &nodes {
                let name = node["metadata"]["name"].as_str().unwrap_or_default();
                let health = format!("/api/v1/nodes/{name}/proxy/healthz");
                if self.kubectl.run(&["get", "--raw", &health]).await.is_err() {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }

    /// The guest of a node.
    #[must_use]
    pub fn guest(&self, node: usize) -> &Guest {
        self.lab.node(node)
    }

    /// The number of the node with this name.
    pub fn number(&self, name: &str) -> Result<usize> {
        self.lab
            .nodes()
            .iter()
            .position(|guest| guest.name() == name)
            .with_context(|| format!("no node {name:?}"))
    }

    /// The namespace, and the Secret of the service: what an administrator has before the chart.
    pub async fn prepare_namespace(&self) -> Result<()> {
        self.kubectl
            .apply(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
                    .to_string(),
            )
            .await?;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "array-credentials", "namespace": NAMESPACE},
            "stringData": {"username": array::USER, "password": self.array.password},
        });
        self.kubectl.apply(&secret.to_string()).await
    }

    /// The values of the lab's installation.
    #[must_use]
    pub fn values(&self) -> Value {
        json!({
            "service": {
                "target": self.lab.array().address(Fabric::Management),
                "fingerprint": self.array.fingerprint,
                "existingSecret": "array-credentials",
            },
            "fabrics": {"a": ["198.18.0.0/24"], "b": ["198.18.1.0/24"]},
            "storageClasses": [{
                "name": "storagelink",
                "parameters": {"system": array::SYSTEM, "aggregate": array::AGGREGATE_NAME},
                "allowVolumeExpansion": true,
            }],
            "volumeSnapshotClasses": [{"name": "storagelink"}],
        })
    }

    /// `helm upgrade --install` with these values; returns once everything is Ready.
    pub async fn install(&self, values: &Value) -> Result<()> {
        self.helm(
            &[
                "upgrade",
                "--install",
                RELEASE,
                "CHART",
                "--wait",
                "--timeout=280s",
                "--values=-",
            ],
            values,
        )
        .await
        .map(drop)
    }

    /// `helm uninstall`; returns once nothing of the product runs.
    pub async fn uninstall(&self) -> Result<()> {
        self.helm(&["uninstall", RELEASE, "--wait", "--timeout=280s"], &Value::Null)
            .await?;
        // helm does not wait for pods.
        self.kubectl.delete(&["-n", NAMESPACE, "pods", "--all"]).await
    }

    /// Waits until one replica of each sidecar leads; a sidecar's container is Ready long before.
    pub async fn sidecars_lead(&self) -> Result<()> {
        wait::until("every sidecar has a leader", HELM_LIMIT, async || {
            let leases = self.kubectl.list(&["-n", NAMESPACE, "leases"]).await?;
            let led = leases
                .iter()
                .filter(|lease| {
                    lease["spec"]["holderIdentity"]
                        .as_str()
                        .is_some_and(|holder| !holder.is_empty())
                })
                .count();
            ensure!(led == SIDECARS, "{led} of {SIDECARS} sidecars have a leader");
            Ok(true)
        })
        .await
        .map(drop)
    }

    /// Runs helm in the product's namespace; the word CHART stands for the chart's directory.
    pub async fn helm(&self, arguments: &[&str], values: &Value) -> Result<String> {
        let chart = self.prepared.checkout.join("charts/storagelink-csi");
        let home = self.lab.results().join("helm");
        let mut argv = vec![
            self.prepared.binaries.helm().into_os_string(),
            "--kubeconfig".into(),
            self.kubectl.kubeconfig().as_os_str().to_owned(),
            "--namespace".into(),
            NAMESPACE.into(),
        ];
        for argument in arguments {
            match *argument {
                "CHART" => argv.push(chart.clone().into_os_string()),
                word => argv.push(word.into()),
            }
        }
        let env: HashMap<String, String> = ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"]
            .map(|name| (name.to_owned(), home.to_string_lossy().into_owned()))
            .into();
        let stdin = values.to_string();
        let done = programs::run(&argv, &env, stdin.as_bytes(), HELM_LIMIT)
            .await
            .context("run helm")?;
        if done.exit != 0 {
            let pods = self
                .kubectl
                .run(&["-n", NAMESPACE, "describe", "pods"])
                .await
                .unwrap_or_default();
            bail!(
                "helm {}: exit {}: {}\n{pods}",
                arguments.join(" "),
                done.exit,
                String::from_utf8_lossy(&done.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Writes what the cluster says of itself into the results: objects, events, logs of the product's pods.
    pub async fn collect(&self) -> Result<PathBuf> {
        let directory = self.lab.results().join("cluster");
        std::fs::create_dir_all(&directory).context("make the directory for the cluster's state")?;
        for (file, arguments) in [
            (
                "objects.txt",
                vec![
                    "get",
                    "all,pvc,pv,volumeattachments,csinodes,csistoragecapacities",
                    "-A",
                    "-o",
                    "wide",
                ],
            ),
            (
                "events.txt",
                vec!["get", "events", "-A", "--sort-by=.lastTimestamp"],
            ),
            ("describe.txt", vec!["describe", "pods", "-A"]),
        ] {
            let text = self
                .kubectl
                .run(&arguments)
                .await
                .unwrap_or_else(|error| format!("{error:#}"));
            write(&directory, file, &text)?;
        }
        for pod in self
            .kubectl
            .list(&["pods", "-n", NAMESPACE])
            .await
            .unwrap_or_default()
        {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let arguments = [
                "logs",
                "-n",
                NAMESPACE,
                name,
                "--all-containers",
                "--prefix",
                "--tail=-1",
            ];
            let text = self
                .kubectl
                .run(&arguments)
                .await
                .unwrap_or_else(|error| format!("{error:#}"));
            write(&directory, &format!("{name}.log"), &text)?;
        }
        Ok(directory)
    }
}

fn write(directory: &Path, file: &str, text: &str) -> Result<()> {
    std::fs::write(directory.join(file), text).with_context(|| format!("write {file}"))
}

/// Whether a condition of an object is True.
#[must_use]
pub fn condition(object: &Value, name: &str) -> bool {
    object["status"]["conditions"]
        .as_array()
        .is_some_and(|all| all.iter().any(|c| c["type"] == name && c["status"] == "True"))
}

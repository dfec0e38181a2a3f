//! The objects that suites apply, as a user of the cluster writes them.

use anyhow::Result;
use serde_json::{Value, json};

use super::{images, kubectl::Kubectl};

/// Where a pod sees its volume.
pub const DATA: &str = "/data";
/// Where a pod sees its raw block volume.
pub const DEVICE: &str = "/dev/volume";

/// A claim.
#[derive(Debug, Clone)]
pub struct Claim<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its StorageClass.
    pub class: &'a str,
    /// A quantity.
    pub size: &'a str,
    /// Access modes.
    pub modes: &'a [&'a str],
    /// Raw block instead of a file system.
    pub block: bool,
}

impl<'a> Claim<'a> {
    /// 1 GiB of a file system for one node.
    #[must_use]
    pub fn new(name: &'a str, class: &'a str) -> Self {
        Self {
            name,
            class,
            size: "1Gi",
            modes: &["ReadWriteOnce"],
            block: false,
        }
    }

    /// The claim's specification.
    #[must_use]
    pub fn spec(&self) -> Value {
        json!({
            "accessModes": self.modes,
            "storageClassName": self.class,
            "volumeMode": if self.block { "Block" } else { "Filesystem" },
            "resources": {"requests": {"storage": self.size}},
        })
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": self.name}, "spec": self.spec(),
        })
    }
}

/// A pod with one volume from a claim, doing nothing until somebody runs a program in it.
#[derive(Debug, Clone)]
pub struct Pod<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its claim.
    pub claim: &'a str,
    /// The claim is a raw block volume.
    pub block: bool,
    /// The node it must run on.
    pub node: Option<&'a str>,
}

impl<'a> Pod<'a> {
    /// With a file system, on any node.
    #[must_use]
    pub fn new(name: &'a str, claim: &'a str) -> Self {
        Self {
            name,
            claim,
            block: false,
            node: None,
        }
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> Value {
        let mut spec = pod_spec(self.block, "sleep 2147483647");
        spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": self.claim}}]);
        if let Some(node) = self.node {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.name, "labels": {"app": self.name}},
               "spec": spec})
    }
}

/// A pod's specification without its volumes: the volume `data`, and this shell command.
#[must_use]
pub fn pod_spec(block: bool, command: &str) -> Value {
    let mut container = json!({
        "name": "app", "image": images::WRITER, "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", command],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    });
    if block {
        container["volumeDevices"] = json!([{"name": "data", "devicePath": DEVICE}]);
    } else {
        container["volumeMounts"] = json!([{"name": "data", "mountPath": DATA}]);
    }
    json!({
        "containers": [container],
        // A shell as process 1 does not hear SIGTERM.
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": false,
        // They talk to nobody, and a network of its own is three more programs to start for each.
        "hostNetwork": true,
    })
}

/// Makes pods with a label come to all nodes alike.
pub fn spread(spec: &mut Value, label: &str, value: &str) {
    spec["topologySpreadConstraints"] = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {label: value}},
    }]);
}

/// A StatefulSet whose pods write checksummed blocks until told to stop; see [`super::writers`].
#[must_use]
pub fn writers(name: &str, replicas: u32, class: &str, command: &str) -> Value {
    let mut spec = pod_spec(false, command);
    // The log of acknowledged writes is the machine's: it outlives the node.
    spec["volumes"] = json!([{"name": "ack", "hostPath": {"path": crate::agent::RESULTS}}]);
    if let Some(mounts) = spec["containers"][0]["volumeMounts"].as_array_mut() {
        mounts.push(json!({"name": "ack", "mountPath": "/ack"}));
    }
    spread(&mut spec, "app", name);
    let mut template = Claim::new("data", class).spec();
    template["resources"] = json!({"requests": {"storage": "1Gi"}});
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {
            "serviceName": name, "replicas": replicas, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": template}],
        },
    })
}

/// A StorageClass of the driver.
#[must_use]
pub fn class(name: &str, parameters: &Value) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": super::cluster::DRIVER, "parameters": parameters,
        "allowVolumeExpansion": true, "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate",
    })
}

/// The label by which the objects of a suite are told from those of others.
pub const SUITE: &str = "suite";

/// `kubectl apply` of objects of a suite.
pub async fn create(kubectl: &Kubectl, suite: &str, objects: &[Value]) -> Result<()> {
    let mut objects = objects.to_vec();
    for object in &mut objects {
        object["metadata"]["labels"][SUITE] = json!(suite);
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    kubectl.apply(&list.to_string()).await
}

/// Selects the objects of a suite.
#[must_use]
pub fn selector(suite: &str) -> String {
    format!("{SUITE}={suite}")
}

/// Deletes the pods, claims and classes of a suite, and waits until they are gone.
pub async fn delete(kubectl: &Kubectl, suite: &str) -> Result<()> {
    let label = selector(suite);
    for kinds in ["pods,persistentvolumeclaims", "storageclasses"] {
        kubectl.delete(&[kinds, "-l", &label]).await?;
    }
    Ok(())
}

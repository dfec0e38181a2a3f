//! Where the service's password is: in its Secret, and nowhere else that somebody could read.

use anyhow::{Context as _, Result, ensure};

use crate::{
    kube::{
        cluster::{Cluster, NAMESPACE},
        writers::Writers,
    },
    report::Report,
};

/// Looks at a cluster with a volume in use.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let writers = report
        .step(
            "a volume in use",
            Writers::start(cluster, "secrets", 1, "storagelink"),
        )
        .await?;
    drop(
        report
            .step(
                "no API object but the Secret holds the password",
                objects(cluster),
            )
            .await,
    );
    drop(
        report
            .step("no log and no argument of a process holds it", processes(cluster))
            .await,
    );
    report
        .step("pod and claim are deleted", writers.delete(cluster))
        .await
}

/// The password, and as Kubernetes shows a Secret's data.
fn forms(cluster: &Cluster) -> [String; 2] {
    use base64::Engine as _;
    let password = cluster.array.password.clone();
    let encoded = base64::engine::general_purpose::STANDARD.encode(&password);
    [password, encoded]
}

async fn objects(cluster: &Cluster) -> Result<()> {
    let kinds = cluster
        .kubectl
        .run(&["api-resources", "--verbs=list", "-o", "name"])
        .await?;
    let mut looked = 0;
    for kind in kinds.lines().filter(|kind| *kind != "secrets") {
        // What one may not list one cannot read here.
        let Ok(text) = cluster.kubectl.run(&["get", kind, "-A", "-o", "json"]).await else {
            continue;
        };
        looked += 1;
        for form in forms(cluster) {
            ensure!(!text.contains(&form), "an object of {kind} holds the password");
        }
    }
    ensure!(looked > 30, "looked at {looked} kinds of objects only");
    for secret in cluster.kubectl.list(&["secrets", "-A"]).await? {
        let name = secret["metadata"]["name"].as_str().unwrap_or_default();
        if name != "array-credentials" {
            let text = secret.to_string();
            for form in forms(cluster) {
                ensure!(!text.contains(&form), "Secret {name} holds the password, too");
            }
        }
    }
    Ok(())
}

async fn processes(cluster: &Cluster) -> Result<()> {
    let password = &cluster.array.password;
    for pod in cluster.kubectl.list(&["-n", NAMESPACE, "pods"]).await? {
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
        let log = cluster
            .kubectl
            .run(&["-n", NAMESPACE, "logs", name, "--all-containers", "--tail=-1"])
            .await?;
        ensure!(
            !log.contains(password.as_str()),
            "the log of {name} holds the password"
        );
    }
    for guest in cluster.lab.nodes() {
        // Also environments and what the kubelet logged; the Secret's own volume is where it belongs.
        let arguments = guest
            .shell("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' || true")
            .await?;
        ensure!(
            arguments.lines().count() > 50,
            "too few arguments seen on {}",
            guest.name()
        );
        ensure!(
            !arguments.contains(password.as_str()),
            "an argument or an environment on {} holds the password",
            guest.name()
        );
        for log in ["kubelet", "containerd", "iscsid"] {
            ensure!(
                !guest.log(log)?.contains(password.as_str()),
                "{log}'s log on {} holds the password",
                guest.name()
            );
        }
    }
    Ok(())
}

//! A host that lacks something: the plugin loads what it may load and names the rest, on the node and on the pod that waits for
//! it; the pod runs once it is there. And a host that is told by its annotations to do without multipathing.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::upgrade::plugins_ready;
use crate::{
    kube::{
        cluster::Cluster,
        objects::{self, Claim, Pod},
        worker::ISCSID,
    },
    report::Report,
    wait,
};

const NAME: &str = "host";
/// The Node's annotation.
const MULTIPATHING: &str = "storagelink.io/multipathing";
/// A module that nothing holds while the node has no volume.
const MODULE: &str = "dm_round_robin";
/// The kubelet pulls a dead container up again, and the kubelet's calls have pauses that grow.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the steps in order; whatever happens, the host has its iscsid again at the end.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let lacking = lacking(report, cluster).await;
    let guest = cluster.guest(0);
    let again = report
        .step("iscsid starts: the pod runs", async {
            guest.spawn(ISCSID, &["iscsid", "--foreground"], &[]).await?;
            if lacking.is_err() {
                return Ok(());
            }
            let pod = ["pod", NAME];
            let phase = cluster.kubectl.until(&pod, ".status.phase", "Running", LIMIT);
            phase.await.map(drop)
        })
        .await;
    let switched = match (&lacking, &again) {
        (Ok(()), Ok(())) => switched(report, cluster).await,
        _ => Ok(()),
    };
    let annotation = format!("{MULTIPATHING}-");
    let annotated = cluster
        .kubectl
        .run(&["annotate", "node", guest.name(), &annotation])
        .await;
    objects::delete(&cluster.kubectl, NAME).await?;
    lacking.and(again).and(switched).and(annotated.map(drop))
}

/// A value that is not allowed, then multipathing off for the next stage of a volume that is in use.
async fn switched(report: &Report, cluster: &Cluster) -> Result<()> {
    let (guest, program) = (cluster.guest(0), cluster.lab.program("mpathutil"));
    let annotate = async |value: &str| {
        let annotation = format!("{MULTIPATHING}={value}");
        let argv = ["annotate", "--overwrite", "node", guest.name(), &annotation];
        cluster.kubectl.run(&argv).await.map(drop)
    };
    let text = report
        .step(
            "an annotation with a value that is not allowed is an Event of the Node",
            async {
                annotate("maybe").await?;
                let words = ["WrongAnnotation", MULTIPATHING, "\"maybe\"", "true or false"];
                cluster.kubectl.told("Node", guest.name(), &words, LIMIT).await
            },
        )
        .await?;
    report.note(text);
    let text = report
        .step("multipathing off: the volume in use is pending restage", async {
            annotate("false").await?;
            let words = ["MultipathingChanged", "off"];
            cluster.kubectl.told("Node", guest.name(), &words, LIMIT).await?;
            let list = guest.exec(&[&program, "list"]).await?;
            ensure!(list.contains("naa."), "the volume has no map: {list}");
            let words = ["PendingRestage", "without"];
            let told = cluster
                .kubectl
                .told("PersistentVolumeClaim", NAME, &words, LIMIT)
                .await?;
            let list = guest.exec(&[&program, "list"]).await?;
            ensure!(list.contains("pending restage"), "{list}");
            Ok(told)
        })
        .await?;
    report.note(text);
    report
        .step("its next pod has it over one disk without a map", async {
            cluster.kubectl.delete(&["pod", NAME]).await?;
            wait::until("the volume is unstaged", LIMIT, async || {
                Ok(guest.exec(&[&program, "list"]).await?.is_empty())
            })
            .await?;
            let pod = Pod {
                node: Some(guest.name()),
                ..Pod::new(NAME, NAME)
            };
            objects::create(&cluster.kubectl, NAME, &[pod.object()]).await?;
            let pod = ["pod", NAME];
            cluster
                .kubectl
                .until(&pod, ".status.phase", "Running", LIMIT)
                .await?;
            wait::until("mpathutil list says so", LIMIT, async || {
                let list = guest.exec(&[&program, "list"]).await?;
                Ok(list.lines().count() == 1 && list.contains("without multipathing"))
            })
            .await?;
            let maps = guest.shell("ls -d /sys/block/dm-* 2>/dev/null | wc -l").await?;
            ensure!(maps.trim() == "0", "{maps} maps");
            Ok(())
        })
        .await
}

async fn lacking(report: &Report, cluster: &Cluster) -> Result<()> {
    let guest = cluster.guest(0);
    let text = report
        .step(
            "without iscsid and a module the plugin loads the module, and the node's Event names open-iscsi",
            async {
                guest.kill(ISCSID, Signal::SIGKILL as i32).await?;
                guest.wait(ISCSID, Duration::from_secs(10)).await?;
                guest.exec(&["modprobe", "--remove", MODULE]).await?;
                guest
                    .exec(&["pkill", "-KILL", "-f", "storagelink-csi node"])
                    .await?;
                let words = ["HostNotReady", "iscsid", "open-iscsi"];
                let told = cluster.kubectl.told("Node", guest.name(), &words, LIMIT).await?;
                let modules = guest.read("/proc/modules").await?;
                ensure!(
                    modules.lines().any(|line| line.starts_with(MODULE)),
                    "{MODULE} was not loaded again"
                );
                plugins_ready(cluster).await?;
                Ok(told)
            },
        )
        .await?;
    report.note(text);
    let text = report
        .step("a pod on it waits, and its Event says what for", async {
            let pod = Pod {
                node: Some(guest.name()),
                ..Pod::new(NAME, NAME)
            };
            let objects = [Claim::new(NAME, "storagelink").object(), pod.object()];
            objects::create(&cluster.kubectl, NAME, &objects).await?;
            let words = ["FailedMount", "iscsid is not running", "open-iscsi"];
            cluster.kubectl.told("Pod", NAME, &words, LIMIT).await
        })
        .await?;
    report.note(text);
    let phase = cluster.kubectl.field(&["pod", NAME], ".status.phase").await?;
    ensure!(phase == "Pending", "the pod is {phase}");
    Ok(())
}

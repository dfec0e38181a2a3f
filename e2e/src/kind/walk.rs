//! The steps: what a user of a cluster does with volumes, and what becomes of them while a fabric is cut.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    cluster, docker, leftovers,
    paths::{self, Path},
    settings::{AGGREGATE, ARRAY, FABRICS, Fabric, SYSTEM, Settings},
    target,
};
use crate::{
    kube::{
        cluster::NAMESPACE,
        kubectl::Kubectl,
        objects::{self, Claim, DEVICE, Pod},
    },
    report::{Report, seconds},
    wait,
    writer::{verify::Verdict, write::Summary},
};

/// Label and StorageClass of everything that is made here.
const NAME: &str = "e2e-kind";
const CLAIM: &str = "data";
const POD: &str = "writer";
const BLOCK: &str = "block";
const GROWN: &str = "2Gi";
/// 2 GiB.
const GROWN_BYTES: &str = "2147483648";
/// Requests of each path that show it in use.
const REQUESTS: u64 = 20;
/// Acknowledged writes that show that writing goes on.
const WRITES: usize = 50;
/// 50 writes a second over 512 blocks of 4 KiB; what is acknowledged is logged in the pod.
const WRITE: &str = "lab-writer write --target /data/file --log /tmp/ack --jobs 1 --blocks 512 --every-ms 20 >/tmp/summary 2>/tmp/errors & echo $! >/tmp/writer";

/// A cluster with the chart installed, and what the steps share.
#[derive(Debug)]
pub struct Walk<'a> {
    settings: &'a Settings,
    report: &'a Report,
    kubectl: Kubectl,
}

impl<'a> Walk<'a> {
    /// Over the walk's cluster.
    #[must_use]
    pub fn new(settings: &'a Settings, report: &'a Report) -> Self {
        Self {
            settings,
            report,
            kubectl: cluster::kubectl(settings),
        }
    }

    /// Runs the steps in order; the first that fails ends the walk.
    pub async fn run(&self) -> Result<()> {
        let report = self.report;
        report
            .step(
                "a class without aggregate: the claim waits, its Event lists the choices",
                self.choices(),
            )
            .await?;
        report
            .step(
                "the class is corrected: the claim binds, a pod runs on it",
                self.first_pod(),
            )
            .await?;
        report
            .step(
                "two sessions, two active paths, requests on both",
                self.both_paths(),
            )
            .await?;
        report
            .step("a writer of checksummed blocks", self.start_writer())
            .await?;
        let [a, _] = FABRICS;
        report
            .step(
                "fabric a is cut (network disconnected): writes go on over fabric b",
                self.cut(a),
            )
            .await?;
        report
            .step("fabric a is healed: both paths carry by themselves", self.heal(a))
            .await?;
        report
            .step(
                "no write failed, every acknowledged one is there",
                self.stop_writer(),
            )
            .await?;
        report.step("the volume grows under its pod", self.grow()).await?;
        report
            .step("a raw block volume, written, grown and read back", self.block())
            .await?;
        report
            .step(
                "the pod moves to the other worker and finds its data",
                self.move_pod(),
            )
            .await?;
        report
            .step("pods, claims and class are deleted", self.delete())
            .await?;
        report
            .step(
                "nothing is left in cluster, container and host",
                self.nothing_left(),
            )
            .await
    }

    fn limit(&self, seconds: u64) -> Duration {
        self.settings.limit(seconds)
    }

    fn note(&self, text: impl std::fmt::Display) {
        self.report.say(format!("      {text}"));
    }

    /// Applies objects. An API server that was busy when it was asked is asked again.
    async fn create(&self, objects: &[Value]) -> Result<()> {
        wait::until("the API server takes the objects", self.limit(30), async || {
            objects::create(&self.kubectl, NAME, objects).await?;
            Ok(true)
        })
        .await
        .map(drop)
    }

    async fn sh(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl.exec("default", pod, &["sh", "-ec", script]).await
    }

    async fn running(&self, pod: &str) -> Result<()> {
        self.kubectl
            .until(&["pod", pod], ".status.phase", "Running", self.limit(240))
            .await
            .map(drop)
    }

    async fn choices(&self) -> Result<()> {
        let class = objects::class(NAME, &json!({"system": SYSTEM}));
        self.create(&[class, Claim::new(CLAIM, NAME).object()]).await?;
        let words = [AGGREGATE, "GiB free", "parameters[aggregate]"];
        let event = self
            .kubectl
            .told("PersistentVolumeClaim", CLAIM, &words, self.limit(120))
            .await?;
        let phase = self.kubectl.field(&["pvc", CLAIM], ".status.phase").await?;
        ensure!(phase == "Pending", "the claim is {phase}");
        self.note(event);
        Ok(())
    }

    async fn first_pod(&self) -> Result<()> {
        self.kubectl.delete(&["storageclass", NAME]).await?;
        let class = objects::class(NAME, &json!({"system": SYSTEM, "aggregate": AGGREGATE}));
        self.create(&[class, Pod::new(POD, CLAIM).object()]).await?;
        self.kubectl
            .until(&["pvc", CLAIM], ".status.phase", "Bound", self.limit(180))
            .await?;
        self.running(POD).await
    }

    /// Id of the volume behind the claim.
    async fn volume(&self) -> Result<String> {
        let volume = self.kubectl.field(&["pvc", CLAIM], ".spec.volumeName").await?;
        self.kubectl
            .field(&["pv", &volume], ".spec.csi.volumeHandle")
            .await
    }

    async fn node_of(&self, pod: &str) -> Result<String> {
        self.kubectl.field(&["pod", pod], ".spec.nodeName").await
    }

    /// Runs mpathutil in the node plugin of the node that the pod is on.
    async fn mpathutil(&self, arguments: &[&str]) -> Result<String> {
        let selector = format!("spec.nodeName={}", self.node_of(POD).await?);
        let labels = "app.kubernetes.io/component=node";
        let what = [
            "pods",
            "-n",
            NAMESPACE,
            "-l",
            labels,
            "--field-selector",
            &selector,
        ];
        let plugin = self.kubectl.field(&what, ".items[0].metadata.name").await?;
        let argv: Vec<&str> = std::iter::once("mpathutil")
            .chain(arguments.iter().copied())
            .collect();
        self.kubectl.exec(NAMESPACE, &plugin, &argv).await
    }

    async fn paths(&self) -> Result<Vec<Path>> {
        paths::of(
            &self.mpathutil(&["list", "-o", "json"]).await?,
            &self.volume().await?,
        )
    }

    async fn show_paths(&self) -> Result<()> {
        let text = self.mpathutil(&["status"]).await?;
        text.lines().for_each(|line| self.note(line));
        Ok(())
    }

    async fn both_paths(&self) -> Result<()> {
        let sessions = leftovers::volumes();
        let sessions = sessions
            .iter()
            .filter(|left| matches!(left, leftovers::Left::Session(_)))
            .count();
        ensure!(sessions == 2, "{sessions} sessions instead of 2");
        let before = self.paths().await?;
        ensure!(
            before.len() == 2 && before.iter().all(Path::is_usable),
            "{before:?}"
        );
        self.sh(
            POD,
            "dd if=/dev/zero of=/data/first bs=4096 count=200 oflag=direct,dsync 2>&1 && rm /data/first",
        )
        .await?;
        self.carries(&before).await?;
        self.show_paths().await
    }

    /// Waits until every path of two has carried requests since a look.
    async fn carries(&self, before: &[Path]) -> Result<Duration> {
        wait::until("requests on both paths", self.limit(60), async || {
            let now = self.paths().await?;
            let requests = paths::requests(before, &now);
            ensure!(
                now.len() == 2 && requests.iter().all(|count| *count >= REQUESTS),
                "{requests:?} on {now:?}"
            );
            Ok(true)
        })
        .await
    }

    async fn start_writer(&self) -> Result<()> {
        self.sh(POD, WRITE).await?;
        self.progress().await
    }

    async fn acknowledged(&self) -> Result<usize> {
        let count = self.sh(POD, "wc -l </tmp/ack").await?;
        count
            .trim()
            .parse()
            .with_context(|| format!("{count:?} acknowledged writes"))
    }

    /// Waits until so many more writes are acknowledged.
    async fn progress(&self) -> Result<()> {
        let before = self.acknowledged().await?;
        wait::until("writes go on", self.limit(60), async || {
            let now = self.acknowledged().await?;
            ensure!(
                now >= before + WRITES,
                "{before} acknowledged writes became {now}"
            );
            Ok(true)
        })
        .await
        .map(drop)
    }

    async fn cut(&self, fabric: Fabric) -> Result<()> {
        docker::cut(fabric).await?;
        wait::until("the path is out", self.limit(60), async || {
            let paths = self.paths().await?;
            let over = |path: &&Path| path.portal.starts_with(&format!("{}:", fabric.portal));
            let dead = paths.iter().find(over).is_none_or(|path| !path.is_usable());
            let alive = paths.iter().any(|path| !over(&path) && path.is_usable());
            ensure!(dead && alive, "{paths:?}");
            Ok(true)
        })
        .await?;
        let event = self
            .kubectl
            .told("PersistentVolumeClaim", CLAIM, &[fabric.portal], self.limit(60))
            .await?;
        self.note(event);
        self.progress().await?;
        self.show_paths().await
    }

    async fn heal(&self, fabric: Fabric) -> Result<()> {
        let before = self.paths().await?;
        docker::connect(fabric).await?;
        let took = self.carries(&before).await?;
        self.note(format!(
            "both paths carry again {} after the fabric returned",
            seconds(took)
        ));
        self.show_paths().await
    }

    async fn stop_writer(&self) -> Result<()> {
        self.progress().await?;
        self.sh(POD, "kill -TERM $(cat /tmp/writer)").await?;
        let mut summary = None;
        wait::until("the writer stops", self.limit(60), async || {
            let text = self.sh(POD, "cat /tmp/summary /tmp/errors").await?;
            let found: Summary =
                serde_json::from_str(&text).with_context(|| format!("the writer said {text:?}"))?;
            summary = Some(found);
            Ok(true)
        })
        .await?;
        let summary = summary.context("no summary")?;
        ensure!(summary.errors == 0 && summary.writes > 0, "{summary:?}");
        self.verify().await?;
        let longest = Duration::from_micros(summary.longest_us);
        self.note(format!(
            "{} writes, the longest {}",
            summary.writes,
            seconds(longest)
        ));
        Ok(())
    }

    /// Reads back everything that the pod's log says was acknowledged.
    async fn verify(&self) -> Result<()> {
        let text = self
            .sh(POD, "lab-writer verify --target /data/file --log /tmp/ack")
            .await?;
        let verdict: Verdict = serde_json::from_str(&text).with_context(|| text.clone())?;
        ensure!(verdict.wrong == 0 && verdict.acknowledged > 0, "{verdict:?}");
        Ok(())
    }

    async fn grow_claim(&self, claim: &str) -> Result<()> {
        let patch = json!({"spec": {"resources": {"requests": {"storage": GROWN}}}}).to_string();
        self.kubectl
            .run(&["patch", "pvc", claim, "--type=merge", "-p", &patch])
            .await?;
        self.kubectl
            .until(
                &["pvc", claim],
                ".status.capacity.storage",
                GROWN,
                self.limit(240),
            )
            .await
            .map(drop)
    }

    async fn grow(&self) -> Result<()> {
        // KiB; the line may be broken behind a long name.
        let size = async || {
            let text = self.sh(POD, "df -k /data | awk 'END { print $(NF-4) }'").await?;
            text.parse::<u64>().with_context(|| format!("{text:?} KiB"))
        };
        let small = size().await?;
        self.grow_claim(CLAIM).await?;
        let large = size().await?;
        ensure!(large > small + 700_000, "{small} KiB became {large} KiB");
        self.verify().await?;
        self.note(format!("{} MiB became {} MiB", small / 1024, large / 1024));
        Ok(())
    }

    async fn block(&self) -> Result<()> {
        let mut claim = Claim::new(BLOCK, NAME);
        claim.block = true;
        let mut pod = Pod::new(BLOCK, BLOCK);
        pod.block = true;
        self.create(&[claim.object(), pod.object()]).await?;
        self.running(BLOCK).await?;
        let write = format!("lab-writer write --target {DEVICE} --log /tmp/ack --seconds 2 --blocks 64");
        self.sh(BLOCK, &write).await?;
        self.grow_claim(BLOCK).await?;
        wait::until("the device has grown", self.limit(60), async || {
            let size = self.sh(BLOCK, &format!("blockdev --getsize64 {DEVICE}")).await?;
            ensure!(size == GROWN_BYTES, "{size} bytes");
            Ok(true)
        })
        .await?;
        let verify = format!("lab-writer verify --target {DEVICE} --log /tmp/ack");
        self.sh(BLOCK, &verify).await.map(drop)
    }

    async fn move_pod(&self) -> Result<()> {
        let log = self.sh(POD, "cat /tmp/ack").await?;
        let from = self.node_of(POD).await?;
        let nodes = cluster::nodes();
        let other = nodes[1..].iter().find(|node| **node != from);
        let mut pod = Pod::new(POD, CLAIM);
        pod.node = Some(other.context("there is no other worker")?);
        self.kubectl.delete(&["pod", POD]).await?;
        self.create(&[pod.object()]).await?;
        self.running(POD).await?;
        self.kubectl
            .run_with(
                &["exec", "-i", POD, "--", "sh", "-c", "cat >/tmp/ack"],
                format!("{log}\n").as_bytes(),
            )
            .await?;
        self.verify().await?;
        self.note(format!("from {from} to {}", self.node_of(POD).await?));
        Ok(())
    }

    async fn delete(&self) -> Result<()> {
        delete(&self.kubectl).await
    }

    async fn nothing_left(&self) -> Result<()> {
        // A session that ends by itself is looked for every 30 s.
        wait::until("nothing is left", self.limit(120), async || {
            let objects = self.kubectl.list(&["pv,volumeattachments"]).await?;
            ensure!(
                objects.is_empty(),
                "{} volumes and attachments are left in the cluster",
                objects.len()
            );
            let records =
                docker::docker(&["exec", ARRAY, "find", target::MOUNT, "-name", "record.json"]).await?;
            ensure!(records.is_empty(), "left in the container: {records}");
            let objects = target::own().volumes();
            ensure!(objects.is_empty(), "left in the kernel's target: {objects:?}");
            let left = leftovers::volumes();
            ensure!(left.is_empty(), "left on the host: {}", leftovers::spelled(&left));
            for node in cluster::nodes() {
                let mounts = docker::docker(&["exec", &node, "cat", "/proc/mounts"]).await?;
                let left: Vec<&str> = mounts.lines().filter(|line| is_volume(line)).collect();
                ensure!(left.is_empty(), "left mounted on {node}: {left:?}");
            }
            Ok(true)
        })
        .await
        .map(drop)
    }
}

/// Deletes the pods, claims and class of a walk, if there are any.
pub async fn delete(kubectl: &Kubectl) -> Result<()> {
    objects::delete(kubectl, NAME).await
}

/// Whether a line of /proc/mounts is a volume of the driver: by the kubelet's directories for it.
fn is_volume(line: &str) -> bool {
    line.split(' ').nth(1).is_some_and(|place| {
        place.contains("/plugins/kubernetes.io/csi/csi.storagelink.io/")
            || place.contains("/volumes/kubernetes.io~csi/")
            || place.contains("/csi/volumeDevices/")
    })
}

#[cfg(test)]
mod tests {
    use super::is_volume;

    #[test]
    fn a_volume_is_known_by_where_the_kubelet_mounts_it() {
        let staged = "/dev/dm-0 /var/lib/kubelet/plugins/kubernetes.io/csi/csi.storagelink.io/ab/globalmount ext4 rw 0 0";
        let published = "/dev/dm-0 /var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pvc-1/mount ext4 rw 0 0";
        let token =
            "tmpfs /var/lib/kubelet/pods/u/volumes/kubernetes.io~projected/kube-api-access-x tmpfs rw 0 0";
        assert!(is_volume(staged) && is_volume(published) && !is_volume(token));
    }
}

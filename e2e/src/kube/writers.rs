//! Pods that write checksummed blocks: started with a StatefulSet, stopped and verified from inside the pod.
//!
//! A log of acknowledged writes is on the machine, per node and pod: it is there when the node is not.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::Value;

use super::{cluster::Cluster, objects};
use crate::{
    wait,
    writer::{verify::Verdict, write::Summary},
};

/// The first start of a pod formats its volume, on emulated processors.
const READY_LIMIT: Duration = Duration::from_secs(300);

/// What a writing pod does: write ten times a second, which leaves emulated processors to the cluster, until told to
/// stop; leave a summary, wait. A pod that finds the file there, because it
/// was moved, leaves it alone.
const COMMAND: &str = "if [ ! -e /data/file ]; then
  lab-writer write --target /data/file --log /ack/$POD_NAME.ack --jobs 1 --blocks 512 --every-ms 100 > /ack/$POD_NAME.summary &
  echo $! > /tmp/writer; wait; fi; exec sleep 2147483647";

/// One pod of a set.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name.
    pub pod: String,
    /// Number of the worker it runs on.
    pub node: usize,
    /// Id of its volume.
    pub volume: String,
}

/// A running set of writers in the namespace `default`.
#[derive(Debug)]
pub struct Writers {
    name: String,
    replicas: u32,
}

impl Writers {
    /// Starts them and waits until each has acknowledged writes.
    pub async fn start(cluster: &Cluster, name: &str, replicas: u32, class: &str) -> Result<Self> {
        let set = objects::writers(name, replicas, class, COMMAND);
        cluster.kubectl.apply(&set.to_string()).await?;
        let writers = Self {
            name: name.to_owned(),
            replicas,
        };
        writers.ready(cluster, READY_LIMIT).await?;
        writers
            .all_progress(cluster, &writers.places(cluster).await?)
            .await?;
        Ok(writers)
    }

    /// Waits until every pod is Ready.
    pub async fn ready(&self, cluster: &Cluster, limit: Duration) -> Result<Duration> {
        let object = ["statefulset", self.name.as_str()];
        let wanted = self.replicas.to_string();
        cluster
            .kubectl
            .until(&object, ".status.readyReplicas", &wanted, limit)
            .await
    }

    /// Names of the pods.
    #[must_use]
    pub fn pods(&self) -> Vec<String> {
        (0..self.replicas)
            .map(|number| format!("{}-{number}", self.name))
            .collect()
    }

    /// The node that a pod runs on.
    pub async fn node(&self, cluster: &Cluster, pod: &str) -> Result<usize> {
        let name = cluster.kubectl.field(&["pod", pod], ".spec.nodeName").await?;
        cluster.number(&name)
    }

    /// Where all pods run and what they write to.
    pub async fn places(&self, cluster: &Cluster) -> Result<Vec<Place>> {
        let selector = format!("app={}", self.name);
        let pods = cluster.kubectl.list(&["pods", "-l", &selector]).await?;
        let volumes = cluster.kubectl.list(&["pv"]).await?;
        let place = |pod: String| {
            let found = pods
                .iter()
                .find(|object| object["metadata"]["name"] == pod.as_str());
            let node = found.and_then(|object| object["spec"]["nodeName"].as_str());
            let claim = format!("data-{pod}");
            let volume = volumes
                .iter()
                .find(|object| object["spec"]["claimRef"]["name"] == claim.as_str());
            let handle = volume.and_then(|object| object["spec"]["csi"]["volumeHandle"].as_str());
            Ok(Place {
                node: cluster.number(node.with_context(|| format!("{pod} runs nowhere"))?)?,
                volume: handle.with_context(|| format!("{pod} has no volume"))?.to_owned(),
                pod,
            })
        };
        self.pods().into_iter().map(place).collect()
    }

    /// Waits until every pod has acknowledged another 20 writes.
    pub async fn all_progress(&self, cluster: &Cluster, places: &[Place]) -> Result<()> {
        let one = async |place: &Place| {
            let lines = || self.acknowledged(cluster, place.node, &place.pod);
            let before = lines();
            wait::until(
                &format!("{} writes", place.pod),
                Duration::from_secs(60),
                async || Ok(lines() >= before + 20),
            )
            .await
        };
        try_join_all(places.iter().map(one)).await.map(drop)
    }

    /// Acknowledged writes in the pod's log of a node.
    pub fn acknowledged(&self, cluster: &Cluster, node: usize, pod: &str) -> usize {
        lines(&self.log(cluster, node, pod))
    }

    fn log(&self, cluster: &Cluster, node: usize, pod: &str) -> PathBuf {
        cluster.guest(node).results().join(format!("{pod}.ack"))
    }

    /// Stops the writer of a pod and proves from inside that no write failed and every acknowledged one is there.
    pub async fn stop(&self, cluster: &Cluster, pod: &str) -> Result<Summary> {
        let node = self.node(cluster, pod).await?;
        cluster
            .kubectl
            .exec("default", pod, &["sh", "-c", "kill -TERM $(cat /tmp/writer)"])
            .await?;
        let file = cluster.guest(node).results().join(format!("{pod}.summary"));
        let mut summary = None;
        wait::until(&format!("{pod} stops"), Duration::from_secs(60), async || {
            summary = serde_json::from_slice::<Summary>(&std::fs::read(&file)?).ok();
            Ok(summary.is_some())
        })
        .await?;
        let summary = summary.context("no summary")?;
        ensure!(summary.errors == 0 && summary.writes > 0, "{pod}: {summary:?}");
        self.verify(cluster, pod).await?;
        Ok(summary)
    }

    /// Reads back everything that the log of the pod's node says was acknowledged.
    pub async fn verify(&self, cluster: &Cluster, pod: &str) -> Result<Verdict> {
        let node = self.node(cluster, pod).await?;
        self.verify_from(cluster, pod, node).await
    }

    /// Reads back everything that the pod's log of another node, where it ran before, says was acknowledged.
    pub async fn verify_from(&self, cluster: &Cluster, pod: &str, old: usize) -> Result<Verdict> {
        let here = self.node(cluster, pod).await?;
        if here != old {
            std::fs::copy(self.log(cluster, old, pod), self.log(cluster, here, pod))
                .with_context(|| format!("copy the log of {pod}"))?;
        }
        let log = format!("/ack/{pod}.ack");
        let argv = ["lab-writer", "verify", "--target", "/data/file", "--log", &log];
        let text = cluster.kubectl.exec("default", pod, &argv).await?;
        let verdict: Verdict = serde_json::from_str(&text).with_context(|| format!("{pod}: {text}"))?;
        ensure!(
            verdict.wrong == 0 && verdict.acknowledged > 0,
            "{pod}: {verdict:?}"
        );
        Ok(verdict)
    }

    /// Stops and verifies all; the longest single write.
    pub async fn stop_all(&self, cluster: &Cluster) -> Result<Duration> {
        let pods = self.pods();
        let stopped = try_join_all(pods.iter().map(|pod| self.stop(cluster, pod))).await?;
        let longest = stopped.iter().map(|summary| summary.longest_us).max();
        Ok(Duration::from_micros(longest.unwrap_or_default()))
    }

    /// Deletes pods and claims and waits until they are gone; volumes go a little later.
    pub async fn delete(&self, cluster: &Cluster) -> Result<()> {
        cluster
            .kubectl
            .delete(&["statefulset", &self.name, "--cascade=foreground"])
            .await?;
        // The set's own policy deletes them, later.
        let claims: Vec<String> = self.pods().iter().map(|pod| format!("data-{pod}")).collect();
        let mut what = vec!["pvc"];
        what.extend(claims.iter().map(String::as_str));
        cluster.kubectl.delete(&what).await
    }
}

fn lines(log: &Path) -> usize {
    std::fs::read(log).map_or(0, |log| log.iter().filter(|&&byte| byte == b'\n').count())
}

/// The volume id behind a claim.
pub async fn volume_of(cluster: &Cluster, claim: &str) -> Result<String> {
    let volume = cluster.kubectl.field(&["pvc", claim], ".spec.volumeName").await?;
    let handle = cluster
        .kubectl
        .field(&["pv", &volume], ".spec.csi.volumeHandle")
        .await?;
    ensure!(!handle.is_empty(), "claim {claim} has no volume");
    Ok(handle)
}

/// Waits until the cluster has no PersistentVolume and no VolumeAttachment.
pub async fn no_volumes(cluster: &Cluster) -> Result<()> {
    wait::until(
        "no volume is left in the cluster",
        Duration::from_secs(180),
        async || {
            let left: Vec<Value> = cluster.kubectl.list(&["pv,volumeattachments"]).await?;
            ensure!(left.is_empty(), "{} objects are left", left.len());
            Ok(true)
        },
    )
    .await
    .map(drop)
}

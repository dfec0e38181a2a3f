//! `make bench-kube`: what a user of the cluster waits for, and what the product's pods take. Figures go into
//! `docs/benchmarks.md`; nothing here is an assertion about time.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::many;
use crate::{
    figures::{Part, Rounds},
    kube::{
        cluster::Cluster,
        objects::{self, Claim, Pod},
        writers,
    },
    programs::output,
    report::{Report, seconds},
};

const ROUNDS: usize = 7;

/// One row: what was measured, and every round of it.
struct Row(&'static str, Rounds);

/// Measures and writes.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let mut rows = [
        Row("pod with an emptyDir: created to Ready", Rounds::default()),
        Row("claim: created to Bound", Rounds::default()),
        Row(
            "pod with the new volume (ext4 is made): created to Ready",
            Rounds::default(),
        ),
        Row(
            "pod with the same volume, second start: created to Ready",
            Rounds::default(),
        ),
        Row("pod with a volume: deleted to gone", Rounds::default()),
    ];
    for round in 0..ROUNDS {
        report
            .step(&format!("round {} of {ROUNDS}", round + 1), async {
                for (row, took) in rows.iter_mut().zip(one(cluster).await?) {
                    row.1.push(took);
                }
                Ok(())
            })
            .await?;
    }
    let memory = memory(cluster).await?;
    let times = many::run(report, cluster).await?;
    let date = output(&["date", "-u", "+%F"]).await?;
    let part = part(&rows, &memory, &times, date.trim());
    report.note_lines(&part);
    Part::of_bench("make bench-kube").write(&part)
}

/// One round, each figure in the order of the rows.
async fn one(cluster: &Cluster) -> Result<[Duration; 5]> {
    let mut plain = Pod::new("plain", "").object();
    plain["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    let pod = Pod::new("bench", "bench").object();
    let empty = ready(cluster, &plain, "pod/plain").await?;
    cluster.kubectl.delete(&["pod", "plain"]).await?;
    let bound = applied(
        cluster,
        &Claim::new("bench", "storagelink").object(),
        "jsonpath={.status.phase}=Bound",
        "pvc/bench",
    )
    .await?;
    let first = ready(cluster, &pod, "pod/bench").await?;
    cluster.kubectl.delete(&["pod", "bench"]).await?;
    let second = ready(cluster, &pod, "pod/bench").await?;
    let start = Instant::now();
    cluster.kubectl.delete(&["pod", "bench"]).await?;
    let gone = start.elapsed();
    cluster.kubectl.delete(&["pvc", "bench"]).await?;
    writers::no_volumes(cluster).await?;
    Ok([empty, bound, first, second, gone])
}

async fn ready(cluster: &Cluster, object: &serde_json::Value, name: &str) -> Result<Duration> {
    applied(cluster, object, "condition=Ready", name).await
}

/// From `kubectl apply` until a watch says so.
async fn applied(cluster: &Cluster, object: &serde_json::Value, what: &str, name: &str) -> Result<Duration> {
    let start = Instant::now();
    objects::create(&cluster.kubectl, "bench", std::slice::from_ref(object)).await?;
    cluster
        .kubectl
        .wait(&[name], what, Duration::from_secs(110))
        .await?;
    Ok(start.elapsed())
}

/// Resident memory in KiB of each program of the product and its sidecars: the largest on any node.
async fn memory(cluster: &Cluster) -> Result<BTreeMap<String, u64>> {
    // Not this shell: the names are in its arguments.
    let script = "for p in /proc/[0-9]*; do [ $p != /proc/$$ ] || continue; n=$(tr '\\0' ' ' < $p/cmdline 2>/dev/null); case \"$n\" in \
                  *storagelink-csi\\ node*) n=storagelink-csi-node;; *storagelink-csi\\ controller*) n=storagelink-csi-controller;; \
                  */csi-*) n=${n%% *}; n=${n##*/};; *) continue;; esac; echo $n $(awk '/VmRSS/ { print $2 }' $p/status); done";
    let mut all = BTreeMap::new();
    for guest in cluster.lab.nodes() {
        for line in guest.shell(script).await?.lines() {
            let Some((name, kib)) = line.split_once(' ') else {
                continue;
            };
            let kib: u64 = kib.trim().parse().with_context(|| format!("memory of {line}"))?;
            let known = all.entry(name.to_owned()).or_insert(0);
            *known = kib.max(*known);
        }
    }
    Ok(all)
}

fn part(rows: &[Row], memory: &BTreeMap<String, u64>, times: &many::Times, date: &str) -> String {
    let mut text = format!(
        "Measured on {date}, {ROUNDS} rounds; two emulated workers (QEMU tcg, a processor each) on a machine of 2 cores.\n\n\
         | | median | worst |\n| --- | --- | --- |\n"
    );
    for Row(name, rounds) in rows {
        let _ = writeln!(
            text,
            "| {name} | {} | {} |",
            seconds(rounds.median()),
            seconds(rounds.worst())
        );
    }
    let _ = writeln!(
        text,
        "\nOne run of 50 claims and pods at once: all Bound after {}, all Running after {}; deleted at once: nothing left after {}.\n",
        seconds(times.bound),
        seconds(times.running),
        seconds(times.gone)
    );
    text += "| program | resident memory |\n| --- | --- |\n";
    for (name, kib) in memory {
        #[allow(clippy::cast_precision_loss, reason = "a figure to read")]
        let _ = writeln!(text, "| {name} | {:.1} MiB |", *kib as f64 / 1024.0);
    }
    text
}

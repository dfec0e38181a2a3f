//! Many volumes at once on one node: each call is answered in its time, each volume is its own map, and all of it goes again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    cluster::{Cluster, Form},
    leftovers::Before,
    volume::Volume,
};
use crate::{
    report::{Report, seconds},
    roles::inspect,
};

const COUNT: usize = 30;
/// Calls at one time: what the sidecars and the kubelet have in flight (`--worker-threads` and the like are 10 by default).
const AT_ONCE: usize = 10;
const SIZE: i64 = 128 << 20;

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let before = Before::look(cluster).await?;
    let names: Vec<String> = (0..COUNT).map(|number| format!("many-{number}")).collect();
    let create = async |name: &String| Ok(cluster.create(name, SIZE, Form::Mount("ext4")).await?);
    let volumes = phase(report, "created", &names, create).await?;
    let attach = async |volume: &Volume| Ok(cluster.attach(volume, 0).await?);
    let contexts = phase(report, "mapped to a node", &volumes, attach).await?;
    let pairs: Vec<_> = volumes.iter().zip(contexts).collect();
    phase(report, "staged", &pairs, async |(volume, context)| {
        volume.make_directories(cluster.guest(0)).await?;
        Ok(cluster.stage(volume, 0, context).await?)
    })
    .await?;
    report
        .step("each is a map of two paths of its own", async {
            let maps = inspect::paths_of_all(cluster.guest(0)).await?;
            for volume in &volumes {
                let paths = maps.get(&volume.map()).map_or(0, Vec::len);
                ensure!(paths == 2, "{} has {paths} paths", volume.id);
            }
            Ok(())
        })
        .await?;
    phase(report, "unstaged", &volumes, async |volume| {
        cluster.unstage(volume, 0).await?;
        volume.remove_directories(cluster.guest(0)).await
    })
    .await?;
    phase(report, "unmapped", &volumes, async |volume| {
        Ok(cluster.detach(volume, 0).await?)
    })
    .await?;
    phase(report, "deleted", &volumes, async |volume| {
        Ok(cluster.delete(volume).await?)
    })
    .await?;
    report
        .step("nothing is left", async { before.nothing_left(cluster).await })
        .await
}

/// One kind of call for every volume, [`AT_ONCE`] at a time, as one step; the answers in order.
async fn phase<A, T>(
    report: &Report,
    what: &str,
    all: &[A],
    call: impl AsyncFn(&A) -> Result<T>,
) -> Result<Vec<T>> {
    let call = &call;
    let calls = stream::iter(all)
        .map(async |one| {
            let start = Instant::now();
            let answer = call(one).await?;
            Ok((answer, start.elapsed()))
        })
        .buffered(AT_ONCE);
    let answers: Vec<(T, Duration)> = report
        .step(&format!("{COUNT} volumes are {what}"), calls.try_collect())
        .await?;
    let mut times: Vec<Duration> = answers.iter().map(|(_, took)| *took).collect();
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    report.say(format!(
        "      one call: median {}, longest {}",
        seconds(median),
        seconds(longest)
    ));
    Ok(answers.into_iter().map(|(answer, _)| answer).collect())
}

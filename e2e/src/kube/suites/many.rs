//! Fifty claims and pods at once, and gone at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::all_are;
use crate::{
    kube::{
        cluster::Cluster,
        objects::{self, Claim, Pod},
    },
    report::{Report, seconds},
    wait,
};

const SUITE: &str = "many";
const COUNT: usize = 50;
const LIMIT: Duration = Duration::from_secs(900);

/// A path that is missing is tried again after at most a minute.
const LATE_PATHS: Duration = Duration::from_secs(90);

/// Times of one run.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// From the claims to all of them Bound.
    pub bound: Duration,
    /// From the claims to all pods Running.
    pub running: Duration,
    /// From the deletion to no volume left.
    pub gone: Duration,
}

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<Times> {
    let names: Vec<String> = (0..COUNT).map(|number| format!("many-{number:02}")).collect();
    let start = Instant::now();
    let objects: Vec<Value> = names
        .iter()
        .flat_map(|name| {
            let mut pod = Pod::new(name, name).object();
            objects::spread(&mut pod["spec"], objects::SUITE, SUITE);
            [Claim::new(name, "storagelink").object(), pod]
        })
        .collect();
    objects::create(&cluster.kubectl, SUITE, &objects).await?;
    let bound = report
        .step("50 claims are Bound", async {
            all_are(cluster, "pvc", "Bound", LIMIT).await?;
            Ok(start.elapsed())
        })
        .await?;
    let running = report
        .step("50 pods run", async {
            all_are(cluster, "pods", "Running", LIMIT).await?;
            Ok(start.elapsed())
        })
        .await?;
    report
        .step(
            "each volume is one map of two paths on its node",
            // A path that was not there in time comes behind the others.
            wait::until("maps of two paths", LATE_PATHS, async || {
                let mut maps = 0;
                for guest in cluster.lab.nodes() {
                    let script = "for dm in /sys/block/dm-*; do ls $dm/slaves | wc -l; done";
                    let paths = guest.shell(script).await?;
                    maps += paths.lines().count();
                    ensure!(
                        paths.lines().all(|number| number == "2"),
                        "paths of the maps: {paths}"
                    );
                }
                ensure!(maps == COUNT, "{maps} maps");
                Ok(true)
            }),
        )
        .await?;
    let start = Instant::now();
    let gone = report
        .step("all are deleted at once", async {
            let label = objects::selector(SUITE);
            cluster
                .kubectl
                .run(&["delete", "pods,pvc", "-l", &label, "--wait=false"])
                .await?;
            wait::until("no volume is left", LIMIT, async || {
                Ok(cluster
                    .kubectl
                    .list(&["pods,pvc,pv,volumeattachments"])
                    .await?
                    .is_empty())
            })
            .await?;
            Ok(start.elapsed())
        })
        .await?;
    let times = Times { bound, running, gone };
    report.say(format!(
        "      50 at once: Bound {}, Running {}, deleted {}",
        seconds(times.bound),
        seconds(times.running),
        seconds(times.gone)
    ));
    Ok(times)
}

//! Killed at any instruction, either side goes on: SIGKILL of gateway, controller and node plugin at several moments of each
//! call. The retried call must succeed, and in the end nothing may be left.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    cluster::{Cluster, Form, Refused, Victim},
    leftovers::Before,
    volume::Volume,
};
use crate::{report::Report, wait};

const SIZE: i64 = 256 << 20;
/// When the kill comes, in percent of the time the call took undisturbed.
const MOMENTS: [u32; 4] = [5, 30, 60, 90];
/// A sidecar retries for ever; here a retried call must be through by then.
const RETRY_LIMIT: Duration = Duration::from_secs(60);

/// The calls in the order of a volume's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Create,
    Attach,
    Stage,
    Publish,
    Unpublish,
    Unstage,
    Detach,
    Delete,
}

impl Call {
    const LIFE: [Self; 8] = [
        Self::Create,
        Self::Attach,
        Self::Stage,
        Self::Publish,
        Self::Unpublish,
        Self::Unstage,
        Self::Detach,
        Self::Delete,
    ];

    fn is_of_the_node(self) -> bool {
        matches!(
            self,
            Self::Stage | Self::Publish | Self::Unpublish | Self::Unstage
        )
    }
}

/// A volume and its context as far as its life went.
#[derive(Default)]
struct Life {
    volume: Option<Volume>,
    context: HashMap<String, String>,
}

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &mut Cluster) -> Result<()> {
    let before = Before::look(cluster).await?;
    let times = report
        .step("every call undisturbed, for its time", undisturbed(cluster))
        .await?;
    for victim in [Victim::Gateway, Victim::Controller, Victim::Plugin] {
        let mut met = 0;
        for moment in MOMENTS {
            met += report
                .step(
                    &format!("SIGKILL of the {victim:?} at {moment} % of each of its calls"),
                    one_life(cluster, victim, moment, &times),
                )
                .await?;
        }
        // A controller that waits for its gateway to come back answers all the same: those cannot be told.
        if victim != Victim::Gateway {
            report
                .step(
                    &format!("the death of the {victim:?} met {met} calls in flight"),
                    async {
                        ensure!(met >= 4, "the moments are wrong");
                        Ok(())
                    },
                )
                .await?;
        }
    }
    report
        .step("nothing is left on the node and on the array", async {
            before.nothing_left(cluster).await
        })
        .await
}

async fn undisturbed(cluster: &Cluster) -> Result<Vec<Duration>> {
    let mut life = Life::default();
    let mut times = Vec::new();
    for call in Call::LIFE {
        let start = Instant::now();
        make(cluster, call, &mut life, "kill-none").await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// A volume's life with one death in each of the victim's calls; how many calls failed of it.
async fn one_life(cluster: &mut Cluster, victim: Victim, moment: u32, times: &[Duration]) -> Result<u32> {
    let mut life = Life::default();
    let mut met = 0;
    let name = format!("kill-{victim:?}-{moment}").to_lowercase();
    for (call, time) in Call::LIFE.into_iter().zip(times) {
        if call.is_of_the_node() == (victim == Victim::Plugin) {
            let death = async {
                // The moment is the experiment, not a way to wait for something.
                tokio::time::sleep(*time * moment / 100).await;
                cluster.kill(victim).await
            };
            // The call goes on while its server dies: what it answers does not matter, what it left does.
            let (answer, reborn) = tokio::join!(make(cluster, call, &mut life, &name), death);
            let reborn = reborn.with_context(|| format!("{call:?}: death and rebirth of the {victim:?}"))?;
            cluster.meet(reborn);
            met += u32::from(answer.is_err());
        }
        retry(cluster, call, &mut life, &name).await?;
    }
    Ok(met)
}

/// Calls until it succeeds, as a sidecar does.
async fn retry(cluster: &Cluster, call: Call, life: &mut Life, name: &str) -> Result<Duration> {
    wait::until(&format!("{call:?} again"), RETRY_LIMIT, async || {
        make(cluster, call, life, name).await?;
        Ok(true)
    })
    .await
}

async fn make(cluster: &Cluster, call: Call, life: &mut Life, name: &str) -> Result<()> {
    if call == Call::Create {
        life.volume = Some(cluster.create(name, SIZE, Form::Mount("ext4")).await?);
        return Ok(());
    }
    let volume = life.volume.as_ref().context("no volume yet")?;
    if call == Call::Stage {
        volume.make_directories(cluster.guest(0)).await?;
    }
    let answer: Result<(), Refused> = match call {
        Call::Create => Ok(()),
        Call::Attach => cluster
            .attach(volume, 0)
            .await
            .map(|context| life.context = context),
        Call::Stage => cluster.stage(volume, 0, &life.context).await,
        Call::Publish => cluster.publish(volume, 0, &life.context).await,
        Call::Unpublish => cluster.unpublish(volume, 0).await,
        Call::Unstage => cluster.unstage(volume, 0).await,
        Call::Detach => cluster.detach(volume, 0).await,
        Call::Delete => cluster.delete(volume).await,
    };
    answer?;
    if call == Call::Detach {
        // Only once: a repeated detach finds them gone.
        if cluster
            .guest(0)
            .exec(&["test", "-e", &volume.staging()])
            .await
            .is_ok()
        {
            volume.remove_directories(cluster.guest(0)).await?;
        }
    }
    Ok(())
}

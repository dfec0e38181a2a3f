//! What is proved on a Kubernetes cluster. One boot and one installation serve all suites of a run; each leaves the
//! cluster as it found it, which is looked at after each. Suites that disturb nobody run at the same time.

pub mod adopt;
pub mod bench;
pub mod choices;
pub mod conformance;
pub mod demo;
pub mod drain;
pub mod fabrics;
pub mod fence;
pub mod forms;
pub mod host;
pub mod iscsid;
pub mod life;
pub mod many;
pub mod outages;
pub mod rbac;
pub mod secrets;
pub mod statics;
pub mod topology;
pub mod upgrade;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use futures_util::{StreamExt as _, stream};
use tokio::{
    fs,
    io::{AsyncBufReadExt as _, BufReader},
};

use super::{
    binaries::Binaries,
    cluster::{Cluster, Prepared},
    leftovers::Before,
};
use crate::{
    artifacts::{self, Artifacts},
    lab::Places,
    net::Fabric,
    report::Report,
};

/// A suite by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KubeSuite {
    /// Boot and install, then wait for SIGINT: a cluster to work with by hand
    Up,
    /// From a claim to a pod that writes over both paths, and back to nothing
    Life,
    /// A class that does not say where
    Choices,
    /// Six writers and a cut of each fabric
    Fabrics,
    /// The driver killed and upgraded, the kubelet restarted, under load
    Upgrade,
    /// File systems, raw block, sharing, growing
    Forms,
    /// A worker frozen and declared out of service
    Fence,
    /// Controller, API server and gateway go away
    Outages,
    /// PersistentVolumes by hand
    Statics,
    /// LUNs that existed before, by their names
    Adopt,
    /// A host without iscsid and a module
    Host,
    /// iscsid in the plugin's container
    Iscsid,
    /// Fifty claims and pods at once
    Many,
    /// A node that loses its routes to the array
    Topology,
    /// A node drained and removed
    Drain,
    /// The part of Kubernetes' external storage suite that CI runs
    External,
    /// All of Kubernetes' external storage suite; writes docs/conformance.md
    ExternalAll,
    /// Those of it that failed, again
    ExternalFailed,
    /// The audit log against the granted rights
    Rbac,
    /// Where the service's password is, and where not
    Secrets,
    /// A claim, a pod and a cut fabric, to watch
    Demo,
    /// What a user waits for, written to docs/benchmarks.md
    Bench,
    /// Every suite that `make test` runs
    All,
}

impl KubeSuite {
    /// The suites behind this name, in the order to run them.
    fn members(self) -> Vec<Self> {
        match self {
            Self::All => vec![
                // First: on workers that have done much already fifty pods take half as long again. What QEMU has translated by then does not fit
                // into a processor's caches any more.
                Self::Many,
                // The longest of those that run at the same time first.
                Self::Forms,
                Self::Life,
                Self::Choices,
                Self::Statics,
                Self::Adopt,
                Self::Fabrics,
                Self::Upgrade,
                Self::Fence,
                Self::Outages,
                Self::Host,
                Self::Iscsid,
                Self::Topology,
                Self::Drain,
                Self::External,
                // They look at what the others did.
                Self::Rbac,
                Self::Secrets,
            ],
            one => vec![one],
        }
    }

    /// It needs nothing but its own objects. Not [`Self::Adopt`]: targetcli reads all of configfs and gives up when a mapping goes away
    /// under it.
    fn is_quiet(self) -> bool {
        use KubeSuite::{Choices, Forms, Life, Statics};
        matches!(self, Life | Choices | Forms | Statics)
    }

    async fn run(self, report: &Report, cluster: &Cluster) -> Result<()> {
        match self {
            Self::Up => by_hand(report, cluster).await,
            Self::Life => life::run(report, cluster).await,
            Self::Choices => choices::run(report, cluster).await,
            Self::Fabrics => fabrics::run(report, cluster).await,
            Self::Upgrade => upgrade::run(report, cluster).await,
            Self::Forms => forms::run(report, cluster).await,
            Self::Fence => fence::run(report, cluster).await,
            Self::Outages => outages::run(report, cluster).await,
            Self::Statics => statics::run(report, cluster).await,
            Self::Adopt => adopt::run(report, cluster).await,
            Self::Host => host::run(report, cluster).await,
            Self::Iscsid => iscsid::run(report, cluster).await,
            Self::Many => many::run(report, cluster).await.map(drop),
            Self::Demo => demo::run(report, cluster).await,
            Self::Bench => bench::run(report, cluster).await,
            Self::Topology => topology::run(report, cluster).await,
            Self::Drain => drain::run(report, cluster).await,
            Self::External => conformance::chosen(report, cluster).await,
            Self::ExternalAll => conformance::all(report, cluster).await,
            Self::ExternalFailed => conformance::failed(report, cluster).await,
            Self::Rbac => rbac::run(report, cluster).await,
            Self::Secrets => secrets::run(report, cluster).await,
            // Its members run.
            Self::All => Ok(()),
        }
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// How many suites run at the same time: more would only wait for a processor.
const SIDE_BY_SIDE: usize = 3;

/// What runs at the same time: suites that leave nodes, network, chart and control plane as they are, in order.
fn rounds(suites: &[KubeSuite]) -> Vec<Vec<KubeSuite>> {
    let mut rounds: Vec<Vec<KubeSuite>> = Vec::new();
    for suite in suites.iter().flat_map(|suite| suite.members()) {
        match rounds.last_mut() {
            Some(round) if suite.is_quiet() && round.iter().all(|other| other.is_quiet()) => {
                round.push(suite);
            }
            _ => rounds.push(vec![suite]),
        }
    }
    rounds
}

/// Boots the cluster, installs the chart and runs the suites; a failed step ends its suite, not the others. True when
/// every step passed.
pub async fn run(
    suites: &[KubeSuite],
    images: &Path,
    artifacts: &Artifacts,
    places: &Places,
) -> Result<bool> {
    let report = match suites {
        [KubeSuite::Demo | KubeSuite::Bench] => Report::verbose(),
        _ => Report::default(),
    };
    let boot = report.suite("cluster");
    let prepared = Prepared {
        binaries: Binaries::find(&artifacts::cache_directory())?,
        product_images: images.to_owned(),
        checkout: Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the checkout")?
            .to_owned(),
    };
    let cluster = boot
        .step(
            "boot an array and two workers, start Kubernetes",
            Cluster::start(&format!("kube-{}", suites[0].name()), artifacts, places, prepared),
        )
        .await?;
    let installed = boot
        .step("helm install", async {
            cluster.prepare_namespace().await?;
            cluster.install(&cluster.values()).await?;
            cluster.sidecars_lead().await
        })
        .await;
    if installed.is_ok() {
        for round in rounds(suites) {
            side_by_side(&report, &cluster, &round).await?;
        }
    } else if suites.contains(&KubeSuite::Up) {
        by_hand(&report, &cluster).await?;
    }
    let passed = report.close();
    if !passed {
        let place = cluster.collect().await?;
        report.say(format!("objects, events and logs: {}", place.display()));
    }
    cluster.lab.stop(passed).await?;
    Ok(passed)
}

/// Runs suites at the same time; after them the cluster is as it was before.
async fn side_by_side(report: &Report, cluster: &Cluster, suites: &[KubeSuite]) -> Result<()> {
    let before = Before::look(cluster).await?;
    let running = suites.iter().map(|suite| {
        let report = report.suite(&suite.name());
        async move { suite.run(&report, cluster).await }
    });
    let outcomes: Vec<Result<()>> = stream::iter(running)
        .buffer_unordered(SIDE_BY_SIDE)
        .collect()
        .await;
    let names: Vec<String> = suites.iter().map(|suite| suite.name()).collect();
    let after = report.suite(&names.join(", "));
    // Its line is printed already; the next suite finds nothing of this one.
    if outcomes.iter().any(Result::is_err) {
        if let Err(error) = clean(cluster).await {
            after.say(format!("      cannot clean up: {error:#}"));
        }
    } else if suites != [KubeSuite::Up] {
        let step = after.step(
            "nothing is left on workers, array and API server",
            before.nothing_left(cluster),
        );
        drop(step.await);
    }
    Ok(())
}

/// Keeps the cluster until SIGINT; each line that is written to a pipe is a command for a guest: `node1 mpathutil list`.
async fn by_hand(report: &Report, cluster: &Cluster) -> Result<()> {
    let pipe = cluster.lab.results().join("commands");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).context("make the pipe for commands")?;
    report.say(format!(
        "kubectl: nsenter --net --target $(pgrep --newest --exact lab) {} --kubeconfig {}\n\
         echo node1 '<shell command>' > {} runs it in that guest; it ends with SIGINT",
        cluster.prepared.binaries.kubernetes("kubectl").display(),
        cluster.kubectl.kubeconfig().display(),
        pipe.display()
    ));
    // Open for writing too: without a writer there is no end of it.
    let commands = fs::OpenOptions::new().read(true).write(true).open(&pipe).await;
    let mut lines = BufReader::new(commands.context("open the pipe for commands")?).lines();
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line.context("read the pipe for commands")?.unwrap_or_default(),
            end = tokio::signal::ctrl_c() => return end.context("wait for SIGINT"),
        };
        let (name, command) = line.split_once(' ').unwrap_or((&line, ""));
        let guests = || std::iter::once(cluster.lab.array()).chain(cluster.lab.nodes());
        match guests().find(|guest| guest.name() == name) {
            Some(guest) => match guest.shell(command).await {
                Ok(answer) => report.say(answer),
                Err(error) => report.say(format!("{error:#}")),
            },
            None => {
                let names: Vec<&str> = guests().map(crate::guest::Guest::name).collect();
                report.say(format!("no guest `{name}`, there are {}", names.join(", ")));
            }
        }
    }
}

/// Waits until every object of a kind is in a phase.
async fn all_are(cluster: &Cluster, kind: &str, phase: &str, limit: Duration) -> Result<()> {
    let condition = format!("jsonpath={{.status.phase}}={phase}");
    cluster.kubectl.wait(&[kind, "--all"], &condition, limit).await
}

/// Mends what a failed suite left cut, and deletes what it left in the cluster.
async fn clean(cluster: &Cluster) -> Result<()> {
    cluster.collect().await?;
    for fabric in Fabric::ALL {
        cluster.lab.array().heal(fabric).await?;
    }
    cluster.kubectl.delete(&["statefulsets,pods", "--all"]).await?;
    cluster.kubectl.delete(&["pvc", "--all"]).await?;
    // What the next suite finds before it begins must not go away under it.
    super::writers::no_volumes(cluster).await
}

#[cfg(test)]
mod tests {
    use super::{KubeSuite, rounds};

    #[test]
    fn only_neighbours_that_disturb_nobody_run_at_the_same_time() {
        use KubeSuite::{Choices, Fabrics, Life, Statics};
        assert_eq!(
            rounds(&[Life, Choices, Fabrics, Statics]),
            [vec![Life, Choices], vec![Fabrics], vec![Statics]]
        );
        let all = rounds(&[KubeSuite::All]);
        assert!(all.len() > 8 && all.iter().all(|round| !round.contains(&KubeSuite::All)));
    }
}

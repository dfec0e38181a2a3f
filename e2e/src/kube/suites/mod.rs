//! What is proved on a Kubernetes cluster. One boot and one installation serve all suites of a run; each leaves the
//! cluster as it found it.

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

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use tokio::{
    fs,
    io::{AsyncBufReadExt as _, BufReader},
};

use super::{
    binaries::Binaries,
    cluster::{Cluster, Prepared},
};
use crate::{
    artifacts::{self, Artifacts},
    lab::Places,
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
    /// The audit log against the granted rights
    Rbac,
    /// Where the service's password is, and where not
    Secrets,
    /// A claim, a pod and a cut fabric, to watch
    Demo,
    /// What a user waits for, written to docs/benchmarks.md
    Bench,
    /// Every suite but the last three
    All,
}

impl KubeSuite {
    /// The suites behind this name, in the order to run them.
    fn members(self) -> Vec<Self> {
        match self {
            Self::All => vec![
                Self::Life,
                Self::Choices,
                Self::Fabrics,
                Self::Upgrade,
                Self::Forms,
                Self::Fence,
                Self::Outages,
                Self::Statics,
                Self::Adopt,
                Self::Host,
                Self::Iscsid,
                Self::Many,
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

    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Boots the cluster, installs the chart and runs the suites; a failed step ends its suite, not the others. True when
/// every step passed.
pub async fn run(
    suites: &[KubeSuite],
    images: &Path,
    artifacts: &Artifacts,
    places: &Places,
) -> Result<bool> {
    let mut report = match suites {
        [KubeSuite::Demo | KubeSuite::Bench] => Report::verbose(),
        _ => Report::default(),
    };
    report.suite("cluster");
    let prepared = Prepared {
        binaries: Binaries::find(&artifacts::cache_directory())?,
        product_images: images.to_owned(),
        checkout: Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the checkout")?
            .to_owned(),
    };
    let mut cluster = report
        .step(
            "boot an array and two workers, start Kubernetes",
            Cluster::start(&format!("kube-{}", suites[0].name()), artifacts, places, prepared),
        )
        .await?;
    let installed = report
        .step("helm install", async {
            cluster.prepare_namespace().await?;
            cluster.install(&cluster.values()).await
        })
        .await;
    if installed.is_ok() {
        for suite in suites.iter().flat_map(|suite| suite.members()) {
            report.suite(&suite.name());
            let outcome = match suite {
                KubeSuite::Up => by_hand(&report, &cluster).await,
                KubeSuite::Life => life::run(&mut report, &cluster).await,
                KubeSuite::Choices => choices::run(&mut report, &cluster).await,
                KubeSuite::Fabrics => fabrics::run(&mut report, &cluster).await,
                KubeSuite::Upgrade => upgrade::run(&mut report, &cluster).await,
                KubeSuite::Forms => forms::run(&mut report, &cluster).await,
                KubeSuite::Fence => fence::run(&mut report, &cluster).await,
                KubeSuite::Outages => outages::run(&mut report, &mut cluster).await,
                KubeSuite::Statics => statics::run(&mut report, &cluster).await,
                KubeSuite::Adopt => adopt::run(&mut report, &cluster).await,
                KubeSuite::Host => host::run(&mut report, &cluster).await,
                KubeSuite::Iscsid => iscsid::run(&mut report, &cluster).await,
                KubeSuite::Many => many::run(&mut report, &cluster).await.map(drop),
                KubeSuite::Demo => demo::run(&mut report, &cluster).await,
                KubeSuite::Bench => bench::run(&mut report, &cluster).await,
                KubeSuite::Topology => topology::run(&mut report, &cluster).await,
                KubeSuite::Drain => drain::run(&mut report, &cluster).await,
                KubeSuite::External => conformance::chosen(&mut report, &cluster).await,
                KubeSuite::ExternalAll => conformance::all(&mut report, &cluster).await,
                KubeSuite::Rbac => rbac::run(&mut report, &cluster).await,
                KubeSuite::Secrets => secrets::run(&mut report, &cluster).await,
                KubeSuite::All => Ok(()),
            };
            // Its line is printed already; the next suite finds nothing of this one.
            if outcome.is_err()
                && let Err(error) = clean(&cluster).await
            {
                report.say(format!("      cannot clean up: {error:#}"));
            }
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

/// Keeps the cluster until SIGINT; each line that is written to a pipe is a command for a guest: `node1 mpathutil list`.
async fn by_hand(report: &Report, cluster: &Cluster) -> Result<()> {
    let pipe = cluster.lab.results().join("commands");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).context("make the pipe for commands")?;
    report.say(format!(
        "kubectl: {} --kubeconfig {}, in the network namespace of process {}\n\
         echo node1 '<shell command>' > {} runs it in that guest; it ends with SIGINT",
        cluster.prepared.binaries.kubernetes("kubectl").display(),
        cluster.kubectl.kubeconfig().display(),
        std::fs::read_link("/proc/self").unwrap_or_default().display(),
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

/// Deletes what a failed suite left in the cluster.
async fn clean(cluster: &Cluster) -> Result<()> {
    cluster.collect().await?;
    cluster.kubectl.delete(&["statefulsets,pods", "--all"]).await?;
    cluster.kubectl.delete(&["pvc", "--all"]).await?;
    // What the next suite finds before it begins must not go away under it.
    super::writers::no_volumes(cluster).await
}

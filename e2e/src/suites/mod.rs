//! What is proved on real kernels. One lab serves all suites: an array and two nodes, the first without udev, the second
//! with it, the controller beside the first node's plugin. Only Fibre Channel has a guest of its own.

pub mod alua;
pub mod cluster;
pub mod edges;
pub mod failover;
pub mod fc;
pub mod kill;
mod leftovers;
pub mod main_job;
pub mod many;
pub mod others;
pub mod policies;
pub mod remap;
pub mod sanity;
pub mod shared_kernel;
pub mod sharing;
pub mod switch;
pub mod tools;
pub mod volume;
pub mod wrong_wwid;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::{
    artifacts::Artifacts,
    lab::{Lab, LabSpec, Places},
    report::Report,
};
use cluster::Cluster;

/// A suite by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Create to I/O over two paths, one cut under it, and back to nothing
    MainJob,
    /// A path lost silently, by carrier, by reset, under a writer
    Failover,
    /// An array with a path in standby
    Alua,
    /// The multipath parameters of a class
    Policies,
    /// Two volumes on one target, from one node and from two
    Sharing,
    /// Two nodes on one kernel, in network namespaces of their own
    SharedKernel,
    /// A wrong identity in the publish context
    WrongWwid,
    /// Another disk under the LUN of a volume in use
    Remap,
    /// Hard cases, by their numbers in docs/edge-cases.md
    Edges,
    /// What an administrator sees: targetcli, mpathutil without the plugin, a volume that grows
    Tools,
    /// Multipathing off and on again, and what mpathutil explain and the metrics say of a lost path
    Switch,
    /// A multipathd that takes every disk, without and with what the plugin installs on the host
    Others,
    /// Thirty volumes at once on one node
    Many,
    /// The engine over two Fibre Channel fabrics, one lost, the other, both
    Fc,
    /// csi-sanity on the live sockets
    Sanity,
    /// SIGKILL of gateway, controller and node plugin in the middle of calls
    Kill,
    /// Every one of them
    All,
}

impl Suite {
    /// The suites behind this name, in the order to run them.
    fn members(self) -> Vec<Self> {
        match self {
            Self::All => vec![
                Self::Fc,
                Self::MainJob,
                Self::Failover,
                Self::Alua,
                Self::Policies,
                Self::Sharing,
                Self::SharedKernel,
                Self::WrongWwid,
                Self::Remap,
                Self::Edges,
                Self::Tools,
                Self::Switch,
                Self::Others,
                Self::Many,
                Self::Sanity,
                Self::Kill,
            ],
            one => vec![one],
        }
    }

    /// multipath-tools has to be fetched for it.
    #[must_use]
    pub fn needs_multipathd(self) -> bool {
        self.members().contains(&Self::Others)
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Boots the lab and runs the suites; a failed step ends its suite, not the others. True when every step passed.
pub async fn run(suite: Suite, artifacts: &Artifacts, places: &Places) -> Result<bool> {
    let report = Report::default();
    if suite.members().contains(&Suite::Fc) {
        // Its line is printed already.
        drop(fc::run(&report.suite(&Suite::Fc.name()), artifacts, places).await);
    }
    if suite == Suite::Fc {
        return Ok(report.close());
    }
    let whole = report.suite("lab");
    let spec = LabSpec::new(&format!("suite-{}", suite.name()), 2);
    let lab = whole
        .step(
            "boot an array and two nodes",
            Lab::start(&spec, artifacts, places),
        )
        .await?;
    // A cluster that does not come up keeps its results: the lab goes with the namespaces.
    let mut cluster = whole
        .step("start gateway, controller and node plugins", Cluster::start(lab))
        .await?;
    for suite in suite.members() {
        let report = report.suite(&suite.name());
        let outcome = match suite {
            Suite::MainJob => main_job::run(&report, &cluster).await,
            Suite::Failover => failover::run(&report, &cluster).await,
            Suite::Alua => alua::run(&report, &cluster).await,
            Suite::Policies => policies::run(&report, &cluster).await,
            Suite::Sharing => sharing::run(&report, &cluster).await,
            Suite::SharedKernel => shared_kernel::run(&report, &cluster).await,
            Suite::WrongWwid => wrong_wwid::run(&report, &cluster).await,
            Suite::Remap => remap::run(&report, &cluster).await,
            Suite::Edges => edges::run(&report, &cluster).await,
            Suite::Tools => tools::run(&report, &mut cluster).await,
            Suite::Switch => switch::run(&report, &mut cluster).await,
            Suite::Others => others::run(&report, &mut cluster, artifacts).await,
            Suite::Many => many::run(&report, &cluster).await,
            Suite::Sanity => sanity::run(&report, &cluster).await,
            Suite::Kill => kill::run(&report, &mut cluster).await,
            // Done before, in a lab of its own.
            Suite::Fc | Suite::All => Ok(()),
        };
        // Its line is printed already.
        drop(outcome);
    }
    drop(
        whole
            .step("no log holds the gateway's password", secrets(&cluster))
            .await,
    );
    let passed = report.close();
    if !passed {
        report.say(format!("consoles and logs: {}", cluster.lab.results().display()));
    }
    cluster.lab.stop(passed).await?;
    Ok(passed)
}

/// Looks through everything the programs wrote.
async fn secrets(cluster: &Cluster) -> Result<()> {
    let mut logs = 0;
    for guest in std::iter::once(cluster.lab.array()).chain(cluster.lab.nodes()) {
        let directory = guest.results();
        for entry in std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
            let path = entry.context("read a log's name")?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let log = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                let log = String::from_utf8_lossy(&log);
                ensure!(
                    !log.contains(&cluster.array.password),
                    "{} holds the password",
                    path.display()
                );
                logs += 1;
            }
        }
    }
    ensure!(logs > 3, "only {logs} logs");
    Ok(())
}

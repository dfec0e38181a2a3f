//! Figures beside the usual way, in one lab: `make bench-failover`, `make bench-stage`, `make bench-scale`. Written into
//! `docs/benchmarks.md`; nothing here is an assertion about a time.

mod failover;
mod fault;
pub(crate) mod kernel_log;
mod scale;
mod stage;
mod standby;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

pub use fault::Fault;

use crate::{
    artifacts::Artifacts,
    figures::{Part, circumstances},
    lab::{Lab, LabSpec, Places},
    report::Report,
    roles::multipathd,
    suites::cluster::Cluster,
};

/// A bench by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// The same faults under multipathd, stock and tuned, and under the plugin
    Failover,
    /// Stage and unstage, and the same by iscsiadm, multipathd, mkfs and mount
    Stage,
    /// 500 maps of four paths: memory, idle processor time, failover, adoption
    Scale,
}

/// How much is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Amount {
    /// Rounds of each figure
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Faults of `failover`; may be given more than once [default: all of them]
    #[arg(long, value_enum)]
    pub fault: Vec<Fault>,
    /// Volumes staged at once by `stage`
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=250))]
    pub volumes: u32,
    /// Seconds of rest whose processor time `scale` counts
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    pub idle: u32,
}

/// Boots a lab and measures; true when every step went well. A bench that did not end writes nothing.
pub async fn run(bench: Bench, amount: &Amount, artifacts: &Artifacts, places: &Places) -> Result<bool> {
    let report = Report::verbose();
    // Before the guests make it.
    let circumstances = circumstances(artifacts).await?;
    let mut spec = LabSpec::new(&format!("bench-{}", bench.name()), 1);
    spec.node_memory_mib = 2048;
    let outcome = if bench == Bench::Scale {
        spec.array = false;
        spec.node_memory_mib = 6144;
        let lab = report
            .step("boot a node", Lab::start(&spec, artifacts, places))
            .await?;
        let outcome = report.step("the bench", scale::run(&report, &lab, amount)).await;
        lab.stop(outcome.is_ok()).await?;
        outcome
    } else {
        let lab = report
            .step("boot an array and a node", Lab::start(&spec, artifacts, places))
            .await?;
        let tree = artifacts
            .multipath_tools
            .as_deref()
            .context("no multipath-tools")?;
        report
            .step(
                "multipath-tools in the node",
                multipathd::install(lab.node(0), tree),
            )
            .await?;
        let mut cluster = report
            .step(
                "start gateway, controller and node plugin",
                Cluster::start_with_udev(lab, |_| true),
            )
            .await?;
        let measured = async {
            match bench {
                Bench::Failover => failover::run(&report, &mut cluster, amount).await,
                _ => stage::run(&report, &mut cluster, amount).await,
            }
        };
        let outcome = report.step("the bench", measured).await;
        cluster.lab.stop(outcome.is_ok()).await?;
        outcome
    };
    if let Ok(part) = outcome {
        let part = format!("{circumstances}\n\n{part}");
        report.note_lines(&part);
        Part::of_bench(&format!("make bench-{}", bench.name())).write(&part)?;
    }
    Ok(report.close())
}

impl Bench {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

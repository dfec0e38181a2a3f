//! What is proved on a Kubernetes cluster. One boot and one installation serve all suites of a run; each leaves the
//! cluster as it found it.

pub mod choices;
pub mod fabrics;
pub mod life;

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

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
    /// Boot and install, then wait for the end of standard input: a cluster to work with by hand
    Up,
    /// From a claim to a pod that writes over both paths, and back to nothing
    Life,
    /// A class that does not say where
    Choices,
    /// Six writers and a cut of each fabric
    Fabrics,
    /// Every one of them
    All,
}

impl KubeSuite {
    fn members(self) -> Vec<Self> {
        match self {
            Self::All => vec![Self::Life, Self::Choices, Self::Fabrics],
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
pub async fn run(suite: KubeSuite, images: &Path, artifacts: &Artifacts, places: &Places) -> Result<bool> {
    let mut report = Report::default();
    report.suite("cluster");
    let prepared = Prepared {
        binaries: Binaries::find(&artifacts::cache_directory())?,
        product_images: images.to_owned(),
        checkout: Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the checkout")?
            .to_owned(),
    };
    let cluster = report
        .step(
            "boot an array and two workers, start Kubernetes",
            Cluster::start(&format!("kube-{}", suite.name()), artifacts, places, prepared),
        )
        .await?;
    let installed = report
        .step("helm install", async {
            cluster.prepare_namespace().await?;
            cluster.install(&cluster.values()).await
        })
        .await;
    if installed.is_ok() {
        for suite in suite.members() {
            report.suite(&suite.name());
            let outcome = match suite {
                KubeSuite::Up => by_hand(&report, &cluster).await,
                KubeSuite::Life => life::run(&mut report, &cluster).await,
                KubeSuite::Choices => choices::run(&mut report, &cluster).await,
                KubeSuite::Fabrics => fabrics::run(&mut report, &cluster).await,
                KubeSuite::All => Ok(()),
            };
            // Its line is printed already.
            drop(outcome);
        }
    } else if suite == KubeSuite::Up {
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

async fn by_hand(report: &Report, cluster: &Cluster) -> Result<()> {
    let process = std::process::id();
    let outside = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
    report.say(format!(
        "kubectl: {} --kubeconfig {}\nin the namespaces of process {process} as seen inside (network {})\n\
         it ends with SIGINT",
        cluster.prepared.binaries.kubernetes("kubectl").display(),
        cluster.kubectl.kubeconfig().display(),
        outside.display()
    ));
    tokio::signal::ctrl_c().await.context("wait for SIGINT")
}

//! The hard cases of docs/edge-cases.md that only a real kernel can show; each step begins with the number of its case there.
//!
//! Two halves run side by side, each with a node and its fabrics for itself: [`paths`] and then [`maps`] under a writer on the first node,
//! [`portals`] on the second.

mod maps;
mod paths;
mod portals;

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    cluster::{Cluster, Form, Victim},
    leftovers::Before,
    main_job::carried,
    volume::Volume,
};
use crate::{
    guest::Guest,
    report::Report,
    roles::{inspect, writer::Writer},
};

/// The node with the writer.
const NODE: usize = 0;
const SIZE: i64 = 256 << 20;
/// iscsid's own pauses before it logs in again are most of it.
const BACK: Duration = Duration::from_secs(30);

/// Runs both halves; the first step of a half that fails ends that half.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let before = Before::look(cluster).await?;
    let (first, second) = tokio::join!(written(report, cluster), portals::run(report, cluster));
    let outcome = first.and(second);
    report
        .step("nothing is left on both nodes and on the array", async {
            before.nothing_left(cluster).await
        })
        .await?;
    outcome
}

/// A volume under a writer on the first node.
struct Bed<'a> {
    cluster: &'a Cluster,
    volume: Volume,
    writer: Writer,
}

async fn written(report: &Report, cluster: &Cluster) -> Result<()> {
    let volume = cluster.create("edges", SIZE, Form::Mount("ext4")).await?;
    volume.bring_up(cluster, NODE).await?;
    let guest = cluster.guest(NODE);
    let writer = Writer::start(&cluster.lab, guest, "edges", &volume.data(), "direct").await?;
    let bed = Bed {
        cluster,
        volume,
        writer,
    };
    bed.both_carry().await?;
    let outcome = match paths::run(report, &bed).await {
        Ok(()) => maps::run(report, &bed).await,
        failed => failed,
    };
    report
        .step(
            "no error reached the writer, everything acknowledged is there",
            async {
                let summary = bed.writer.stop(guest, BACK).await?;
                ensure!(summary.errors == 0, "{summary:?}");
                bed.writer.verify(guest, None).await
            },
        )
        .await?;
    bed.volume.take_down(cluster, NODE).await?;
    cluster.delete(&bed.volume).await?;
    outcome
}

impl Bed<'_> {
    fn guest(&self) -> &Guest {
        self.cluster.guest(NODE)
    }

    /// Waits until each path of the volume has carried writes from now on.
    async fn both_carry(&self) -> Result<()> {
        let before = inspect::paths(self.guest(), &self.volume.map()).await?;
        carried(self.cluster, &self.volume, &before, 20, BACK).await
    }

    /// A fresh node plugin after one that was killed. Returns once it serves; its socket is where the old one's was.
    async fn next_plugin(&self) -> Result<()> {
        self.cluster.start_again(Victim::Plugin).await.map(drop)
    }
}

//! A path is lost in each way that a fabric knows, under a writer: what was in flight comes back at once, the writer sees no error, and the
//! path is used again by itself.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    cluster::{Cluster, Form},
    leftovers::Before,
    main_job::{carried, writes_avoid},
    volume::Volume,
};
use crate::{
    net::Fabric,
    report::{Report, seconds},
    roles::{inspect, writer::Writer},
};

const GIB: i64 = 1 << 30;
/// The node under test.
const NODE: usize = 0;
/// iscsid's own pauses before it logs in again are most of it.
const BACK: Duration = Duration::from_secs(20);

/// How a path is lost.
#[derive(Clone, Copy)]
enum Fault {
    /// The fabric swallows every packet.
    Silence,
    /// The node's interface loses its carrier.
    Carrier,
    /// The target resets the connection.
    Reset,
}

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let guest = cluster.guest(NODE);
    let before = Before::look(cluster).await?;
    let (volume, writer) = report
        .step("a volume is written over two paths", start(cluster))
        .await?;
    for (fault, title) in [
        (Fault::Silence, "a fabric swallows every packet, and is back"),
        (Fault::Carrier, "a link loses its carrier, and has it again"),
        (Fault::Reset, "the target resets a connection"),
    ] {
        let (longest, back) = report.step(title, lose(cluster, &volume, &writer, fault)).await?;
        report.say(format!(
            "      longest write {}; both paths carry again {} after the fault's end",
            seconds(longest),
            seconds(back)
        ));
    }
    report
        .step(
            "no error reached the writer, everything acknowledged is there",
            async {
                let summary = writer.stop(guest, Duration::from_secs(30)).await?;
                ensure!(summary.errors == 0, "{summary:?}");
                writer.verify(guest, None).await
            },
        )
        .await?;
    report
        .step("the volume is deleted, nothing is left", async {
            cluster.unpublish(&volume, NODE).await?;
            cluster.unstage(&volume, NODE).await?;
            volume.remove_directories(guest).await?;
            cluster.detach(&volume, NODE).await?;
            cluster.delete(&volume).await?;
            before.nothing_left(cluster).await
        })
        .await
}

async fn start(cluster: &Cluster) -> Result<(Volume, Writer)> {
    let guest = cluster.guest(NODE);
    let volume = cluster.create("failover", GIB, Form::Mount("ext4")).await?;
    let context = cluster.attach(&volume, NODE).await?;
    volume.make_directories(guest).await?;
    cluster.stage(&volume, NODE, &context).await?;
    cluster.publish(&volume, NODE, &context).await?;
    let writer = Writer::start(&cluster.lab, guest, "failover", &volume.data(), "direct").await?;
    let before = inspect::paths(guest, &volume.map()).await?;
    carried(cluster, &volume, &before, 100, Duration::from_secs(30)).await?;
    Ok((volume, writer))
}

/// The longest write from the fault on, and how long after its end both paths carry.
async fn lose(
    cluster: &Cluster,
    volume: &Volume,
    writer: &Writer,
    fault: Fault,
) -> Result<(Duration, Duration)> {
    let (guest, target) = (cluster.guest(NODE), cluster.lab.array());
    let acknowledged = writer.acknowledged(guest).await?.len();
    let portal = target.address(Fabric::A);
    match fault {
        Fault::Silence => guest.cut(Fabric::A).await?,
        Fault::Carrier => guest.carrier(Fabric::A, false).await?,
        Fault::Reset => {
            let filter = format!("src {portal} sport = :3260 dst {}", guest.address(Fabric::A));
            target
                .shell(&format!("ss --kill -tn state established '{filter}'"))
                .await
                .map(drop)?;
        }
    }
    writes_avoid(cluster, volume, writer, &portal).await?;
    let before = inspect::paths(guest, &volume.map()).await?;
    match fault {
        Fault::Silence => guest.heal(Fabric::A).await?,
        Fault::Carrier => guest.carrier(Fabric::A, true).await?,
        Fault::Reset => {}
    }
    let end = Instant::now();
    carried(cluster, volume, &before, 20, BACK).await?;
    let back = end.elapsed();
    let all = writer.acknowledged(guest).await?;
    let longest = all.iter().skip(acknowledged).map(|write| write.took_us).max();
    Ok((Duration::from_micros(longest.unwrap_or_default()), back))
}

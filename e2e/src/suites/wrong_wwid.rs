//! Never the wrong disk: a publish context whose WWID is not the LUN's must not get as far as a device.

use anyhow::{Context as _, Result, ensure};
use tonic::Code;

use super::cluster::{Cluster, Form};
use crate::{report::Report, roles::inspect};

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let guest = cluster.guest(0);
    let before = inspect::snapshot(guest).await?;
    for form in [Form::Mount("ext4"), Form::Block] {
        let volume = cluster.create("wrong-wwid", 256 << 20, form).await?;
        let right = cluster.attach(&volume, 0).await?;
        report
            .step(
                &format!("{form:?}: another WWID is FAILED_PRECONDITION and nothing is left of it"),
                async {
                    let mut wrong = right.clone();
                    let wwid = wrong.get_mut("wwid").context("the publish context has no wwid")?;
                    let last = wwid.pop().context("the wwid is empty")?;
                    wwid.push(if last == '0' { '1' } else { '0' });
                    volume.make_directories(guest).await?;
                    let refused = cluster
                        .stage(&volume, 0, &wrong)
                        .await
                        .err()
                        .context("it was staged")?;
                    ensure!(refused.code == Code::FailedPrecondition, "{refused}");
                    ensure!(
                        refused.message.contains(&wrong["wwid"]),
                        "the text does not name the WWID: {refused}"
                    );
                    volume.remove_directories(guest).await?;
                    inspect::same("node", &before, &inspect::snapshot(guest).await?)
                },
            )
            .await?;
        report
            .step(&format!("{form:?}: with the right one it comes up"), async {
                volume.make_directories(guest).await?;
                cluster.stage(&volume, 0, &right).await?;
                cluster.publish(&volume, 0, &right).await?;
                volume.take_down(cluster, 0).await?;
                cluster.delete(&volume).await?;
                inspect::same("node", &before, &inspect::snapshot(guest).await?)
            })
            .await?;
    }
    Ok(())
}

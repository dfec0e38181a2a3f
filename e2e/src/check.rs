//! `lab check`: the lab proves itself, without the product.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{
    artifacts::Artifacts,
    by_hand,
    lab::{Lab, LabSpec, Places},
    net::Fabric,
    report::Report,
};

/// Boots array and node, and shows that fabrics carry, are cut and heal. True when every step passed.
pub async fn run(artifacts: &Artifacts, places: &Places) -> Result<bool> {
    let report = Report::verbose();
    let spec = LabSpec::new("check", 1);
    let lab = report
        .step("boot an array and a node", Lab::start(&spec, artifacts, places))
        .await?;
    for guest in std::iter::once(lab.array()).chain(lab.nodes()) {
        let console = std::fs::read_to_string(guest.results().join("console.log")).unwrap_or_default();
        console
            .lines()
            .filter(|line| line.starts_with("lab-agent:"))
            .for_each(|line| {
                report.note(format!("{}: {line}", guest.name()));
            });
    }
    let outcome = steps(&report, &lab).await;
    let passed = report.close() && outcome.is_ok();
    lab.stop(passed).await?;
    Ok(passed)
}

async fn steps(report: &Report, lab: &Lab) -> Result<()> {
    let (array, node) = (lab.array(), lab.node(0));
    report
        .step("programs run, inputs and exit codes pass", async {
            ensure!(node.exec_with(&["tr", "a-z", "A-Z"], b"hello").await? == "HELLO");
            let done = node
                .run(&["sh", "-c", "echo no >&2; exit 3"], &[], Duration::from_secs(10))
                .await?;
            ensure!(done.exit == 3 && done.stderr == b"no\n", "{done:?}");
            let late = node.run(&["sleep", "60"], &[], Duration::from_millis(200)).await;
            ensure!(late.is_err_and(|error| error.to_string().contains("DeadlineExceeded")));
            node.write("/etc/lab/probe", "x", 0o600).await?;
            ensure!(node.exec(&["stat", "-c", "%a %s", "/etc/lab/probe"]).await? == "600 1");
            Ok(())
        })
        .await?;
    report
        .step("background programs are named, logged and killed", async {
            node.spawn("sleeper", &["sh", "-c", "echo up; sleep 60"], &[])
                .await?;
            node.kill("sleeper", 9).await?;
            ensure!(node.wait("sleeper", Duration::from_secs(5)).await? == 137);
            Ok(())
        })
        .await?;
    report
        .step("what a guest writes stays in the guest", async {
            ensure!(!std::path::Path::new("/etc/lab/probe").exists());
            Ok(())
        })
        .await?;
    for fabric in [Fabric::A, Fabric::B] {
        let there = array.address(fabric);
        let ping = ["busybox", "ping", "-c1", "-W1", &there];
        let second = Duration::from_secs(10);
        report
            .step(
                &format!("fabric {fabric:?}: carries, cut silently, heals"),
                async {
                    node.exec(&ping).await?;
                    node.cut(fabric).await?;
                    ensure!(
                        node.run(&ping, &[], second).await?.exit != 0,
                        "a cut fabric carries"
                    );
                    let carrier = format!("/sys/class/net/eth{}/carrier", fabric.number());
                    ensure!(node.read(&carrier).await?.trim() == "1", "a silent cut shows");
                    node.heal(fabric).await?;
                    node.exec(&ping).await?;
                    node.carrier(fabric, false).await?;
                    ensure!(
                        node.read(&carrier).await?.trim() == "0",
                        "a pulled cable does not show"
                    );
                    node.carrier(fabric, true).await?;
                    node.exec(&ping).await.map(drop)
                },
            )
            .await?;
    }
    report
        .step("a paused guest answers again", async {
            node.pause().await?;
            let there = node.address(Fabric::Management);
            ensure!(
                array
                    .run(
                        &["busybox", "ping", "-c1", "-W1", &there],
                        &[],
                        Duration::from_secs(10)
                    )
                    .await?
                    .exit
                    != 0
            );
            node.resume().await?;
            node.exec(&["true"]).await.map(drop)
        })
        .await?;
    by_hand::steps(report, lab).await
}

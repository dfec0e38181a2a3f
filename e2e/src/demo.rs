//! `lab demo`: the main job, to watch.

use anyhow::Result;

use crate::{
    artifacts::Artifacts,
    lab::{Lab, LabSpec, Places},
    report::Report,
    suites::{cluster::Cluster, main_job},
};

/// Boots the lab, runs the main job with everything it has to show; the last line is `demo: ok` when it went well.
pub async fn run(artifacts: &Artifacts, places: &Places) -> Result<bool> {
    let report = Report::verbose();
    let spec = LabSpec::new("demo", 1);
    let lab = report
        .step("boot an array and a node", Lab::start(&spec, artifacts, places))
        .await?;
    let cluster = report
        .step("start gateway, controller and node plugin", Cluster::start(lab))
        .await?;
    let outcome = main_job::run(&report, &cluster).await;
    let passed = outcome.is_ok() && report.failures() == 0;
    if !passed {
        report.say(format!("consoles and logs: {}", cluster.lab.results().display()));
    }
    cluster.lab.stop(passed).await?;
    report.say(if passed { "demo: ok" } else { "demo: failed" });
    Ok(passed)
}

//! csi-sanity, the conformance suite of the CSI project, on the live sockets. Built by `make` into the cache.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{cluster::Cluster, leftovers::Before};
use crate::{artifacts::cache_directory, report::Report, roles::node};

/// In the cache.
const PROGRAM: &str = "csi-sanity-v5.5.0/csi-sanity";
const LIMIT: Duration = Duration::from_secs(600);
/// Why a spec may be skipped, as csi-sanity says it: capabilities this driver does not offer yet, and one probe of how many
/// volumes a node takes that must be asked for.
const MAY_BE_SKIPPED: [&str; 3] = [
    "GroupControllerService not supported",
    "Modify volume not supported",
    "testnodevolumeattachlimit not enabled",
];

/// Runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, cluster: &Cluster) -> Result<()> {
    let before = Before::look(cluster).await?;
    let text = report
        .step("csi-sanity on the live sockets: all specs pass", specs(cluster))
        .await?;
    report.say(text);
    report
        .step("csi-sanity left nothing on the node and on the array", async {
            before.nothing_left(cluster).await
        })
        .await
}

async fn specs(cluster: &Cluster) -> Result<String> {
    let guest = cluster.guest(0);
    let program = cache_directory().join(PROGRAM);
    ensure!(
        program.exists(),
        "{} is missing: `make lab` builds it",
        program.display()
    );
    let parameters: String = cluster
        .parameters()
        .iter()
        .map(|(key, value)| format!("{key}: {value}\n"))
        .collect();
    guest.write("/etc/lab/parameters.yaml", parameters, 0o644).await?;
    guest.exec(&["mkdir", "-p", "/var/lib/sanity"]).await?;
    let program = program.display().to_string();
    let argv = [
        program.as_str(),
        &format!("--csi.endpoint=unix://{}", node::NODE_SOCKET),
        &format!("--csi.controllerendpoint=unix://{}", node::CONTROLLER_SOCKET),
        "--csi.testvolumeparameters=/etc/lab/parameters.yaml",
        "--csi.testvolumesize=536870912",
        "--csi.testvolumeexpandsize=1073741824",
        "--csi.mountdir=/var/lib/sanity/mount",
        "--csi.stagingdir=/var/lib/sanity/staging",
        "--ginkgo.no-color",
        "--ginkgo.json-report=/lab/sanity.json",
    ];
    guest.spawn("csi-sanity", &argv, &[]).await?;
    guest.wait("csi-sanity", LIMIT).await?;
    let path = guest.results().join("sanity.json");
    let report = std::fs::read(&path).with_context(|| {
        format!(
            "no report; the log's end:\n{}",
            tail(&guest.log("csi-sanity").unwrap_or_default())
        )
    })?;
    judge(&serde_json::from_slice(&report).context("read csi-sanity's report")?)
}

/// Counts specs (Ginkgo's JSON report: an array of suites with SpecReports); a failed or wrongly skipped one is the error.
fn judge(report: &Value) -> Result<String> {
    let specs = report
        .pointer("/0/SpecReports")
        .and_then(Value::as_array)
        .context("csi-sanity's report has no SpecReports")?;
    let (mut passed, mut skipped, mut wrong) = (0, 0, Vec::new());
    for spec in specs.iter().filter(|spec| text(spec, "LeafNodeType") == "It") {
        let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
        let mut name: Vec<&str> = containers.filter_map(Value::as_str).collect();
        name.push(text(spec, "LeafNodeText"));
        let name = name.join(" / ");
        let message = spec
            .pointer("/Failure/Message")
            .and_then(Value::as_str)
            .unwrap_or_default();
        match text(spec, "State") {
            "passed" => passed += 1,
            "skipped" if allowed(message) => skipped += 1,
            // Switched off by csi-sanity itself.
            "pending" => skipped += 1,
            state => wrong.push(format!("{state}: {name}: {message}")),
        }
    }
    if !wrong.is_empty() || passed == 0 {
        bail!(
            "{passed} passed, {skipped} skipped, {} not right:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
    Ok(format!(
        "csi-sanity: {passed} passed, 0 failed, {skipped} skipped for what is not offered"
    ))
}

fn allowed(message: &str) -> bool {
    let message = message.replace("ControllerModifyVolume", "Modify volume");
    MAY_BE_SKIPPED
        .iter()
        .any(|reason| message.eq_ignore_ascii_case(reason))
}

fn text<'a>(spec: &'a Value, key: &str) -> &'a str {
    spec[key].as_str().unwrap_or_default()
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    fn spec(name: &str, state: &str, message: &str) -> serde_json::Value {
        json!({"LeafNodeType": "It", "LeafNodeText": name, "State": state, "Failure": {"Message": message},
               "ContainerHierarchyTexts": ["Controller"]})
    }

    #[test]
    fn a_skip_for_what_is_offered_is_wrong() {
        let report = |specs: Vec<serde_json::Value>| json!([{ "SpecReports": specs }]);
        let good = report(vec![
            spec("works", "passed", ""),
            spec("x", "skipped", "Modify volume not supported"),
        ]);
        assert_eq!(
            super::judge(&good).unwrap(),
            "csi-sanity: 1 passed, 0 failed, 1 skipped for what is not offered"
        );
        let bad = report(vec![
            spec("works", "passed", ""),
            spec("x", "skipped", "GetCapacity not supported"),
        ]);
        assert!(
            super::judge(&bad)
                .unwrap_err()
                .to_string()
                .contains("GetCapacity")
        );
        let failed = report(vec![spec("works", "passed", ""), spec("x", "failed", "no")]);
        assert!(super::judge(&failed).is_err());
        assert!(super::judge(&report(vec![])).is_err(), "nothing ran");
    }
}

//! Kubernetes' own external storage suite: run with its own program, read from its own report.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::{binaries::text, cluster::Cluster};
use crate::programs;

/// What CI runs of it, one regular expression a line; the file says what each stands for.
const CHOSEN: &str = include_str!("../../kube/external-chosen.txt");
/// Specs that the suite must not run, each with its reason.
const SKIPPED: &str = include_str!("../../kube/external-skip.txt");

/// One spec that ran, or said why it does not.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its whole name.
    pub name: String,
    /// `passed`, `failed`, `skipped`, as ginkgo says.
    pub state: String,
    /// Why it was skipped or failed.
    pub reason: String,
    /// Run time.
    pub took: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<SpecReport>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SpecReport {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    run_time: u64,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: Option<String>,
}

/// Lines of a file that are no comment.
fn lines(file: &str) -> impl Iterator<Item = &str> {
    file.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Runs the chosen part, or all of it, within `limit`; every spec that ran or said why not.
pub async fn run(cluster: &Cluster, chosen: bool, limit: Duration) -> Result<Vec<Spec>> {
    let binaries = &cluster.prepared.binaries;
    let results = cluster.lab.results().join("external");
    fs::create_dir_all(&results).context("make the suite's results")?;
    let report = results.join("report.json");
    let driver = cluster.prepared.checkout.join("e2e/kube/external.yaml");
    let focus = if chosen {
        lines(CHOSEN).collect::<Vec<_>>().join("|")
    } else {
        "External.Storage".to_owned()
    };
    let mut argv = vec![
        text(&binaries.e2e_test())?.to_owned(),
        format!("--storage.testdriver={}", text(&driver)?),
        "--provider=skeleton".to_owned(),
        format!("--kubeconfig={}", text(cluster.kubectl.kubeconfig())?),
        format!("--kubectl-path={}", text(&binaries.kubernetes("kubectl"))?),
        format!("--ginkgo.focus={focus}"),
        format!("--ginkgo.json-report={}", text(&report)?),
        format!("--ginkgo.timeout={}s", limit.as_secs()),
        "--ginkgo.no-color".to_owned(),
    ];
    for skip in lines(SKIPPED) {
        argv.push(format!("--ginkgo.skip={skip}"));
    }
    let done = programs::run(&argv, &HashMap::new(), &[], limit + Duration::from_secs(60))
        .await
        .context("run e2e.test")?;
    fs::write(results.join("output.log"), [done.stdout, done.stderr].concat()).context("keep its output")?;
    let specs = read(&report)?;
    ensure!(
        specs
            .iter()
            .any(|spec| spec.state == "passed" || spec.state == "failed"),
        "no spec ran (exit {}), see {}",
        done.exit,
        results.display()
    );
    Ok(specs)
}

fn read(report: &Path) -> Result<Vec<Spec>> {
    let text = fs::read_to_string(report).with_context(|| format!("read {}", report.display()))?;
    let suites: Vec<Suite> = serde_json::from_str(&text).context("the suite's report")?;
    let specs = suites
        .into_iter()
        .flat_map(|suite| suite.spec_reports.unwrap_or_default())
        .filter(|spec| spec.leaf_node_type == "It")
        .map(|spec| {
            let mut name = spec.container_hierarchy_texts.unwrap_or_default();
            name.push(spec.leaf_node_text);
            Spec {
                name: name.join(" "),
                state: spec.state,
                reason: spec
                    .failure
                    .and_then(|failure| failure.message)
                    .unwrap_or_default(),
                took: Duration::from_nanos(spec.run_time),
            }
        })
        // What the expressions left out says nothing.
        .filter(|spec| spec.state != "skipped" || !spec.reason.is_empty());
    Ok(specs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_read_as_ginkgo_writes_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"[{"SpecReports": [
            {"ContainerHierarchyTexts": ["a", "b"], "LeafNodeText": "c", "LeafNodeType": "It", "State": "passed", "RunTime": 2000000000},
            {"ContainerHierarchyTexts": ["a"], "LeafNodeText": "d", "LeafNodeType": "It", "State": "skipped", "RunTime": 0,
             "Failure": {"Message": "Driver does not"}},
            {"ContainerHierarchyTexts": ["a"], "LeafNodeText": "e", "LeafNodeType": "It", "State": "skipped", "RunTime": 0},
            {"ContainerHierarchyTexts": null, "LeafNodeText": "", "LeafNodeType": "SynchronizedBeforeSuite", "State": "passed", "RunTime": 0}
        ]}]"#;
        fs::write(file.path(), text).unwrap();
        let specs = read(file.path()).unwrap();
        let short: Vec<_> = specs
            .iter()
            .map(|s| (s.name.as_str(), s.state.as_str(), s.reason.as_str()))
            .collect();
        assert_eq!(
            short,
            [("a b c", "passed", ""), ("a d", "skipped", "Driver does not")]
        );
        assert_eq!(specs[0].took, Duration::from_secs(2));
    }

    #[test]
    fn comments_are_no_expressions() {
        assert_eq!(lines("# why\n\n a.b \n").collect::<Vec<_>>(), ["a.b"]);
        assert!(lines(CHOSEN).count() > 3);
    }
}

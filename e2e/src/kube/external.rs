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

/// The expressions over names of specs that do not run, each with its reason.
#[must_use]
pub fn left_out() -> Vec<(&'static str, &'static str)> {
    let mut all = Vec::new();
    let mut reason = "";
    for line in SKIPPED.lines().skip(1).map(str::trim) {
        match line.strip_prefix("# ") {
            Some(text) => reason = text,
            None if line.is_empty() => {}
            None => all.push((line, reason)),
        }
    }
    all
}

/// Which specs run. The shards of a part run side by side: a spec mostly waits, for kubelets and for controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// What CI runs.
    Chosen,
    /// All but what cannot run here.
    All,
    /// Those whose names end so.
    Ending(Vec<String>),
}

/// How many expressions of the chosen part run side by side.
const CHOSEN_SHARDS: usize = 4;
/// Shards of the whole suite, about equally long. A spec runs in the first that matches it.
const SHARDS: [&str; 5] = [
    r"Dynamic PV \(default fs\)\] (subPath|volumes|fsgroup)",
    r"\(block volmode\)",
    r"Dynamic PV \(default fs\)",
    r"Dynamic PV \((xfs|ext4)\)",
    "",
];

impl Part {
    /// For each shard, what it runs and what it leaves to others, as expressions over the specs' names.
    fn shards(&self) -> Vec<(String, Vec<String>)> {
        match self {
            Self::Chosen => dealt(lines(CHOSEN).map(str::to_owned)),
            Self::Ending(names) => dealt(
                names
                    .iter()
                    .map(|name| format!("External.Storage.*{}$", literal(name))),
            ),
            Self::All => SHARDS
                .iter()
                .enumerate()
                .map(|(number, focus)| {
                    let before = SHARDS[..number].iter().map(|shard| (*shard).to_owned());
                    (format!("External.Storage.*{focus}"), before.collect())
                })
                .collect(),
        }
    }
}

/// These expressions, dealt out to the shards.
fn dealt(expressions: impl Iterator<Item = String>) -> Vec<(String, Vec<String>)> {
    let mut shards = vec![Vec::new(); CHOSEN_SHARDS];
    for (number, expression) in expressions.enumerate() {
        shards[number % CHOSEN_SHARDS].push(expression);
    }
    shards
        .into_iter()
        .filter(|expressions| !expressions.is_empty())
        .map(|expressions| (expressions.join("|"), Vec::new()))
        .collect()
}

/// A text as a regular expression (Go's) that matches it.
fn literal(text: &str) -> String {
    let special = |c: char| !c.is_ascii_alphanumeric() && c != ' ' && c.is_ascii();
    text.chars().fold(String::new(), |mut all, c| {
        if special(c) {
            all.push('\\');
        }
        all.push(c);
        all
    })
}

/// Runs a part of the suite, each shard within `limit`; every spec that ran or said why not.
pub async fn run(cluster: &Cluster, part: &Part, limit: Duration) -> Result<Vec<Spec>> {
    let results = cluster.lab.results().join("external");
    fs::create_dir_all(&results).context("make the suite's results")?;
    let shards = part.shards();
    let runs = shards
        .iter()
        .enumerate()
        .map(|(number, (focus, left))| shard(cluster, &results, number, focus, left, limit));
    let mut specs = futures_util::future::try_join_all(runs).await?.concat();
    specs.sort_by(|one, other| one.name.cmp(&other.name));
    ensure!(
        specs
            .iter()
            .any(|spec| spec.state == "passed" || spec.state == "failed"),
        "no spec ran, see {}",
        results.display()
    );
    Ok(specs)
}

async fn shard(
    cluster: &Cluster,
    results: &Path,
    number: usize,
    focus: &str,
    left: &[String],
    limit: Duration,
) -> Result<Vec<Spec>> {
    let binaries = &cluster.prepared.binaries;
    let report = results.join(format!("report-{number}.json"));
    let driver = cluster.prepared.checkout.join("e2e/kube/external.yaml");
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
    for skip in lines(SKIPPED).chain(left.iter().map(String::as_str)) {
        argv.push(format!("--ginkgo.skip={skip}"));
    }
    let log = results.join(format!("output-{number}.log"));
    let log = fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let mut suite = programs::background(&argv, &HashMap::new(), log, true).context("start e2e.test")?;
    let end = tokio::time::timeout(limit + Duration::from_secs(60), suite.wait())
        .await
        .context("e2e.test does not end")?
        .context("wait for e2e.test")?;
    read(&report).with_context(|| format!("shard {number}, {end}"))
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
        assert!(lines(CHOSEN).count() > CHOSEN_SHARDS);
    }

    #[test]
    fn what_is_left_out_has_a_reason() {
        let all = left_out();
        assert_eq!(all.len(), lines(SKIPPED).count());
        for (number, (expression, reason)) in all.iter().enumerate() {
            assert!(reason.len() > 20, "{expression}");
            assert!(
                all[..number].iter().all(|(_, other)| other != reason),
                "{expression}: {reason}"
            );
        }
    }

    #[test]
    fn a_name_is_matched_as_it_stands() {
        let shards = Part::Ending(vec!["PV (ext4)] a/b [Slow]".to_owned()]).shards();
        assert_eq!(shards.len(), 1);
        assert_eq!(shards[0].0, r"External.Storage.*PV \(ext4\)\] a\/b \[Slow\]$");
    }

    #[test]
    fn every_expression_is_in_one_shard() {
        let chosen = Part::Chosen.shards();
        assert_eq!(chosen.len(), CHOSEN_SHARDS);
        for line in lines(CHOSEN) {
            assert_eq!(
                chosen.iter().filter(|(focus, _)| focus.contains(line)).count(),
                1,
                "{line}"
            );
        }
        let all = Part::All.shards();
        assert!(
            all.iter()
                .enumerate()
                .all(|(number, (_, left))| left.len() == number)
        );
    }
}

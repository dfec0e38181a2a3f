//! Kubernetes' external storage suite: the chosen part as steps of a run, or all of it as the table in
//! `docs/conformance.md`.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    figures,
    kube::{
        cluster::Cluster,
        external::{self, Part, Spec},
    },
    programs::output,
    report::{Report, seconds},
};

/// What CI gives the chosen part.
const CHOSEN_LIMIT: Duration = Duration::from_secs(12 * 60);
/// What a person gives all of it.
const ALL_LIMIT: Duration = Duration::from_secs(6 * 3600);

/// The table in the docs.
const TABLE: figures::Part<'static> = figures::Part {
    file: "conformance.md",
    command: "make e2e-external",
};

/// The chosen part; each spec is a step.
pub async fn chosen(report: &Report, cluster: &Cluster) -> Result<()> {
    let specs = report
        .step(
            "run the chosen specs",
            external::run(cluster, &Part::Chosen, CHOSEN_LIMIT),
        )
        .await?;
    for spec in &specs {
        let passed = || -> Result<()> {
            ensure!(spec.state == "passed", "{}: {}", spec.state, spec.reason);
            Ok(())
        };
        report.told(short(&spec.name), spec.took, &passed());
    }
    Ok(())
}

/// All of it; the table is written into the checkout.
pub async fn all(report: &Report, cluster: &Cluster) -> Result<()> {
    let specs = report
        .step("run every spec", external::run(cluster, &Part::All, ALL_LIMIT))
        .await?;
    let date = output(&["date", "-u", "+%F"]).await?;
    TABLE.write(&table(cluster, &specs, date.trim()))?;
    none_failed(report, &specs).await
}

/// Those that failed according to the table, once what made them fail is mended; their rows are written anew, and the table says so.
pub async fn failed(report: &Report, cluster: &Cluster) -> Result<()> {
    let text = TABLE.read()?;
    let names = names_of_failed(&text);
    ensure!(!names.is_empty(), "the table has no spec that failed");
    let specs = report
        .step(
            &format!("run {} specs again", names.len()),
            external::run(cluster, &Part::Ending(names), ALL_LIMIT),
        )
        .await?;
    let date = output(&["date", "-u", "+%F"]).await?;
    TABLE.write(&renewed(&text, &specs, date.trim()))?;
    none_failed(report, &specs).await
}

async fn none_failed(report: &Report, specs: &[Spec]) -> Result<()> {
    report
        .step("no spec failed", async {
            let failed: Vec<&str> = specs
                .iter()
                .filter(|spec| spec.state != "passed" && spec.state != "skipped")
                .map(|spec| spec.name.as_str())
                .collect();
            ensure!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
            Ok(())
        })
        .await
}

/// The specs of the table's rows that say neither `passed` nor `skipped`.
fn names_of_failed(table: &str) -> Vec<String> {
    let name = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.splitn(3, " | ");
        let (state, name) = (cells.next()?, cells.nth(1)?);
        (!matches!(state, "passed" | "result" | "---")).then(|| name.to_owned())
    };
    let ran = table.split_once("### Ran").map_or("", |(_, rest)| rest);
    let ran = ran.split_once("### Skipped").map_or(ran, |(ran, _)| ran);
    ran.lines().filter_map(name).collect()
}

/// The table with the rows of these specs exchanged, those of failed ones that did not run, because they are left out by now, taken away,
/// and its counts put right.
fn renewed(table: &str, specs: &[Spec], date: &str) -> String {
    let failed = names_of_failed(table);
    let left = specs.iter().filter(|spec| spec.state != "passed").count();
    let (table, _) = table.split_once(LEFT_OUT).unwrap_or((table, ""));
    let names = |line: &str, name: &str| line.ends_with(&format!(" | {name} |"));
    let rows = table.trim_end().lines().filter_map(|line| {
        if let Some(spec) = specs.iter().find(|spec| names(line, short(&spec.name))) {
            return Some(row(spec));
        }
        let gone = failed.iter().any(|name| names(line, name));
        (!gone).then(|| line.to_owned())
    });
    let rows: Vec<String> = rows.collect();
    let passed = rows.iter().filter(|line| line.starts_with("| passed |")).count();
    let counts = |line: &String| line.contains(" passed, ") && line.contains(" failed, ");
    let mut text = String::new();
    for line in rows {
        if counts(&line) {
            let rest = line.split_once(" failed, ").map_or("", |(_, rest)| rest);
            let _ = writeln!(text, "{passed} passed, {left} failed, {rest}");
            if !specs.is_empty() {
                let again = specs.len();
                let _ = writeln!(
                    text,
                    "Of these, run again on {date} after what made them fail was mended: {again}."
                );
            }
        } else {
            let _ = writeln!(text, "{line}");
        }
    }
    text + &left_out()
}

fn row(spec: &Spec) -> String {
    let (took, name) = (seconds(spec.took), short(&spec.name));
    format!("| {} | {took} | {name} |", spec.state)
}

/// The part of the table that `external-skip.txt` is.
const LEFT_OUT: &str = "### Left out";

/// A spec's name without what they all begin with.
fn short(name: &str) -> &str {
    name.split_once("[Testpattern: ").map_or(name, |(_, rest)| rest)
}

fn table(cluster: &Cluster, specs: &[Spec], date: &str) -> String {
    let count = |state: &str| specs.iter().filter(|spec| spec.state == state).count();
    let (passed, skipped) = (count("passed"), count("skipped"));
    let failed = specs.len() - passed - skipped;
    let versions = &cluster.prepared.binaries;
    let mut text = format!(
        "Kubernetes' external storage suite of v{} (`make e2e-external`) with what `e2e/kube/external.yaml` declares, on two emulated\n\
         Debian 12 workers and an LIO array over iSCSI. Sidecars: external-provisioner v{}, external-attacher v{}, external-resizer v{}, external-snapshotter v{}.\n\n\
         {passed} passed, {failed} failed, {skipped} skipped; {date}.\n\n",
        versions.version("KUBERNETES"),
        versions.version("EXTERNAL_PROVISIONER"),
        versions.version("EXTERNAL_ATTACHER"),
        versions.version("EXTERNAL_RESIZER"),
        versions.version("EXTERNAL_SNAPSHOTTER")
    );
    text += "### Ran\n\n| result | time | spec |\n| --- | --- | --- |\n";
    for spec in specs.iter().filter(|spec| spec.state != "skipped") {
        let _ = writeln!(text, "{}", row(spec));
    }
    text += "\n### Skipped, by reason\n\n| specs | reason |\n| --- | --- |\n";
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for spec in specs.iter().filter(|spec| spec.state == "skipped") {
        let reason = spec.reason.lines().next().unwrap_or_default().replace('|', "/");
        *reasons.entry(reason).or_default() += 1;
    }
    for (reason, specs) in reasons {
        let _ = writeln!(text, "| {specs} | {reason} |");
    }
    text + &left_out()
}

/// What never runs, and why.
fn left_out() -> String {
    let mut text = format!("\n{LEFT_OUT}\n\n| specs whose name matches | reason |\n| --- | --- |\n");
    for (expression, reason) in external::left_out() {
        let _ = writeln!(text, "| `{}` | {reason} |", expression.replace('|', "\\|"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_named_by_its_pattern_and_what_it_says() {
        let name = "External Storage [Driver: csi.storagelink.io] [Testpattern: Dynamic PV (default fs)] subPath should x";
        assert_eq!(short(name), "Dynamic PV (default fs)] subPath should x");
    }

    #[test]
    fn rows_of_failed_specs_are_written_anew_and_the_counts_with_them() {
        let table = "1 passed, 2 failed, 3 skipped; 2026-11-28.\n\n### Ran\n\n| result | time | spec |\n| --- | --- | --- |\n\
                     | passed | 1.00 s | PV a |\n| failed | 2.00 s | PV b |\n| timedout | 3.00 s | PV c |\n\n\
                     ### Skipped, by reason\n\n| specs | reason |\n| --- | --- |\n| 3 | why |\n";
        assert_eq!(names_of_failed(table), ["PV b", "PV c"]);
        let spec = |name: &str, state: &str| Spec {
            name: format!("External Storage [Testpattern: {name}"),
            state: state.to_owned(),
            reason: String::new(),
            took: Duration::from_secs(4),
        };
        let now = renewed(
            table,
            &[spec("PV b", "passed"), spec("PV c", "failed")],
            "2026-11-29",
        );
        assert!(
            now.contains("2 passed, 1 failed, 3 skipped; 2026-11-28.\nOf these, run again on 2026-11-29 after what made them fail was mended: 2.\n"),
            "{now}"
        );
        assert!(
            now.contains("| passed | 4.00 s | PV b |\n| failed | 4.00 s | PV c |\n"),
            "{now}"
        );
        assert!(now.contains("| 3 | why |\n\n### Left out\n"), "{now}");
        assert_eq!(names_of_failed(&now), ["PV c"]);
        // One that is left out by now.
        let now = renewed(&now, &[], "2026-11-30");
        assert!(
            now.contains("2 passed, 0 failed, 3 skipped") && !now.contains("PV c"),
            "{now}"
        );
        assert_eq!(now.matches(LEFT_OUT).count(), 1);
    }
}

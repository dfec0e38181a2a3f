//! Kubernetes' external storage suite: the chosen part as steps of a run, or all of it as the table in
//! `docs/conformance.md`.

use std::{collections::BTreeMap, fmt::Write as _, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
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

/// The chosen part; each spec is a step.
pub async fn chosen(report: &Report, cluster: &Cluster) -> Result<()> {
    let specs = report
        .step(
            "run the chosen specs",
            external::run(cluster, Part::Chosen, CHOSEN_LIMIT),
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
        .step("run every spec", external::run(cluster, Part::All, ALL_LIMIT))
        .await?;
    let file = cluster.prepared.checkout.join("docs/conformance.md");
    let date = output(&["date", "-u", "+%F"]).await?;
    fs::write(&file, table(cluster, &specs, date.trim()))
        .with_context(|| format!("write {}", file.display()))?;
    report.say(format!("      table: {}", file.display()));
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
        "# Conformance\n\nKubernetes' external storage suite of v{} (`make e2e-external`) with what `e2e/kube/external.yaml` declares, on two emulated\n\
         Debian 12 workers and an LIO array over iSCSI. Sidecars: external-provisioner v{}, external-attacher v{}, external-resizer v{}, external-snapshotter v{}.\n\n\
         {passed} passed, {failed} failed, {skipped} skipped; {date}.\n\n",
        versions.version("KUBERNETES"),
        versions.version("EXTERNAL_PROVISIONER"),
        versions.version("EXTERNAL_ATTACHER"),
        versions.version("EXTERNAL_RESIZER"),
        versions.version("EXTERNAL_SNAPSHOTTER")
    );
    text += "## Ran\n\n| result | time | spec |\n| --- | --- | --- |\n";
    for spec in specs.iter().filter(|spec| spec.state != "skipped") {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            spec.state,
            seconds(spec.took),
            short(&spec.name)
        );
    }
    text += "\n## Skipped, by reason\n\n| specs | reason |\n| --- | --- |\n";
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for spec in specs.iter().filter(|spec| spec.state == "skipped") {
        let reason = spec.reason.lines().next().unwrap_or_default().replace('|', "/");
        *reasons.entry(reason).or_default() += 1;
    }
    for (reason, specs) in reasons {
        let _ = writeln!(text, "| {specs} | {reason} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn a_spec_is_named_by_its_pattern_and_what_it_says() {
        let name = "External Storage [Driver: csi.storagelink.io] [Testpattern: Dynamic PV (default fs)] subPath should x";
        assert_eq!(short(name), "Dynamic PV (default fs)] subPath should x");
    }
}

//! The whole: the look at the host, what a crashed run left, the making, the steps, and the removal of everything.

use std::fs;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use super::{
    cluster, docker, leftovers, logs, needs,
    settings::{ARRAY, FABRICS, Settings},
    tool, walk,
    walk::Walk,
};
use crate::report::Report;

/// The walk. True when every step passed.
pub async fn walk(settings: &Settings) -> Result<bool> {
    let report = Report::default();
    // A failed step has printed its line.
    let host = report.step("the host has what is needed", needs::check(settings));
    if host.await.is_err() {
        return Ok(report.close());
    }
    let _lock = lock(settings)?;
    let outcome = steps(settings, &report).await;
    if outcome.is_err() {
        match logs::collect(settings).await {
            Ok(directory) => report.say(format!("      logs of everything: {}", directory.display())),
            Err(error) => report.say(format!("      no logs: {error:#}")),
        }
    }
    if settings.keep {
        report.say(format!(
            "      everything is left running: export KUBECONFIG={}; docker exec {ARRAY} targetcli ls; `make e2e-kind-down` removes it",
            settings.kubeconfig().display()
        ));
    } else {
        remove_all(settings, &report).await;
    }
    Ok(report.close())
}

async fn steps(settings: &Settings, report: &Report) -> Result<()> {
    report
        .step("what an earlier run left is removed", remove(settings))
        .await?;
    let version = version(settings)?;
    let images = if settings.images_present {
        "are there"
    } else {
        "are built"
    };
    report
        .step(
            &format!("the images {images}"),
            docker::provide_images(settings, &version),
        )
        .await?;
    report
        .step(
            "two networks are the fabrics; the container that is the array is healthy",
            docker::start_array(settings, &version),
        )
        .await?;
    report
        .step("a cluster of one control plane and two workers", async {
            leftovers::bind_handle()?;
            cluster::create(settings).await
        })
        .await?;
    report
        .step(
            "the images are on the nodes",
            cluster::load_images(settings, &version),
        )
        .await?;
    report
        .step("helm install", async {
            let access = docker::join_kind().await?;
            cluster::install(settings, &access).await
        })
        .await?;
    Walk::new(settings, report).run().await
}

/// Only the array, to try it alone: its networks, and the container until it is healthy.
pub async fn array_alone(settings: &Settings) -> Result<bool> {
    let report = Report::default();
    // A failed step has printed its line.
    let host = report.step("the host has what is needed", needs::check(settings));
    if host.await.is_err() {
        return Ok(report.close());
    }
    let _lock = lock(settings)?;
    let version = version(settings)?;
    report
        .step("the images are there", docker::provide_images(settings, &version))
        .await?;
    report
        .step(
            "the array's container is healthy",
            docker::start_array(settings, &version),
        )
        .await?;
    let portals = FABRICS.map(|fabric| fabric.portal).join(" and ");
    report.say(format!(
        "      portals at {portals}; docker exec {ARRAY} targetcli ls; `make e2e-kind-down` removes it"
    ));
    Ok(report.close())
}

/// Removes everything that a walk makes, whether it ended or not. True when nothing is left.
pub async fn down(settings: &Settings) -> Result<bool> {
    let report = Report::default();
    let _lock = lock(settings)?;
    remove_all(settings, &report).await;
    Ok(report.close())
}

/// The last step; its failure is the report's.
async fn remove_all(settings: &Settings, report: &Report) {
    let removed = report
        .step(
            "everything is removed, nothing is left on the host",
            remove(settings),
        )
        .await;
    drop(removed);
}

/// In the order in which nothing waits for what is gone already: volumes are unstaged while there are nodes, what nodes left is removed
/// while the array answers, and the array cleans its target while it runs.
async fn remove(settings: &Settings) -> Result<()> {
    if cluster::exists().await? {
        // A cluster that does not answer any more is removed all the same; what it held is found below.
        let kubectl = cluster::kubectl(settings);
        if tool::succeeds(&answers(settings)).await {
            let unstaged = async {
                kubectl.delete(&["pods,persistentvolumeclaims", "--all"]).await?;
                walk::delete(&kubectl).await?;
                cluster::uninstall(settings).await
            };
            if let Err(error) = unstaged.await {
                tracing::warn!("volumes are not unstaged: {error:#}");
            }
        }
        cluster::delete(settings).await?;
    }
    leftovers::remove_volumes(settings).await?;
    docker::remove_array(settings).await?;
    leftovers::remove(settings).await?;
    let left = docker::left().await?;
    anyhow::ensure!(left.is_empty(), "left in the engine: {}", left.join(", "));
    let _ = fs::remove_file(settings.kubeconfig());
    Ok(())
}

/// Asks whether the API server is ready, without waiting for one that is not.
fn answers(settings: &Settings) -> Vec<String> {
    let kubeconfig = settings.kubeconfig().to_string_lossy().into_owned();
    [
        "kubectl",
        "--kubeconfig",
        &kubeconfig,
        "--request-timeout=10s",
        "get",
        "--raw",
        "/readyz",
    ]
    .map(str::to_owned)
    .into()
}

/// The product's version: its images have it as their tag.
fn version(settings: &Settings) -> Result<String> {
    let file = settings.checkout.join("charts/storagelink-csi/Chart.yaml");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    app_version(&text).with_context(|| format!("{} has no appVersion", file.display()))
}

fn app_version(chart: &str) -> Option<String> {
    let value = chart.lines().find_map(|line| line.strip_prefix("appVersion:"))?;
    Some(value.trim().trim_matches('"').to_owned())
}

/// One walk at a time: the names are the same.
fn lock(settings: &Settings) -> Result<Flock<fs::File>> {
    fs::create_dir_all(&settings.directory)
        .with_context(|| format!("make {}", settings.directory.display()))?;
    let file = fs::File::create(settings.directory.join("lock")).context("make the lock")?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .context("another walk, or its removal, is under way")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_the_charts() {
        assert_eq!(
            super::app_version("version: 1\nappVersion: \"0.1.0\"\n").as_deref(),
            Some("0.1.0")
        );
        assert_eq!(super::app_version("version: 1\n"), None);
    }
}

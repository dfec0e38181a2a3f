//! `lab kind`: the walk of `make e2e-kind` in one guest that is the Linux host of it, with Docker, kind and a node image that were all
//! made on this machine.
//!
//! Knows nothing of what the walk does: it boots, starts what such a host has running, and hands over the walk's lines as they come; those
//! of a walk that passed go into `docs/conformance.md`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    agent::MACHINE,
    artifacts::{self, Artifacts},
    figures::{self, Part},
    guest::Guest,
    kube::binaries::Binaries,
    lab::{Lab, LabSpec, Places},
    report::{Report, seconds},
    roles::node,
    wait,
};

/// What such a host has loaded beside what the driver asks of a node: its disk, containers and their networks, an array.
const MODULES: [&str; 9] = [
    "virtio_blk",
    "loop",
    "overlay",
    "veth",
    "bridge",
    "nf_tables",
    "target_core_mod",
    "target_core_file",
    "iscsi_target_mod",
];
/// Three node containers and their control plane take a good GiB, the driver and what is cached of the disk the rest.
const MEMORY_MIB: u32 = 4096;
const ENGINE_LIMIT: Duration = Duration::from_secs(300);
/// The walk itself, a cluster's creation included.
const WALK_LIMIT: Duration = Duration::from_secs(90 * 60);
/// The walk's own limits are for a real processor; an emulated one takes so many times as long.
const SLOW: &str = "4";
const FETCH_LIMIT: Duration = Duration::from_secs(300);
/// How often the walk's log is looked into for new lines.
const LINES: Duration = Duration::from_millis(500);
/// Process and log name of the engine and of the walk.
const ENGINE: &str = "dockerd";
const WALK: &str = "e2e-kind";
/// Where the walk leaves what it collects of a failure, in the guest.
const FAILURES: &str = "/var/lib/docker/e2e-kind";
const CONFIGURATION: &str = "/etc/lab/kind.yaml";
/// Where the lines of a walk that passed go.
const RESULT: Part<'static> = Part {
    file: "conformance.md",
    command: "make e2e-kind-lab",
};

/// Boots the guest with the engine's disk and runs the walk in it, or another `command` in the walk's place. True when it passed.
pub async fn run(disk: &Path, command: &[String], artifacts: &Artifacts, places: &Places) -> Result<bool> {
    let start = Instant::now();
    let circumstances = figures::circumstances(artifacts).await?;
    let report = Report::default();
    let binaries = Binaries::find(&artifacts::cache_directory())?;
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the checkout")?;
    ensure!(
        disk.exists(),
        "{} is missing: run hack/build-kind-disk.sh",
        disk.display()
    );
    let spec = LabSpec {
        array: false,
        node_memory_mib: MEMORY_MIB,
        node_disk: Some(disk.to_owned()),
        node_modules: MODULES.to_vec(),
        ..LabSpec::new("kind", 1)
    };
    let lab = report
        .step("boot a host", Lab::start(&spec, artifacts, places))
        .await?;
    let host = lab.node(0);
    let walk_itself = [lab.program(WALK), "walk".to_owned()];
    let argv = if command.is_empty() { &walk_itself } else { command };
    let outcome = async {
        report.step("start Docker's engine", engine(host)).await?;
        report
            .step("walk", walk(host, argv, &binaries, checkout, &report))
            .await
    }
    .await;
    let passed = outcome.is_ok();
    if passed && command.is_empty() {
        let versions = format!(
            "kind v{}, Kubernetes v{}",
            binaries.version("KIND"),
            binaries.version("KUBERNETES")
        );
        RESULT.write(&format!(
            "{circumstances} {versions}. Passed after {}:\n\n```\n{}\n```",
            seconds(start.elapsed()),
            host.log(WALK)?.trim_end()
        ))?;
    }
    if !passed {
        let step = report.step("fetch what the walk left", fetch(host));
        drop(step.await);
        report.say(format!("console and logs: {}", lab.results().display()));
    }
    lab.stop(passed).await?;
    let passed = report.close() && passed;
    report.say(format!(
        "e2e-kind-lab: {} after {}",
        if passed { "ok" } else { "failed" },
        seconds(start.elapsed())
    ));
    Ok(passed)
}

/// What runs on a host with Docker and open-iscsi.
async fn engine(host: &Guest) -> Result<()> {
    host.shell(&format!(
        "sysctl -qw net.ipv4.ip_forward=1; ip route add default via {MACHINE}; \
         mkdir -p /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; \
         mkdir -p /var/lib/docker /etc/docker; mount /dev/vda /var/lib/docker; mkdir -p {FAILURES}; \
         mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config"
    ))
    .await
    .context("mounts of a host")?;
    node::prepare(host, false).await?;
    let argv = [
        "dockerd",
        // crun starts a container in a tenth of what an emulated processor needs for runc.
        "--add-runtime=crun=/usr/bin/crun",
        "--default-runtime=crun",
    ];
    host.spawn(ENGINE, &argv, &[]).await?;
    wait::until("Docker's engine", ENGINE_LIMIT, async || {
        Ok(host.exec(&["docker", "info"]).await.is_ok())
    })
    .await
    .map(drop)
}

/// Runs the walk as `make e2e-kind` does; its lines appear as it writes them.
async fn walk(
    host: &Guest,
    command: &[String],
    binaries: &Binaries,
    checkout: &Path,
    report: &Report,
) -> Result<()> {
    let of_checkout = |path: &str| {
        let path = checkout.join(path);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let configuration = of_checkout("e2e/kind/cluster.yaml")? + &of_checkout("e2e/kind/lab.yaml")?;
    host.write(CONFIGURATION, configuration, 0o644).await?;
    let directory = |program: PathBuf| program.parent().map(|parent| parent.display().to_string());
    let path: Vec<String> = [binaries.kind(), binaries.kubernetes("kubectl"), binaries.helm()]
        .into_iter()
        .filter_map(directory)
        .chain(["/usr/sbin:/usr/bin:/sbin:/bin".to_owned()])
        .collect();
    let environment = [
        ("PATH", path.join(":")),
        ("HOME", "/root".to_owned()),
        ("KIND_CONFIG", CONFIGURATION.to_owned()),
        (
            "KIND_NODE_IMAGE",
            format!("storagelink/kind-node:v{}", binaries.version("KUBERNETES")),
        ),
        ("KIND_WAIT", "20m".to_owned()),
        ("E2E_KIND_IMAGES", "present".to_owned()),
        ("E2E_KIND_LOADED", "1".to_owned()),
        ("E2E_KIND_SLOW", SLOW.to_owned()),
        ("E2E_KIND_DIR", FAILURES.to_owned()),
    ];
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    let argv: Vec<&str> = command.iter().map(String::as_str).collect();
    host.spawn(WALK, &argv, &environment).await?;
    let mut lines = Lines::default();
    let mut show = |last: bool| -> Result<()> {
        let log = host.log(WALK)?;
        lines.new_in(&log, last).for_each(|line| report.say(line));
        Ok(())
    };
    let mut end = std::pin::pin!(host.wait(WALK, WALK_LIMIT));
    let exit = loop {
        match tokio::time::timeout(LINES, &mut end).await {
            Ok(exit) => break exit.context("the walk does not end")?,
            Err(_) => show(false)?,
        }
    };
    show(true)?;
    ensure!(exit == 0, "exit {exit}");
    Ok(())
}

/// How much of a growing log was taken, in bytes.
#[derive(Debug, Default)]
struct Lines {
    taken: usize,
}

impl Lines {
    /// The lines that came since the last look; one that is still being written only with `last`.
    fn new_in<'a>(&mut self, log: &'a str, last: bool) -> std::str::Lines<'a> {
        let new = log.get(self.taken..).unwrap_or_default();
        let end = if last {
            new.len()
        } else {
            new.rfind('\n').map_or(0, |end| end + 1)
        };
        self.taken += end;
        new[..end].lines()
    }
}

/// Copies what the walk collected of its failure to the results, and the engine's view of everything.
async fn fetch(host: &Guest) -> Result<()> {
    let script = format!(
        "cp -r {FAILURES} /lab/; docker ps -a > /lab/containers; df -h > /lab/df; free -m > /lab/memory; dmesg > /lab/dmesg; \
         for node in $(docker ps --filter label=io.x-k8s.kind.role --format '{{{{.Names}}}}'); do \
           docker logs $node > /lab/$node.log 2>&1; \
           docker exec $node journalctl --no-pager > /lab/$node.journal 2>&1; \
           docker exec $node sh -c 'tail -n 400 /var/log/pods/*/*/*.log' > /lab/$node.pods 2>&1; done; true"
    );
    host.run(&["bash", "-c", &script], &[], FETCH_LIMIT)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::Lines;

    #[test]
    fn a_line_is_shown_once_and_when_it_is_whole() {
        let mut lines = Lines::default();
        let mut new = |log: &str, last| lines.new_in(log, last).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(new("one\ntw", false), ["one"]);
        assert!(new("one\ntw", false).is_empty());
        assert_eq!(new("one\ntwo\nthr", false), ["two"]);
        assert_eq!(new("one\ntwo\nthree", true), ["three"]);
        assert!(new("one\ntwo\nthree", true).is_empty());
    }
}

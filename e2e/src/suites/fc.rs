//! A map over two Fibre Channel fabrics, on the real kernel's FC transport: what becomes of I/O when one is lost, the other, and both. The engine alone
//! (`lab-maps`), in one guest of its own: the driver does not attach over Fibre Channel.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    artifacts::Artifacts,
    bench::kernel_log,
    guest::Guest,
    lab::{Lab, LabSpec, Places},
    maps::Adopted,
    report::{Report, seconds},
    roles::{
        fibre_channel::{self, FABRICS, Fabric},
        writer::Writer,
    },
    wait,
};

/// Process and log name of the engine.
const WATCH: &str = "lab-maps";
/// For whatever takes moments.
const LIMIT: Duration = Duration::from_secs(60);
/// I/O in flight on a lost port must be through after this time: the engine asks the kernel to give it back after one second; by itself the kernel keeps
/// it for sixty.
const LONGEST: Duration = Duration::from_secs(5);
/// A lost port without I/O must be noticed by the event that its host sends: the engine looks at everything every half a minute.
const NOTICED: Duration = Duration::from_secs(2);
/// Name of the marks in the kernel's log.
const MARK: &str = "cut";
/// Writes that count as going on.
const WRITES: usize = 100;

/// Boots the guest and runs the steps in order; the first that fails ends the suite.
pub async fn run(report: &Report, artifacts: &Artifacts, places: &Places) -> Result<()> {
    let mut spec = LabSpec::new("suite-fc", 1);
    spec.array = false;
    spec.node_modules = fibre_channel::MODULES.to_vec();
    let lab = report
        .step("boot a guest", Lab::start(&spec, artifacts, places))
        .await?;
    let outcome = steps(report, &lab).await;
    if outcome.is_err() {
        report.say(format!("consoles and logs: {}", lab.results().display()));
    }
    lab.stop(outcome.is_ok()).await
}

async fn steps(report: &Report, lab: &Lab) -> Result<()> {
    let guest = lab.node(0);
    report
        .step(
            "one LUN through two fabrics: a disk by each",
            fibre_channel::prepare(guest),
        )
        .await?;
    let device = report
        .step(
            "a map over both, and a lost port would give its I/O back after a second",
            build(lab),
        )
        .await?;
    report
        .step(
            "mpathutil status and explain show the WWPN of each path",
            shown(lab),
        )
        .await?;
    kernel_log::prepare(guest).await?;
    let writer = report.step("a writer", Writer::start(lab, guest, "writer", &device, "direct"));
    let writer = writer.await?;
    for fabric in FABRICS {
        let title = format!(
            "fabric {} is cut under it: its path is failed, writes go on",
            fabric.name
        );
        let (failed, longest) = report.step(&title, cut(lab, &writer, fabric)).await?;
        report.say(format!(
            "      path failed {} after the link was lost, longest write {}",
            seconds(failed),
            seconds(longest)
        ));
        let title = format!("fabric {} is back: its path is used again by itself", fabric.name);
        report.step(&title, back(lab, fabric)).await?;
    }
    report
        .step("both are cut: writes wait", both_cut(lab, &writer))
        .await?;
    report
        .step(
            "fabric b is back: writes go on, and with a over both",
            both_back(lab, &writer),
        )
        .await?;
    let longest = report
        .step("no write has failed, and nothing is lost", verify(guest, &writer))
        .await?;
    report.say(format!("      longest write {}", seconds(longest)));
    for fabric in FABRICS {
        let title = format!(
            "fabric {} is cut without any I/O: its path is failed all the same, and used again",
            fabric.name
        );
        let noticed = report.step(&title, idle(lab, fabric)).await?;
        report.say(format!(
            "      path failed {} after the link was lost",
            seconds(noticed)
        ));
    }
    guest.kill(WATCH, 15).await?;
    guest.wait(WATCH, LIMIT).await.map(drop)
}

/// Builds the map and starts the monitor; the map's device.
async fn build(lab: &Lab) -> Result<String> {
    let (guest, program) = (lab.node(0), lab.program("lab-maps"));
    let built = guest.exec(&[&program, "build", "1"]).await?;
    ensure!(built == r#"{"paths":2}"#, "{built}");
    // The other remote ports are what the array's ends see of the initiators.
    let script = "cd /sys/class/fc_remote_ports; for port in *; do
          [ $(<$port/scsi_target_id) = -1 ] || echo $(<$port/port_name) $(<$port/fast_io_fail_tmo); done | sort";
    let times = guest.shell(script).await?;
    let wanted = FABRICS.map(|fabric| format!("{} 1", fabric.port_name()));
    ensure!(times.lines().eq(wanted.iter().map(String::as_str)), "{times}");
    guest.spawn(WATCH, &[&program, "watch"], &[]).await?;
    wait::until("adoption", LIMIT, async || {
        let log = guest.log(WATCH)?;
        let adopted: Adopted = serde_json::from_str(log.lines().last().unwrap_or_default())?;
        ensure!(adopted.maps == 1, "{adopted:?}");
        Ok(true)
    })
    .await?;
    let map = map(lab).await?;
    let devno = map["devno"].as_str().unwrap_or_default();
    let minor = devno.split(':').nth(1).context("the map's number")?;
    Ok(format!("/dev/dm-{minor}"))
}

/// The map as mpathutil shows it.
async fn map(lab: &Lab) -> Result<Value> {
    let program = lab.program("mpathutil");
    let json = lab
        .node(0)
        .exec(&[&program, "status", "--output", "json"])
        .await?;
    let mut maps: Vec<Value> = serde_json::from_str(&json).with_context(|| json.clone())?;
    maps.pop().with_context(|| json)
}

/// The path through a fabric.
async fn path(lab: &Lab, fabric: Fabric) -> Result<Value> {
    let map = map(lab).await?;
    let groups = map["groups"].as_array().into_iter().flatten();
    let mut paths = groups.flat_map(|group| group["paths"].as_array().into_iter().flatten());
    let found = paths.find(|path| path["portal"] == fabric.port_name()).cloned();
    found.with_context(|| format!("no path through {}: {map}", fabric.port_name()))
}

async fn shown(lab: &Lab) -> Result<()> {
    let (guest, program) = (lab.node(0), lab.program("mpathutil"));
    let status = guest.exec(&[&program, "status"]).await?;
    let map = map(lab).await?;
    let name = map["name"].as_str().context("the map's name")?;
    let explained = guest.exec(&[&program, "explain", name]).await?;
    for fabric in FABRICS {
        let (port, path) = (fabric.port_name(), path(lab, fabric).await?);
        let remote = path["remote_port"].as_str().unwrap_or_default();
        ensure!(remote.starts_with("rport-"), "{path}");
        let hctl = path["hctl"].as_str().context("a path's address")?;
        let line = |line: &&str| line.contains(hctl) && line.contains(&port);
        ensure!(status.lines().any(|text| line(&text)), "{status}");
        let said = format!("WWPN {port}");
        ensure!(
            explained.lines().any(|text| line(&text) && text.contains(&said)),
            "{explained}"
        );
    }
    Ok(())
}

/// Cuts a fabric and waits until the map sends no I/O to its path; how long that took by the guest's own clock.
async fn cut_and_failed(lab: &Lab, fabric: Fabric) -> Result<Duration> {
    let guest = lab.node(0);
    kernel_log::mark(guest, MARK).await?;
    fibre_channel::cut(guest, &[fabric]).await?;
    let failed = wait::until("the path is failed", LIMIT, async || {
        let path = path(lab, fabric).await?;
        ensure!(path["active"] == false, "{path}");
        Ok(true)
    });
    let failed = failed.await;
    let lines = kernel_log::since(guest, MARK).await?;
    failed.with_context(|| format!("the kernel says {lines:?}"))?;
    let time = |text: &str| {
        lines
            .iter()
            .find(|line| line.text.contains(text))
            .map(|line| line.at)
    };
    let (lost, failed) = (time(": Link down on port"), time(": Failing path "));
    let took = failed.zip(lost).map(|(failed, lost)| failed.saturating_sub(lost));
    took.with_context(|| format!("the kernel says {lines:?}"))
}

async fn offline(lab: &Lab, fabric: Fabric) -> Result<()> {
    wait::until("the port has given its I/O back", LIMIT, async || {
        let path = path(lab, fabric).await?;
        ensure!(path["device_state"] == "transport-offline", "{path}");
        Ok(true)
    })
    .await
    .map(drop)
}

async fn usable(lab: &Lab, fabric: Fabric) -> Result<Value> {
    let mut used = Value::Null;
    wait::until("the path is used", LIMIT, async || {
        used = path(lab, fabric).await?;
        ensure!(
            used["active"] == true && used["device_state"] == "running",
            "{used}"
        );
        Ok(true)
    })
    .await?;
    Ok(used)
}

/// Waits for more writes than there are; how many there are then.
async fn go_on(guest: &Guest, writer: &Writer) -> Result<usize> {
    let before = writer.acknowledged(guest).await?.len();
    let mut now = before;
    wait::until("writes go on", LIMIT, async || {
        now = writer.acknowledged(guest).await?.len();
        ensure!(now >= before + WRITES, "{before} writes, then {now}");
        Ok(true)
    })
    .await?;
    Ok(now)
}

/// Times until the path is failed, and of the longest write since the cut.
async fn cut(lab: &Lab, writer: &Writer, fabric: Fabric) -> Result<(Duration, Duration)> {
    let guest = lab.node(0);
    let before = go_on(guest, writer).await?;
    let took = cut_and_failed(lab, fabric).await?;
    offline(lab, fabric).await?;
    go_on(guest, writer).await?;
    let writes = writer.acknowledged(guest).await?;
    let longest = writes[before..].iter().map(|write| write.took_us).max();
    let longest = Duration::from_micros(longest.unwrap_or_default());
    ensure!(longest < LONGEST, "a write took {longest:?}");
    Ok((took, longest))
}

async fn back(lab: &Lab, fabric: Fabric) -> Result<()> {
    fabric.heal(lab.node(0)).await?;
    let before = usable(lab, fabric).await?;
    wait::until("writes go over it", LIMIT, async || {
        let now = path(lab, fabric).await?;
        Ok(now["writes"].as_u64() > before["writes"].as_u64())
    })
    .await
    .map(drop)
}

async fn both_cut(lab: &Lab, writer: &Writer) -> Result<()> {
    let guest = lab.node(0);
    fibre_channel::cut(guest, &FABRICS).await?;
    for fabric in FABRICS {
        offline(lab, fabric).await?;
    }
    // What was in flight over the second has come back by now: whoever writes now waits.
    let mut before = usize::MAX;
    wait::until("no write is acknowledged", LIMIT, async || {
        let now = writer.acknowledged(guest).await?.len();
        Ok(std::mem::replace(&mut before, now) == now)
    })
    .await?;
    let log = guest.log("writer")?;
    ensure!(log.is_empty(), "the writer has ended: {log}");
    Ok(())
}

async fn both_back(lab: &Lab, writer: &Writer) -> Result<()> {
    let [a, b] = FABRICS;
    b.heal(lab.node(0)).await?;
    usable(lab, b).await?;
    go_on(lab.node(0), writer).await?;
    back(lab, a).await
}

async fn verify(guest: &Guest, writer: &Writer) -> Result<Duration> {
    let summary = writer.stop(guest, LIMIT).await?;
    ensure!(summary.errors == 0, "{summary:?}");
    writer.verify(guest, None).await?;
    let writes = writer.acknowledged(guest).await?;
    let longest = writes.iter().map(|write| write.took_us).max();
    Ok(Duration::from_micros(longest.unwrap_or_default()))
}

async fn idle(lab: &Lab, fabric: Fabric) -> Result<Duration> {
    let noticed = cut_and_failed(lab, fabric).await?;
    ensure!(noticed < NOTICED, "noticed after {noticed:?}");
    fabric.heal(lab.node(0)).await?;
    usable(lab, fabric).await?;
    Ok(noticed)
}

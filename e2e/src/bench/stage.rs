//! `make bench-stage`: from a mapped LUN to a mounted file system and back, by the plugin and by the usual way in the same guest.
//!
//! The usual way is one shell script in the guest, so that no call into the guest counts: iscsiadm discovery and login or rescan, the wait
//! for multipathd's map, mkfs, mount. The plugin's calls come from outside and are the slower for it by a few milliseconds.

use std::{collections::HashMap, fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;

use super::Amount;
use crate::{
    figures::Rounds,
    guest::Guest,
    report::{Report, seconds},
    roles::multipathd::{self, Lun},
    suites::{
        cluster::{Cluster, Form, Victim},
        volume::Volume,
    },
};

const NODE: usize = 0;
const SIZE: i64 = 128 << 20;
/// What the kubelet has in flight.
const AT_ONCE: usize = 10;
/// Time for one way of all volumes.
const LIMIT: Duration = Duration::from_secs(1200);

/// A volume mapped to the node.
struct Mapped {
    volume: Volume,
    context: HashMap<String, String>,
}

/// Single calls: there, and back.
#[derive(Default)]
struct Single {
    first_stage: Rounds,
    first_unstage: Rounds,
    next_stage: Rounds,
    next_unstage: Rounds,
    /// With its file system.
    again_stage: Rounds,
    /// The least of it, by nobody: scan, mkfs and mount alone.
    bare_next: Rounds,
    bare_again: Rounds,
}

/// All volumes at once.
struct Many {
    stage: Duration,
    unstage: Duration,
}

/// Measures; the part of the file.
pub(super) async fn run(report: &Report, cluster: &mut Cluster, amount: &Amount) -> Result<String> {
    let program = cluster.lab.program("lab-maps");
    let ours = report
        .step(
            "single volumes, by the plugin",
            ours(cluster, &program, amount.rounds),
        )
        .await?;
    let many = report
        .step(
            "volumes, mapped to the node",
            mapped(cluster, "all", amount.volumes),
        )
        .await?;
    let ours_many = report
        .step("all of them, by the plugin", ours_many(cluster, &many))
        .await?;
    release(cluster, many).await?;

    cluster.end(Victim::Plugin).await?;
    let guest = cluster.guest(NODE);
    multipathd::start(guest, &multipathd::STOCK).await?;
    let theirs = report
        .step("single volumes, the usual way", theirs(cluster, amount.rounds))
        .await?;
    let many = mapped(cluster, "usual", amount.volumes).await?;
    let theirs_many = report
        .step("all of them, the usual way", theirs_many(guest, &many))
        .await;
    if let Err(error) = &theirs_many {
        report.say(format!("      {error:#}"));
    }
    multipathd::stop(guest).await?;
    Ok(part(
        &ours,
        &theirs,
        &ours_many,
        theirs_many.ok().as_ref(),
        amount,
    ))
}

/// New volumes, mapped: each is formatted by its first stage.
async fn mapped(cluster: &Cluster, name: &str, count: u32) -> Result<Vec<Mapped>> {
    stream::iter(0..count)
        .map(async |number| {
            let volume = cluster
                .create(&format!("stage-{name}-{number}"), SIZE, Form::Mount("ext4"))
                .await?;
            let context = cluster.attach(&volume, NODE).await?;
            volume.make_directories(cluster.guest(NODE)).await?;
            Ok(Mapped { volume, context })
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

async fn release(cluster: &Cluster, all: Vec<Mapped>) -> Result<()> {
    for Mapped { volume, .. } in all {
        volume.remove_directories(cluster.guest(NODE)).await?;
        cluster.detach(&volume, NODE).await?;
        cluster.delete(&volume).await?;
    }
    Ok(())
}

async fn ours(cluster: &Cluster, program: &str, rounds: u32) -> Result<Single> {
    let mut single = Single::default();
    for round in 0..rounds {
        let pair = mapped(cluster, &format!("ours{round}"), 3).await?;
        let [first, next, alone] = &pair[..] else { continue };
        single.first_stage.push(stage(cluster, first).await?);
        single.next_stage.push(stage(cluster, next).await?);
        single.next_unstage.push(unstage(cluster, next).await?);
        single.again_stage.push(stage(cluster, next).await?);
        unstage(cluster, next).await?;
        single
            .bare_next
            .push(bare(cluster, program, alone, &["--make"]).await?);
        single.bare_again.push(bare(cluster, program, alone, &[]).await?);
        single.first_unstage.push(unstage(cluster, first).await?);
        release(cluster, pair).await?;
    }
    Ok(single)
}

/// Scan, file system if `how` says so, and mount, with nothing around them.
async fn bare(cluster: &Cluster, program: &str, mapped: &Mapped, how: &[&str]) -> Result<Duration> {
    let lun = mapped.context.get("lun").context("a LUN number")?;
    let staging = mapped.volume.staging();
    let argv = [&[program, "bare", lun, &staging], how].concat();
    let done = cluster.guest(NODE).run(&argv, &[], LIMIT).await?;
    let micros = serde_json::from_slice(&done.stdout).with_context(|| {
        let said = String::from_utf8_lossy(&done.stderr);
        format!("exit {}: {said}", done.exit)
    })?;
    Ok(Duration::from_micros(micros))
}

async fn stage(cluster: &Cluster, mapped: &Mapped) -> Result<Duration> {
    let start = Instant::now();
    cluster.stage(&mapped.volume, NODE, &mapped.context).await?;
    Ok(start.elapsed())
}

async fn unstage(cluster: &Cluster, mapped: &Mapped) -> Result<Duration> {
    let start = Instant::now();
    cluster.unstage(&mapped.volume, NODE).await?;
    Ok(start.elapsed())
}

async fn ours_many(cluster: &Cluster, all: &[Mapped]) -> Result<Many> {
    let start = Instant::now();
    let calls = stream::iter(all).map(async |mapped| stage(cluster, mapped).await);
    calls.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
    let stage = start.elapsed();
    let start = Instant::now();
    let calls = stream::iter(all).map(async |mapped| unstage(cluster, mapped).await);
    calls.buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
    Ok(Many {
        stage,
        unstage: start.elapsed(),
    })
}

/// Waits for the map; makes a file system, or checks the one that is there, as the kubelet's library does (k8s.io/mount-utils,
/// `SafeFormatAndMount`); mounts. In: map, directory.
const USE: &str = r#"use() { until [ -b /dev/mapper/$1 ]; do sleep 0.1; done
  if blkid -p -s TYPE -s PTTYPE -o export /dev/mapper/$1; then fsck -a /dev/mapper/$1; else mkfs.ext4 -q -F -m0 /dev/mapper/$1; fi
  mount /dev/mapper/$1 "$2"; }"#;
/// Unmounts, flushes the map, deletes its disks. In: map, directory.
const LEAVE: &str = r#"leave() { umount "$2"; dm=$(readlink -f /dev/mapper/$1); disks=$(ls /sys/block/${dm##*/}/slaves)
  multipath -f $1; for d in $disks; do echo 1 > /sys/block/$d/device/delete; done; }"#;

async fn theirs(cluster: &Cluster, rounds: u32) -> Result<Single> {
    let guest = cluster.guest(NODE);
    let mut single = Single::default();
    for round in 0..rounds {
        let mut pair = mapped(cluster, &format!("usual{round}"), 1).await?;
        let first = use_of(&pair[0])?;
        let lun = Lun::of(&pair[0].context)?;
        let portal = lun.portals.first().context("a portal")?;
        let target = &lun.target;
        let login =
            format!("iscsiadm -m discovery -t sendtargets -p {portal}; iscsiadm -m node -T {target} --login");
        single
            .first_stage
            .push(timed(guest, &format!("{login}; use {first}")).await?);
        // Mapped only now, or the login had brought it.
        pair.extend(mapped(cluster, &format!("usual{round}-next"), 1).await?);
        let next = use_of(&pair[1])?;
        let rescan = "iscsiadm -m session --rescan";
        single
            .next_stage
            .push(timed(guest, &format!("{rescan}; use {next}")).await?);
        single
            .next_unstage
            .push(timed(guest, &format!("leave {next}")).await?);
        single
            .again_stage
            .push(timed(guest, &format!("{rescan}; use {next}")).await?);
        timed(guest, &format!("leave {next}")).await?;
        let logout = format!("iscsiadm -m node -T {target} --logout; iscsiadm -m node -T {target} -o delete");
        single
            .first_unstage
            .push(timed(guest, &format!("leave {first}; {logout}")).await?);
        release(cluster, pair).await?;
    }
    Ok(single)
}

/// All LUNs are there with the login; what follows is done for ten volumes at a time, as the plugin's calls are.
async fn theirs_many(guest: &Guest, all: &[Mapped]) -> Result<Many> {
    let lun = Lun::of(&all.first().context("no volume")?.context)?;
    let uses = all.iter().map(use_of).collect::<Result<Vec<_>>>()?.join("\n");
    let portal = lun.portals.first().context("a portal")?;
    let target = &lun.target;
    let each = |what: &str| {
        format!("export -f {what}; xargs -P {AT_ONCE} -L 1 bash -ec '{what} $0 $1' <<'END'\n{uses}\nEND")
    };
    let stage = timed(
        guest,
        &format!(
            "iscsiadm -m discovery -t sendtargets -p {portal}; iscsiadm -m node -T {target} --login; {}",
            each("use")
        ),
    )
    .await?;
    let unstage = timed(
        guest,
        &format!("{}\niscsiadm -m node -T {target} --logout", each("leave")),
    )
    .await?;
    Ok(Many { stage, unstage })
}

/// The arguments of [`USE`] and [`LEAVE`] for a volume.
fn use_of(mapped: &Mapped) -> Result<String> {
    Ok(format!(
        "{} {}",
        Lun::of(&mapped.context)?.map,
        mapped.volume.staging()
    ))
}

/// Runs a script of the usual way and answers how long it took by the guest's own clock.
async fn timed(guest: &Guest, script: &str) -> Result<Duration> {
    let script = format!(
        "{USE}\n{LEAVE}\nbegin=${{EPOCHREALTIME/./}}\n{{ {script}\n}} >&2\nend=${{EPOCHREALTIME/./}}\necho $((end - begin))"
    );
    let done = guest.run(&["bash", "-ec", &script], &[], LIMIT).await?;
    let micros = String::from_utf8_lossy(&done.stdout).trim().parse().ok();
    let micros = micros.filter(|_| done.exit == 0).with_context(|| {
        let said = String::from_utf8_lossy(&done.stderr);
        format!("exit {}: {said}", done.exit)
    })?;
    Ok(Duration::from_micros(micros))
}

/// One figure of a way.
type OfSingle = fn(&Single) -> &Rounds;
type OfMany = fn(&Many) -> Duration;

fn part(ours: &Single, theirs: &Single, many: &Many, theirs_many: Option<&Many>, amount: &Amount) -> String {
    let mut text = format!(
        "{} rounds, median / worst; {} volumes once, {AT_ONCE} calls at a time. New ext4 volumes of {} MiB over two paths.\n\n\
         | | usual way (multipathd, stock) | storagelink | usual / ours | scan, mkfs, mount alone |\n| --- | --- | --- | --- | --- |\n",
        amount.rounds,
        amount.volumes,
        SIZE >> 20
    );
    let none = Rounds::default();
    let rows: [(&str, OfSingle, &Rounds); 5] = [
        (
            "stage, first on the node: login, mkfs",
            |single| &single.first_stage,
            &none,
        ),
        (
            "stage, sessions up: rescan, mkfs",
            |single| &single.next_stage,
            &ours.bare_next,
        ),
        (
            "stage, sessions up, with its file system",
            |single| &single.again_stage,
            &ours.bare_again,
        ),
        ("unstage, sessions stay", |single| &single.next_unstage, &none),
        (
            "unstage, last on the node: logout",
            |single| &single.first_unstage,
            &none,
        ),
    ];
    for (title, of, bare) in rows {
        let (usual, own) = (of(theirs), of(ours));
        let _ = writeln!(
            text,
            "| {title} | {} | {} | {} | {} |",
            usual.cell(),
            own.cell(),
            times(usual.median(), own.median()),
            bare.cell()
        );
    }
    let rows: [(&str, OfMany); 2] = [("staged", |many| many.stage), ("unstaged", |many| many.unstage)];
    for (title, of) in rows {
        let _ = writeln!(
            text,
            "| {} volumes {title} | {} | {} | {} | - |",
            amount.volumes,
            theirs_many.map_or_else(|| "did not end well".to_owned(), |many| seconds(of(many))),
            seconds(of(many)),
            theirs_many.map_or_else(|| "-".to_owned(), |usual| times(of(usual), of(many)))
        );
    }
    text
}

fn times(usual: Duration, ours: Duration) -> String {
    if ours.is_zero() {
        return "-".to_owned();
    }
    format!("{:.1}", usual.as_secs_f64() / ours.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::{Many, Single, part};
    use crate::{bench::Amount, figures::Rounds};
    use std::time::Duration;

    #[test]
    fn what_did_not_end_is_not_compared() {
        let single = |millis| {
            let rounds = || [Duration::from_millis(millis)].into_iter().collect();
            Single {
                first_stage: rounds(),
                first_unstage: rounds(),
                next_stage: rounds(),
                next_unstage: rounds(),
                again_stage: rounds(),
                bare_next: [Duration::from_millis(100)].into_iter().collect(),
                bare_again: Rounds::default(),
            }
        };
        let many = Many {
            stage: Duration::from_secs(10),
            unstage: Duration::from_secs(5),
        };
        let amount = Amount {
            rounds: 1,
            fault: Vec::new(),
            volumes: 100,
            idle: 1,
        };
        let text = part(&single(200), &single(2000), &many, None, &amount);
        assert!(
            text.contains("| stage, sessions up: rescan, mkfs | 2.00 s / 2.00 s | 0.20 s / 0.20 s | 10.0 | 0.10 s / 0.10 s |"),
            "{text}"
        );
        assert!(
            text.contains("| 100 volumes staged | did not end well | 10.00 s | - | - |"),
            "{text}"
        );
    }
}

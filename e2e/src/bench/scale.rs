//! `make bench-scale`: what the engine costs with hundreds of maps, over scsi_debug disks in one guest. Measured is `lab-maps watch`: the
//! engine and its monitor, and nothing else of the plugin.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;

use super::{Amount, kernel_log};
use crate::{
    figures::Rounds,
    guest::Guest,
    lab::Lab,
    maps::{self, Adopted, Touched},
    report::{Report, seconds},
    wait,
};

const FEW: usize = 100;
const MAPS: usize = 500;
const PATHS: usize = 4;
/// Process and log name.
const WATCH: &str = "lab-maps";
/// How often guest and machine are compared.
const LOOKS: u32 = 5;
/// Emulated processors probe two thousand disks.
const LIMIT: Duration = Duration::from_secs(900);
/// The first looks after a start are not what is called idle: the monitor's slow sweep and the cycle of proofs have run once after it.
const SETTLED: Duration = Duration::from_secs(45);
/// Clock ticks of /proc/<pid>/stat: USER_HZ, 100 on every architecture that Linux has kept.
const TICKS_PER_SECOND: u32 = 100;
/// Four hosts that show the same units: 125 LUNs of 4 targets each, over one RAM disk.
const MODULE: &str = "modprobe scsi_debug add_host=4 num_tgts=4 max_luns=125 vpd_use_hostno=0 dev_size_mb=16 delay=0 max_queue=16";

/// What a rest cost.
#[derive(Debug, Clone, Copy)]
struct Rest {
    kib: u64,
    cpu: Duration,
    time: Duration,
}

impl Rest {
    /// Of one core.
    fn percent(self) -> f64 {
        self.cpu.as_secs_f64() * 100.0 / self.time.as_secs_f64()
    }
}

/// One path of every map away and back.
struct Failover {
    touched: Touched,
    failed: Duration,
    back: Duration,
    cpu: Duration,
}

/// Measures; the part of the file.
pub(super) async fn run(report: &Report, lab: &Lab, amount: &Amount) -> Result<String> {
    let (guest, program) = (lab.node(0), lab.program("lab-maps"));
    let slower = report
        .step("what emulation costs a look at sysfs", slower(guest, &program))
        .await?;
    report
        .step("two thousand disks of scsi_debug", disks(guest))
        .await?;
    start(guest, &program, 0).await?;
    let none = report.step("without a map", rest(guest, amount.idle / 5)).await?;
    report.say(format!("      {none:?}"));
    kill(guest).await?;
    report
        .step("100 maps of four paths", build(guest, &program, FEW))
        .await?;
    start(guest, &program, FEW).await?;
    let few = report.step("they rest", rest(guest, amount.idle / 5)).await?;
    report.say(format!("      {few:?}"));
    kill(guest).await?;
    report.step("500 maps", build(guest, &program, MAPS)).await?;
    start(guest, &program, MAPS).await?;
    let many = report.step("they rest", rest(guest, amount.idle)).await?;
    report.say(format!("      {many:?}"));
    let failover = report
        .step(
            "one path of every map is lost, and comes back",
            failover(guest, &program),
        )
        .await?;
    kill(guest).await?;
    let adopted = report
        .step("SIGKILL, adoption", start(guest, &program, MAPS))
        .await?;
    Ok(part(slower, [none, few, many], &failover, adopted))
}

/// How many times as long looks at sysfs, which are most of what the engine does at rest, take in the guest as on the machine: medians, taken by turns.
async fn slower(guest: &Guest, program: &str) -> Result<f64> {
    let (mut here, mut there) = (Rounds::default(), Rounds::default());
    for _ in 0..LOOKS {
        let micros = tokio::task::spawn_blocking(maps::look).await??;
        here.push(Duration::from_micros(micros));
        let looked = guest.run(&[program, "look"], &[], LIMIT).await?;
        there.push(Duration::from_micros(json(&looked.stdout)?));
    }
    Ok(there.median().as_secs_f64() / here.median().as_secs_f64())
}

async fn disks(guest: &Guest) -> Result<()> {
    let done = guest.run(&["bash", "-ec", MODULE], &[], LIMIT).await?;
    ensure!(done.exit == 0, "{}", String::from_utf8_lossy(&done.stderr));
    wait::until("the disks", LIMIT, async || {
        let count = guest.shell("set -- /sys/block/sd*; echo $#").await?;
        Ok(count.parse() == Ok(MAPS * PATHS))
    })
    .await
    .map(drop)
}

async fn build(guest: &Guest, program: &str, count: usize) -> Result<()> {
    let before = guest
        .run(&[program, "build", &count.to_string()], &[], LIMIT)
        .await?;
    ensure!(before.exit == 0, "{}", String::from_utf8_lossy(&before.stderr));
    Ok(())
}

/// Starts the monitor; what it adopted.
async fn start(guest: &Guest, program: &str, maps: usize) -> Result<Adopted> {
    // One log for all that have run.
    let earlier = guest.log(WATCH).unwrap_or_default().lines().count();
    guest.spawn(WATCH, &[program, "watch"], &[]).await?;
    let mut adopted = Adopted::default();
    wait::until("adoption", LIMIT, async || {
        let log = guest.log(WATCH)?;
        let line = log.lines().skip(earlier).last().unwrap_or_default();
        adopted = json(line.as_bytes())?;
        Ok(true)
    })
    .await?;
    ensure!(adopted.maps == maps, "{adopted:?} of {maps}");
    Ok(adopted)
}

async fn kill(guest: &Guest) -> Result<()> {
    guest.kill(WATCH, 9).await?;
    guest.wait(WATCH, LIMIT).await.map(drop)
}

async fn rest(guest: &Guest, idle_s: u32) -> Result<Rest> {
    tokio::time::sleep(SETTLED).await;
    let (before, from) = usage(guest).await?;
    tokio::time::sleep(Duration::from_secs(idle_s.into())).await;
    let (after, to) = usage(guest).await?;
    let kib = guest
        .shell("awk '/VmRSS/ { print $2 }' /proc/$(pgrep -x lab-maps)/status")
        .await?;
    Ok(Rest {
        kib: kib.parse().with_context(|| format!("memory {kib:?}"))?,
        cpu: after.saturating_sub(before),
        time: to.saturating_sub(from),
    })
}

/// Processor time of the monitor, with its threads that have ended, and the guest's clock.
async fn usage(guest: &Guest) -> Result<(Duration, Duration)> {
    let text = guest
        .shell("cat /proc/$(pgrep -x lab-maps)/stat /proc/uptime")
        .await?;
    parse_usage(&text).with_context(|| format!("processor time {text:?}"))
}

/// `/proc/<pid>/stat` (proc(5): utime and stime are fields 14 and 15), then `/proc/uptime`.
fn parse_usage(text: &str) -> Option<(Duration, Duration)> {
    let (stat, uptime) = text.split_once('\n')?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).map(str::parse::<u32>);
    let ticks = times.next()?.ok()? + times.next()?.ok()?;
    let uptime = uptime.split(' ').next()?.parse().ok()?;
    Some((
        Duration::from_secs(1) * ticks / TICKS_PER_SECOND,
        Duration::try_from_secs_f64(uptime).ok()?,
    ))
}

async fn failover(guest: &Guest, program: &str) -> Result<Failover> {
    kernel_log::prepare(guest).await?;
    let (before, _) = usage(guest).await?;
    let states = |state: &str| {
        format!(
            "cd /sys/class/scsi_device; set -- *; for d in ${{1%%:*}}:*; do echo {state} > $d/device/state; done"
        )
    };
    kernel_log::mark(guest, "lost").await?;
    guest.shell(&states("offline")).await?;
    let touched = guest.run(&[program, "touch"], &[], LIMIT).await?;
    let touched: Touched = json(&touched.stdout)?;
    let failed = all_of(guest, "lost", ": Failing path ").await?;
    kernel_log::mark(guest, "found").await?;
    let script = states("running");
    let done = guest.run(&["bash", "-ec", &script], &[], LIMIT).await?;
    ensure!(done.exit == 0, "{}", String::from_utf8_lossy(&done.stderr));
    let back = all_of(guest, "found", ": Reinstating path ").await?;
    let (after, _) = usage(guest).await?;
    Ok(Failover {
        touched,
        failed,
        back,
        cpu: after.saturating_sub(before),
    })
}

/// Waits until the kernel has said this of a path of every map since the mark; how long after the mark that was.
async fn all_of(guest: &Guest, mark: &str, said: &str) -> Result<Duration> {
    let mut took = Duration::ZERO;
    wait::until(said, LIMIT, async || {
        let lines = kernel_log::since(guest, mark).await?;
        let from = lines.first().map_or(Duration::ZERO, |line| line.at);
        let times = lines.iter().filter(|line| line.text.contains(said));
        let times: Vec<Duration> = times.map(|line| line.at).collect();
        ensure!(times.len() >= MAPS, "{} of {MAPS}", times.len());
        took = times[MAPS - 1].saturating_sub(from);
        Ok(true)
    })
    .await?;
    Ok(took)
}

fn json<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).with_context(|| format!("{:?}", String::from_utf8_lossy(text)))
}

#[allow(clippy::cast_precision_loss, reason = "figures to read")]
fn part(slower: f64, rests: [Rest; 3], failover: &Failover, adopted: Adopted) -> String {
    let mut text = format!(
        "A look at sysfs, as the engine looks at a path, takes {slower:.1} times as long in this guest as on the machine.\n\n| | measured |\n| --- | --- |\n"
    );
    let of_maps = [0, FEW, MAPS].into_iter().zip(rests);
    for (maps, rest) in of_maps.clone() {
        let _ = writeln!(
            text,
            "| resident memory, {maps} maps | {:.1} MiB |",
            rest.kib as f64 / 1024.0
        );
    }
    for (maps, rest) in of_maps {
        let _ = writeln!(
            text,
            "| processor time at rest, {maps} maps | {:.2} % of one emulated core over {:.0} s; by the factor above {:.2} % of one of the machine's |",
            rest.percent(),
            rest.time.as_secs_f64(),
            rest.percent() / slower
        );
    }
    let Failover {
        touched,
        failed,
        back,
        cpu,
    } = failover;
    let micros = Duration::from_micros;
    let _ = writeln!(
        text,
        "| one path of each of {MAPS} maps lost at once, 8 writes to each map by 8 threads | all written {} after the first write, longest write {}, {} errors |\n\
         | until the last lost path was failed | {} |\n\
         | all of them running again, until the last was reinstated | {} |\n\
         | processor time of the monitor for all that | {} |\n\
         | {MAPS} maps adopted after SIGKILL, from the start of the program | {} |",
        seconds(micros(touched.took_us)),
        seconds(micros(touched.longest_us)),
        touched.errors,
        seconds(*failed),
        seconds(*back),
        seconds(*cpu),
        seconds(micros(adopted.took_us))
    );
    text
}

#[cfg(test)]
mod tests {
    use super::parse_usage;
    use std::time::Duration;

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let text = "42 (a) b) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 7 8 20 0 5 0 100 0 0\n1234.56 99.0\n";
        let (cpu, uptime) = parse_usage(text).unwrap();
        assert_eq!(cpu, Duration::from_secs(3));
        assert_eq!(uptime, Duration::from_secs_f64(1234.56));
    }
}

//! `make bench-failover`: the same writer and the same faults on one LUN, under the plugin, under multipathd as it comes and under multipathd
//! as quick as its options make it, one after the other in one lab.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;

use super::{
    Amount,
    fault::Fault,
    kernel_log::{self, Return},
    standby::Standby,
};
use crate::{
    figures::Rounds,
    guest::Guest,
    net::Fabric,
    report::{Report, seconds},
    roles::{
        inspect,
        multipathd::{self, Lun, Settings},
        writer::Writer,
    },
    suites::{
        cluster::{Cluster, Form, Victim},
        volume::Volume,
    },
    wait,
};

pub(super) const NODE: usize = 0;
const SIZE: i64 = 256 << 20;
/// A write of each of the writer's jobs begins at most so often: the emulated processors are to be idle most of the time, or the writer would
/// slow the managers down.
pub(super) const PACE: Duration = Duration::from_millis(10);
/// Requests over each path before it counts as used.
pub(super) const CARRIED: u64 = 10;
/// iscsid's slowest way back and multipathd's longest interval are well within.
pub(super) const BACK: Duration = Duration::from_secs(120);
pub(super) const OURS: &str = "storagelink";

/// One manager's figures.
struct Column {
    manager: &'static str,
    faults: Vec<(Fault, Figures)>,
}

impl Column {
    fn of(&self, fault: Fault) -> Option<&Figures> {
        let found = self.faults.iter().find(|(other, _)| *other == fault);
        found.map(|(_, figures)| figures)
    }
}

/// All rounds of one fault.
#[derive(Default)]
struct Figures {
    stall: Rounds,
    back: Rounds,
    after_session: Rounds,
}

/// One round of one fault. Without any figure: the manager did not come to where the fault could begin.
#[derive(Default)]
pub(super) struct Round {
    /// The longest write; none where no path was left, and it says nothing of the manager.
    pub(super) stall: Option<Duration>,
    /// From the fault's end until the path is used again, or until writes go on; none where the array decides it.
    pub(super) back: Option<Duration>,
    /// The same from the return of the session on; none where it decides nothing.
    pub(super) after_session: Option<Duration>,
}

/// A map under test.
pub(super) struct Subject<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) manager: &'static str,
    /// Name of the map.
    pub(super) map: String,
    /// What the writer writes to.
    pub(super) device: String,
    /// The LUN's port groups, while it has two.
    pub(super) standby: Option<&'a Standby>,
    made: Made<'a>,
}

/// How the map came to be, and is made anew.
enum Made<'a> {
    /// By the plugin.
    Staged(&'a Volume, &'a Context),
    /// By multipathd.
    Attached(&'a Settings, &'a Lun),
}

/// Measures; the part of the file.
pub(super) async fn run(report: &Report, cluster: &mut Cluster, amount: &Amount) -> Result<String> {
    kernel_log::prepare(cluster.guest(NODE)).await?;
    kernel_log::tell_sessions(cluster.guest(NODE)).await?;
    let volume = cluster.create("bench-failover", SIZE, Form::Block).await?;
    let context = cluster.attach(&volume, NODE).await?;
    let mut columns = vec![ours(report, cluster, &volume, &context, amount).await?];
    // It would look at every path all the same, and cost its time.
    cluster.end(Victim::Plugin).await?;
    for settings in [multipathd::TUNED, multipathd::STOCK] {
        columns.insert(0, theirs(report, cluster, settings, &context, amount).await?);
    }
    cluster.detach(&volume, NODE).await?;
    cluster.delete(&volume).await?;
    Ok(part(&columns, &wanted(amount), amount.rounds))
}

type Context = std::collections::HashMap<String, String>;

async fn ours(
    report: &Report,
    cluster: &Cluster,
    volume: &Volume,
    context: &Context,
    amount: &Amount,
) -> Result<Column> {
    volume.make_directories(cluster.guest(NODE)).await?;
    let mut faults = Vec::new();
    for pass in passes(amount) {
        let standby = Standby::make_for(&pass, cluster, context).await?;
        let context = standby.as_ref().map_or(context, Standby::context);
        cluster.stage(volume, NODE, context).await?;
        cluster.publish(volume, NODE, context).await?;
        let subject = Subject {
            cluster,
            manager: OURS,
            map: volume.map(),
            device: volume.data(),
            standby: standby.as_ref(),
            made: Made::Staged(volume, context),
        };
        faults.extend(subject.figures(report, &pass, amount.rounds).await?);
        cluster.unpublish(volume, NODE).await?;
        cluster.unstage(volume, NODE).await?;
        if let Some(standby) = &standby {
            standby.remove(cluster).await?;
        }
    }
    Ok(Column {
        manager: OURS,
        faults,
    })
}

async fn theirs(
    report: &Report,
    cluster: &Cluster,
    settings: Settings,
    context: &Context,
    amount: &Amount,
) -> Result<Column> {
    let guest = cluster.guest(NODE);
    let mut faults = Vec::new();
    for pass in passes(amount) {
        let standby = Standby::make_for(&pass, cluster, context).await?;
        let lun = Lun::of(standby.as_ref().map_or(context, Standby::context))?;
        let attach = async {
            multipathd::start(guest, &settings).await?;
            multipathd::attach(guest, &settings, &lun).await
        };
        report
            .step(&format!("{}: discovery, login, map", settings.name), attach)
            .await?;
        let subject = Subject {
            cluster,
            manager: settings.name,
            map: lun.map.clone(),
            device: lun.device(),
            standby: standby.as_ref(),
            made: Made::Attached(&settings, &lun),
        };
        faults.extend(subject.figures(report, &pass, amount.rounds).await?);
        multipathd::detach(guest, &lun).await?;
        multipathd::stop(guest).await?;
        if let Some(standby) = &standby {
            standby.remove(cluster).await?;
        }
    }
    Ok(Column {
        manager: settings.name,
        faults,
    })
}

impl Subject<'_> {
    async fn figures(&self, report: &Report, faults: &[Fault], rounds: u32) -> Result<Vec<(Fault, Figures)>> {
        let mut all = Vec::new();
        for &fault in faults {
            let mut figures = Figures::default();
            let short = format!("{fault:?}").to_lowercase();
            for number in 1..=rounds {
                let title = format!("{}, {}, round {number}", self.manager, fault.title());
                let name = format!("{}-{short}-{number}", self.manager.replace(", ", "-"));
                let round = async {
                    self.renew().await?;
                    match self.standby {
                        None => self.round(fault, &name).await,
                        Some(standby) => standby.round(self, &name).await,
                    }
                };
                let round = report.step(&title, round).await?;
                let shown = |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), seconds);
                report.say(format!(
                    "      longest write {}, back {} after the end, {} after the session",
                    shown(round.stall),
                    shown(round.back),
                    shown(round.after_session)
                ));
                figures.stall.extend(round.stall);
                figures.back.extend(round.back);
                figures.after_session.extend(round.after_session);
            }
            all.push((fault, figures));
        }
        Ok(all)
    }

    /// Makes the map anew. The plugin's paths would be lost every 20 s otherwise, and one that is lost so often is held down for longer each
    /// time. multipathd forgets the LUN: when it knows it, it makes the map of the first path that comes and takes the other one, in standby, into
    /// the same group (seen with 0.9.4).
    async fn renew(&self) -> Result<()> {
        let (cluster, guest) = (self.cluster, self.cluster.guest(NODE));
        match self.made {
            Made::Staged(volume, context) => {
                cluster.unpublish(volume, NODE).await?;
                cluster.unstage(volume, NODE).await?;
                if let Some(standby) = self.standby {
                    standby.first_optimized(cluster).await?;
                }
                cluster.stage(volume, NODE, context).await?;
                cluster.publish(volume, NODE, context).await?;
            }
            Made::Attached(settings, lun) => {
                if let Some(standby) = self.standby {
                    multipathd::detach(guest, lun).await?;
                    multipathd::stop(guest).await?;
                    standby.first_optimized(cluster).await?;
                    multipathd::start(guest, settings).await?;
                    multipathd::attach(guest, settings, lun).await?;
                }
            }
        }
        Ok(())
    }

    /// One fault under a writer, from two used paths to two used paths.
    async fn round(&self, fault: Fault, name: &str) -> Result<Round> {
        let (guest, target) = (self.cluster.guest(NODE), self.cluster.lab.array());
        let writer = Writer::start_paced(&self.cluster.lab, guest, name, &self.device, PACE).await?;
        self.carried(&inspect::paths(guest, &self.map).await?).await?;
        let earlier = writer.acknowledged(guest).await?.len();
        let mut before = inspect::paths(guest, &self.map).await?;

        let (begun, ended) = (format!("{name} begins"), format!("{name} ends"));
        kernel_log::mark(guest, &begun).await?;
        fault.begin(guest, target).await?;
        if let Some(held) = fault.held() {
            tokio::time::sleep(held).await;
            before = inspect::paths(guest, &self.map).await?;
            kernel_log::mark(guest, &ended).await?;
            fault.end(guest, target).await?;
        }
        let end = if fault.held().is_some() { &ended } else { &begun };
        let mut session_of_first = None;
        if fault == Fault::Both {
            session_of_first = Some(self.goes_on(&writer, &begun, end).await?);
            guest.heal(Fabric::B).await?;
        }
        let (end, back) = self.returned(&begun, end).await?;
        self.carried(&before).await?;

        let longest = longest_since(&writer, guest, earlier).await?;
        let summary = writer.stop(guest, BACK).await?;
        ensure!(summary.errors == 0, "{summary:?}");
        Ok(match session_of_first {
            None => Round {
                stall: Some(longest),
                back: Some(back.used.saturating_sub(end)),
                after_session: Some(back.used.saturating_sub(back.session)),
            },
            // The writes that hung began with the fault: how much longer than it they took.
            Some(session) => {
                let lines = kernel_log::since(guest, &begun).await?;
                let begin = kernel_log::time_of(&lines, &begun).context("no mark")?;
                let back = longest.saturating_sub(end.saturating_sub(begin));
                Round {
                    stall: None,
                    back: Some(back),
                    after_session: Some(back.saturating_sub(session.saturating_sub(end))),
                }
            }
        })
    }

    /// Waits until each of two paths has carried [`CARRIED`] requests since `before`.
    async fn carried(&self, before: &[inspect::Path]) -> Result<()> {
        wait::until("requests over each path", BACK, async || {
            let now = inspect::paths(self.cluster.guest(NODE), &self.map).await?;
            let shares = inspect::shares(before, &now);
            ensure!(
                shares.len() == 2 && shares.iter().all(|(_, requests, _)| *requests >= CARRIED),
                "{shares:?}"
            );
            Ok(true)
        })
        .await
        .map(drop)
    }

    /// Waits until the kernel has a session again and uses every path; when that was, and the fault's end.
    async fn returned(&self, begun: &str, ended: &str) -> Result<(Duration, Return)> {
        let mut found = None;
        wait::until("the lost path is used again", BACK, async || {
            let lines = kernel_log::since(self.cluster.guest(NODE), begun).await?;
            let end = kernel_log::time_of(&lines, ended).context("no mark")?;
            found = kernel_log::returned(&lines, end).map(|back| (end, back));
            Ok(found.is_some())
        })
        .await?;
        found.context("the lost path is used again")
    }

    /// Waits until writes are acknowledged again; when the first session was back.
    async fn goes_on(&self, writer: &Writer, begun: &str, ended: &str) -> Result<Duration> {
        let guest = self.cluster.guest(NODE);
        let stopped = writer.acknowledged(guest).await?.len();
        wait::until("writes go on over one path", BACK, async || {
            Ok(writer.acknowledged(guest).await?.len() > stopped + 20)
        })
        .await?;
        let lines = kernel_log::since(guest, begun).await?;
        let end = kernel_log::time_of(&lines, ended).context("no mark")?;
        kernel_log::first_session(&lines, end).context("writes go on without a session")
    }
}

/// The longest of the writes acknowledged after the first `earlier` ones.
pub(super) async fn longest_since(writer: &Writer, guest: &Guest, earlier: usize) -> Result<Duration> {
    let writes = writer.acknowledged(guest).await?;
    let longest = writes.iter().skip(earlier).map(|write| write.took_us).max();
    longest
        .map(Duration::from_micros)
        .context("no write since the fault")
}

/// One figure of all that a fault has.
type Of = fn(&Figures) -> &Rounds;

/// Those that are wanted.
fn wanted(amount: &Amount) -> Vec<Fault> {
    if amount.fault.is_empty() {
        Fault::value_variants().to_vec()
    } else {
        amount.fault.clone()
    }
}

/// Those that are wanted, by the paths that they need: two alike, or one of them in standby.
fn passes(amount: &Amount) -> Vec<Vec<Fault>> {
    let (standby, alike): (Vec<_>, Vec<_>) = wanted(amount)
        .into_iter()
        .partition(|&fault| fault == Fault::Standby);
    [alike, standby]
        .into_iter()
        .filter(|pass| !pass.is_empty())
        .collect()
}

fn part(columns: &[Column], faults: &[Fault], wanted: u32) -> String {
    let mut text = format!(
        "{wanted} rounds of each, median / worst, the plugin's each on a volume staged anew: a path that is lost every 20 s is held down. \
         Four jobs of `lab-writer`, O_DIRECT, a write of each every {} ms at most.\n",
        PACE.as_millis()
    );
    let tables: [(&str, Of); 3] = [
        ("longest write", |figures| &figures.stall),
        ("used again, after the fault's end", |figures| &figures.back),
        ("used again, after the session's return", |figures| {
            &figures.after_session
        }),
    ];
    for (title, of) in tables {
        let _ = write!(text, "\n| {title} |");
        for column in columns {
            let _ = write!(text, " {} |", column.manager);
        }
        let _ = writeln!(text, "\n| --- |{}", " --- |".repeat(columns.len()));
        for fault in faults {
            let figures: Vec<_> = columns
                .iter()
                .filter_map(|column| column.of(*fault))
                .map(of)
                .collect();
            if figures.iter().all(|rounds| rounds.count() == 0) {
                continue;
            }
            let _ = write!(text, "| {} |", fault.title());
            for rounds in figures {
                let _ = match u32::try_from(rounds.count()) {
                    Ok(count) if count > 0 && count < wanted => {
                        write!(text, " {} ({count} of {wanted} rounds) |", rounds.cell())
                    }
                    _ => write!(text, " {} |", rounds.cell()),
                };
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Column, Fault, Figures, part};
    use clap::ValueEnum as _;
    use std::time::Duration;

    #[test]
    fn rounds_that_did_not_begin_are_told() {
        let column = |manager, rounds: usize| {
            let mut figures = Figures::default();
            figures.stall.extend(vec![Duration::from_secs(1); rounds]);
            Column {
                manager,
                faults: vec![(Fault::Standby, figures)],
            }
        };
        let text = part(
            &[column("a", 0), column("b", 2), column("c", 3)],
            &[Fault::Standby],
            3,
        );
        assert!(
            text.contains("| - | 1.00 s / 1.00 s (2 of 3 rounds) | 1.00 s / 1.00 s |\n"),
            "{text}"
        );
    }

    #[test]
    fn a_figure_that_does_not_exist_has_no_row() {
        let faults = Fault::value_variants();
        let column = |manager, millis| Column {
            manager,
            faults: faults
                .iter()
                .map(|fault| {
                    let took = Duration::from_millis(millis);
                    let mut figures = Figures::default();
                    if *fault != Fault::Both {
                        figures.stall.push(took);
                    }
                    figures.back.push(took * 2);
                    figures.after_session.push(took * 3);
                    (*fault, figures)
                })
                .collect(),
        };
        let text = part(&[column("a", 1000), column("b", 10)], faults, 1);
        assert!(text.contains("| longest write | a | b |\n| --- | --- | --- |\n| silent loss of a fabric | 1.00 s / 1.00 s | 10.0 ms / 10.0 ms |\n"), "{text}");
        assert_eq!(text.matches(Fault::Both.title()).count(), 2, "{text}");
    }
}

//! A guest's kernel log as a clock: marks that a bench or a suite writes, and what the kernel says of paths and sessions between them.
//!
//! One clock for everything inside the guest, without a program that polls there. `scsi_transport_iscsi.debug_session` makes the kernel say
//! when a session is logged in (drivers/scsi/scsi_transport_iscsi.c, `__iscsi_unblock_session`); dm-mpath always says when a path is failed
//! and reinstated (drivers/md/dm-mpath.c, `fail_path`, `reinstate_path`).

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};

use crate::guest::Guest;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Since the guest's boot.
    pub(crate) at: Duration,
    /// Without its time and level.
    pub(crate) text: String,
}

/// How a lost path came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Return {
    /// A session was logged in again.
    pub(super) session: Duration,
    /// The map used its path again.
    pub(super) used: Duration,
}

/// Marks may be written as often as a bench likes: lines of user space are limited to ten in five seconds by default.
pub(crate) async fn prepare(guest: &Guest) -> Result<()> {
    let limit = "echo on > /proc/sys/kernel/printk_devkmsg";
    guest.shell(limit).await.map(drop)
}

/// Makes the kernel say when sessions are logged in.
pub(super) async fn tell_sessions(guest: &Guest) -> Result<()> {
    let parameter = "/sys/module/scsi_transport_iscsi/parameters/debug_session";
    guest.write(parameter, "1\n", 0o644).await
}

/// Writes a mark of this name.
pub(crate) async fn mark(guest: &Guest, name: &str) -> Result<()> {
    guest.write("/dev/kmsg", marked(name), 0o644).await
}

fn marked(name: &str) -> String {
    format!("lab-bench: {name}\n")
}

/// The lines from the last mark of this name on; the mark is the first.
pub(crate) async fn since(guest: &Guest, name: &str) -> Result<Vec<Line>> {
    let mut lines = parse(&guest.exec(&["dmesg", "--raw"]).await?);
    let mark = position(&lines, name).with_context(|| format!("no mark {name:?} in the kernel's log"))?;
    Ok(lines.split_off(mark))
}

/// When the last mark of this name was written.
#[must_use]
pub(super) fn time_of(lines: &[Line], name: &str) -> Option<Duration> {
    Some(lines[position(lines, name)?].at)
}

fn position(lines: &[Line], name: &str) -> Option<usize> {
    let mark = marked(name);
    lines.iter().rposition(|line| line.text == mark.trim_end())
}

/// `<level>[seconds.micros] text`; lines without a time (the rest of one with a line feed) are left out.
fn parse(text: &str) -> Vec<Line> {
    let line = |line: &str| {
        let (_, rest) = line.split_once('[')?;
        let (time, text) = rest.split_once("] ")?;
        Some(Line {
            at: Duration::try_from_secs_f64(time.trim().parse().ok()?).ok()?,
            text: text.trim_end().to_owned(),
        })
    };
    text.lines().filter_map(line).collect()
}

/// How the lost paths came back after `end`: `None` until a session is logged in again and no path is failed any more. `lines` begin before
/// the loss. A path that was never failed counts as used when its session is back.
#[must_use]
pub(super) fn returned(lines: &[Line], end: Duration) -> Option<Return> {
    let mut failed = BTreeSet::new();
    let (mut session, mut used) = (None, None);
    for line in lines {
        if line.text.ends_with("__iscsi_unblock_session: Unblocking session") {
            if line.at >= end {
                session = Some(line.at);
            }
        } else if let Some((_, path)) = line.text.split_once(": Failing path ") {
            failed.insert(path);
            used = None;
        } else if let Some((_, path)) = line.text.split_once(": Reinstating path ") {
            failed.remove(path);
            used = Some(line.at);
        }
    }
    let session = session.filter(|_| failed.is_empty())?;
    Some(Return {
        session,
        used: used.filter(|used| *used >= session).unwrap_or(session),
    })
}

/// When the first session was logged in again after `end`.
#[must_use]
pub(super) fn first_session(lines: &[Line], end: Duration) -> Option<Duration> {
    let mut all = lines.iter().filter(|line| line.at >= end);
    all.find(|line| line.text.ends_with("__iscsi_unblock_session: Unblocking session"))
        .map(|line| line.at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
<12>[   10.000000] lab-bench: fault 1
<6>[   12.000000]  connection1:0: detected conn error (1022)
<4>[   12.500000] device-mapper: multipath: 254:0: Failing path 8:0.
<12>[   30.000000] lab-bench: end 1
<6>[   31.250000]  session1: __iscsi_unblock_session: Unblocking session
<6>[   31.251000]  session1: __iscsi_unblock_session: Completed unblocking session
<4>[   33.500000] device-mapper: multipath: 254:0: Reinstating path 8:0.
";

    fn secs(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_path_is_back_when_it_is_reinstated_and_not_before() {
        let lines = parse(LOG);
        let end = time_of(&lines, "end 1").unwrap();
        assert_eq!(end, secs(30.0));
        let back = Return {
            session: secs(31.25),
            used: secs(33.5),
        };
        assert_eq!(returned(&lines, end), Some(back));
        assert_eq!(returned(&lines[..lines.len() - 1], end), None);
        assert_eq!(first_session(&lines, end), Some(secs(31.25)));
    }

    #[test]
    fn a_path_that_was_never_failed_is_back_with_its_session() {
        let lines: Vec<Line> = parse(LOG)
            .into_iter()
            .filter(|line| !line.text.contains("path 8:0"))
            .collect();
        let back = returned(&lines, secs(30.0)).unwrap();
        assert_eq!(back.session, back.used);
        assert_eq!(returned(&lines[..3], secs(30.0)), None, "no session yet");
    }

    #[test]
    fn one_that_fails_again_is_not_back() {
        let again = format!("{LOG}<4>[   34.000000] device-mapper: multipath: 254:0: Failing path 8:0.\n");
        assert_eq!(returned(&parse(&again), secs(30.0)), None);
    }
}

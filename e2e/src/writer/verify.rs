//! Reads back what the log says was acknowledged.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    block::{self, Buffer},
    write::{Mode, open},
};

/// Wrong blocks named in a [`Verdict`]; the rest is counted.
const NAMED: usize = 10;

/// What to verify.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// File or block device.
    #[arg(long)]
    pub target: PathBuf,
    /// The writer's log.
    #[arg(long)]
    pub log: PathBuf,
    /// The writer's seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What was found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Acknowledged writes in the log.
    pub acknowledged: u64,
    /// Blocks read back.
    pub blocks: u64,
    /// Blocks that are not what was acknowledged.
    pub wrong: u64,
    /// The first of them.
    pub first: Vec<String>,
}

/// Reads every block of the log. A newer sequence than the acknowledged one is right: that write was in flight when the
/// writer ended.
pub fn run(options: &Options) -> Result<Verdict> {
    let (acknowledged, newest) = read_log(&options.log)?;
    let target = open(&options.target, Mode::Direct, false)?;
    let mut verdict = Verdict {
        acknowledged,
        blocks: newest.len() as u64,
        ..Verdict::default()
    };
    let mut buffer = Buffer::default();
    for (number, sequence) in newest {
        let trouble = match target.read_exact_at(&mut buffer.0, number * block::SIZE as u64) {
            Err(error) => Some(error.to_string()),
            Ok(()) => match block::check(&buffer, options.seed, number) {
                Ok(found) if found >= sequence => None,
                Ok(found) => Some(format!("holds sequence {found}, acknowledged was {sequence}")),
                Err(wrong) => Some(wrong.to_string()),
            },
        };
        if let Some(trouble) = trouble {
            verdict.wrong += 1;
            if verdict.first.len() < NAMED {
                verdict.first.push(format!("block {number} {trouble}"));
            }
        }
    }
    Ok(verdict)
}

/// Number of lines, and the newest acknowledged sequence of each block. A last line without its end was never promised.
fn read_log(path: &Path) -> Result<(u64, BTreeMap<u64, u64>)> {
    let text = fs::read_to_string(path).with_context(|| format!("read the log {}", path.display()))?;
    let mut newest = BTreeMap::new();
    let mut lines = 0;
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let mut words = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(number)), Some(Ok(sequence))) = (words.next(), words.next()) else {
            anyhow::bail!("{}: {line:?} is no line of the writer", path.display());
        };
        lines += 1;
        let entry = newest.entry(number).or_insert(sequence);
        *entry = sequence.max(*entry);
    }
    Ok((lines, newest))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::FileExt as _,
        sync::atomic::{AtomicBool, Ordering},
        time::Duration,
    };

    use super::{super::write, Options, run};

    #[test]
    fn a_lost_write_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let options = write::Options {
            every_ms: 0,
            target: directory.path().join("data"),
            log: directory.path().join("log"),
            first: 0,
            blocks: 8,
            jobs: 2,
            mode: write::Mode::Fsync,
            seed: 5,
            seconds: None,
        };
        let stop = AtomicBool::new(false);
        let summary = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write::run(&options, &stop).unwrap());
            while std::fs::read(&options.log).map_or(true, |log| log.len() < 1000) {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        });
        assert_eq!(summary.errors, 0, "{summary:?}");

        let verify = Options {
            target: options.target.clone(),
            log: options.log.clone(),
            seed: 5,
        };
        let verdict = run(&verify).unwrap();
        assert_eq!(
            (verdict.acknowledged, verdict.blocks, verdict.wrong),
            (summary.writes, 8, 0),
            "{verdict:?}"
        );

        // A disk that took a write and forgot it: block 3 falls back to an older sequence.
        let mut stale = super::Buffer::default();
        super::block::fill(&mut stale, 5, 3, 1);
        let file = std::fs::File::options()
            .write(true)
            .open(&options.target)
            .unwrap();
        file.write_all_at(&stale.0, 3 * 4096).unwrap();
        let mut byte = [0];
        std::fs::File::open(&options.target)
            .unwrap()
            .read_exact_at(&mut byte, 6 * 4096 + 100)
            .unwrap();
        file.write_all_at(&[!byte[0]], 6 * 4096 + 100).unwrap();
        let verdict = run(&verify).unwrap();
        assert_eq!(verdict.wrong, 2, "{verdict:?}");
        assert!(
            verdict.first[0].starts_with("block 3 holds sequence 1, acknowledged was"),
            "{verdict:?}"
        );
        assert!(
            verdict.first[1].starts_with("block 6 is torn or altered from byte 100"),
            "{verdict:?}"
        );
    }
}

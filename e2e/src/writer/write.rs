//! Writes until told to stop.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::block::{self, Buffer};

/// A job gives up after so many failed writes: the log must not fill the guest's memory.
const ERROR_LIMIT: u64 = 100;

/// How a write becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// O_DIRECT and O_DSYNC: without the second, what makes a new block part of a file may come later than its data.
    Direct,
    /// Through the page cache, with fdatasync after each block.
    Fsync,
}

/// What to write.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// File or block device; a file is made.
    #[arg(long)]
    pub target: PathBuf,
    /// Log of acknowledged writes: `<block> <sequence> <start, us> <duration, us>` a line.
    #[arg(long)]
    pub log: PathBuf,
    /// Blocks of 4 KiB to write round and round; at least one per job.
    #[arg(long, default_value_t = 4096)]
    pub blocks: u64,
    /// The block that they begin with, for writers that share a device.
    #[arg(long, default_value_t = 0)]
    pub first: u64,
    /// Writers at once, 1 to 64; each has blocks of its own.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub jobs: u64,
    /// How a write becomes durable.
    #[arg(long, value_enum, default_value = "direct")]
    pub mode: Mode,
    /// Marks this run's blocks.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Begin a write of a job at most every so many milliseconds; 0: one after the other.
    #[arg(long, default_value_t = 0)]
    pub every_ms: u64,
    /// Stop after so many seconds [default: at SIGTERM].
    #[arg(long)]
    pub seconds: Option<u64>,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Acknowledged writes.
    pub writes: u64,
    /// Failed writes.
    pub errors: u64,
    /// The first error's text.
    pub first_error: Option<String>,
    /// The longest single write, in microseconds.
    pub longest_us: u64,
    /// When that write began, in microseconds after the start.
    pub longest_at_us: u64,
    /// Run time in microseconds.
    pub elapsed_us: u64,
}

/// Writes until `stop`; every acknowledged write is in the log before the next one of its job begins.
pub fn run(options: &Options, stop: &AtomicBool) -> Result<Summary> {
    let target = open(&options.target, options.mode, true)?;
    let log =
        File::create(&options.log).with_context(|| format!("make the log {}", options.log.display()))?;
    let log = Mutex::new(log);
    let summary = Mutex::new(Summary::default());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for job in 0..options.jobs {
            let (target, log, summary) = (&target, &log, &summary);
            scope.spawn(move || one_job(options, job, target, log, summary, start, stop));
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.elapsed_us = micros(start);
    Ok(summary)
}

/// Opens the target; [`Mode::Direct`] bypasses the page cache.
pub(super) fn open(path: &Path, mode: Mode, write: bool) -> Result<File> {
    let flags = if mode == Mode::Direct {
        (nix::fcntl::OFlag::O_DIRECT | nix::fcntl::OFlag::O_DSYNC).bits()
    } else {
        0
    };
    // A missing device must not become a file in /dev.
    let create = write && !path.starts_with("/dev");
    File::options()
        .read(true)
        .write(write)
        .create(create)
        .truncate(false)
        .custom_flags(flags)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

fn one_job(
    options: &Options,
    job: u64,
    target: &File,
    log: &Mutex<File>,
    summary: &Mutex<Summary>,
    start: Instant,
    stop: &AtomicBool,
) {
    let own = (options.blocks.saturating_sub(job)).div_ceil(options.jobs).max(1);
    let mut buffer = Buffer::default();
    let mut errors = 0;
    let mut sequence = 0;
    while !stop.load(Ordering::Relaxed) && errors < ERROR_LIMIT {
        let number = options.first + job + (sequence % own) * options.jobs;
        sequence += 1;
        block::fill(&mut buffer, options.seed, number, sequence);
        let began = micros(start);
        let result = target
            .write_all_at(&buffer.0, number * block::SIZE as u64)
            .and_then(|()| match options.mode {
                Mode::Direct => Ok(()),
                Mode::Fsync => target.sync_data(),
            });
        let took = micros(start) - began;
        // The log first: a write that is not in it was never promised.
        let result = result.and_then(|()| acknowledge(log, number, sequence, began, took));
        let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => summary.writes += 1,
            Err(error) => {
                errors += 1;
                summary.errors += 1;
                summary
                    .first_error
                    .get_or_insert_with(|| format!("block {number} at {began} us: {error}"));
            }
        }
        if took > summary.longest_us {
            (summary.longest_us, summary.longest_at_us) = (took, began);
        }
        drop(summary);
        // The pace of the load: nobody wakes it, nothing is waited for.
        let pause = options.every_ms.saturating_mul(1000).saturating_sub(took);
        if pause > 0 {
            std::thread::park_timeout(Duration::from_micros(pause));
        }
    }
}

fn acknowledge(log: &Mutex<File>, number: u64, sequence: u64, began: u64, took: u64) -> io::Result<()> {
    let line = format!("{number} {sequence} {began} {took}\n");
    log.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .write_all(line.as_bytes())
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

//! What a run prints: one line per step with its time, and the closing line.

#![allow(clippy::print_stdout, reason = "the report of a command-line program")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;

/// Counts steps. The report of a suite counts for the whole run.
#[derive(Debug, Default)]
pub struct Report {
    counts: Arc<Counts>,
    suite: String,
    notes: bool,
}

#[derive(Debug, Default)]
struct Counts {
    passed: AtomicU32,
    failed: AtomicU32,
}

/// A duration as people read it.
#[must_use]
pub fn seconds(duration: Duration) -> String {
    if duration < Duration::from_millis(100) {
        format!("{:.1} ms", duration.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", duration.as_secs_f64())
    }
}

impl Report {
    /// A report that prints notes, too.
    #[must_use]
    pub fn verbose() -> Self {
        Self {
            notes: true,
            ..Self::default()
        }
    }

    /// The part of this report whose lines begin with the suite's name.
    #[must_use]
    pub fn suite(&self, name: &str) -> Self {
        Self {
            counts: Arc::clone(&self.counts),
            suite: format!("{name}: "),
            notes: self.notes,
        }
    }

    /// Runs one step and prints its line. The error is printed here and handed on, so that a caller can skip what
    /// depends on the step.
    pub async fn step<T>(&self, name: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
        let start = Instant::now();
        let result = step.await;
        self.told(name, start.elapsed(), &result);
        result
    }

    /// Prints the line of a step that somebody else ran.
    pub fn told<T>(&self, name: &str, took: Duration, result: &Result<T>) {
        let took = seconds(took);
        match result {
            Ok(_) => {
                self.counts.passed.fetch_add(1, Ordering::Relaxed);
                println!("ok    {}{name} ({took})", self.suite);
            }
            Err(error) => {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
                println!("FAIL  {}{name} ({took})\n      {error:#}", self.suite);
            }
        }
    }

    /// A line that is not a step.
    pub fn say(&self, text: impl std::fmt::Display) {
        println!("{text}");
    }

    /// Something to watch, for who wants to.
    pub fn note(&self, text: impl std::fmt::Display) {
        if self.notes {
            println!("      {text}");
        }
    }

    /// A program's output to watch.
    pub fn note_lines(&self, text: &str) {
        text.lines().for_each(|line| self.note(line));
    }

    /// Prints `N passed, N failed`; true when nothing failed and something ran.
    #[must_use]
    pub fn close(&self) -> bool {
        let passed = self.counts.passed.load(Ordering::Relaxed);
        println!("{passed} passed, {} failed", self.failures());
        self.failures() == 0 && passed > 0
    }

    /// Steps that failed so far.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.counts.failed.load(Ordering::Relaxed)
    }
}

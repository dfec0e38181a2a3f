//! What a run prints: one line per step with its time, and the closing line.

#![allow(clippy::print_stdout, reason = "the report of a command-line program")]

use std::time::{Duration, Instant};

use anyhow::Result;

/// Counts steps.
#[derive(Debug, Default)]
pub struct Report {
    passed: u32,
    failed: u32,
    suite: String,
    notes: bool,
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

    /// Steps from here on belong to this suite.
    pub fn suite(&mut self, name: &str) {
        self.suite = format!("{name}: ");
    }

    /// Runs one step and prints its line. The error is printed here and handed on, so that a caller can skip what
    /// depends on the step.
    pub async fn step<T>(&mut self, name: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
        let start = Instant::now();
        let result = step.await;
        let took = seconds(start.elapsed());
        match &result {
            Ok(_) => {
                self.passed += 1;
                println!("ok    {}{name} ({took})", self.suite);
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL  {}{name} ({took})\n      {error:#}", self.suite);
            }
        }
        result
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
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0 && self.passed > 0
    }

    /// Steps that failed so far.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failed
    }
}

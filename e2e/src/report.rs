//! What a run prints: one line per step with its time, and the closing line.

#![allow(clippy::print_stdout, reason = "the report of a command-line program")]

use std::time::{Duration, Instant};

use anyhow::Result;

/// Counts steps.
#[derive(Debug, Default)]
pub struct Report {
    passed: u32,
    failed: u32,
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
    /// Runs one step and prints its line. The error is printed here and handed on, so that a caller can skip what
    /// depends on the step.
    pub async fn step<T>(&mut self, name: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
        let start = Instant::now();
        let result = step.await;
        let took = seconds(start.elapsed());
        match &result {
            Ok(_) => {
                self.passed += 1;
                println!("ok    {name} ({took})");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL  {name} ({took})\n      {error:#}");
            }
        }
        result
    }

    /// A line that is not a step.
    pub fn note(&self, text: impl std::fmt::Display) {
        println!("      {text}");
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

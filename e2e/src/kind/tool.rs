//! Programs of the host that the walk calls: found by PATH, with a limit, their output in the error. Never a shell.

use std::{collections::HashMap, ffi::OsStr, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::programs::{self, Finished};

/// For what answers at once on a host that is well.
pub const SHORT: Duration = Duration::from_secs(120);

/// Runs a program; any end is an answer.
///
/// # Errors
/// It cannot be started, or runs longer than `limit`.
pub async fn finish(argv: &[impl AsRef<OsStr>], limit: Duration) -> Result<Finished> {
    programs::run(argv, &HashMap::new(), &[], limit)
        .await
        .with_context(|| spelled(argv))
}

/// Runs a program that must succeed; its standard output without the line end.
///
/// # Errors
/// See [`finish`]; or its exit is not 0: the error holds what it said.
pub async fn run(argv: &[impl AsRef<OsStr>], limit: Duration) -> Result<String> {
    let done = finish(argv, limit).await?;
    if done.exit != 0 {
        bail!("{}: exit {}: {}", spelled(argv), done.exit, said(&done));
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
}

/// Whether a program ends well.
pub async fn succeeds(argv: &[impl AsRef<OsStr>]) -> bool {
    finish(argv, SHORT).await.is_ok_and(|done| done.exit == 0)
}

/// What a program said, errors first.
#[must_use]
pub fn said(done: &Finished) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (errors, output) = (text(&done.stderr), text(&done.stdout));
    match (errors.is_empty(), output.is_empty()) {
        (false, false) => format!("{errors}\n{output}"),
        (false, true) => errors,
        (true, _) => output,
    }
}

fn spelled(argv: &[impl AsRef<OsStr>]) -> String {
    let words: Vec<_> = argv.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    words.join(" ")
}

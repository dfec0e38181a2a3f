//! `lab-writer write` and `lab-writer verify`; the result is one line of JSON. Exit 1: a write failed or a block is wrong.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use storagelink_e2e::writer::{verify, write};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(
    version,
    about = "Writes checksummed blocks and proves that acknowledged ones are there"
)]
enum Arguments {
    /// Write until SIGTERM or the end of --seconds
    Write(write::Options),
    /// Read back every write of the log
    Verify(verify::Options),
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]
fn main() -> ExitCode {
    let result = match Arguments::parse() {
        Arguments::Write(options) => {
            write(options).and_then(|summary| Ok((summary.errors == 0, serde_json::to_string(&summary)?)))
        }
        Arguments::Verify(options) => verify::run(&options)
            .and_then(|verdict| Ok((verdict.wrong == 0, serde_json::to_string(&verdict)?))),
    };
    match result {
        Ok((good, json)) => {
            println!("{json}");
            if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("lab-writer: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn write(options: write::Options) -> Result<write::Summary> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("watch SIGTERM")?;
        let stop = Arc::new(AtomicBool::new(false));
        let limit = options.seconds.map_or(Duration::MAX, Duration::from_secs);
        let writing = {
            let stop = Arc::clone(&stop);
            tokio::task::spawn_blocking(move || write::run(&options, &stop))
        };
        tokio::pin!(writing);
        tokio::select! {
            _ = term.recv() => {}
            () = tokio::time::sleep(limit) => {}
            done = &mut writing => return done.context("the writer")?,
        }
        stop.store(true, Ordering::Relaxed);
        writing.await.context("the writer")?
    })
}

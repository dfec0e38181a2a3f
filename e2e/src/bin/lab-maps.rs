//! `lab-maps build <count>`, `lab-maps touch`, `lab-maps watch`, `lab-maps look`: the engine alone, in a guest; `lab-maps bare`: the kernel alone. Results are lines of JSON.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use storagelink_e2e::{bare, maps};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(version, about = "Builds, writes to and watches maps with the engine alone")]
enum Arguments {
    /// Build maps until there are so many
    Build {
        /// How many there shall be
        count: usize,
    },
    /// Write a few blocks to every map
    Touch,
    /// Adopt the maps and watch them until SIGTERM
    Watch,
    /// Scan a LUN over every session, mount it, and undo that; the microseconds until it was mounted
    Bare {
        /// Its number
        lun: u64,
        /// Where it is mounted
        directory: PathBuf,
        /// Make its file system first
        #[arg(long)]
        make: bool,
    },
    /// Look at sysfs many times; the microseconds that it took
    Look,
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]
fn main() -> ExitCode {
    let start = Instant::now();
    let result = run(&Arguments::parse(), start, |json| println!("{json}"));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-maps: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, start: Instant, say: impl Fn(serde_json::Value)) -> Result<()> {
    // As the node plugin has it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        match arguments {
            Arguments::Build { count } => say(serde_json::json!({"paths": maps::build(*count).await?})),
            Arguments::Touch => say(serde_json::to_value(maps::touch().await?)?),
            Arguments::Bare { lun, directory, make } => {
                let took = bare::stage(maps::engine().host(), *lun, *make, directory).await?;
                say(serde_json::to_value(took.as_micros())?);
            }
            Arguments::Look => say(maps::look()?.into()),
            Arguments::Watch => {
                let mut term = signal(SignalKind::terminate()).context("watch SIGTERM")?;
                let stop = async { term.recv().await.map_or((), drop) };
                let tell = |adopted| say(serde_json::to_value(adopted).unwrap_or_default());
                maps::watch(start, stop, tell).await?;
            }
        }
        Ok(())
    })
}

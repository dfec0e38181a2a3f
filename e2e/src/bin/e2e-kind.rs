//! `make e2e-kind`: the product on one host with Docker, kind, helm and kubectl, from nothing to nothing.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use storagelink_e2e::kind::{needs, run, settings::Settings};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(
    version,
    about = "A kind cluster, a container that is the array, the chart, and what a user does with volumes"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look whether the host has what is needed; nothing is made
    Check,
    /// The whole walk; KEEP=1 leaves everything running
    Walk,
    /// Only the networks and the container that is the array
    Target,
    /// Remove everything that a walk makes
    Down,
}

#[allow(clippy::print_stderr, reason = "a command-line program")]
fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match start(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("e2e-kind: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<bool> {
    let settings = Settings::from_environment()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let (mut int, mut term) = (
            signal(SignalKind::interrupt()).context("watch SIGINT")?,
            signal(SignalKind::terminate()).context("watch SIGTERM")?,
        );
        let work = async {
            match arguments.command {
                Command::Check => needs::check(&settings).await.map(|()| true),
                Command::Walk => run::walk(&settings).await,
                Command::Target => run::array_alone(&settings).await,
                Command::Down => run::down(&settings).await,
            }
        };
        tokio::select! {
            passed = work => passed,
            _ = int.recv() => bail!("interrupted: `make e2e-kind-down` removes what was made"),
            _ = term.recv() => bail!("terminated: `make e2e-kind-down` removes what was made"),
        }
    })
}

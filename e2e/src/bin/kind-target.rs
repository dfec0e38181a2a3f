//! What runs in the container of `e2e/kind/target`. A program and not a script: it removes the kernel's objects by the same code, with
//! the same tests, as the walk does from the host when the container is gone.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use storagelink_e2e::kind::target;

#[derive(Parser)]
#[command(
    version,
    about = "The array of make e2e-kind: the gateway over the host's kernel target"
)]
struct Arguments {
    /// Address and port of each portal, separated by blanks
    #[arg(long, env = "PORTALS", default_value = "", global = true)]
    portals: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM, then remove everything from the host's kernel
    Serve,
    /// Whether the kernel listens at every portal, and the container has its address
    Healthy,
    /// Remove what a crashed container left in the host's kernel
    Clean,
}

#[allow(clippy::print_stderr, reason = "a command-line program")]
fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kind-target: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        match arguments.command {
            Command::Serve => target::serve(&target::portals(&arguments.portals)?).await,
            Command::Healthy => target::healthy(&target::portals(&arguments.portals)?),
            Command::Clean => target::clean().await,
        }
    })
}

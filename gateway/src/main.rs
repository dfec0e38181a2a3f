//! The gateway's program.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use storagelinkd::{config::Config, server::Gateway};
use tokio::signal::unix::{SignalKind, signal};

/// The StorageLink gateway: one service in front of the arrays.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, default_value = "/etc/storagelinkd/storagelinkd.toml")]
    config: PathBuf,
    /// Log as JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if arguments.log_json {
        logs.json().init();
    } else {
        logs.with_ansi(false).init();
    }

    let config = Config::read(&arguments.config)?;
    let gateway = Gateway::open(&config)?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut int = signal(SignalKind::interrupt()).context("SIGINT")?;
        let stop = async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            tracing::info!("stopping: calls under way are finished, volumes stay as they are");
        };
        let fingerprint = gateway.fingerprint().to_owned();
        announce(&fingerprint);
        let ready = |address| {
            tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), fingerprint, "serving");
        };
        gateway.serve(stop, ready).await?;
        Ok(())
    })
}

/// The line that an administrator copies into the driver's configuration.
#[allow(clippy::print_stdout)]
fn announce(fingerprint: &str) {
    println!("fingerprint sha256:{fingerprint}");
}

//! The command `storagelink-csi`: the CSI driver as controller or as node plugin.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use storagelink_csi::{controller, doctor, node};
use tracing_subscriber::EnvFilter;

/// The CSI driver csi.storagelink.io.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// What is logged, as tracing's filter directives, for example info or storagelink_csi=debug.
    #[arg(long, env = "STORAGELINK_LOG", default_value = "info", global = true)]
    log: String,
    /// How it is logged.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// The controller service, beside its sidecars.
    Controller(controller::Args),
    /// The node service, on every node.
    Node(node::NodeArgs),
    /// Checks what this host, the service and the cluster need, and says what to do.
    Doctor(doctor::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(code) => code,
        Err(error) => {
            // The chain in one line: what failed, and why.
            eprintln!("storagelink-csi: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_new(&cli.log)?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let starting = || tracing::info!(version = storagelink_csi::DRIVER_VERSION, "starting");
    match cli.command {
        Command::Controller(args) => {
            starting();
            runtime.block_on(controller::run(args))?;
        }
        Command::Node(args) => {
            starting();
            runtime.block_on(node::run(args))?;
        }
        Command::Doctor(args) => return Ok(runtime.block_on(doctor::run(args))),
    }
    Ok(ExitCode::SUCCESS)
}

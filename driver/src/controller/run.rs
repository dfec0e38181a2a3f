//! The subcommand `controller`: reads the configuration, serves, stops.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::ControllerService;
use crate::codes::{chain, status};
use crate::gateway::{Config, Deadlines, Gateways};
use crate::identity::IdentityService;
use crate::listen::Listen;
use crate::metrics::Metrics;
use crate::server::{Services, termination};

/// The command line of `storagelink-csi controller`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the CSI sidecars connect: unix:///<absolute path>.
    #[arg(long, env = "CSI_ENDPOINT")]
    pub endpoint: String,
    /// The file controller.toml: which gateway, its certificate, user and password file.
    #[arg(long)]
    pub config: PathBuf,
    /// Address and port for /livez, /readyz and /metrics.
    #[arg(long)]
    pub http_listen: Option<SocketAddr>,
}

/// Runs until SIGTERM. Everything that is wrong with the configuration is found before the socket appears.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let stop = termination().context("signals")?;
    let config = Config::load(&args.config).context("configuration")?;
    let gateways = Gateways::new(config, Deadlines::default()).context("configuration")?;
    // Only for the log: a gateway that is away must not keep the controller from starting.
    let greeting = tokio::spawn(greet(gateways.clone()));
    let topology = !gateways.fabrics().is_empty();
    let metrics = Metrics::of_controller();
    let services = Services::new()
        .counted(metrics.calls())
        .with(IdentityService::new(topology).server())
        .with(ControllerService::new(gateways).server());
    let listen = Listen {
        endpoint: args.endpoint,
        csi: services,
        registration: None,
        http: args.http_listen,
        // Not the gateway: a class may name another one, and a controller out of service could not say what is wrong.
        ready: Arc::new(|| Ok(())),
        metrics,
    };
    let served = listen.until(stop, &CancellationToken::new()).await;
    greeting.abort();
    Ok(served?)
}

async fn greet(gateways: Gateways) {
    let client = match gateways.configured().await {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(error = status(&error).message(), "no gateway");
            return;
        }
    };
    match client.version().await {
        Ok(version) => tracing::info!(gateway = %client.endpoint(), version, "gateway answers"),
        Err(error) => tracing::warn!(error = chain(&error), "gateway does not answer"),
    }
}

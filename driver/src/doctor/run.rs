//! The subcommand `doctor`: prints one line for each thing that was looked at.

use std::{path::PathBuf, process::ExitCode};

use storagelink_multipath::host::kernel::NetNamespace;

use super::{Finding, Severity, cluster, host, service};
use crate::{
    codes::chain,
    gateway::Config,
    programs::{HostPrograms, Iscsid},
};

/// The command line of `storagelink-csi doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the host's root file system is seen, when this runs in a container.
    #[arg(long)]
    pub host_root: Option<PathBuf>,
    /// The file in which open-iscsi keeps this host's initiator name.
    #[arg(long, default_value = "/etc/iscsi/initiatorname.iscsi")]
    pub initiator_name_file: PathBuf,
    /// The file controller.toml: also checks the service, and its portals from this host.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Several nodes share this kernel: checks what the node of --node-name needs.
    #[arg(long, requires = "node_name")]
    pub shared_kernel: bool,
    /// The node's name in Kubernetes.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// A handle of the network namespace in which the host's iscsid runs, when it is not this one.
    #[arg(long, value_name = "PATH")]
    pub iscsi_netns: Option<PathBuf>,
    /// Also checks the cluster that the environment names.
    #[arg(long)]
    pub cluster: bool,
    /// The release's namespace in that cluster.
    #[arg(long, default_value = "storagelink-csi")]
    pub namespace: String,
    /// Leaves this host out: for a workstation that has no volumes.
    #[arg(long)]
    pub no_host: bool,
}

/// Looks at everything. The exit code says whether volumes can work: 0, or 1.
#[allow(clippy::print_stdout, reason = "a command-line program")]
pub async fn run(args: Args) -> ExitCode {
    let mut places = host::Places {
        proc: "/proc".into(),
        sys: "/sys".into(),
        host_root: args.host_root.filter(|root| root.as_os_str() != "/"),
        initiator_name_file: args.initiator_name_file,
        iscsid: Iscsid::OfHost,
        network: NetNamespace::default(),
        node: args.node_name.filter(|_| args.shared_kernel),
    };
    let mut all = Vec::new();
    match args.iscsi_netns.as_deref().map(NetNamespace::open) {
        Some(Ok(network)) => places.network = network,
        Some(Err(error)) => all.push(Finding::failure("--iscsi-netns", chain(&error))),
        None => {}
    }
    if !args.no_host {
        let programs = HostPrograms::find(places.host_root.as_deref(), places.iscsid);
        all.extend(host::check(&places, &programs));
    }
    match args.config.map(|path| Config::load(&path)) {
        Some(Ok(config)) => all.extend(service::check(config).await),
        Some(Err(error)) => all.push(Finding::failure("configuration", chain(&error))),
        None => {}
    }
    if args.cluster {
        all.extend(cluster::check(&args.namespace).await);
    }
    if all.is_empty() {
        all.push(Finding::failure(
            "arguments",
            "--no-host leaves nothing to look at: add --config or --cluster",
        ));
    }
    for finding in &all {
        println!("{finding}");
    }
    let failed = all.iter().filter(|f| f.severity == Severity::Failure).count();
    match failed {
        0 => ExitCode::SUCCESS,
        failed => {
            println!("{failed} of {} need somebody", all.len());
            ExitCode::FAILURE
        }
    }
}

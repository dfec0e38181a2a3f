//! The subcommand `node`: finds what this host has, goes on from what a predecessor left, serves, stops.
//!
//! Stopping touches no map and no mount: I/O goes on without the plugin.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use storagelink_multipath::{
    Engine, Host,
    engine::{Change, Notice},
    worker,
};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::{
    Config, Node, NodeService, Outside, SharedKernelArgs, events, info, iscsid,
    journal::{Entry, JournalError},
    registration::{self, Registrar},
    shared_kernel,
    switch::FIRST_ANSWER,
};
use crate::{
    attach::iscsi::{self, Initiator},
    codes::chain,
    doctor::{self, Severity},
    fabrics::{Fabric, Fabrics},
    identity::IdentityService,
    listen::Listen,
    metrics::Metrics,
    mount::HostMounts,
    programs::{Finished, HostPrograms, Invocation, Iscsid, Program, Programs as _},
    publish_context::PublishContext,
    server::{Services, socket_path, termination},
};

/// How often volumes are looked for that lack a path (its SCSI device was deleted, whoever did it), and sessions that nobody uses. It reads the
/// plugin's own records, the maps and sysfs.
const SWEEP: Duration = Duration::from_secs(30);
/// udev looks for changed rules when an event comes, but once in 3 s only (systemd, src/udev/udevd.c): events until then may be handled by those
/// of before.
const RULES_ARE_SEEN: Duration = Duration::from_secs(4);
/// Time for modprobe: it reads files and runs a module's own start.
const MODPROBE: Duration = Duration::from_secs(30);

/// The command line of `storagelink-csi node`.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Where kubelet and the CSI sidecars connect: unix:///<absolute path>.
    #[arg(long, env = "CSI_ENDPOINT")]
    pub endpoint: String,
    /// This node's name in Kubernetes.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Where the plugin keeps what it intends; must survive a restart of the plugin.
    #[arg(long, default_value = "/var/lib/storagelink-csi")]
    pub state_dir: PathBuf,
    /// The file in which the host's open-iscsi keeps this host's initiator name.
    #[arg(long, default_value = "/etc/iscsi/initiatorname.iscsi")]
    pub initiator_name_file: PathBuf,
    /// Whose iscsid keeps the sessions: the host's, or one that the plugin runs itself.
    #[arg(long, value_enum, default_value = "host")]
    pub iscsid: iscsid::Wanted,
    /// Where the plugin sees the host's root file system, when it runs in a container.
    #[arg(long)]
    pub host_root: Option<PathBuf>,
    /// Nodes that are containers.
    #[command(flatten)]
    pub sharing: SharedKernelArgs,
    /// The kubelet's plugin registry directory; without it something else registers the plugin.
    #[arg(long)]
    pub plugin_registry: Option<PathBuf>,
    /// A fabric and its networks, <name>=<CIDR>[,<CIDR>]; once for each. The same on every node and in controller.toml.
    #[arg(long)]
    pub fabric: Vec<Fabric>,
    /// Have the kernel fail I/O of every multipath map of this host, ours or not, so many seconds after the loss of its last path, when no plugin
    /// does: longer than any volume's noPathRetry.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub no_path_backstop: Option<u32>,
    /// Load the kernel modules that are not loaded yet, with the host's modprobe.
    #[arg(long)]
    pub load_modules: bool,
    /// Tell Kubernetes Events, as the pod's own service account.
    #[arg(long)]
    pub kube_events: bool,
    /// Stage volumes with multipathing; the Node's annotation storagelink.io/multipathing overrules it.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub multipathing: bool,
    /// Watch this Node's annotations storagelink.io/multipathing and storagelink.io/multipathhandle.
    #[arg(long)]
    pub watch_node: bool,
    /// Install udev rules and a part of multipath's configuration on the host, which keep multipathd, LVM and udisks away from paths and maps of
    /// this driver; without it, remove those that an earlier plugin installed.
    #[arg(long)]
    pub install_host_config: bool,
    /// Address and port for /livez, /readyz and /metrics.
    #[arg(long)]
    pub http_listen: Option<SocketAddr>,
}

/// Runs until SIGTERM.
pub async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let stop = termination().context("signals")?;
    let fabrics = Fabrics::from_flags(args.fabric).context("--fabric")?;
    let topology = !fabrics.is_empty();
    let host_root = args.host_root.filter(|root| root.as_os_str() != "/");
    let names = args.sharing.names(&args.node_name, args.iscsid)?;
    let network = args.sharing.network()?;
    let (whose, initiator_name_file) = match args.iscsid.here(Path::new("/proc"), &network) {
        false => (Iscsid::OfHost, args.initiator_name_file),
        true => (
            Iscsid::OfPlugin,
            iscsid::initiator_name_file(&args.initiator_name_file)?,
        ),
    };
    let programs = HostPrograms::find(host_root.as_deref(), whose).in_network(network.clone());
    let programs = Arc::new(programs);
    if args.load_modules {
        load_modules(&programs).await;
    }
    let places = doctor::host::Places {
        proc: "/proc".into(),
        sys: "/sys".into(),
        host_root: host_root.clone(),
        initiator_name_file: initiator_name_file.clone(),
        iscsid: whose,
        network: network.clone(),
        node: names.node().map(str::to_owned),
    };
    let warnings = look_at_host(places, &programs).await;
    // After the look: it would find our own.
    let own_iscsid =
        (whose == Iscsid::OfPlugin).then(|| tokio::spawn(iscsid::keep_running(programs.clone())));
    let interface = shared_kernel::interface(&names, &initiator_name_file)?;
    let host = Host {
        names,
        ..Host::kernel(args.state_dir.join(super::NODES)).in_network(network.clone())
    };
    let engine = Engine::new(host.clone());
    let mut attach = iscsi::Config::new(&args.state_dir);
    if let Some(root) = host_root.as_ref().filter(|_| whose == Iscsid::OfHost) {
        attach.host_root.clone_from(root);
    }
    attach.interface = interface;
    attach.initiator_name = match info::initiator_name(&initiator_name_file) {
        Ok(name) => Some(name),
        Err(error) => {
            // NodeGetInfo says it too, until it is put right.
            tracing::warn!(error = chain(&error), "this node has no initiator name");
            None
        }
    };
    let probe = Arc::new(iscsi::Network { namespace: network });
    let initiator =
        Initiator::new(host.clone(), programs.clone(), probe, attach).context("state directory")?;
    let config = Config {
        node_name: args.node_name,
        initiator_name_file,
        fabrics,
        state_dir: args.state_dir,
        multipathing: args.multipathing,
        backstop: args
            .no_path_backstop
            .map(|seconds| Duration::from_secs(seconds.into())),
        host_config: args.install_host_config,
        host_root,
    };
    let outside = Outside {
        host,
        engine: engine.clone(),
        mounts: Arc::new(HostMounts),
        programs,
        transport: Arc::new(initiator),
    };
    let node = Node::new(config, outside).context("state directory")?;
    node.0.set_backstop().await;
    // Before the monitor decides anything.
    if let Err(error) = node.recall_policies().await {
        tracing::error!(
            error = chain(&error),
            "the volumes' policies are not known: the defaults hold"
        );
    }
    let warnings = warnings.into_iter().chain(node.configure_host().await).collect();
    // Before anybody calls: a suspended map hangs whatever touches it.
    if let Err(error) = engine.adopt().await {
        tracing::error!(error = chain(&error), "cannot look at this host's maps");
    }
    let stopping = CancellationToken::new();
    // Before the monitor: its first look finds what was lost while no plugin ran.
    let notices = engine.listen();
    let monitor = {
        let (engine, stopping) = (engine.clone(), stopping.clone());
        tokio::spawn(async move { engine.monitor(stopping.cancelled()).await })
    };
    let events = match args.kube_events {
        true => tell_events(&node, notices, warnings).await,
        false => None,
    };
    let watching = annotations(&node, args.watch_node).await;
    let told = tokio::spawn(node.clone().keep_telling());
    // In the background: nobody has to wait for it.
    let resumed = tokio::spawn({
        let node = node.clone();
        async move {
            node.go_on().await;
            let mut again = tokio::time::interval(SWEEP);
            again.tick().await;
            loop {
                again.tick().await;
                node.go_on().await;
            }
        }
    });
    let rejoined = tokio::spawn({
        let (node, notices) = (node.clone(), engine.listen());
        async move { node.rejoin(notices).await }
    });
    let metrics = Metrics::of_node(engine.clone(), node.told(), node.multipathing());
    let services = Services::new()
        .counted(metrics.calls())
        .with(IdentityService::new(topology).server())
        .with(NodeService::new(node).server());
    let registrar = Registrar::new(socket_path(&args.endpoint)?);
    let registers = args.plugin_registry.is_some();
    let kubelet = registrar.clone();
    let listen = Listen {
        endpoint: args.endpoint,
        csi: services,
        registration: args.plugin_registry.map(|directory| {
            let services = Services::new().with(registrar.server());
            (registration::socket_in(&directory), services)
        }),
        http: args.http_listen,
        ready: Arc::new(move || if registers { kubelet.registered() } else { Ok(()) }),
        metrics,
    };
    let served = listen.until(stop, &stopping).await;
    for task in [resumed, rejoined, told]
        .into_iter()
        .chain(events)
        .chain(watching)
        .chain(own_iscsid)
    {
        task.abort();
    }
    if let Err(error) = monitor.await {
        tracing::error!(%error, "the path monitor ended unexpectedly");
    }
    Ok(served?)
}

/// Loads what is not loaded. A failure is not the end: the module may be needed only later, and the host's check names it.
async fn load_modules(programs: &HostPrograms) {
    for (name, _) in doctor::host::MODULES {
        if Path::new("/sys/module").join(name).exists() {
            continue;
        }
        let invocation = Invocation::new(Program::Modprobe, ["-q", "--", name], MODPROBE);
        match programs.run(invocation).await.and_then(Finished::ok) {
            Ok(_) => tracing::info!(module = name, "loaded a kernel module"),
            Err(error) => tracing::warn!(
                module = name,
                error = chain(&error),
                "cannot load a kernel module"
            ),
        }
    }
}

/// The host's part of `doctor`: what is not as it should be, for the log and for Events.
async fn look_at_host(places: doctor::host::Places, programs: &Arc<HostPrograms>) -> Vec<String> {
    let programs = Arc::clone(programs);
    let found = tokio::task::spawn_blocking(move || doctor::host::check(&places, &programs)).await;
    let bad = found
        .unwrap_or_default()
        .into_iter()
        .filter(|f| f.severity != Severity::Good);
    bad.map(|finding| {
        let text = format!("{}: {}", finding.what, finding.found);
        tracing::warn!(text, "this host is not ready");
        text
    })
    .collect()
}

/// Starts to tell Events. A cluster that cannot be reached is no reason not to serve volumes.
async fn tell_events(
    node: &Node,
    notices: broadcast::Receiver<Notice>,
    warnings: Vec<String>,
) -> Option<tokio::task::JoinHandle<()>> {
    match kube::Client::try_default().await {
        Ok(client) => Some(tokio::spawn(events::tell(
            node.clone(),
            notices,
            warnings,
            client,
        ))),
        Err(error) => {
            tracing::warn!(error = chain(&error), "no Events: the cluster is not known");
            None
        }
    }
}

/// Watches the Node's annotations, when that is wanted, and waits a moment for their first state: a volume that is staged right away is then staged
/// as they say. Otherwise the flag alone decides.
async fn annotations(node: &Node, wanted: bool) -> Option<tokio::task::JoinHandle<()>> {
    if !wanted {
        let node = node.clone();
        let forget = tokio::task::spawn_blocking(move || node.0.switch.only_the_flag());
        if let Err(error) = forget.await {
            tracing::error!(%error, "forgetting the annotation ended unexpectedly");
        }
        return None;
    }
    let client = match kube::Client::try_default().await {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(
                error = chain(&error),
                "multipathing stays as it is: the cluster is not known"
            );
            return None;
        }
    };
    let (heard, first) = tokio::sync::oneshot::channel();
    let watching = tokio::spawn(node.clone().watch_annotations(client, heard));
    if tokio::time::timeout(FIRST_ANSWER, first).await.is_err() {
        tracing::warn!("the API server does not answer: multipathing is as it was");
    }
    Some(watching)
}

impl Node {
    /// Installs or removes what keeps others away from our paths; what could not be done, in words. The volumes that are here already are
    /// marked, and udev is told to look at their disks again.
    async fn configure_host(&self) -> Vec<String> {
        let config = self.0.host_config.clone();
        let Ok(errors) = tokio::task::spawn_blocking(move || config.apply()).await else {
            return Vec::new();
        };
        if self.0.host_config.wanted() {
            self.announce_paths().await;
            let node = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(RULES_ARE_SEEN).await;
                node.announce_paths().await;
            });
        }
        let texts = errors.iter().map(|error| chain(error));
        texts.inspect(|text| tracing::warn!("{text}")).collect()
    }

    /// Marks the volumes that are here, and has udev look at their disks again.
    async fn announce_paths(&self) {
        for map in self.0.engine.maps().await.unwrap_or_default() {
            self.0.mark(map.wwid.as_str()).await;
            for path in map.paths().filter(|path| !path.name.is_empty()) {
                let (sysfs, uevent) = (self.0.host.sysfs.clone(), format!("block/{}/uevent", path.name));
                drop(worker::run("uevent", MODPROBE, move || sysfs.write(&uevent, "change")).await);
            }
        }
    }

    /// Goes on from what a predecessor left, or somebody took: brings up paths that are missing, ends sessions that nobody uses.
    pub async fn go_on(&self) {
        self.bring_up_missing().await;
        self.sweep().await;
    }

    /// Brings up paths that were taken out because they led to another disk, or were down while the volume grew: their portal may show
    /// the volume again.
    async fn rejoin(&self, mut notices: broadcast::Receiver<Notice>) {
        loop {
            match notices.recv().await {
                Ok(notice) if matches!(notice.change, Change::Misled | Change::LeftOut) => {
                    self.bring_up_missing().await;
                }
                Ok(_) => {}
                // It may have been among those that were missed.
                Err(broadcast::error::RecvError::Lagged(_)) => self.bring_up_missing().await,
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Tells the engine how the volumes of a predecessor are to be treated.
    pub async fn recall_policies(&self) -> Result<(), JournalError> {
        for (_, entry) in self.0.journal.list().await? {
            if let Ok(context) = PublishContext::from_map(&entry.publish_context)
                && let Ok(wwid) = context.wwid.parse()
            {
                self.0.engine.set_policy(&wwid, context.policy);
            }
        }
        Ok(())
    }

    async fn bring_up_missing(&self) {
        match self.resume_joins().await {
            Ok(0) => {}
            Ok(started) => tracing::info!(started, "volumes of this node lack paths: they are brought up"),
            Err(error) => tracing::warn!(
                error = chain(error.as_ref()),
                "cannot look after this node's volumes"
            ),
        }
    }

    /// Ends sessions of ours that nobody uses: those of logins that ended after whoever wanted them was gone.
    async fn sweep(&self) {
        if let Err(error) = self.0.transport.sweep().await {
            tracing::warn!(error = chain(&error), "some sessions could not be cleaned up");
        }
    }

    async fn resume_joins(&self) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
        let maps = self.0.engine.maps().await?;
        let mut started = 0;
        for (volume, entry) in self.0.journal.list().await? {
            let Some(map) = maps.iter().find(|map| map.volume == volume.to_string()) else {
                self.forget(volume, &entry).await;
                continue;
            };
            // A stage or unstage that did not end is the next call's business.
            let Ok(context) = PublishContext::from_map(&entry.publish_context) else {
                continue;
            };
            let there = map.paths().filter(|p| !p.name.is_empty()).count();
            if !entry.staged || there >= context.portals.len() {
                continue;
            }
            // Never under an unstage: a device would appear behind its back. One that comes later finds the task, and ends it.
            let Ok(_guard) = self.0.guards.take(volume) else {
                continue;
            };
            if self.0.engine.find(&map.wwid).await?.is_none() {
                continue;
            }
            let portals = context.portals.clone();
            let (transport, engine) = (self.0.transport.clone(), self.0.engine.clone());
            self.0
                .joins
                .start(volume, map.wwid.clone(), context, portals, transport, engine);
            started += 1;
        }
        Ok(started)
    }

    /// Removes a record that only said that a format was begun, when that is too long ago to mean anything.
    async fn forget(&self, volume: uuid::Uuid, entry: &Entry) {
        if entry.staged || entry.formatting.is_none() || entry.may_format_again() {
            return;
        }
        // Somebody who works on the volume right now decides about its record.
        let Ok(_guard) = self.0.guards.take(volume) else {
            return;
        };
        if let Err(error) = self.0.journal.remove(volume).await {
            tracing::warn!(volume.id = %volume, error = chain(&error), "cannot remove an old record");
        }
    }
}

//! What runs in the container that is the array: its aggregate's file system, the gateway, and the end of both.
//!
//! The kernel's target belongs to the host. LIO opens a portal's socket in the network namespace of the process that makes the portal's
//! directory in configfs, so the gateway in this container serves portals on the container's addresses. Nothing of that goes away by
//! itself with the container: it is removed here when the container is stopped, and at the next start when it was killed.

use std::{
    fs,
    net::SocketAddrV4,
    os::{fd::AsFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    configfs::{self, Own},
    needs,
    settings::{AGGREGATE, GATEWAY_PORT, SYSTEM, TARGET, USER},
    tool::{self, SHORT},
};
use crate::{gateway_configuration::GatewayConfiguration, programs, wait};

/// What outlives a crash of the container.
const DATA: &str = "/var/lib/storagelink-target";
/// Where the aggregate is mounted, in the container.
pub const MOUNT: &str = "/srv/aggr0";
/// Bytes of the aggregate's image; it is sparse.
const SIZE: u64 = 16 << 30;
const CONFIGURATION: &str = "/etc/storagelinkd.toml";
const MODULES: [&str; 5] = [
    "target_core_mod",
    "target_core_file",
    "iscsi_target_mod",
    "xfs",
    "loop",
];
/// Docker connects a container's networks before it starts it; addresses are there at once.
const ADDRESSES_LIMIT: Duration = Duration::from_secs(10);
const PORTALS_LIMIT: Duration = Duration::from_secs(30);
/// A portal answers at once.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// The gateway finishes the calls under way.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// What the kernel's target has of this array.
#[must_use]
pub fn own() -> Own {
    Own::new(Path::new(configfs::TARGETS), TARGET, SYSTEM)
}

/// File with the gateway's password, in the container.
#[must_use]
pub fn password_file() -> PathBuf {
    Path::new(DATA).join("password")
}

/// File with the fingerprint of the gateway's certificate, in the container.
#[must_use]
pub fn fingerprint_file() -> PathBuf {
    Path::new(DATA).join("state/fingerprint")
}

/// The portals of a text that separates them by blanks.
///
/// # Errors
/// There is none, or one is no `address:port`.
pub fn portals(text: &str) -> Result<Vec<SocketAddrV4>> {
    let portals: Vec<SocketAddrV4> = text
        .split_whitespace()
        .map(|word| {
            word.parse()
                .with_context(|| format!("PORTALS: {word:?} is no address:port"))
        })
        .collect::<Result<_>>()?;
    ensure!(
        !portals.is_empty(),
        "PORTALS is empty: set it to the container's addresses, as in PORTALS=\"198.18.100.2:3260 198.18.101.2:3260\""
    );
    Ok(portals)
}

/// Serves until SIGTERM; removes everything from the host's kernel before it returns.
///
/// # Errors
/// The host or the container lacks something, or the gateway ended by itself.
pub async fn serve(portals: &[SocketAddrV4]) -> Result<()> {
    let mut term = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    let mut stopped = async || {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    let ready = tokio::select! {
        outcome = prepare(portals) => outcome.map(|()| true),
        () = stopped() => Ok(false),
    };
    let outcome = match ready {
        Ok(true) => {
            let mut gateway = start()?;
            let outcome = tokio::select! {
                status = gateway.wait() => status.context("wait for storagelinkd").and_then(|status| bail!("storagelinkd ended: {status}")),
                outcome = serving(portals) => outcome,
                () = stopped() => Ok(()),
            };
            stop(&mut gateway).await;
            outcome
        }
        other => other.map(drop),
    };
    tracing::info!("removing the target from the host's kernel");
    outcome.and(clean().await)
}

async fn prepare(portals: &[SocketAddrV4]) -> Result<()> {
    kernel().await?;
    if !own().left().is_empty() {
        tracing::info!("removing what a predecessor left in the host's kernel");
        own().remove().context("what a predecessor left")?;
    }
    aggregate().await?;
    configure(portals)?;
    wait::until("the portals' addresses", ADDRESSES_LIMIT, async || {
        portals.iter().try_for_each(|portal| {
            std::net::TcpListener::bind((*portal.ip(), 0))
                .map(drop)
                .with_context(|| format!("the container has no address {}", portal.ip()))
        })?;
        Ok(true)
    })
    .await?;
    // targetcli asks for it; without it only that does not work.
    fs::create_dir_all("/run/dbus").context("make /run/dbus")?;
    // Of the one that ran before the container was started again.
    let _ = fs::remove_file("/run/dbus/pid");
    if let Err(error) = tool::run(&["dbus-daemon", "--system", "--fork"], SHORT).await {
        tracing::warn!("targetcli will not work: {error:#}");
    }
    Ok(())
}

/// The modules and configfs, which are the host's.
async fn kernel() -> Result<()> {
    let missing = needs::load(&MODULES).await;
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
        let said: Vec<&str> = missing.iter().map(|(_, said)| said.as_str()).collect();
        bail!(
            "the host's kernel lacks the modules {}: {}. Load them on the host (modprobe -a {}), or mount its /lib/modules into this \
             container, which must be privileged",
            names.join(", "),
            said.join("; "),
            names.join(" ")
        );
    }
    ensure!(
        Path::new(configfs::TARGETS).is_dir(),
        "{} is missing: mount the host's /sys/kernel/config into this container (-v /sys/kernel/config:/sys/kernel/config)",
        configfs::TARGETS
    );
    ensure!(
        Path::new("/dev/loop-control").exists(),
        "/dev/loop-control is missing: this container must be privileged and have the host's /dev (-v /dev:/dev)"
    );
    Ok(())
}

/// Makes the aggregate's file system once, and mounts it.
async fn aggregate() -> Result<()> {
    let image = Path::new(DATA).join("aggregate.img");
    if !image.exists() {
        fs::create_dir_all(DATA).with_context(|| format!("make {DATA}"))?;
        let new = image.with_extension("new");
        let file = fs::File::create(&new).with_context(|| format!("make {}", new.display()))?;
        file.set_len(SIZE).context("size of the aggregate's image")?;
        let argv = [
            "mkfs.xfs".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            "-m".as_ref(),
            "reflink=1".as_ref(),
            new.as_os_str(),
        ];
        tool::run(&argv, SHORT).await?;
        fs::rename(&new, &image).context("name the aggregate's image")?;
    }
    fs::create_dir_all(MOUNT).with_context(|| format!("make {MOUNT}"))?;
    let argv = [
        "mount".as_ref(),
        "-o".as_ref(),
        "loop".as_ref(),
        image.as_os_str(),
        MOUNT.as_ref(),
    ];
    tool::run(&argv, SHORT).await.map(drop)
}

/// Writes the gateway's configuration, and its password once.
fn configure(portals: &[SocketAddrV4]) -> Result<()> {
    let password = password_file();
    if !password.exists() {
        let new = password.with_extension("new");
        fs::write(&new, uuid::Uuid::new_v4().to_string()).context("write the password")?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).context("mode of the password")?;
        fs::rename(&new, &password).context("name the password")?;
    }
    let state = Path::new(DATA).join("state");
    fs::create_dir_all(&state).with_context(|| format!("make {}", state.display()))?;
    fs::write(CONFIGURATION, configuration(portals)).with_context(|| format!("write {CONFIGURATION}"))
}

fn configuration(portals: &[SocketAddrV4]) -> String {
    GatewayConfiguration {
        port: GATEWAY_PORT,
        state: &format!("{DATA}/state"),
        user: USER,
        password_file: &password_file().to_string_lossy(),
        system: SYSTEM,
        target: TARGET,
        aggregate: AGGREGATE,
        path: MOUNT,
    }
    .text(portals)
}

/// Starts the gateway; what it says goes into the container's log.
fn start() -> Result<tokio::process::Child> {
    let log = std::io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .context("the container's log")?;
    let argv = ["storagelinkd", "--config", CONFIGURATION];
    programs::background(&argv, &std::collections::HashMap::new(), log.into(), true)
        .context("start storagelinkd")
}

/// Says when the portals answer; then for ever.
async fn serving(portals: &[SocketAddrV4]) -> Result<()> {
    wait::until("the portals answer", PORTALS_LIMIT, async || {
        healthy(portals)?;
        connect(portals).await.map(|()| true)
    })
    .await?;
    tracing::info!(?portals, "the array serves");
    std::future::pending().await
}

/// Ends the gateway: it must make nothing any more when its objects are removed.
async fn stop(gateway: &mut tokio::process::Child) {
    if let Some(pid) = gateway.id() {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
    }
    if tokio::time::timeout(STOP_LIMIT, gateway.wait()).await.is_err() {
        let _ = gateway.kill().await;
    }
}

/// Whether the container has the address of every portal, and the kernel listens there. Connects to none: a connection that ends without
/// a login is two lines in the host's kernel log, and this is asked every few seconds.
///
/// # Errors
/// One does not; it is named.
pub fn healthy(portals: &[SocketAddrV4]) -> Result<()> {
    let sockets = fs::read_to_string("/proc/net/tcp").context("read /proc/net/tcp")?;
    for portal in portals {
        // The kernel goes on listening when a fabric's address is gone.
        std::net::TcpListener::bind((*portal.ip(), 0))
            .with_context(|| format!("portal {portal}: the container has not its address"))?;
        ensure!(
            listens(&sockets, *portal),
            "portal {portal}: the kernel does not listen"
        );
    }
    Ok(())
}

/// Whether the list of sockets (Documentation/networking/proc_net_tcp.rst) has one in state LISTEN (0A) with this address.
fn listens(sockets: &str, portal: SocketAddrV4) -> bool {
    let address = format!(
        "{:08X}:{:04X}",
        u32::from_ne_bytes(portal.ip().octets()),
        portal.port()
    );
    sockets.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(&address) && words.nth(1) == Some("0A")
    })
}

/// Takes a connection to every portal.
async fn connect(portals: &[SocketAddrV4]) -> Result<()> {
    for portal in portals {
        tokio::time::timeout(CONNECT_LIMIT, tokio::net::TcpStream::connect(portal))
            .await
            .with_context(|| format!("portal {portal} does not answer"))?
            .with_context(|| format!("portal {portal}"))?;
    }
    Ok(())
}

/// Removes the target from the host's kernel and unmounts the aggregate.
///
/// # Errors
/// The kernel holds something: it is named.
pub async fn clean() -> Result<()> {
    own()
        .remove()
        .context("the host's kernel still has a part of the target")?;
    let mounted = fs::read_to_string("/proc/mounts").unwrap_or_default();
    if mounted.lines().any(|line| line.split(' ').nth(1) == Some(MOUNT)) {
        tool::run(&["umount", MOUNT], STOP_LIMIT).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{configuration, connect, healthy, portals};

    #[test]
    fn the_configuration_has_every_portal() {
        let portals = portals("198.18.100.2:3260  198.18.101.2:3260").unwrap();
        let text = configuration(&portals);
        assert!(
            text.contains(r#"portals = ["198.18.100.2:3260", "198.18.101.2:3260"]"#),
            "{text}"
        );
    }

    #[test]
    fn portals_that_are_none_are_refused() {
        assert!(portals(" ").unwrap_err().to_string().contains("PORTALS"));
        assert!(
            portals("198.18.100.2")
                .unwrap_err()
                .to_string()
                .contains("198.18.100.2")
        );
    }

    #[tokio::test]
    async fn one_portal_that_does_not_answer_is_named() {
        let local = |listener: &std::net::TcpListener| match listener.local_addr().unwrap() {
            std::net::SocketAddr::V4(address) => address,
            other => panic!("{other}"),
        };
        let open = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // The same port at another address of this machine, and at one that it has not.
        let address = local(&open);
        let elsewhere = std::net::SocketAddrV4::new("127.0.0.2".parse().unwrap(), address.port());
        let absent = std::net::SocketAddrV4::new("192.0.2.1".parse().unwrap(), address.port());
        healthy(&[address]).unwrap();
        connect(&[address]).await.unwrap();
        for dead in [elsewhere, absent] {
            let error = healthy(&[address, dead]).unwrap_err();
            assert!(error.to_string().contains(&dead.to_string()), "{error:#}");
        }
        let error = connect(&[address, elsewhere]).await.unwrap_err();
        assert!(error.to_string().contains(&elsewhere.to_string()), "{error:#}");
    }
}

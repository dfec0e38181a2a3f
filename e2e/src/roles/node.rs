//! A node guest: the distribution's open-iscsi with its own configuration, udev or none, and the two halves of the driver.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tonic::transport::Channel;

use super::array::{Array, PORT, USER};
use crate::{guest::Guest, lab::Lab, net::Fabric, wait};

/// Process and log name of the node plugin.
pub const NODE: &str = "csi-node";
/// Process and log name of the controller.
pub const CONTROLLER: &str = "csi-controller";
/// The node plugin's socket.
pub const NODE_SOCKET: &str = "/run/storagelink/node.sock";
/// The controller's socket.
pub const CONTROLLER_SOCKET: &str = "/run/storagelink/controller.sock";
/// The node plugin's journal.
pub const STATE: &str = "/var/lib/storagelink-csi";
const SOCKET_LIMIT: Duration = Duration::from_secs(20);

/// The initiator's name of a node.
#[must_use]
pub fn initiator(guest: &Guest) -> String {
    format!("iqn.2026-11.com.example:{}", guest.name())
}

/// What a node's operating system brings: an initiator name, iscsid, udev if wanted. Returns the initiator's name.
pub async fn prepare(guest: &Guest, udev: bool) -> Result<String> {
    let initiator = initiator(guest);
    guest
        .shell("rm -rf /etc/iscsi/nodes /etc/iscsi/send_targets /etc/iscsi/ifaces /var/lib/iscsi/*")
        .await?;
    guest
        .write(
            "/etc/iscsi/initiatorname.iscsi",
            format!("InitiatorName={initiator}\n"),
            0o600,
        )
        .await?;
    if udev {
        // As a daemon: it returns when its control socket is there.
        guest
            .exec(&["/lib/systemd/systemd-udevd", "--daemon"])
            .await
            .context("udev")?;
        guest
            .exec(&["udevadm", "trigger", "--action=add"])
            .await
            .context("udev")?;
        guest
            .exec(&["udevadm", "settle", "--timeout=30"])
            .await
            .context("udev")?;
    }
    start_iscsid(guest).await?;
    Ok(initiator)
}

/// Starts iscsid (again); returns once iscsiadm reaches it.
pub async fn start_iscsid(guest: &Guest) -> Result<()> {
    guest.spawn("iscsid", &["iscsid", "--foreground"], &[]).await?;
    // Where iscsiadm reaches it (open-iscsi usr/mgmt_ipc.h).
    wait::until("iscsid", SOCKET_LIMIT, async || {
        Ok(guest
            .read("/proc/net/unix")
            .await?
            .contains("@ISCSIADM_ABSTRACT_NAMESPACE"))
    })
    .await
    .map(drop)
}

/// Starts the node plugin (again); returns a channel to it once its socket accepts.
pub async fn start_plugin(lab: &Lab, guest: &Guest) -> Result<Channel> {
    start_plugin_with(lab, guest, &[]).await
}

/// The same, with more arguments.
pub async fn start_plugin_with(lab: &Lab, guest: &Guest, more: &[&str]) -> Result<Channel> {
    guest.exec(&["mkdir", "-p", "/run/storagelink", STATE]).await?;
    let endpoint = format!("unix://{NODE_SOCKET}");
    let program = lab.program("storagelink-csi");
    let argv = [
        &program,
        "node",
        "--endpoint",
        &endpoint,
        "--node-name",
        guest.name(),
        "--state-dir",
        STATE,
    ];
    let argv: Vec<&str> = argv.into_iter().chain(more.iter().copied()).collect();
    // Whoever looks for where a stage's time goes asks for more.
    let log = std::env::var("STORAGELINK_LOG").ok();
    let env: Vec<_> = log.iter().map(|log| ("STORAGELINK_LOG", log.as_str())).collect();
    guest.spawn(NODE, &argv, &env).await?;
    serving(guest, NODE, NODE_SOCKET).await
}

/// Writes the controller's configuration and starts it in `guest`.
pub async fn start_controller(lab: &Lab, guest: &Guest, array: &Array) -> Result<Channel> {
    let target = lab.array().address(Fabric::Management);
    let configuration = format!(
        r#"target = "{target}"
port = {PORT}
username = "{USER}"
password_file = "/etc/storagelink-csi/password"
fingerprint = "{}"
"#,
        array.fingerprint
    );
    guest
        .write("/etc/storagelink-csi/password", &array.password, 0o600)
        .await?;
    guest
        .write("/etc/storagelink-csi/controller.toml", configuration, 0o600)
        .await?;
    spawn_controller(lab, guest).await
}

/// Starts the controller (again) with the configuration written before.
pub async fn spawn_controller(lab: &Lab, guest: &Guest) -> Result<Channel> {
    guest.exec(&["mkdir", "-p", "/run/storagelink"]).await?;
    let endpoint = format!("unix://{CONTROLLER_SOCKET}");
    let program = lab.program("storagelink-csi");
    let argv = [
        &program,
        "controller",
        "--endpoint",
        &endpoint,
        "--config",
        "/etc/storagelink-csi/controller.toml",
    ];
    guest.spawn(CONTROLLER, &argv, &[]).await?;
    serving(guest, CONTROLLER, CONTROLLER_SOCKET).await
}

async fn serving(guest: &Guest, process: &str, socket: &str) -> Result<Channel> {
    guest
        .channel(socket, SOCKET_LIMIT)
        .await
        .with_context(|| format!("{process}'s log:\n{}", guest.log(process).unwrap_or_default()))
}

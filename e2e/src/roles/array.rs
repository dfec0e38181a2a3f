//! The array guest: a reflink file system for the aggregate, and the gateway beside it.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{gateway_configuration::GatewayConfiguration, guest::Guest, lab::Lab, net::Fabric, wait};

/// Where the aggregate's file system is mounted.
pub const AGGREGATE: &str = "/srv/aggr0";
/// The gateway's records.
pub const STATE: &str = "/var/lib/storagelinkd";
/// The system the gateway offers.
pub const SYSTEM: &str = "lio0";
/// The aggregate it offers.
pub const AGGREGATE_NAME: &str = "aggr0";
/// The target's name.
pub const TARGET: &str = "iqn.2026-11.com.example:array";
/// User of the gateway.
pub const USER: &str = "csi";
/// TCP port of the gateway.
pub const PORT: u16 = 21605;
/// User and group that it runs as.
const UID: u32 = 65532;
/// Name of its process and log.
pub const PROCESS: &str = "storagelinkd";

/// A prepared array.
#[derive(Debug, Clone)]
pub struct Array {
    /// The gateway's password, made for this run.
    pub password: String,
    /// SHA-256 of the gateway's certificate, in hex.
    pub fingerprint: String,
}

/// Lays an XFS with reflinks over the disk and brings up what targetcli needs.
pub async fn prepare(guest: &Guest) -> Result<()> {
    guest
        .shell(&format!(
            "mkfs.xfs -q -K -m reflink=1 /dev/vda; mkdir -p {AGGREGATE} {STATE}; mount /dev/vda {AGGREGATE}; \
             chown {UID}:{UID} {AGGREGATE} {STATE}; \
             mount -t configfs configfs /sys/kernel/config; dbus-daemon --system --fork"
        ))
        .await
        .context("prepare the array's disk")
        .map(drop)
}

/// Writes the gateway's configuration and starts it; returns once it serves.
pub async fn start_gateway(lab: &Lab) -> Result<Array> {
    let guest = lab.array();
    let password = uuid::Uuid::new_v4().to_string();
    guest
        .write("/etc/storagelinkd/password", &password, 0o600)
        .await?;
    let configuration = GatewayConfiguration {
        port: PORT,
        state: STATE,
        user: USER,
        password_file: "/etc/storagelinkd/password",
        system: SYSTEM,
        target: TARGET,
        aggregate: AGGREGATE_NAME,
        path: AGGREGATE,
    }
    .text([Fabric::A, Fabric::B].map(|fabric| format!("{}:3260", guest.address(fabric))));
    guest
        .write("/etc/storagelinkd/storagelinkd.toml", configuration, 0o600)
        .await?;
    guest
        .exec(&["chown", "-R", &format!("{UID}:{UID}"), "/etc/storagelinkd"])
        .await?;
    spawn_gateway(lab).await?;
    let mut found = None;
    // Its port may be open before the line is written.
    wait::until("the gateway's fingerprint", Duration::from_secs(20), async || {
        found = fingerprint(&guest.log(PROCESS)?);
        Ok(found.is_some())
    })
    .await?;
    let fingerprint = found.context("storagelinkd printed no fingerprint")?;
    Ok(Array {
        password,
        fingerprint,
    })
}

/// Starts the gateway (again), as the unit file and the image do: not as root, with the one capability that configfs asks
/// for. Waits until its port is open.
pub async fn spawn_gateway(lab: &Lab) -> Result<Duration> {
    let guest = lab.array();
    let program = lab.program("storagelinkd");
    guest
        .spawn(
            PROCESS,
            &[
                "setpriv",
                &format!("--reuid={UID}"),
                &format!("--regid={UID}"),
                "--clear-groups",
                "--inh-caps=-all,+dac_override",
                "--ambient-caps=-all,+dac_override",
                "--bounding-set=-all,+dac_override",
                "--no-new-privs",
                &program,
                "--config",
                "/etc/storagelinkd/storagelinkd.toml",
            ],
            &[],
        )
        .await?;
    let address = format!("{}:{PORT}", guest.address(Fabric::Management));
    let up = wait::until("the gateway's port", Duration::from_secs(20), async || {
        if guest.wait(PROCESS, Duration::ZERO).await.is_ok() {
            return Ok(false); // It ended: the time runs out and its log says why.
        }
        Ok(tokio::net::TcpStream::connect(&address).await.is_ok())
    });
    up.await
        .with_context(|| format!("storagelinkd's log:\n{}", guest.log(PROCESS).unwrap_or_default()))
}

/// The 64 hexadecimal digits behind `sha256:` in the line that the gateway prints for administrators.
fn fingerprint(log: &str) -> Option<String> {
    let word = log
        .lines()
        .find_map(|line| line.trim().strip_prefix("fingerprint sha256:"))?;
    (word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit())).then(|| word.to_owned())
}

/// Everything the array holds of volumes: configfs objects, files of the aggregate, records. Two of these are equal when
/// nothing was left behind.
pub async fn snapshot(guest: &Guest) -> Result<Vec<String>> {
    let script = format!(
        "find /sys/kernel/config/target/core /sys/kernel/config/target/iscsi -mindepth 1 -maxdepth 7 \
           \\( -type d -o -type l \\) -not -path '*/statistics*' -not -path '*/alua/*' 2>/dev/null || true; \
         find {AGGREGATE} {STATE} -mindepth 1 2>/dev/null || true"
    );
    let text = guest.shell(&script).await?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    Ok(lines)
}

/// How many volumes its aggregate holds.
pub async fn volumes(guest: &Guest) -> Result<usize> {
    let records = guest
        .shell(&format!("find {AGGREGATE}/volumes -name record.json"))
        .await?;
    Ok(records.lines().count())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_fingerprint_is_found_in_its_line_only() {
        let digits = "ab".repeat(32);
        let log = format!("INFO serving\nfingerprint sha256:{digits}\n");
        assert_eq!(super::fingerprint(&log), Some(digits.clone()));
        assert_eq!(super::fingerprint(&digits), None);
        assert_eq!(super::fingerprint("fingerprint sha256:ab"), None);
    }
}

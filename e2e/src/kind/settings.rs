//! Names and addresses of everything that the walk makes, and what the environment may change. Reads the environment once.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// Name of the kind cluster; its nodes are called `<name>-control-plane`, `<name>-worker` and `<name>-worker2`.
pub const CLUSTER: &str = "storagelink-e2e";
/// Name of the container that is the array.
pub const ARRAY: &str = "storagelink-e2e-target";
/// The network that kind makes for its nodes.
pub const KIND_NETWORK: &str = "kind";
/// IQN of the array's target. No array has this one: what it names is the walk's.
pub const TARGET: &str = "iqn.2026-11.io.storagelink:e2e-kind";
/// The system that the array's gateway offers; part of the names of its backstores.
pub const SYSTEM: &str = "e2e-kind";
/// The aggregate that it offers.
pub const AGGREGATE: &str = "aggr0";
/// The gateway's user.
pub const USER: &str = "csi";
/// TCP port of the gateway.
pub const GATEWAY_PORT: u16 = 21605;
/// TCP port of the portals (RFC 7143 11.1).
pub const ISCSI_PORT: u16 = 3260;
/// Where the walk binds the handle of the host's network namespace; the nodes see it under the same path.
pub const HANDLES: &str = "/run/storagelink";
/// Name of that handle.
pub const HANDLE: &str = "host-netns";
/// Where a node sees the host's root.
pub const HOST_ROOT: &str = "/storagelink/host";

/// One of the two fabrics: a Docker network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fabric {
    /// The network's name.
    pub network: &'static str,
    /// Its addresses.
    pub subnet: &'static str,
    /// The array's address on it.
    pub portal: &'static str,
}

/// The fabrics. 198.18.0.0/15 is for tests between networks (RFC 2544 C.2.2): no host that one reaches has such an address.
pub const FABRICS: [Fabric; 2] = [
    Fabric {
        network: "storagelink-a",
        subnet: "198.18.100.0/24",
        portal: "198.18.100.2",
    },
    Fabric {
        network: "storagelink-b",
        subnet: "198.18.101.0/24",
        portal: "198.18.101.2",
    },
];

/// What may differ from run to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The checkout that this program was built from: Dockerfiles, the chart, the cluster's configuration.
    pub checkout: PathBuf,
    /// Where access to the cluster and logs of failures are written.
    pub directory: PathBuf,
    /// kind's configuration.
    pub cluster: PathBuf,
    /// A node image other than kind's own.
    pub node_image: Option<String>,
    /// How long kind waits for the control plane, as kind takes it.
    pub wait: String,
    /// Images are in the engine already.
    pub images_present: bool,
    /// The node image holds the images of the pods already.
    pub images_loaded: bool,
    /// The base of the images; chosen by this machine's C library when not given.
    pub base: Option<String>,
    /// Leave everything running.
    pub keep: bool,
    /// Every limit is so many times as long.
    slow: u32,
}

impl Settings {
    /// From the environment.
    ///
    /// # Errors
    /// A variable has a value that means nothing; the error names it.
    pub fn from_environment() -> Result<Self> {
        Self::from(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the checkout")?
            .to_owned();
        let flag = |name: &str| match variable(name).as_deref() {
            None | Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(other) => bail!("{name}={other}: 1 or 0"),
        };
        let wait = variable("KIND_WAIT").unwrap_or_else(|| "5m".to_owned());
        go_duration(&wait).with_context(|| format!("KIND_WAIT={wait}: a time such as 90s, 20m or 1h"))?;
        let slow = variable("E2E_KIND_SLOW").unwrap_or_else(|| "1".to_owned());
        Ok(Self {
            directory: variable("E2E_KIND_DIR")
                .map_or_else(|| checkout.join("target/e2e-kind"), PathBuf::from),
            cluster: variable("KIND_CONFIG")
                .map_or_else(|| checkout.join("e2e/kind/cluster.yaml"), PathBuf::from),
            node_image: variable("KIND_NODE_IMAGE"),
            wait,
            images_present: match variable("E2E_KIND_IMAGES").as_deref() {
                None | Some("build") => false,
                Some("present") => true,
                Some(other) => bail!("E2E_KIND_IMAGES={other}: build or present"),
            },
            images_loaded: flag("E2E_KIND_LOADED")?,
            base: variable("E2E_KIND_BASE"),
            keep: flag("KEEP")?,
            slow: slow
                .parse()
                .ok()
                .filter(|times| (1..=100).contains(times))
                .with_context(|| format!("E2E_KIND_SLOW={slow}: a number from 1 to 100"))?,
            checkout,
        })
    }

    /// A limit of so many seconds on a host of usual speed.
    #[must_use]
    pub fn limit(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds) * self.slow
    }

    /// How long kind itself waits for the control plane.
    #[must_use]
    pub fn kind_wait(&self) -> Duration {
        go_duration(&self.wait).unwrap_or_default()
    }

    /// The file with administrator's access to the cluster.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }
}

/// The part of Go's durations that people write: a number with s, m or h.
fn go_duration(text: &str) -> Option<Duration> {
    let unit = match text.as_bytes().last()? {
        b's' => 1,
        b'm' => 60,
        b'h' => 3600,
        _ => return None,
    };
    let number: u32 = text[..text.len() - 1].parse().ok()?;
    Some(Duration::from_secs(u64::from(number) * unit))
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::Settings;

    fn settings(variables: &[(&str, &str)]) -> anyhow::Result<Settings> {
        Settings::from(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_an_environment_everything_is_built_and_removed() {
        let settings = settings(&[]).unwrap();
        assert!(!settings.keep && !settings.images_present && !settings.images_loaded);
        assert_eq!(settings.kind_wait(), Duration::from_secs(300));
        assert_eq!(settings.limit(60), Duration::from_secs(60));
        assert!(settings.cluster.is_file(), "{}", settings.cluster.display());
    }

    #[test]
    fn the_environment_changes_what_it_names() {
        let settings = settings(&[
            ("KEEP", "1"),
            ("E2E_KIND_IMAGES", "present"),
            ("E2E_KIND_SLOW", "4"),
            ("KIND_WAIT", "20m"),
            ("KIND_CONFIG", "/some/file"),
        ])
        .unwrap();
        assert!(settings.keep && settings.images_present && !settings.images_loaded);
        assert_eq!(settings.kind_wait(), Duration::from_secs(1200));
        assert_eq!(settings.limit(60), Duration::from_secs(240));
        assert_eq!(settings.cluster, Path::new("/some/file"));
    }

    #[test]
    fn a_value_that_means_nothing_is_refused_by_name() {
        for (name, value) in [
            ("KEEP", "yes"),
            ("E2E_KIND_IMAGES", "1"),
            ("E2E_KIND_SLOW", "0"),
            ("KIND_WAIT", "20"),
            ("KIND_WAIT", "soon"),
        ] {
            let error = settings(&[(name, value)]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

//! The configuration file (TOML). Unknown keys are refused; every problem names the key and the file.

use std::{
    collections::HashSet,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::auth::Users;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to serve; `address:port`.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Directory of what must survive restarts and belongs to no volume: identity of the systems, certificate, LUN counters.
    pub state_dir: PathBuf,
    /// Who may call. At least one; none is shipped.
    #[serde(default, rename = "user")]
    pub users: Vec<UserConfig>,
    /// The certificate; without it one is made at first start.
    #[serde(default)]
    pub tls: TlsConfig,
    /// The storage systems.
    #[serde(default, rename = "system")]
    pub systems: Vec<SystemConfig>,
}

/// The port that StorageLink has always had.
fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 21605))
}

/// One user.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// Name, without a colon.
    pub username: String,
    /// File whose first line is the password; must not be readable by others.
    pub password_file: PathBuf,
}

/// The server's certificate and, optionally, whom it trusts as clients.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM private key.
    pub key_file: Option<PathBuf>,
    /// PEM certificates: clients must show one that these have signed.
    pub client_ca_file: Option<PathBuf>,
}

/// One storage system.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemConfig {
    /// What a StorageClass names as `system`.
    pub name: String,
    /// `lio`.
    pub adapter: String,
    /// IQN of its target; `iqn.2026-11.io.storagelink:<name>` without it.
    pub target: Option<String>,
    /// iSCSI portals, `address:port`.
    pub portals: Vec<SocketAddr>,
    /// Its aggregates.
    #[serde(default, rename = "aggregate")]
    pub aggregates: Vec<AggregateConfig>,
}

/// One aggregate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AggregateConfig {
    /// What a StorageClass names as `aggregate`.
    pub name: String,
    /// `reflink`: a directory on XFS or btrfs.
    pub kind: String,
    /// The directory.
    pub path: PathBuf,
    /// How many times its size may be promised to thin volumes; at least 1.
    #[serde(default = "default_overcommit")]
    pub overcommit: f64,
    /// Bytes that are never given to volumes.
    #[serde(default)]
    pub reserve: u64,
}

fn default_overcommit() -> f64 {
    2.0
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what is expected.
    #[error("{path} is not a valid configuration")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is not allowed.
    #[error("{key}: {problem}")]
    Value {
        /// The key, with the name of what it belongs to.
        key: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

fn bad(key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        key: key.into(),
        problem: problem.into(),
    }
}

/// Names of systems and aggregates: 1 to 63 lower-case letters, digits, dots and hyphens; they become part of an IQN and of texts.
fn check_name(key: &str, name: &str) -> Result<(), ConfigError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(allowed) || name == "auto" {
        return Err(bad(
            key,
            format!("`{name}` must be 1 to 63 lower-case letters, digits, dots or hyphens, and not `auto`"),
        ));
    }
    Ok(())
}

/// What the kernel and targetcli both accept: `iqn.YYYY-MM.<domain>:<rest>`, lower case, at most 223 bytes (RFC 7143 4.2.7.4;
/// rtslib refuses a domain without a dot, underscores and blanks).
#[must_use]
pub fn is_target_iqn(iqn: &str) -> bool {
    let Some(rest) = iqn.strip_prefix("iqn.") else {
        return false;
    };
    let Some((date, name)) = rest.split_once('.') else {
        return false;
    };
    let date_ok = date.len() == 7
        && date
            .bytes()
            .enumerate()
            .all(|(i, b)| if i == 4 { b == b'-' } else { b.is_ascii_digit() });
    let domain = name.split(':').next().unwrap_or_default();
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b':');
    iqn.len() <= 223 && date_ok && domain.contains('.') && name.bytes().all(allowed)
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.users.is_empty() {
            return Err(bad(
                "user",
                "at least one [[user]] with username and password_file is needed; none is shipped",
            ));
        }
        if self.tls.cert_file.is_some() != self.tls.key_file.is_some() {
            return Err(bad("tls", "cert_file and key_file go together"));
        }
        if self.systems.is_empty() {
            return Err(bad("system", "at least one [[system]] is needed"));
        }
        let mut names = HashSet::new();
        let mut targets = HashSet::new();
        let mut paths = HashSet::new();
        for system in &self.systems {
            check_name("system.name", &system.name)?;
            let of = |key: &str| format!("system `{}`: {key}", system.name);
            if !names.insert(&system.name) {
                return Err(bad(of("name"), "is used twice"));
            }
            if system.adapter != "lio" {
                return Err(bad(
                    of("adapter"),
                    format!("`{}` is not known; allowed: lio", system.adapter),
                ));
            }
            if system.portals.is_empty() {
                return Err(bad(of("portals"), "at least one address:port is needed"));
            }
            if system
                .portals
                .iter()
                .any(|portal| portal.ip().is_unspecified() || portal.port() == 0)
            {
                return Err(bad(
                    of("portals"),
                    "each needs an address that initiators can reach, and a port",
                ));
            }
            let target = system.target_iqn();
            if !is_target_iqn(&target) {
                return Err(bad(
                    of("target"),
                    format!(
                        "`{target}` must be iqn.YYYY-MM.<domain with a dot>:<name>, lower case, at most 223 bytes"
                    ),
                ));
            }
            if !targets.insert(target) {
                return Err(bad(of("target"), "is used by another system"));
            }
            let mut aggregates = HashSet::new();
            for aggregate in &system.aggregates {
                check_name(&of("aggregate.name"), &aggregate.name)?;
                let of =
                    |key: &str| format!("system `{}`: aggregate `{}`: {key}", system.name, aggregate.name);
                if !aggregates.insert(&aggregate.name) {
                    return Err(bad(of("name"), "is used twice"));
                }
                if aggregate.kind != "reflink" {
                    return Err(bad(
                        of("kind"),
                        format!("`{}` is not known; allowed: reflink", aggregate.kind),
                    ));
                }
                if !aggregate.path.is_absolute() {
                    return Err(bad(of("path"), "must be absolute"));
                }
                if !paths.insert(&aggregate.path) {
                    return Err(bad(of("path"), "is used by another aggregate"));
                }
                if !(1.0..=1000.0).contains(&aggregate.overcommit) {
                    return Err(bad(of("overcommit"), "must be from 1 to 1000"));
                }
            }
        }
        Ok(())
    }

    /// Reads the passwords.
    ///
    /// # Errors
    /// A file is missing, readable by others, or holds no password.
    pub fn read_users(&self) -> Result<Users, ConfigError> {
        let mut users = Users::default();
        for user in &self.users {
            let key = || format!("user `{}`: password_file", user.username);
            if user.username.is_empty() || user.username.contains(':') || user.username.len() > 255 {
                return Err(bad("user.username", "must be 1 to 255 bytes without a colon"));
            }
            let read = |source| ConfigError::Read {
                path: user.password_file.clone(),
                source,
            };
            let mode = std::fs::metadata(&user.password_file).map_err(read)?.mode();
            if mode & 0o007 != 0 {
                return Err(bad(
                    key(),
                    format!(
                        "{} is open to everybody; chmod 600 it",
                        user.password_file.display()
                    ),
                ));
            }
            let text = std::fs::read_to_string(&user.password_file).map_err(read)?;
            let password = text.lines().next().unwrap_or_default();
            if password.is_empty() {
                return Err(bad(key(), "holds no password"));
            }
            users.add(&user.username, password);
        }
        Ok(users)
    }
}

impl SystemConfig {
    /// The target's name, given or derived.
    #[must_use]
    pub fn target_iqn(&self) -> String {
        self.target
            .clone()
            .unwrap_or_else(|| format!("iqn.2026-11.io.storagelink:{}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
state_dir = "/var/lib/storagelinkd"
[[user]]
username = "csi"
password_file = "/etc/storagelinkd/password"
[[system]]
name = "array1"
adapter = "lio"
portals = ["198.18.0.1:3260", "[2001:db8::1]:3260"]
[[system.aggregate]]
name = "aggr1"
kind = "reflink"
path = "/srv/aggr1"
"#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("storagelinkd.toml"))
    }

    #[test]
    fn a_good_file_has_the_documented_defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.listen.port(), 21605);
        assert_eq!(
            config.systems[0].target_iqn(),
            "iqn.2026-11.io.storagelink:array1"
        );
        assert!(parse(include_str!("../../deploy/storagelinkd.example.toml")).is_ok());
    }

    #[test]
    fn each_bad_value_is_refused_by_its_key() {
        for (from, to, key) in [
            ("state_dir", "state_dirs", "state_dirs"),
            (
                "[[user]]\nusername = \"csi\"\npassword_file = \"/etc/storagelinkd/password\"",
                "",
                "user",
            ),
            ("\"array1\"", "\"Array 1\"", "system.name"),
            ("\"lio\"", "\"ontap\"", "adapter"),
            ("[\"198.18.0.1:3260\", \"[2001:db8::1]:3260\"]", "[]", "portals"),
            ("198.18.0.1:3260", "0.0.0.0:3260", "portals"),
            (
                "adapter = \"lio\"",
                "adapter = \"lio\"\ntarget = \"iqn.2026-11.nodot:x\"",
                "target",
            ),
            ("\"aggr1\"", "\"auto\"", "aggregate.name"),
            ("\"reflink\"", "\"zfs\"", "kind"),
            ("\"/srv/aggr1\"", "\"aggr1\"", "path"),
            (
                "kind = \"reflink\"",
                "kind = \"reflink\"\novercommit = 0.5",
                "overcommit",
            ),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            let error = parse(&text).unwrap_err();
            let mut shown = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                shown += &source.to_string();
            }
            assert!(shown.contains(key), "{key}: {shown}");
        }
    }
}

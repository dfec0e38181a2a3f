//! `controller.toml`: the configured gateway, how its certificate is known, and the controller's own credentials.
//!
//! It has no default for `system` and `aggregate`, on purpose: where volumes are made is never chosen silently.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::Deserialize;

use super::Credentials;
use crate::fabrics::{FabricError, Fabrics, Networks};
use crate::ids::{Endpoint, IdError};

/// The gateway's port when none is given.
pub const DEFAULT_PORT: u16 = 21605;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that it is or that it names.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// Not TOML, an unknown key, a missing one.
    #[error("{}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// `target` and `port`.
    #[error("target {0}")]
    Target(IdError),
    /// `username`, or what is in `username_file`.
    #[error("username is empty or holds a colon or a control character")]
    Username,
    /// Both or none of `username` and `username_file`.
    #[error("exactly one of username and username_file is required")]
    WhichUsername,
    /// Both or none of `fingerprint` and `ca_file`.
    #[error("exactly one of fingerprint and ca_file is required")]
    Trust,
    /// `fingerprint`.
    #[error("fingerprint {0:?} is not the SHA-256 of a certificate: 64 hexadecimal digits, colons allowed")]
    Fingerprint(String),
    /// `ca_file`.
    #[error("ca_file {} holds no certificate that can be used", .0.display())]
    Ca(PathBuf),
    /// `username_file` or `password_file`.
    #[error("{key} {} is empty or not UTF-8", path.display())]
    Credential {
        /// Which of them.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The table `[fabrics]`.
    #[error("[fabrics]")]
    Fabrics(#[from] FabricError),
    /// The TLS library.
    #[error("TLS")]
    Tls(#[source] rustls::Error),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    target: String,
    #[serde(default = "default_port")]
    port: u16,
    username: Option<String>,
    username_file: Option<PathBuf>,
    password_file: PathBuf,
    fingerprint: Option<OneOrMore>,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    fabrics: BTreeMap<String, Networks>,
}

/// Several fingerprints let certificates be changed, and gateways of other StorageClasses be reached.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

fn default_port() -> u16 {
    DEFAULT_PORT
}

/// How a gateway's certificate is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// By the SHA-256 of its DER: one of these.
    Fingerprints(Vec<[u8; 32]>),
    /// By the authorities in this PEM file, and the host name.
    Ca(PathBuf),
}

/// Who the controller is to the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Username {
    /// In the configuration itself.
    Given(String),
    /// In a file, which may change like the password's.
    File(PathBuf),
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    endpoint: Endpoint,
    username: Username,
    password_file: PathBuf,
    trust: Trust,
    fabrics: Fabrics,
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Checks its text; `path` is for the errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let endpoint = Endpoint::new(&file.target, file.port).map_err(ConfigError::Target)?;
        let username = match (file.username, file.username_file) {
            (Some(name), None) => Username::Given(check_username(name)?),
            (None, Some(path)) => Username::File(path),
            _ => return Err(ConfigError::WhichUsername),
        };
        let trust = match (file.fingerprint, file.ca_file) {
            (Some(OneOrMore::One(one)), None) => Trust::Fingerprints(vec![fingerprint(&one)?]),
            (Some(OneOrMore::More(more)), None) if !more.is_empty() => Trust::Fingerprints(
                more.iter()
                    .map(|text| fingerprint(text))
                    .collect::<Result<_, _>>()?,
            ),
            (None, Some(path)) => Trust::Ca(path),
            _ => return Err(ConfigError::Trust),
        };
        Ok(Self {
            endpoint,
            username,
            password_file: file.password_file,
            trust,
            fabrics: Fabrics::from_table(file.fabrics)?,
        })
    }

    /// The configured gateway.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The networks of portals, when there is a topology.
    pub fn fabrics(&self) -> &Fabrics {
        &self.fabrics
    }

    /// How its certificate is known.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Reads the files. A trailing newline belongs to neither name nor password.
    pub async fn credentials(&self) -> Result<Credentials, ConfigError> {
        let username = match &self.username {
            Username::Given(name) => name.clone(),
            Username::File(path) => check_username(read("username_file", path).await?)?,
        };
        Ok(Credentials {
            username,
            password: SecretString::from(read("password_file", &self.password_file).await?),
        })
    }
}

/// A colon would end the name in HTTP's basic scheme (RFC 7617 section 2).
fn check_username(name: String) -> Result<String, ConfigError> {
    if name.is_empty() || name.chars().any(|c| c == ':' || c.is_control()) {
        return Err(ConfigError::Username);
    }
    Ok(name)
}

/// The content of one credential's file.
async fn read(key: &'static str, path: &Path) -> Result<String, ConfigError> {
    let bytes = tokio::fs::read(path).await.map_err(|source| ConfigError::File {
        path: path.to_owned(),
        source,
    })?;
    let unusable = || ConfigError::Credential {
        key,
        path: path.to_owned(),
    };
    let text = String::from_utf8(bytes).map_err(|_| unusable())?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(unusable());
    }
    Ok(text.to_owned())
}

fn fingerprint(text: &str) -> Result<[u8; 32], ConfigError> {
    let text = text.trim();
    // storagelinkd prints it so.
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    hex::decode(digits.replace(':', ""))
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| ConfigError::Fingerprint(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    const BASE: &str = "target = \"array.example\"\nusername = \"csi\"\npassword_file = \"/p\"\n";

    fn parse(more: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("controller.toml"), &format!("{BASE}{more}"))
    }

    #[test]
    fn what_is_accepted() {
        let hex = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        let printed = format!("sha256:{hex}");
        for text in [hex.as_str(), colons.as_str(), printed.as_str()] {
            let config = parse(&format!("fingerprint = \"{text}\"")).unwrap();
            assert_eq!(config.trust(), &Trust::Fingerprints(vec![[0xab; 32]]));
            assert_eq!(config.endpoint().to_string(), "array.example:21605");
        }
        let two = parse(&format!("port = 5\nfingerprint = [\"{hex}\", \"{colons}\"]")).unwrap();
        assert_eq!(two.trust(), &Trust::Fingerprints(vec![[0xab; 32]; 2]));
        assert_eq!(
            parse("ca_file = \"/ca\"").unwrap().trust(),
            &Trust::Ca("/ca".into())
        );
    }

    #[test]
    fn what_is_refused() {
        let hex = "ab".repeat(32);
        assert!(matches!(parse(""), Err(ConfigError::Trust)));
        assert!(matches!(parse("fingerprint = []"), Err(ConfigError::Trust)));
        assert!(matches!(
            parse(&format!("fingerprint = \"{hex}\"\nca_file = \"/ca\"")),
            Err(ConfigError::Trust)
        ));
        assert!(matches!(
            parse("fingerprint = \"abcd\""),
            Err(ConfigError::Fingerprint(_))
        ));
        assert!(matches!(
            parse("port = 0\nca_file = \"/ca\""),
            Err(ConfigError::Target(IdError::Port))
        ));
        for (table, named) in [
            ("a = []", "fabric a"),
            ("A = \"10.0.0.0/8\"", "\"A\""),
            ("a = \"x\"", "\"x\""),
        ] {
            let Err(ConfigError::Fabrics(error)) = parse(&format!("ca_file = \"/ca\"\n[fabrics]\n{table}"))
            else {
                panic!("{table} is refused");
            };
            assert!(error.to_string().contains(named), "{error}");
        }
        // A default for where volumes are made is not only ignored.
        for key in ["system", "aggregate", "password"] {
            let error = parse(&format!("ca_file = \"/ca\"\n{key} = \"x\"")).unwrap_err();
            assert!(matches!(&error, ConfigError::Syntax { source, .. } if source.to_string().contains(key)));
        }
        let colon = BASE.replace("csi", "a:b");
        assert!(matches!(
            Config::parse(Path::new("c"), &format!("{colon}ca_file = \"/ca\"")),
            Err(ConfigError::Username)
        ));
        for names in ["", "username = \"a\"\nusername_file = \"/u\"\n"] {
            let text = BASE.replace("username = \"csi\"\n", names);
            assert!(matches!(
                Config::parse(Path::new("c"), &format!("{text}ca_file = \"/ca\"")),
                Err(ConfigError::WhichUsername)
            ));
        }
    }

    #[tokio::test]
    async fn the_user_name_may_be_in_a_file_beside_the_password() {
        let dir = tempfile::tempdir().unwrap();
        let (user, password) = (dir.path().join("username"), dir.path().join("password"));
        let text = format!(
            "target = \"a\"\nusername_file = {user:?}\npassword_file = {password:?}\nca_file = \"/ca\""
        );
        let config = Config::parse(Path::new("c"), &text).unwrap();
        std::fs::write(&password, "secret").unwrap();
        for (content, name) in [("one\n", "one"), ("two", "two")] {
            std::fs::write(&user, content).unwrap();
            assert_eq!(config.credentials().await.unwrap().username, name);
        }
        for content in ["a:b", "\n"] {
            std::fs::write(&user, content).unwrap();
            let error = config.credentials().await.unwrap_err();
            assert!(error.to_string().contains("username"), "{error}");
        }
    }

    #[tokio::test]
    async fn the_password_is_read_each_time_without_its_newline() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let text = format!("target = \"a\"\nusername = \"csi\"\npassword_file = {file:?}\nca_file = \"/ca\"");
        let config = Config::parse(Path::new("c"), &text).unwrap();
        assert!(matches!(
            config.credentials().await,
            Err(ConfigError::File { .. })
        ));
        for (content, password) in [("one\n", "one"), ("two", "two"), ("t h\r\n", "t h")] {
            std::fs::write(&file, content).unwrap();
            let credentials = config.credentials().await.unwrap();
            assert_eq!(credentials.password.expose_secret(), password);
            assert!(!format!("{credentials:?}").contains(password));
        }
        std::fs::write(&file, "\n").unwrap();
        assert!(matches!(
            config.credentials().await,
            Err(ConfigError::Credential {
                key: "password_file",
                ..
            })
        ));
    }
}

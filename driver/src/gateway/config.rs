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
    /// `username`.
    #[error("username is empty or holds a colon or a control character")]
    Username,
    /// Both or none of `username` and `username_file`.
    #[error("exactly one of username and username_file is required")]
    UsernameSource,
    /// `username_file`.
    #[error("username_file {} is empty, is not UTF-8, or holds a colon or a control character", .0.display())]
    UsernameFile(PathBuf),
    /// `[fabrics]`.
    #[error("fabrics")]
    Fabrics(#[source] FabricError),
    /// Both or none of `fingerprint` and `ca_file`.
    #[error("exactly one of fingerprint and ca_file is required")]
    Trust,
    /// `fingerprint`.
    #[error("fingerprint {0:?} is not the SHA-256 of a certificate: 64 hexadecimal digits, colons allowed")]
    Fingerprint(String),
    /// `ca_file`.
    #[error("ca_file {} holds no certificate that can be used", .0.display())]
    Ca(PathBuf),
    /// `password_file`.
    #[error("password_file {} is empty or not UTF-8", .0.display())]
    Password(PathBuf),
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

/// Who the controller is to the gateway. A Secret that is mounted holds the name in a file of its own.
#[derive(Debug, Clone)]
enum Username {
    Text(String),
    File(PathBuf),
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
            (Some(text), None) if is_username(&text) => Username::Text(text),
            (Some(_), None) => return Err(ConfigError::Username),
            (None, Some(path)) => Username::File(path),
            _ => return Err(ConfigError::UsernameSource),
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
            fabrics: Fabrics::from_table(&file.fabrics).map_err(ConfigError::Fabrics)?,
        })
    }

    /// The configured gateway.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// How its certificate is known.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The networks by which nodes and systems are told apart.
    pub fn fabrics(&self) -> &Fabrics {
        &self.fabrics
    }

    /// Reads the files of user name and password. A trailing newline is not part of either.
    pub async fn credentials(&self) -> Result<Credentials, ConfigError> {
        let username = match &self.username {
            Username::Text(text) => text.clone(),
            Username::File(path) => read_line(path)
                .await?
                .filter(|text| is_username(text))
                .ok_or_else(|| ConfigError::UsernameFile(path.clone()))?,
        };
        let path = &self.password_file;
        let password = read_line(path)
            .await?
            .filter(|text| !text.is_empty())
            .ok_or_else(|| ConfigError::Password(path.clone()))?;
        Ok(Credentials {
            username,
            password: SecretString::from(password),
        })
    }
}

/// A colon ends the user name in what is sent (RFC 7617).
fn is_username(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c == ':' || c.is_control())
}

/// A file's text without its trailing newline; none when it is not UTF-8.
async fn read_line(path: &Path) -> Result<Option<String>, ConfigError> {
    let bytes = tokio::fs::read(path).await.map_err(|source| ConfigError::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(String::from_utf8(bytes).ok().map(|text| {
        let line = text.strip_suffix('\n').unwrap_or(&text);
        line.strip_suffix('\r').unwrap_or(line).to_owned()
    }))
}

fn fingerprint(text: &str) -> Result<[u8; 32], ConfigError> {
    hex::decode(text.trim().replace(':', ""))
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
        for text in [hex.as_str(), colons.as_str()] {
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
        // A default for where volumes are made is not only ignored.
        for key in ["system", "aggregate", "password"] {
            let error = parse(&format!("ca_file = \"/ca\"\n{key} = \"x\"")).unwrap_err();
            assert!(matches!(&error, ConfigError::Syntax { source, .. } if source.to_string().contains(key)));
        }
        for (fabrics, text) in [
            ("A = \"10.1.0.0/24\"", "name \"A\""),
            ("a = \"10.1.0.1/24\"", "fabric a: \"10.1.0.1/24\""),
            ("a = []", "fabric a has no CIDR"),
        ] {
            let error = parse(&format!("ca_file = \"/ca\"\n[fabrics]\n{fabrics}")).unwrap_err();
            let error = crate::codes::chain(&error);
            assert!(error.contains("fabrics: ") && error.contains(text), "{error}");
        }
        let both = format!("{BASE}username_file = \"/u\"\nca_file = \"/ca\"");
        let none = BASE.replace("username = \"csi\"\n", "") + "ca_file = \"/ca\"";
        for text in [both, none] {
            assert!(matches!(
                Config::parse(Path::new("c"), &text),
                Err(ConfigError::UsernameSource)
            ));
        }
        let colon = BASE.replace("csi", "a:b");
        assert!(matches!(
            Config::parse(Path::new("c"), &format!("{colon}ca_file = \"/ca\"")),
            Err(ConfigError::Username)
        ));
    }

    #[tokio::test]
    async fn the_username_is_read_each_time_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let [username, password] = ["username", "password"].map(|name| dir.path().join(name));
        std::fs::write(&password, "p").unwrap();
        let text = format!(
            "target = \"a\"\nusername_file = {username:?}\npassword_file = {password:?}\nca_file = \"/ca\""
        );
        let config = Config::parse(Path::new("c"), &text).unwrap();
        for (content, name) in [("one\n", "one"), ("two", "two")] {
            std::fs::write(&username, content).unwrap();
            assert_eq!(config.credentials().await.unwrap().username, name);
        }
        for content in [&b""[..], b"\n", b"a:b", b"a\nb", b"\xff"] {
            std::fs::write(&username, content).unwrap();
            let error = config.credentials().await.unwrap_err();
            assert!(matches!(error, ConfigError::UsernameFile(_)), "{content:?}");
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
            Err(ConfigError::Password(_))
        ));
    }
}

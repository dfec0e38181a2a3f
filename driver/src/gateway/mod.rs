//! The client of the gateway: TLS, password, deadlines, one connection per gateway. It keeps no volume state.
//!
//! [`config`] reads `controller.toml`; [`tls`] says which certificate is believed; [`connect`] makes connections whose
//! errors can be told apart; [`client`] has the calls, and [`error`] what can go wrong with them. [`Gateways`] decides which gateway a request means and whose password it uses.

pub mod client;
pub mod config;
pub mod connect;
pub mod error;
pub mod tls;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use tonic::transport::Channel;

pub use client::Client;
pub use config::{Config, ConfigError};
pub use error::GatewayError;

use crate::fields::{self, FieldError, MAX_STRING_BYTES};
use crate::ids::{Endpoint, VolumeId};
use crate::parameters::{self, Parameters};

/// More connections than this are not kept: the number of gateways that StorageClasses name is small.
const MAX_CONNECTIONS: usize = 64;

/// Systems about which a warning is remembered; after that many there are no more warnings.
const MAX_WARNED: usize = 256;

/// User and password of a gateway.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Without a colon (RFC 7617).
    pub username: String,
    /// Never printed.
    pub password: SecretString,
}

/// How long a call may take, from the first packet of the connection to the answer.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// Establishing TCP and TLS.
    pub connect: Duration,
    /// Calls that only read.
    pub read: Duration,
    /// Calls that change the array.
    pub change: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            connect: seconds(5),
            read: seconds(10),
            change: seconds(60),
        }
    }
}

/// Every gateway that the controller talks to.
#[derive(Clone)]
pub struct Gateways {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    config: Config,
    tls: Arc<rustls::ClientConfig>,
    deadlines: Deadlines,
    channels: Mutex<HashMap<Endpoint, Channel>>,
    /// Systems about which a warning is in the log.
    warned: Mutex<HashSet<(Endpoint, String)>>,
}

/// Why there is no client for a request.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// A parameter or the Secret.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The controller's own password.
    #[error("the controller's own configuration")]
    Config(#[source] ConfigError),
}

impl crate::codes::Coded for SelectError {
    fn code(&self) -> tonic::Code {
        match self {
            Self::Field(error) => error.code(),
            // Nothing was asked of any array, and asking again does not help until somebody repairs the file.
            Self::Config(_) => tonic::Code::FailedPrecondition,
        }
    }
}

impl Gateways {
    /// Reads what the configuration points to (certificates; the password is read at each call, so that it can be
    /// rotated).
    pub fn new(config: Config, deadlines: Deadlines) -> Result<Self, ConfigError> {
        let tls = Arc::new(tls::client_config(&config)?);
        let shared = Shared {
            config,
            tls,
            deadlines,
            channels: Mutex::default(),
            warned: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The networks of portals, when there is a topology.
    pub fn fabrics(&self) -> &crate::fabrics::Fabrics {
        self.shared.config.fabrics()
    }

    /// Whether this is asked about a system for the first time: so that what holds at every call is logged once.
    pub(crate) fn first_time(&self, endpoint: &Endpoint, system: &str) -> bool {
        let mut warned = self.shared.warned.lock().unwrap_or_else(PoisonError::into_inner);
        // Bounded, whatever names StorageClasses hold.
        warned.len() < MAX_WARNED && warned.insert((endpoint.clone(), system.to_owned()))
    }

    /// The configured gateway with the configured password.
    pub async fn configured(&self) -> Result<Client, SelectError> {
        self.client(self.shared.config.endpoint().clone(), &HashMap::new())
            .await
    }

    /// For CreateVolume and GetCapacity: the gateway that parameters or Secret name, and it once more when it is not
    /// the configured one.
    pub async fn for_parameters(
        &self,
        parameters: &Parameters,
        secrets: &HashMap<String, String>,
    ) -> Result<(Client, Option<Endpoint>), SelectError> {
        let default = self.shared.config.endpoint();
        let target = agreed("target", parameters.target.as_deref(), secret(secrets, "target")?)?;
        let secret_port = match secret(secrets, "port")? {
            Some(text) => Some(parameters::port("secrets[port]", text)?),
            None => None,
        };
        let port = agreed("port", parameters.port, secret_port)?;
        if target.is_none() && port.is_none() {
            return Ok((self.client(default.clone(), secrets).await?, None));
        }
        let endpoint = Endpoint::new(target.unwrap_or(default.host()), port.unwrap_or(default.port()))
            .map_err(|error| fields::id_error("parameters[target]", &error))?;
        let client = self.client(endpoint.clone(), secrets).await?;
        Ok((client, (endpoint != *default).then_some(endpoint)))
    }

    /// For every call about an existing volume: the gateway that its id names.
    pub async fn for_volume(
        &self,
        id: &VolumeId,
        secrets: &HashMap<String, String>,
    ) -> Result<Client, SelectError> {
        let endpoint = id.endpoint().unwrap_or(self.shared.config.endpoint());
        self.client(endpoint.clone(), secrets).await
    }

    async fn client(
        &self,
        endpoint: Endpoint,
        secrets: &HashMap<String, String>,
    ) -> Result<Client, SelectError> {
        fields::map("secrets", secrets)?;
        let credentials = match (secret(secrets, "username")?, secrets.get("password")) {
            (None, None) => self
                .shared
                .config
                .credentials()
                .await
                .map_err(SelectError::Config)?,
            (Some(username), Some(password)) if !password.is_empty() => {
                if username.contains(':') {
                    return Err(FieldError::new("secrets[username]", "must not hold a colon").into());
                }
                Credentials {
                    username: username.to_owned(),
                    password: SecretString::from(password.as_str()),
                }
            }
            (Some(_), _) => {
                return Err(FieldError::new("secrets[password]", "is required with username").into());
            }
            (None, Some(_)) => {
                return Err(FieldError::new("secrets[username]", "is required with password").into());
            }
        };
        Ok(Client::new(Arc::clone(&self.shared), endpoint, &credentials))
    }
}

impl Shared {
    pub(crate) fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    /// The connection to a gateway, made at its first call and again whenever it is lost.
    pub(crate) fn channel(&self, endpoint: &Endpoint) -> Channel {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if !channels.contains_key(endpoint) && channels.len() >= MAX_CONNECTIONS {
            channels.clear();
        }
        let make = || connect::channel(endpoint, Arc::clone(&self.tls), self.deadlines.connect);
        channels.entry(endpoint.clone()).or_insert_with(make).clone()
    }

    /// Forgets a connection on which an answer did not come: the next call makes a new one.
    pub(crate) fn forget(&self, endpoint: &Endpoint) {
        self.channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(endpoint);
    }
}

/// A key of the Secret that is checked like any other field. Its text never gets into an error.
fn secret<'a>(
    secrets: &'a HashMap<String, String>,
    key: &'static str,
) -> Result<Option<&'a str>, FieldError> {
    let field = match key {
        "username" => "secrets[username]",
        "target" => "secrets[target]",
        _ => "secrets[port]",
    };
    match secrets.get(key) {
        Some(value) => fields::text(field, value, MAX_STRING_BYTES).map(|()| Some(value.as_str())),
        None => Ok(None),
    }
}

/// What the class and its Secret say must not contradict.
fn agreed<T: PartialEq>(key: &str, class: Option<T>, secret: Option<T>) -> Result<Option<T>, FieldError> {
    match (class, secret) {
        (Some(class), Some(secret)) if class != secret => Err(FieldError::new(
            format!("parameters[{key}]"),
            "contradicts the same key of the Secret",
        )),
        (class, secret) => Ok(class.or(secret)),
    }
}

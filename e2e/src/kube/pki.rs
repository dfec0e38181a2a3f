//! Keys, certificates and tokens of one cluster, made for one run.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::agent::MACHINE;

/// First address of the Service network: the API server's own Service.
pub const API_SERVICE: &str = "10.96.0.1";
/// Where the API server listens.
pub const API_PORT: u16 = 6443;

/// Writes `ca.crt`, `api.crt`, `api.key`, `sa.key` and `sa.pub` into `directory`.
pub fn make(directory: &Path) -> Result<()> {
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "lab");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let ca = CertifiedIssuer::self_signed(ca, key()?).context("make the cluster's authority")?;

    let mut api = CertificateParams::new(vec!["kubernetes.default.svc".to_owned()])
        .context("name the API server's certificate")?;
    api.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    let service: IpAddr = API_SERVICE.parse().context("the API server's Service")?;
    for address in [MACHINE.into(), service, Ipv4Addr::LOCALHOST.into()] {
        api.subject_alt_names.push(SanType::IpAddress(address));
    }
    api.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let api_key = key()?;
    let api = api
        .signed_by(&api_key, &ca)
        .context("make the API server's certificate")?;
    let accounts = key()?;
    for (name, content) in [
        ("sa.pub", accounts.public_key_pem()),
        ("ca.crt", ca.pem()),
        ("api.crt", api.pem()),
        ("api.key", api_key.serialize_pem()),
        ("sa.key", accounts.serialize_pem()),
    ] {
        fs::write(directory.join(name), content).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}

fn key() -> Result<KeyPair> {
    KeyPair::generate().context("make a key")
}

/// A user of the cluster, known by a token.
#[derive(Debug, Clone)]
pub struct User {
    /// File name of its kubeconfig, without the ending.
    pub file: String,
    /// Name in RBAC.
    pub name: String,
    /// Its group.
    pub group: String,
    token: String,
}

impl User {
    /// With a fresh token.
    #[must_use]
    pub fn new(file: &str, name: &str, group: &str) -> Self {
        Self {
            file: file.to_owned(),
            name: name.to_owned(),
            group: group.to_owned(),
            token: uuid::Uuid::new_v4().simple().to_string(),
        }
    }

    /// Its line of the API server's `--token-auth-file`.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{},{},{},\"{}\"", self.token, self.name, self.file, self.group)
    }

    /// Its kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self, authority: &str) -> String {
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {
                "server": format!("https://{MACHINE}:{API_PORT}"),
                "certificate-authority-data": base64(authority.as_bytes()),
            }}],
            "users": [{"name": "user", "user": {"token": self.token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user"}}],
            "current-context": "lab",
        });
        config.to_string()
    }
}

fn base64(data: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(data)
}

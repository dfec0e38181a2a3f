//! The server's certificate: the configured one, or a self-signed one made at first start and kept.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::{config::TlsConfig, files};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds no certificate.
    #[error("{path} holds no PEM certificate")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// None could be made.
    #[error("making a self-signed certificate")]
    Make(#[source] rcgen::Error),
}

/// TLS settings, and the SHA-256 of the certificate's DER in hexadecimal: what clients pin.
pub struct Tls {
    /// For the server.
    pub config: ServerTlsConfig,
    /// 64 hexadecimal digits.
    pub fingerprint: String,
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Loads or makes the certificate.
///
/// # Errors
/// See [`TlsError`].
pub fn load(config: &TlsConfig, state_dir: &Path, listen: SocketAddr) -> Result<Tls, TlsError> {
    let (cert_file, key_file) = match (&config.cert_file, &config.key_file) {
        (Some(cert), Some(key)) => (cert.clone(), key.clone()),
        _ => {
            let (cert, key) = (state_dir.join("tls.crt"), state_dir.join("tls.key"));
            if !(cert.exists() && key.exists()) {
                make(&cert, &key, listen)?;
            }
            (cert, key)
        }
    };
    let (cert, key) = (read(&cert_file)?, read(&key_file)?);
    let der = CertificateDer::from_pem_slice(&cert).map_err(|source| TlsError::Pem {
        path: cert_file,
        source,
    })?;
    let fingerprint = hex::encode(Sha256::digest(&der));
    let mut server = ServerTlsConfig::new().identity(Identity::from_pem(cert, key));
    if let Some(path) = &config.client_ca_file {
        server = server.client_ca_root(Certificate::from_pem(read(path)?));
    }
    let file = state_dir.join("fingerprint");
    files::write_durably(&file, format!("{fingerprint}\n").as_bytes(), 0o644)
        .map_err(|source| TlsError::Io { path: file, source })?;
    Ok(Tls {
        config: server,
        fingerprint,
    })
}

fn make(cert_file: &Path, key_file: &Path, listen: SocketAddr) -> Result<(), TlsError> {
    let mut names = vec!["localhost".to_owned(), "storagelinkd".to_owned()];
    if let Ok(host) = nix::unistd::gethostname()
        && let Ok(host) = host.into_string()
        && !host.is_empty()
    {
        names.push(host);
    }
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    }
    let made = rcgen::generate_simple_self_signed(names).map_err(TlsError::Make)?;
    let write = |path: &Path, text: &str, mode| {
        files::write_durably(path, text.as_bytes(), mode).map_err(|source| TlsError::Io {
            path: path.to_owned(),
            source,
        })
    };
    // The key first: a certificate without its key would be taken for a complete pair.
    write(key_file, &made.signing_key.serialize_pem(), 0o600)?;
    write(cert_file, &made.cert.pem(), 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_first_start_makes_a_certificate_and_later_ones_keep_it() {
        let state = tempfile::tempdir().unwrap();
        let listen = "127.0.0.1:21605".parse().unwrap();
        let first = load(&TlsConfig::default(), state.path(), listen)
            .unwrap()
            .fingerprint;
        assert_eq!(
            load(&TlsConfig::default(), state.path(), listen)
                .unwrap()
                .fingerprint,
            first
        );
        assert_eq!(first.len(), 64);
        assert_eq!(
            std::fs::read_to_string(state.path().join("fingerprint"))
                .unwrap()
                .trim(),
            first
        );
        assert_eq!(
            std::fs::metadata(state.path().join("tls.key")).unwrap().mode() & 0o777,
            0o600
        );
    }
}

//! Which certificate of a gateway is believed. There is no way to believe any.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use super::config::{Config, ConfigError, Trust};

/// The certificate is not one of those that are pinned.
#[derive(Debug, thiserror::Error)]
#[error("it presents a certificate with the SHA-256 fingerprint {}, which is not configured", hex::encode(.0))]
pub struct FingerprintMismatch([u8; 32]);

/// What every connection to a gateway uses: TLS 1.2 or 1.3, HTTP/2.
pub fn client_config(config: &Config) -> Result<ClientConfig, ConfigError> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match config.trust() {
        Trust::Fingerprints(fingerprints) => Arc::new(Pinned {
            fingerprints: fingerprints.clone(),
            provider: Arc::clone(&provider),
        }),
        Trust::Ca(path) => {
            let unusable = || ConfigError::Ca(path.clone());
            let pem = std::fs::read(path).map_err(|source| ConfigError::File {
                path: path.clone(),
                source,
            })?;
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|_| unusable())?;
                roots.add(certificate).map_err(|_| unusable())?;
            }
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|_| unusable())?
        }
    };
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ConfigError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

/// Believes exactly the pinned certificates, whatever their names and dates. The handshake's signature is verified as
/// always: who presents a pinned certificate must also have its key.
#[derive(Debug)]
struct Pinned {
    fingerprints: Vec<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented: [u8; 32] = Sha256::digest(end_entity).into();
        if self.fingerprints.contains(&presented) {
            return Ok(ServerCertVerified::assertion());
        }
        let mismatch = OtherError(Arc::new(FingerprintMismatch(presented)));
        Err(CertificateError::Other(mismatch).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

//! Clients' certificates: whether one is asked for, and what it is held to. What a fingerprint means is for handlers.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use sha1::{Digest as _, Sha1};

use super::certificates::certificates;
use crate::config::Settings;

/// Why clients' certificates cannot be checked as the settings ask.
#[derive(Debug, thiserror::Error)]
pub enum ClientsError {
    /// There is nothing to check them against.
    #[error("ssl.verify_required needs ssl.ca_chain: without it no client could be let in")]
    NoChain,
    /// The chain holds no certificates, or something else.
    #[error("ssl.ca_chain: {0}")]
    Chain(String),
}

/// The verifier that the settings ask for.
///
/// `ssl.verify_required`: a certificate that leads to one of the chain. `ssl.verify_optional`: such a one or none; without a
/// chain any one or none, as in Mongrel2, so that handlers must know the fingerprints.
pub(super) fn verifier(
    settings: &Settings,
    ca_chain: Option<&[u8]>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, ClientsError> {
    if !settings.ssl_verify_required && !settings.ssl_verify_optional {
        return Ok(WebPkiClientVerifier::no_client_auth());
    }
    let Some(chain) = ca_chain else {
        if settings.ssl_verify_required {
            return Err(ClientsError::NoChain);
        }
        return Ok(Arc::new(Anyone(Arc::clone(provider))));
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(chain).map_err(ClientsError::Chain)? {
        roots
            .add(certificate)
            .map_err(|error| ClientsError::Chain(error.to_string()))?;
    }
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    if !settings.ssl_verify_required {
        builder = builder.allow_unauthenticated();
    }
    builder
        .build()
        .map_err(|error| ClientsError::Chain(error.to_string()))
}

/// Takes any certificate whose key the client has.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ClientCertVerifier for Anyone {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The SHA-1 of a certificate in upper-case hexadecimal, as `PEER_CERT_SHA1` has it; Mongrel2 writes two zeros more.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 40] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = [0; 40];
    for (pair, byte) in text.chunks_exact_mut(2).zip(Sha1::digest(certificate)) {
        if let [high, low] = pair {
            *high = DIGITS[usize::from(byte >> 4)];
            *low = DIGITS[usize::from(byte & 15)];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_forty_upper_case_digits() {
        let certificate = CertificateDer::from(b"abc".to_vec());
        assert_eq!(
            &fingerprint(&certificate),
            b"A9993E364706816ABA3E25717850C26C9CD0D89D"
        );
    }

    #[test]
    fn certificates_cannot_be_required_without_anything_to_check_them_against() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let settings = Settings {
            ssl_verify_required: true,
            ..Settings::default()
        };
        assert!(matches!(
            verifier(&settings, None, &provider),
            Err(ClientsError::NoChain)
        ));
        let chain = Some(b"no PEM at all".as_slice());
        assert!(matches!(
            verifier(&settings, chain, &provider),
            Err(ClientsError::Chain(_))
        ));
        let settings = Settings {
            ssl_verify_optional: true,
            ..Settings::default()
        };
        let anyone = verifier(&settings, None, &provider).unwrap();
        assert!(anyone.offer_client_auth() && !anyone.client_auth_mandatory());
        let nobody = verifier(&Settings::default(), None, &provider).unwrap();
        assert!(!nobody.offer_client_auth());
    }
}

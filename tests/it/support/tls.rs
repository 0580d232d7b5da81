//! Certificates made for one test, and clients that check them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use sha1::{Digest as _, Sha1};

/// Who signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A certificate and its key.
pub(crate) struct Pair {
    pub(crate) certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority for one test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self {
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for these host names.
    pub(crate) fn issue(&self, names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).expect("host names");
        params
            .distinguished_name
            .push(DnType::CommonName, names.concat());
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair {
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
        }
    }

    /// Its own certificate in PEM.
    pub(crate) fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// What trusts it, shows `client`, and speaks these versions.
    pub(crate) fn trusted(
        &self,
        client: Option<&Pair>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        match client {
            Some(pair) => builder
                .with_client_auth_cert(vec![pair.certificate.clone()], pair.key())
                .expect("a client's certificate"),
            None => builder.with_no_client_auth(),
        }
    }
}

impl Pair {
    /// Writes `NAME.crt` and `NAME.key`.
    pub(crate) fn write(&self, directory: &Path, name: &str) {
        let write = |suffix: &str, text: String| {
            fs::write(directory.join(format!("{name}.{suffix}")), text).expect("write PEM");
        };
        write("crt", pem("CERTIFICATE", &self.certificate));
        write("key", pem("PRIVATE KEY", &self.key));
    }

    /// The SHA-1 of the certificate as handlers get it.
    pub(crate) fn fingerprint(&self) -> String {
        let mut text = String::new();
        for byte in Sha1::digest(&self.certificate) {
            // Writing to a String does not fail.
            let _ok = write!(text, "{byte:02X}");
        }
        text
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

/// DER as PEM.
pub(crate) fn pem(kind: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut lines = format!("-----BEGIN {kind}-----\n");
    for line in text.as_bytes().chunks(64) {
        lines.push_str(std::str::from_utf8(line).expect("ASCII"));
        lines.push('\n');
    }
    lines + &format!("-----END {kind}-----\n")
}

/// What the recorded TLS configuration expects in its `certdir`; and a client that shows a certificate.
pub(crate) struct Recorded {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) fingerprint: String,
}

impl Recorded {
    pub(crate) fn furnish(certdir: &Path, uuid: &str) -> Self {
        fs::create_dir_all(certdir).expect("create a folder");
        let authority = Authority::new();
        authority.issue(&["localhost"]).write(certdir, uuid);
        fs::write(certdir.join("ca.crt"), authority.pem()).expect("write PEM");
        let pair = authority.issue(&["client"]);
        Self {
            client: Arc::new(authority.trusted(Some(&pair), rustls::ALL_VERSIONS)),
            fingerprint: pair.fingerprint(),
        }
    }
}

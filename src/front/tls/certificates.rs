//! The server's own certificates: which file is for which name, and which one a client gets.
//!
//! `UUID.crt` with `UUID.key` is the default, `NAME.crt` is for that host, `_.REST.crt` for every host whose name is one
//! label and then `.REST` (reference: TLS). A pair that is broken costs its own host only.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::crypto::ring::sign;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{info, warn};

use super::keys::Keys;

/// The certificates of a server.
#[derive(Debug)]
pub(super) struct Certificates {
    default: Arc<CertifiedKey>,
    /// By file name without `.crt`.
    named: HashMap<String, Arc<CertifiedKey>>,
}

/// Why a pair of certificate and key is of no use.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// One of the two files is not there, or could not be read.
    #[error("{0} is missing")]
    Missing(String),
    /// It holds no PEM of the kind that is needed.
    #[error("{file}: {why}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The key is another certificate's.
    #[error("{0}.key is not the key of {0}.crt")]
    Mismatch(String),
}

impl Certificates {
    /// Makes them of files. `before` are those that were in use until now: a named pair that has become broken goes on as
    /// it was.
    ///
    /// # Errors
    ///
    /// When the default pair is broken. What is wrong with the others is warned about.
    pub(super) fn new(uuid: &str, keys: &Keys, before: Option<&Self>) -> Result<Self, PairError> {
        let default = Arc::new(pair(uuid, keys)?);
        let mut named = HashMap::new();
        for name in keys
            .files
            .keys()
            .filter_map(|file| file.strip_suffix(".crt"))
        {
            if name == uuid {
                continue;
            }
            if !keys.files.contains_key(&format!("{name}.key")) {
                // Such as the certificates that clients are checked against.
                info!("certificate {name}.crt has no key beside it: it is not served");
                continue;
            }
            match (
                pair(name, keys),
                before.and_then(|before| before.named.get(name)),
            ) {
                (Ok(pair), _) => {
                    named.insert(name.to_owned(), Arc::new(pair));
                }
                (Err(error), Some(old)) => {
                    warn!("certificate {name}.crt: {error}: the one before it is served further");
                    named.insert(name.to_owned(), Arc::clone(old));
                }
                (Err(error), None) => {
                    warn!("certificate {name}.crt: {error}: the default one is served instead");
                }
            }
        }
        Ok(Self { default, named })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.named.len() + 1
    }

    fn of_host(&self, host: &str) -> Option<&Arc<CertifiedKey>> {
        // Names come from clients; what is no file's name finds nothing.
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        self.named.get(&host).or_else(|| {
            let (_, rest) = host.split_once('.')?;
            self.named.get(&format!("_.{rest}"))
        })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|host| self.of_host(host));
        Some(Arc::clone(named.unwrap_or(&self.default)))
    }
}

/// Reads `NAME.crt`, a chain that begins with the server's own certificate, and `NAME.key`: PKCS#8, PKCS#1 or SEC1, not
/// encrypted.
fn pair(name: &str, keys: &Keys) -> Result<CertifiedKey, PairError> {
    let file = |suffix: &str| {
        let file = format!("{name}.{suffix}");
        match keys.files.get(&file) {
            Some(bytes) => Ok((file, bytes.as_slice())),
            None => Err(PairError::Missing(file)),
        }
    };
    let (crt, bytes) = file("crt")?;
    let chain = certificates(bytes).map_err(|why| PairError::Malformed { file: crt, why })?;
    let (key_file, bytes) = file("key")?;
    let malformed = |why: String| PairError::Malformed {
        file: key_file.clone(),
        why,
    };
    let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|error| {
        let encrypted = bytes.windows(9).any(|window| window == b"ENCRYPTED");
        malformed(if encrypted {
            "the key is encrypted, and nobody is there to type its password".to_owned()
        } else {
            told(&error, "private key")
        })
    })?;
    let key = sign::any_supported_type(&key).map_err(|_| {
        malformed(
            "no key that can be used: RSA of 2048 to 8192 bits, ECDSA P-256 or P-384, or Ed25519"
                .to_owned(),
        )
    })?;
    // By its public key as it stands in the certificate: certificates of version 1, which old recipes make, are good
    // enough for browsers, though not for the stricter parser of rustls.
    let belongs = key.public_key().is_none_or(|public| {
        let own = chain.first().map_or(&[][..], |own| own.as_ref());
        !public.is_empty() && memchr::memmem::find(own, public.as_ref()).is_some()
    });
    if !belongs {
        return Err(PairError::Mismatch(name.to_owned()));
    }
    Ok(CertifiedKey::new(chain, key))
}

/// The certificates of a PEM file; at least one.
pub(super) fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let found = found.map_err(|error| told(&error, "certificate"))?;
    if found.is_empty() {
        return Err(told(&pem::Error::NoItemsFound, "certificate"));
    }
    Ok(found)
}

fn told(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("no {what} in PEM"),
        error => format!("{error}"),
    }
}

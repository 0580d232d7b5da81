//! TLS, versions 1.2 and 1.3, by rustls: certificates by host name, clients' certificates, resumption, reload.
//!
//! It makes a configuration of settings and bytes and opens no file: see [`Keys`]. A configuration that was replaced goes on
//! for the connections that began with it, so a reload costs nobody anything. Handshakes are driven where connections are
//! accepted; what a client is connected by afterwards is `Session`, under the same roof as plain TCP.

mod certificates;
mod ciphers;
mod clients;
mod keys;

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::warn;

use crate::config::Settings;
use certificates::Certificates;
pub use certificates::PairError;
pub use clients::ClientsError;
pub use keys::Keys;

/// Sessions that are kept for clients of TLS 1.2 that know no tickets: as many as Mongrel2 keeps. Others keep theirs
/// themselves, encrypted by a key that changes every six hours.
const SESSIONS_MAX: usize = 1_000;

/// The first byte of a TLS connection: a handshake record (RFC 8446 5.1).
pub(super) const HANDSHAKE: u8 = 0x16;

/// The stream of a client that is connected by TLS.
pub(super) type Session = TlsStream<TcpStream>;

/// Why TLS cannot be served, or not be changed, as the settings ask.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// `use_ssl` is set, and nothing says where the certificates are.
    #[error("use_ssl needs the setting certdir")]
    NoKeys,
    /// The default certificate or its key.
    #[error("default certificate")]
    Default(#[source] PairError),
    /// Clients' certificates cannot be checked.
    #[error(transparent)]
    Clients(#[from] ClientsError),
    /// No suite that the settings name is known.
    #[error(
        "ssl_ciphers names no cipher suite that is known here (TLS 1.2 with ECDHE and an AEAD, or TLS 1.3)"
    )]
    NoCiphers,
    /// The thread that read the certificates is gone.
    #[error("the reading of the certificates was given up")]
    Lost,
    /// rustls refuses.
    #[error("set up TLS")]
    Rustls(#[source] rustls::Error),
}

/// What a server serves by TLS, and how.
#[derive(Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    /// What resumed sessions were held to: sessions must not outlive a change of it.
    clients: ClientRules,
    resumption: Resumption,
}

#[derive(Debug, PartialEq, Eq)]
struct ClientRules {
    optional: bool,
    required: bool,
    ca_chain: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
struct Resumption {
    sessions: Arc<dyn StoresServerSessions>,
    tickets: Arc<dyn ProducesTickets>,
}

impl Resumption {
    fn new() -> Result<Self, TlsError> {
        Ok(Self {
            sessions: ServerSessionMemoryCache::new(SESSIONS_MAX),
            tickets: Ticketer::new().map_err(TlsError::Rustls)?,
        })
    }
}

impl Tls {
    /// Makes what the server `uuid` serves. Names of cipher suites that are not here, and certificates that cannot be used,
    /// are warned about. `before` is what was served until now: a named pair that has become broken goes on as it was there,
    /// and so do sessions, unless clients are held to something else now.
    ///
    /// With thousands of certificates it takes a while.
    ///
    /// # Errors
    ///
    /// When the default certificate, the suites or the rules for clients are of no use.
    pub fn new(
        uuid: &str,
        settings: &Settings,
        keys: &Keys,
        before: Option<&Self>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(provider(settings)?);
        let verifier = clients::verifier(settings, keys.ca_chain.as_deref(), &provider)?;
        let certificates =
            Certificates::new(uuid, keys, before.map(|before| &*before.certificates));
        let certificates = Arc::new(certificates.map_err(TlsError::Default)?);
        let clients = ClientRules {
            optional: settings.ssl_verify_optional,
            required: settings.ssl_verify_required,
            ca_chain: keys.ca_chain.clone(),
        };
        let resumption = match before.filter(|before| before.clients == clients) {
            Some(before) => before.resumption.clone(),
            None => Resumption::new()?,
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Rustls)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&certificates) as _);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::clone(&resumption.sessions);
        config.ticketer = Arc::clone(&resumption.tickets);
        Ok(Self {
            config: Arc::new(config),
            certificates,
            clients,
            resumption,
        })
    }

    /// How many certificates there are.
    pub fn certificates(&self) -> usize {
        self.certificates.len()
    }

    /// Drives the handshake of a client that has just connected.
    ///
    /// # Errors
    ///
    /// Why there is no session, and the socket, on which the alert that says so was written.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> Result<Box<Session>, (io::Error, TcpStream)> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.config));
        Ok(Box::new(acceptor.accept(stream).into_fallible().await?))
    }
}

/// The fingerprint of the certificate that a client has shown, in hexadecimal.
pub(super) fn fingerprint(session: &Session) -> Option<[u8; 40]> {
    let (_, connection) = session.get_ref();
    Some(clients::fingerprint(
        connection.peer_certificates()?.first()?,
    ))
}

/// A session for the log: version, suite, and the host that was asked for.
pub(super) struct Described<'a>(pub(super) &'a Session);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, connection) = self.0.get_ref();
        if let Some(version) = connection.protocol_version() {
            write!(f, "{version:?}")?;
        }
        if let Some(suite) = connection.negotiated_cipher_suite() {
            write!(f, " {:?}", suite.suite())?;
        }
        write!(f, " {}", connection.server_name().unwrap_or("-"))
    }
}

/// ring, with the suites that the settings leave.
fn provider(settings: &Settings) -> Result<CryptoProvider, TlsError> {
    let mut provider = default_provider();
    if let Some(names) = &settings.ssl_ciphers {
        let choice = ciphers::choose(names);
        if !choice.unknown.is_empty() {
            warn!("ssl_ciphers: not known here: {}", choice.unknown.join(" "));
        }
        if choice.suites.is_empty() {
            return Err(TlsError::NoCiphers);
        }
        provider.cipher_suites = choice.suites;
    }
    Ok(provider)
}

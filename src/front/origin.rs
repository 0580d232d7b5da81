//! Where a request comes from, as handlers and logs are told: the client's address, the scheme, its certificate.
//!
//! Without balancers that is the connection. From peers that `forwarded.from` names, one header is believed about the client
//! behind them, `forwarded.header`; one only, since a balancer that writes the one lets a client's own other one pass.

use std::net::SocketAddr;

use super::client::Client;
use super::limits::Limits;
use crate::config::ForwardedHeader;
use crate::http1::forwarded;
use crate::wire::request::Field;

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin<'a> {
    /// The client's address; port 0 when a balancer has told no port.
    pub(super) remote: SocketAddr,
    /// Whether the client speaks TLS, with us or with the balancer.
    pub(super) https: bool,
    /// The fingerprint of the certificate that it has shown us.
    pub(super) certificate: Option<&'a [u8]>,
}

impl<'a> Origin<'a> {
    /// The origin of a request with these header lines.
    pub(super) fn of(limits: &Limits, client: &'a Client, fields: &[Field<'_>]) -> Self {
        let origin = Self::of_connection(client);
        if limits.forwarded_from.is_empty() || !limits.forwarded_from.contains(client.addr.ip()) {
            return origin;
        }
        origin.described(limits, fields)
    }

    /// The origin of what has no header lines: the connection.
    pub(super) fn of_connection(client: &'a Client) -> Self {
        let secure = client.secure.as_deref();
        Self {
            remote: client.addr,
            https: secure.is_some(),
            certificate: secure
                .and_then(|secure| secure.fingerprint.as_ref())
                .map(<[u8; 40]>::as_slice),
        }
    }

    /// `URL_SCHEME`.
    pub(super) fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// What a trusted balancer says instead.
    fn described(self, limits: &Limits, fields: &[Field<'_>]) -> Self {
        let values = |name: &'static [u8]| {
            let named = move |field: &&Field<'_>| field.name.eq_ignore_ascii_case(name);
            fields.iter().filter(named).map(|field| field.value)
        };
        let is_trusted = |address| limits.forwarded_from.contains(address);
        let described = match limits.forwarded_header {
            ForwardedHeader::XForwardedFor => forwarded::Described {
                address: forwarded::from_list(values(b"x-forwarded-for"), is_trusted),
                https: forwarded::proto(values(b"x-forwarded-proto")),
            },
            ForwardedHeader::Forwarded => {
                forwarded::from_forwarded(values(b"forwarded"), is_trusted)
            }
        };
        Self {
            remote: described.address.unwrap_or(self.remote),
            https: described.https.unwrap_or(self.https),
            ..self
        }
    }
}

//! Messages become `http::Request`s. Pure.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header};

use super::body::Body;
use crate::handler::{Client, Request};
use crate::wire::request::HeaderValues;

/// Where a request comes from: an extension of each `http::Request`, cheap to clone. With axum: `Extension(origin): Extension<Origin>`.
#[derive(Debug, Clone)]
pub struct Origin(Arc<Asked>);

/// A request that somebody has to answer: its client is cut off when it is dropped before.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    /// Some of a response was sent.
    begun: AtomicBool,
    /// The body still comes, and was not read to its end: another request cannot follow.
    unread: AtomicBool,
}

impl Asked {
    pub(super) fn new(request: Request) -> Self {
        Self {
            request,
            begun: AtomicBool::new(false),
            unread: AtomicBool::new(false),
        }
    }

    /// Nobody waits for a response any more.
    pub(super) fn give_up(&self) {
        self.begin();
    }

    /// Its body is one that comes as it is read.
    pub(super) fn streams(&self) {
        self.unread.store(true, Ordering::Release);
    }

    pub(super) fn read(&self) {
        self.unread.store(false, Ordering::Release);
    }

    pub(super) fn is_read(&self) -> bool {
        !self.unread.load(Ordering::Acquire)
    }

    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.has_begun() {
            self.request.client().cancel_when_possible();
        }
    }
}

impl Origin {
    pub(super) fn new(asked: Arc<Asked>) -> Self {
        Self(asked)
    }

    /// The message that the request came as, with the server's own headers (`PATTERN`, `PATH`, …) and the client's.
    pub fn request(&self) -> &Request {
        &self.0.request
    }

    /// A handle on the client, to send to it from elsewhere. What is sent while the response is not complete goes into the midst of it.
    pub fn client(&self) -> Client {
        self.0.request.client()
    }

    /// The client's address, as the server sees or believes it.
    pub fn remote_addr(&self) -> Option<IpAddr> {
        self.text("REMOTE_ADDR")?.parse().ok()
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> Option<&str> {
        self.text("URL_SCHEME")
    }

    /// The route of the server's configuration that has led here: where an application is mounted.
    pub fn pattern(&self) -> Option<&str> {
        self.text("PATTERN")
    }

    fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.0.request.headers.first(name)?).ok()
    }
}

/// Why a message is no request that a service could be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoRequest {
    #[error("its method is none")]
    Method,
    #[error("its target is none")]
    Target,
}

/// The request of a message, as the client has sent it: the target is not decoded, and headers keep their number. A service does not
/// see what was between the client and the server only: the framing of a body that is there.
pub(super) fn to_http(asked: &Arc<Asked>, body: Body) -> Result<http::Request<Body>, NoRequest> {
    let message = &asked.request;
    let method = message
        .method()
        .and_then(|method| Method::from_bytes(method).ok())
        .ok_or(NoRequest::Method)?;
    let uri = target(message).ok_or(NoRequest::Target)?;
    let mut request = http::Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = match message.version() {
        Some(b"HTTP/1.0") => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    headers(message, request.headers_mut());
    request
        .extensions_mut()
        .insert(Origin::new(Arc::clone(asked)));
    Ok(request)
}

/// The target as it stands in the request line: `URI`, or the path where a server does not tell it.
pub(super) fn target(message: &Request) -> Option<Uri> {
    let uri = message.headers.first("URI");
    let uri = uri.map_or_else(|| message.path.clone(), |uri| message.headers.share(uri));
    Uri::from_maybe_shared(uri).ok()
}

/// The client's headers; those of the server have upper-case names.
pub(super) fn client_headers(message: &Request) -> impl Iterator<Item = (&[u8], HeaderValues<'_>)> {
    message.headers.iter().filter(|(name, _)| {
        !name.iter().any(u8::is_ascii_uppercase) && !name.starts_with(b"x-mongrel2-upload-")
    })
}

fn headers(message: &Request, headers: &mut HeaderMap) {
    headers.reserve(message.headers.len());
    for (name, values) in client_headers(message) {
        let Ok(name) = HeaderName::from_bytes(name) else {
            continue;
        };
        // The server has taken the chunks off.
        if name == header::TRANSFER_ENCODING {
            continue;
        }
        for value in values.iter() {
            // Mongrel2 passes on what is no header value; a service could do nothing with it.
            let value = message.headers.share(value);
            if let Ok(value) = HeaderValue::from_maybe_shared(value) {
                headers.append(&name, value);
            }
        }
    }
}

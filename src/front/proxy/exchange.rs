//! One request and its response, as a task: a connection is had, the request sent, the response given to the client's
//! connection part by part.
//!
//! The task ends with the exchange: when the client goes it is dropped, and with it the connection to the backend, so that the
//! backend learns of it. What the response leaves unread of the request's body is not waited for: then the connection to the
//! backend is closed, since its framing could not be trusted any more.

use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::TrySendError;
use tokio::sync::mpsc;
use tracing::debug;

use super::backend::{Backend, Connection, Permit};
use super::body::{Body, Progress};
use super::{forward, tunnel};
use crate::drain::Watch;
use crate::front::answer::{Fault, Trouble};
use crate::front::limits::ProxyLimits;
use crate::front::local::{BodyPart, Part, ResponseHead};
use crate::http1::BodyFraming;

/// A request on its way.
pub(super) struct Exchange {
    pub(super) backend: Rc<Backend>,
    pub(super) watch: Watch,
    pub(super) limits: ProxyLimits,
    pub(super) parts: mpsc::Sender<Part>,
    pub(super) framing: BodyFraming,
    /// The request asks for another protocol.
    pub(super) upgrade: bool,
    /// The client waits for a 100 before it sends its body.
    pub(super) expects: bool,
    /// The client takes trailer fields.
    pub(super) trailers: bool,
}

/// The client does not listen any more, or why it gets no complete response.
enum End {
    ClientGone,
    Failed(Fault),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

impl Exchange {
    /// Sees the exchange to its end. The body's parts come by `body`; after a switch of protocols, the client's bytes.
    ///
    /// # Cancel safety
    ///
    /// Dropping it cuts the connection to the backend.
    pub(super) async fn run(self, head: Parts, body: mpsc::Receiver<BodyPart>) {
        if let Err(End::Failed(fault)) = self.exchange(head, body).await {
            // A client that is gone need not know.
            drop(self.parts.send(Part::Failed(Trouble::Backend(fault))).await);
        }
    }

    async fn exchange(&self, mut head: Parts, body: mpsc::Receiver<BodyPart>) -> Result<(), End> {
        let admitted = self.backend.admit(self.limits.connections);
        let permit = match self.limits.connect_timeout {
            Some(time) => tokio::time::timeout(time, admitted)
                .await
                .map_err(|_| Fault::Busy)?,
            None => admitted.await,
        };
        let has_body = !matches!(self.framing, BodyFraming::None | BodyFraming::Length(0));
        let progress = Progress::new(has_body, self.expects);
        self.pass_interim_responses(&mut head, &progress);
        let (body, tunnel) = if self.upgrade {
            (Body::empty(Arc::clone(&progress)), Some(body))
        } else {
            let body = Body::new(self.framing, body, Arc::clone(&progress));
            (body, None)
        };
        let repeatable = (!has_body && is_safe(&head.method)).then(|| head.clone());
        let message = Request::from_parts(head, body);
        let (response, connection) = self.send(message, repeatable, &progress).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let body = tunnel.ok_or(Fault::Malformed)?;
            return self.switch(response, connection, body).await;
        }
        self.relay(response, connection, permit, &progress).await
    }

    /// 1xx responses go to the client as they come (RFC 9110 15.2). Those for which there is no room are left out: no
    /// backend needs to send more of them than a client can be told of.
    fn pass_interim_responses(&self, head: &mut Parts, progress: &Arc<Progress>) {
        let (parts, progress) = (self.parts.clone(), Arc::clone(progress));
        let mut carrier = Request::new(());
        hyper::ext::on_informational(&mut carrier, move |response| {
            let status = response.status();
            progress.heard(status == StatusCode::CONTINUE);
            // The last place is for the one that the client may be waiting for.
            if status != StatusCode::CONTINUE && parts.capacity() <= 1 {
                debug!(%status, "interim response left out");
                return;
            }
            let mut head = ResponseHead::new(status, None);
            head.fields = response.headers().clone();
            forward::clean(&mut head.fields);
            if parts.try_send(Part::Interim(head)).is_err() {
                debug!(%status, "interim response left out");
            }
        });
        head.extensions = carrier.into_parts().0.extensions;
    }

    /// Sends the request and waits for the head of its response. A kept connection may have been closed by the backend just
    /// now: then the request is sent once more, on a new one, if nothing of it was written, or if it is safe and has no body.
    async fn send(
        &self,
        mut message: Request<Body>,
        repeatable: Option<Parts>,
        progress: &Arc<Progress>,
    ) -> Result<(Response<Incoming>, Connection), Fault> {
        if repeatable.is_none() {
            // This one cannot be sent twice: what the system knows of kept connections is learnt first.
            tokio::task::yield_now().await;
        }
        if let Some(mut connection) = self.backend.take_idle() {
            match self.ask(&mut connection, message, progress).await? {
                Ok(response) => return Ok((response, connection)),
                Err(mut failure) => {
                    let unsent = failure.take_message();
                    let error = failure.into_error();
                    debug!(%error, unsent = unsent.is_some(), "kept connection to a backend failed");
                    message = match (unsent, repeatable) {
                        (Some(message), _) => message,
                        (None, Some(head)) if is_loss(&error) => {
                            Request::from_parts(head, Body::empty(Arc::clone(progress)))
                        }
                        _ => return Err(fault(&error)),
                    };
                }
            }
        }
        let connected = self.backend.connect(&self.watch);
        let mut connection = match self.limits.connect_timeout {
            Some(time) => tokio::time::timeout(time, connected)
                .await
                .unwrap_or_else(|_| {
                    self.backend.note_silence();
                    Err(Fault::ConnectTimeout)
                })?,
            None => connected.await?,
        };
        match self.ask(&mut connection, message, progress).await? {
            Ok(response) => Ok((response, connection)),
            Err(failure) => Err(fault(failure.error())),
        }
    }

    async fn ask(
        &self,
        connection: &mut Connection,
        message: Request<Body>,
        progress: &Progress,
    ) -> Result<Result<Response<Incoming>, TrySendError<Request<Body>>>, Fault> {
        progress
            .within(
                self.limits.timeout,
                connection.sender.try_send_request(message),
            )
            .await
    }

    /// Gives the final response to the client; keeps the connection when both messages are complete.
    async fn relay(
        &self,
        response: Response<Incoming>,
        connection: Connection,
        permit: Permit,
        progress: &Progress,
    ) -> Result<(), End> {
        let (head, mut body) = response.into_parts();
        let length = match head.status {
            StatusCode::NO_CONTENT => None,
            _ if body.is_end_stream() => announced(&head.headers),
            _ => body.size_hint().exact(),
        };
        let head = forward::response(head, length, self.trailers)?;
        self.give(Part::Head(head)).await?;
        while let Some(frame) = progress.within(self.limits.timeout, body.frame()).await? {
            let frame = frame.map_err(|error| fault(&error))?;
            match frame.into_data() {
                Ok(data) => self.give(Part::Data(data)).await?,
                Err(frame) => {
                    if let (Ok(mut fields), true) = (frame.into_trailers(), self.trailers) {
                        forward::clean_trailers(&mut fields);
                        self.give(Part::Trailers(fields)).await?;
                    }
                }
            }
        }
        // Before the client knows of the end: its next request finds the connection.
        if progress.is_body_given() {
            self.backend.give_back(connection, &self.watch);
        } else {
            drop(connection);
        }
        drop(permit);
        self.give(Part::End).await
    }

    async fn switch(
        &self,
        response: Response<Incoming>,
        connection: Connection,
        body: mpsc::Receiver<BodyPart>,
    ) -> Result<(), End> {
        let (mut head, incoming) = response.into_parts();
        let upgraded = hyper::upgrade::on(Response::from_parts(
            http::response::Parts::clone(&head),
            incoming,
        ));
        head.extensions.clear();
        let head = forward::response(head, None, false)?;
        let upgraded = upgraded.await.map_err(|error| {
            debug!(%error, "switch of protocols failed");
            Fault::Malformed
        })?;
        drop(connection);
        self.give(Part::Switch(head)).await?;
        tunnel::carry(upgraded, &self.parts, body).await;
        self.give(Part::End).await
    }

    async fn give(&self, part: Part) -> Result<(), End> {
        self.parts.send(part).await.map_err(|_| End::ClientGone)
    }
}

/// RFC 9110 9.2.1.
fn is_safe(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    )
}

/// The length that a response without a body tells of what it would have.
fn announced(fields: &http::HeaderMap<HeaderValue>) -> Option<u64> {
    let text = fields.get(header::CONTENT_LENGTH)?.to_str().ok()?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Whether the backend has gone away rather than said something wrong.
fn is_loss(error: &hyper::Error) -> bool {
    !error.is_parse() && !error.is_user() && !error.is_timeout()
}

fn fault(error: &hyper::Error) -> Fault {
    debug!(%error, source = ?std::error::Error::source(error), "exchange with a backend failed");
    if error.is_parse() {
        Fault::Malformed
    } else {
        Fault::Closed
    }
}

//! One request and its response: sent, sent again where that is safe, and relayed piece by piece.
//!
//! When the client goes, the task is dropped, and with it the connection to the backend, so that the backend learns of it. What a
//! response leaves unread of the request's body is not waited for: then that connection is closed, since nobody could tell where the
//! next request begins.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use http::{Method, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::ext::ReasonPhrase;
use lurcher::handler::{ReplyError, Request};
use tokio::time::{Instant, Sleep};

use super::Bridge;
use super::backend::Link;
use super::body::Body;
use super::desk::Next;
use super::fault::Fault;
use super::forward::{self, Length};

/// Interim responses that are kept for a client until it is told of them; what a backend says beyond is left out.
const INTERIM_MAX: usize = 16;

/// Interim responses on their way to the client.
type Interim = Arc<Mutex<Vec<Response<()>>>>;

/// Why there is no complete response.
enum End {
    /// Before a byte of it was sent.
    Unanswered(Fault),
    /// The client was cut off.
    Cut,
    Reply(ReplyError),
}

impl From<ReplyError> for End {
    fn from(error: ReplyError) -> Self {
        Self::Reply(error)
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Unanswered(fault)
    }
}

/// A worker: this request, and then others as they come, until nothing is worth waiting with.
pub(super) async fn work(bridge: Arc<Bridge>, mut request: Request) -> Result<(), ReplyError> {
    let mut link = None;
    let timer = tokio::time::sleep(bridge.timeout.unwrap_or_default());
    tokio::pin!(timer);
    loop {
        let result = exchange(&bridge, &request, &mut link, timer.as_mut()).await;
        match result {
            Ok(()) | Err(End::Cut) => {}
            Err(End::Reply(error)) => return Err(error),
            Err(End::Unanswered(fault)) => {
                let (status, words) = fault.answer();
                request.respond(status).send(words).await?;
            }
        }
        request = match bridge.desk.next(&request.client(), link.is_some()) {
            Next::Request(next) => next,
            Next::End => return Ok(()),
            Next::Wait(mut turn) => {
                let Some(kept) = &mut link else {
                    return Ok(());
                };
                let next = tokio::select! {
                    biased;
                    next = &mut turn => next.ok(),
                    () = std::future::poll_fn(|cx| kept.driver.poll(cx)) => {
                        link = None;
                        turn.close();
                        turn.try_recv().ok()
                    }
                };
                let Some(next) = next else {
                    return Ok(());
                };
                next
            }
        };
    }
}

async fn exchange(
    bridge: &Bridge,
    request: &Request,
    link: &mut Option<Link>,
    mut timer: Pin<&mut Sleep>,
) -> Result<(), End> {
    let interim = Interim::default();
    let (response, mut used) = send(bridge, request, link, timer.as_mut(), &interim).await?;
    tell(request, &interim).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Fault::Malformed.into());
    }
    relay(bridge, request, response, &mut used, timer).await?;
    // Kept when both messages are complete: its driver has to have its turn once behind the last byte.
    let ready = std::future::poll_fn(|cx| {
        let _ended = used.driver.poll(cx);
        Poll::Ready(matches!(used.sender.poll_ready(cx), Poll::Ready(Ok(()))))
    });
    if ready.await {
        used.is_used = true;
        *link = Some(used);
    }
    Ok(())
}

/// Sends the request and waits for the head of its response. A kept connection may have been closed by the backend just now: then
/// the request is sent once more, on a new one, if nothing of it was written, or if it is safe.
async fn send(
    bridge: &Bridge,
    request: &Request,
    link: &mut Option<Link>,
    mut timer: Pin<&mut Sleep>,
    interim: &Interim,
) -> Result<(Response<Incoming>, Link), End> {
    let mut kept = link.take();
    loop {
        let mut link = match kept.take() {
            Some(link) => link,
            None => bridge.backend.connect().await?,
        };
        let message = message(bridge, request, interim)?;
        let sent = link.sender.try_send_request(message);
        let answered = within(bridge, timer.as_mut(), link.driver.during(sent));
        match answered.await? {
            Ok(response) => return Ok((response, link)),
            Err(mut failure) => {
                let unsent = failure.take_message().is_some();
                let error = failure.into_error();
                let lost = !error.is_parse() && !error.is_user() && !error.is_timeout();
                if !(link.is_used && (unsent || (lost && is_safe(request)))) {
                    return Err(Fault::from(&error).into());
                }
                tracing::debug!(%error, "kept connection to the backend failed, asking again");
            }
        }
    }
}

/// The request as the backend gets it.
fn message(
    bridge: &Bridge,
    request: &Request,
    interim: &Interim,
) -> Result<http::Request<Body>, End> {
    let length = forward::length(request);
    let Ok(head) = forward::request(request, &bridge.context, length, false) else {
        return Err(Fault::Refused.into());
    };
    let body = match length {
        Length::None => Body::Empty,
        _ => Body::whole(request.body.clone()),
    };
    let mut message = http::Request::from_parts(head, body);
    if forward::is_current(request) {
        let interim = Arc::clone(interim);
        hyper::ext::on_informational(&mut message, move |response| {
            let mut interim = interim.lock().unwrap_or_else(PoisonError::into_inner);
            // A 100 is the server's to say, and was said.
            if response.status() != StatusCode::CONTINUE && interim.len() < INTERIM_MAX {
                let mut copy = Response::new(());
                *copy.status_mut() = response.status();
                copy.headers_mut().clone_from(response.headers());
                interim.push(copy);
            }
        });
    }
    Ok(message)
}

/// Tells the client of interim responses.
async fn tell(request: &Request, interim: &Interim) -> Result<(), ReplyError> {
    let said = std::mem::take(&mut *interim.lock().unwrap_or_else(PoisonError::into_inner));
    for response in said {
        let told = request.respond(response.status().as_u16());
        told.headers(response.headers()).send("").await?;
    }
    Ok(())
}

/// Gives the response to the client as it comes.
async fn relay(
    bridge: &Bridge,
    request: &Request,
    response: Response<Incoming>,
    link: &mut Link,
    mut timer: Pin<&mut Sleep>,
) -> Result<(), End> {
    let (mut head, mut body) = response.into_parts();
    let trailers = forward::wants_trailers(request);
    forward::response(&mut head.headers, trailers);
    let mut answer = request.respond(head.status.as_u16());
    if let Some(reason) = head.extensions.get::<ReasonPhrase>() {
        let reason = std::str::from_utf8(reason.as_bytes()).unwrap_or_default();
        answer = answer.reason(reason);
    }
    let known = head.headers.contains_key(header::CONTENT_LENGTH);
    let mut out = answer.headers(&head.headers).stream()?;
    loop {
        // What has come is passed on before anything is waited for.
        let soon = std::future::poll_fn(|cx| {
            Poll::Ready(match Pin::new(&mut body).poll_frame(cx) {
                Poll::Ready(frame) => Some(frame),
                Poll::Pending => {
                    let _ended = link.driver.poll(cx);
                    match Pin::new(&mut body).poll_frame(cx) {
                        Poll::Ready(frame) => Some(frame),
                        Poll::Pending => None,
                    }
                }
            })
        });
        let frame = match soon.await {
            Some(frame) => frame,
            None => {
                // With a length the head can wait for its body.
                if !known {
                    out.flush().await?;
                }
                let next = link.driver.during(body.frame());
                match within(bridge, timer.as_mut(), next).await {
                    Ok(frame) => frame,
                    Err(fault) => return Err(cut(&fault)),
                }
            }
        };
        match frame.map(|frame| frame.map(hyper::body::Frame::into_data)) {
            None => return Ok(out.finish().await?),
            Some(Ok(Ok(data))) if body.is_end_stream() => return Ok(out.finish_with(data).await?),
            Some(Ok(Ok(data))) => link.driver.during(out.write(data)).await?,
            Some(Ok(Err(frame))) => {
                if let Ok(fields) = frame.into_trailers()
                    && trailers
                {
                    return Ok(out.finish_with_trailers(&fields).await?);
                }
            }
            // Its writer is dropped: the response must not look whole.
            Some(Err(error)) => return Err(cut(&Fault::from(&error))),
        }
    }
}

fn cut(fault: &Fault) -> End {
    tracing::debug!("a response was cut: {}", fault.why());
    End::Cut
}

/// Waits for something from the backend, as long as it may be silent.
async fn within<T>(
    bridge: &Bridge,
    mut timer: Pin<&mut Sleep>,
    future: impl Future<Output = T>,
) -> Result<T, Fault> {
    let Some(timeout) = bridge.timeout else {
        return Ok(future.await);
    };
    timer.as_mut().reset(Instant::now() + timeout);
    tokio::select! {
        biased;
        result = future => Ok(result),
        () = timer => Err(Fault::Timeout),
    }
}

/// RFC 9110 9.2.1.
fn is_safe(request: &Request) -> bool {
    let method = request.method().map(Method::from_bytes);
    matches!(
        method,
        Some(Ok(Method::GET
            | Method::HEAD
            | Method::OPTIONS
            | Method::TRACE))
    )
}

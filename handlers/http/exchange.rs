//! One request and its response: sent, sent again where that is safe, and relayed piece by piece.
//!
//! When the client goes, the task is dropped, and with it the connection to the backend, so that the backend learns of it. What a
//! response leaves unread of the request's body is not waited for: then that connection is closed, since nobody could tell where the
//! next request begins. What goes wrong with one response ends that response, never the handler: a backend must not be able to.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use http::{Method, Response, StatusCode, header};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::ext::ReasonPhrase;
use lurcher::handler::{ReplyError, Request};
use tokio::time::{Instant, Sleep};

use super::Bridge;
use super::backend::Link;
use super::body::{Body, Given, Job, Progress};
use super::desk::Next;
use super::fault::Fault;
use super::forward::{self, Length};

/// Interim responses that come at once and are passed on; what a backend says beyond is left out.
const INTERIM_MAX: usize = 16;

/// Interim responses on their way to the client: put there while the connection's bytes are moved, which is the task's own doing, so
/// that nobody need be woken for them.
type Interim = Arc<Mutex<Vec<Response<()>>>>;

/// Why there is no complete response.
enum End {
    /// Nothing of it was sent.
    Unanswered(Fault),
    /// The client was cut off, or has gone.
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

/// A worker: this request, and then others as they come, until nothing is worth waiting for.
pub(super) async fn work(bridge: Arc<Bridge>, mut job: Job) -> Result<(), ReplyError> {
    let mut link = None;
    let timer = tokio::time::sleep(bridge.timeout.unwrap_or_default());
    tokio::pin!(timer);
    let interim = Interim::default();
    loop {
        let Job { request, body } = job;
        let exchange = Exchange {
            bridge: &bridge,
            request: &request,
            timer: timer.as_mut(),
            interim: &interim,
            progress: None,
        };
        exchange.run(body, &mut link).await?;
        job = match bridge.desk.next(&request.client(), link.is_some()) {
            Next::Job(next) => next,
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
                        // It may have been given this very moment.
                        turn.try_recv().ok()
                    }
                };
                match next {
                    Some(next) => next,
                    None => return Ok(()),
                }
            }
        };
    }
}

/// A request on its way.
struct Exchange<'a> {
    bridge: &'a Bridge,
    request: &'a Request,
    timer: Pin<&'a mut Sleep>,
    interim: &'a Interim,
    /// Of a body that is read while it is sent.
    progress: Option<Arc<Progress>>,
}

impl Exchange<'_> {
    /// Sees the exchange to its end; leaves the connection in `link` if it can be used again.
    async fn run(mut self, body: Given, link: &mut Option<Link>) -> Result<(), ReplyError> {
        let comes_in_parts = matches!(body, Given::Parts(_));
        let result = self.exchange(body, link).await;
        let given = self
            .progress
            .as_ref()
            .is_none_or(|progress| progress.is_given());
        match result {
            Ok(()) if comes_in_parts && !given => self.request.client().close().await,
            Ok(()) | Err(End::Cut) => Ok(()),
            Err(End::Reply(error)) => usable(self.request, error),
            Err(End::Unanswered(_)) if self.progress.is_some_and(|body| body.has_failed()) => {
                self.request.client().cancel().await
            }
            Err(End::Unanswered(fault)) => {
                if let Fault::Upload(error) = &fault {
                    tracing::error!(%error, "an upload cannot be read");
                }
                let (status, words) = fault.answer();
                let answer = self.request.respond(status);
                let answer = answer.header("Content-Type", "text/plain");
                // What is left of a body would be taken for the next request.
                let answer = if given { answer } else { answer.close() };
                answer.send(words).await
            }
        }
    }

    async fn exchange(&mut self, body: Given, link: &mut Option<Link>) -> Result<(), End> {
        let (response, mut used) = self.send(body, link).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Fault::Malformed.into());
        }
        self.relay(response, &mut used).await?;
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

    /// Sends the request and waits for the head of its response. A kept connection may have been closed by the backend just now:
    /// then the request is sent once more, on a new one, if nothing of it was written, or if it is safe and its body is at hand.
    async fn send(
        &mut self,
        body: Given,
        link: &mut Option<Link>,
    ) -> Result<(Response<Incoming>, Link), End> {
        let repeatable = matches!(body, Given::Here) && is_safe(self.request);
        if !repeatable && link.is_some() {
            // This one cannot be sent twice: what the system knows of the connection is learnt first.
            tokio::task::yield_now().await;
        }
        let mut message = self.message(body).await?;
        if let Some(mut kept) = link.take() {
            let sent = kept.sender.try_send_request(message);
            match self.answer(kept.driver.during(sent)).await? {
                Ok(response) => return Ok((response, kept)),
                Err(mut failure) => {
                    let unsent = failure.take_message();
                    let error = failure.into_error();
                    let lost = !error.is_parse() && !error.is_user() && !error.is_timeout();
                    message = match unsent {
                        Some(message) => message,
                        None if kept.is_used && lost && repeatable => {
                            self.message(Given::Here).await?
                        }
                        None => return Err(Fault::from(&error).into()),
                    };
                    tracing::debug!(%error, "a kept connection to the backend failed: asking again");
                }
            }
        }
        let mut link = self.bridge.backend.connect().await?;
        let sent = link.sender.try_send_request(message);
        match self.answer(link.driver.during(sent)).await? {
            Ok(response) => Ok((response, link)),
            Err(failure) => Err(Fault::from(failure.error()).into()),
        }
    }

    /// The request as the backend gets it.
    async fn message(&mut self, body: Given) -> Result<http::Request<Body>, End> {
        let (length, body) = match body {
            Given::Here => match forward::length(self.request) {
                Length::None => (Length::None, Body::Empty),
                length => (length, Body::whole(self.request.body.clone())),
            },
            Given::Stored(upload) => {
                let reader = upload.into_body().await.map_err(Fault::Upload)?;
                self.read(Box::new(reader))
            }
            Given::Parts(reader) => self.read(reader),
        };
        let head = forward::request(self.request, &self.bridge.context, length, false);
        let head = head.map_err(|_| Fault::Refused)?;
        let mut message = http::Request::from_parts(head, body);
        if forward::is_current(self.request) {
            let interim = Arc::clone(self.interim);
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

    fn read(&mut self, reader: Box<lurcher::handler::BodyReader>) -> (Length, Body) {
        let length = reader.remaining().map_or(Length::Chunked, Length::Known);
        let progress = self.progress.insert(Arc::default());
        (length, Body::read(reader, progress))
    }

    /// Waits for the response, and passes interim ones on as they come.
    async fn answer<T>(&mut self, future: impl Future<Output = T>) -> Result<T, End> {
        tokio::pin!(future);
        loop {
            let interim = self.interim;
            let mut said = Vec::new();
            let next = std::future::poll_fn(|cx| {
                let polled = future.as_mut().poll(cx);
                said.append(&mut interim.lock().unwrap_or_else(PoisonError::into_inner));
                match polled {
                    Poll::Ready(result) => Poll::Ready(Some(result)),
                    Poll::Pending if !said.is_empty() => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            });
            let result = self.within(next).await?;
            for response in said {
                let told = self.request.respond(response.status().as_u16());
                let sent = told.headers(response.headers()).send("").await;
                // A hint that is no HTTP is worth no more.
                sent.or_else(|error| usable(self.request, error))?;
            }
            if let Some(result) = result {
                return Ok(result);
            }
        }
    }

    /// Gives the response to the client as it comes.
    async fn relay(&mut self, response: Response<Incoming>, link: &mut Link) -> Result<(), End> {
        let (mut head, mut body) = response.into_parts();
        let trailers = forward::wants_trailers(self.request);
        forward::response(&mut head.headers, trailers);
        let mut answer = self.request.respond(head.status.as_u16());
        if let Some(reason) = head.extensions.get::<ReasonPhrase>() {
            answer = answer.reason(reason.as_bytes());
        }
        let is_long = head.headers.contains_key(header::CONTENT_LENGTH);
        // Only a value that says how the body is framed can be wrong here: the rest was read as HTTP.
        let answer = answer.headers(&head.headers);
        // Most responses are here by now, head and body: one message, and nothing to keep count of.
        let early = match soon(&mut body, link).await {
            None => None,
            Some(None) => return whole(answer.send("").await),
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if body.is_end_stream() => return whole(answer.send(data).await),
                Ok(data) => Some(Ok(Frame::data(data))),
                Err(frame) => Some(Ok(frame)),
            },
            Some(Some(Err(error))) => return Err(Fault::from(&error).into()),
        };
        let mut early = early.map(Some);
        let mut out = answer.stream().map_err(malformed)?;
        loop {
            let frame = if let Some(frame) = early.take() {
                frame
            } else if let Some(frame) = soon(&mut body, link).await {
                frame
            } else {
                // What has come is passed on before anything is waited for; only where a length promises more, the head waits for it.
                if !is_long {
                    out.flush().await?;
                }
                let next = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
                let next = self.within(link.driver.during(next)).await;
                next.map_err(|fault| cut(&fault))?
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                None => return Ok(out.finish().await?),
                Some(Ok(Ok(data))) if body.is_end_stream() => {
                    return Ok(out.finish_with(data).await?);
                }
                Some(Ok(Ok(data))) => link.driver.during(out.write(data)).await?,
                Some(Ok(Err(frame))) => {
                    if let Ok(fields) = frame.into_trailers()
                        && trailers
                    {
                        return Ok(out.finish_with_trailers(&fields).await?);
                    }
                }
                // The writer is dropped: what the client has must not look whole.
                Some(Err(error)) => return Err(cut(&Fault::from(&error))),
            }
        }
    }

    /// Waits for something from the backend, as long as it may be silent.
    async fn within<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Fault> {
        let Some(timeout) = self.bridge.timeout else {
            return Ok(future.await);
        };
        tokio::pin!(future);
        loop {
            self.timer.as_mut().reset(Instant::now() + timeout);
            tokio::select! {
                biased;
                result = &mut future => return Ok(result),
                () = self.timer.as_mut() => {}
            }
            // A long body may move while nothing comes back.
            if !self.progress.as_ref().is_some_and(|body| body.moves()) {
                return Err(Fault::Timeout);
            }
        }
    }
}

/// The next frame, if it can be had without waiting.
async fn soon(
    body: &mut Incoming,
    link: &mut Link,
) -> Option<Option<Result<Frame<bytes::Bytes>, hyper::Error>>> {
    std::future::poll_fn(|cx| {
        let mut polled = Pin::new(&mut *body).poll_frame(cx);
        if polled.is_pending() {
            let _ended = link.driver.poll(cx);
            polled = Pin::new(&mut *body).poll_frame(cx);
        }
        Poll::Ready(match polled {
            Poll::Ready(frame) => Some(frame),
            Poll::Pending => None,
        })
    })
    .await
}

/// What has become of a response that was sent whole, or not at all.
fn whole(sent: Result<(), ReplyError>) -> Result<(), End> {
    sent.map_err(malformed)
}

/// A head that could be read and cannot be written is malformed all the same.
fn malformed(error: ReplyError) -> End {
    match error {
        ReplyError::Http(error) => {
            tracing::debug!(%error, "a response of the backend cannot be passed on");
            Fault::Malformed.into()
        }
        error => error.into(),
    }
}

/// An error that concerns one client is told to the log; with a broken socket there is nothing left to do.
pub(super) fn usable(request: &Request, error: ReplyError) -> Result<(), ReplyError> {
    match error {
        ReplyError::Io(_) => Err(error),
        ReplyError::ClientGone => Ok(()),
        error => {
            tracing::warn!(client = ?request.client(), "answering: {error}");
            Ok(())
        }
    }
}

fn cut(fault: &Fault) -> End {
    tracing::warn!("a response of the backend was cut: {}", fault.why());
    End::Cut
}

/// RFC 9110 9.2.1.
fn is_safe(request: &Request) -> bool {
    let method = request.method().map(Method::from_bytes);
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE];
    matches!(method, Some(Ok(method)) if safe.contains(&method))
}

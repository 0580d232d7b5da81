//! The way from the client: bytes become heads and bodies, and those become requests.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use super::upload::Receiving;
use super::{Connection, Exchange, Gone, State};
use crate::front::answer::Trouble;
use crate::front::body::{Body, Fed};
use crate::front::client::{Hold, Kind, NEVER};
use crate::front::dispatch::{self, Accepted, Dispatched};
use crate::front::message_socket;
use crate::front::sticky;
use crate::front::{INPUT_AHEAD_MAX, LINGER_BYTES_MAX};
use crate::http1::{self, Asked, Parsed, Scanner};
use crate::metrics::Name;
use crate::pool::{self, Ask};
use crate::wire::request;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl Connection {
    /// Looks at the bytes that were kept.
    pub(super) fn use_input(&mut self) {
        self.fresh = false;
        let mut data = std::mem::take(&mut self.input);
        let used = self.consume(&data);
        if used < data.len() {
            data.drain(..used);
            self.input = data;
        }
    }

    /// Uses bytes of the client for whatever is awaited; says how many.
    fn consume(&mut self, data: &[u8]) -> usize {
        let mut used = 0;
        while let Some(rest) = data.get(used..).filter(|rest| !rest.is_empty()) {
            match &mut self.state {
                State::Head if self.client.hold.get() != Hold::Free => break,
                State::Head | State::WebSocket(_) if self.messages_left == 0 => {
                    self.fresh = true;
                    break;
                }
                State::Head if message_socket::begins(rest) => match self.message(rest) {
                    Some(len) => used += len,
                    None => break,
                },
                State::Head => match self.head(rest) {
                    Some(len) => used += len,
                    None => break,
                },
                State::WebSocket(_) => match self.websocket_input(rest) {
                    Some(len) => used += len,
                    None => break,
                },
                State::Body(body) => match body.feed(rest) {
                    Fed::More => return data.len(),
                    Fed::Done(len) => {
                        used += len;
                        self.submit_body();
                    }
                    Fed::TooLarge => self.refuse_body(Trouble::TooLarge),
                    Fed::Malformed => self.refuse_body(Trouble::BadChunk),
                },
                State::Response(exchange) if exchange.is_receiving() => {
                    match self.feed_upload(rest) {
                        Some(len) => used += len,
                        None => break,
                    }
                }
                State::Response(exchange) if exchange.opaque => {
                    self.end_exchange();
                    self.await_head();
                }
                State::Response(_) | State::Opening(_) => break,
                State::Local(_) => match self.feed_local(rest) {
                    Some(len) => used += len,
                    None => break,
                },
                State::Flush | State::Linger { .. } => return data.len(),
            }
        }
        used
    }

    /// Looks for a request head; gives its length when there is a whole one.
    fn head(&mut self, data: &[u8]) -> Option<usize> {
        let (shard, client) = (&self.shard, &self.client);
        let parsed = http1::parse_head(&mut self.progress, data, &shard.limits().head, |head| {
            (head.len, dispatch::dispatch(shard, client, &head))
        });
        match parsed {
            Parsed::Partial => {
                if !std::mem::replace(&mut self.begun, true) {
                    self.client.set_deadline(self.shard.limits().head_timeout);
                }
                None
            }
            Parsed::Refused(refusal) => {
                self.refuse(Trouble::Refused(refusal), false, None);
                None
            }
            Parsed::Complete((len, dispatched)) => {
                Name::Requests.increment();
                self.client.note_ping();
                self.client.kind.set(Kind::Http);
                self.begun = false;
                match dispatched {
                    Dispatched::Refused {
                        trouble,
                        head_request,
                        line,
                    } => self.refuse(trouble, head_request, line),
                    Dispatched::Local(request) => {
                        self.begin_local(*request, data.len().saturating_sub(len));
                    }
                    Dispatched::Accepted {
                        accepted,
                        wants_continue,
                    } => {
                        let here = data.get(len..).unwrap_or_default();
                        return Some(len + self.accept(accepted, wants_continue, here));
                    }
                }
                Some(len)
            }
        }
    }

    /// Begins the body of a request; one without a body goes on at once. Says how many of the bytes that are here were used.
    fn accept(&mut self, mut accepted: Accepted, wants_continue: bool, here: &[u8]) -> usize {
        if let Some(upgrade) = &accepted.upgrade {
            request::encode_body(&upgrade.accept, &mut accepted.message);
            let message = std::mem::take(&mut accepted.message);
            self.submit(message.into(), accepted);
            return 0;
        }
        if let Some(plan) = accepted.upload.take() {
            return self.begin_upload(accepted, plan, wants_continue, here);
        }
        let body = Body::new(
            accepted,
            self.shard.limits().content_length,
            self.shard.clock.milliseconds(),
        );
        if body.is_empty() {
            let (message, accepted) = body.finish();
            self.submit(message, accepted);
            return 0;
        }
        if wants_continue && body.is_missing(here.len()) {
            self.output.push_back(Bytes::from_static(CONTINUE));
        }
        self.client.set_deadline(self.shard.limits().body_grace);
        self.state = State::Body(Box::new(body));
        0
    }

    pub(super) fn refuse_body(&mut self, trouble: Trouble) {
        let (line, head_request) = if let State::Body(body) = &mut self.state {
            let accepted = &mut body.accepted;
            (accepted.line.take(), accepted.asked == Asked::Head)
        } else {
            (None, false)
        };
        self.refuse(trouble, head_request, line);
    }

    fn submit_body(&mut self) {
        if let State::Body(body) = std::mem::replace(&mut self.state, State::Head) {
            let (message, accepted) = body.finish();
            self.submit(message, accepted);
        }
    }

    /// Gives a whole request to its handlers.
    fn submit(&mut self, message: Bytes, accepted: Accepted) {
        let retry = accepted.retry;
        self.submit_with(message, accepted, retry, None);
    }

    /// Gives a request to its handlers, whole or with an upload that has begun.
    pub(super) fn submit_with(
        &mut self,
        message: Bytes,
        accepted: Accepted,
        retry: pool::Retry,
        upload: Option<Box<Receiving>>,
    ) {
        let limits = self.shard.limits();
        let key = accepted
            .key
            .or_else(|| sticky::of_message(&accepted.handler, &self.client, &message));
        let Accepted {
            handler,
            asked,
            version,
            keep_alive,
            line,
            upgrade,
            ..
        } = accepted;
        let head_request = asked == Asked::Head;
        let caller = Rc::clone(&self.client) as Rc<dyn pool::Caller>;
        self.client.end_flow();
        // Before its body is there, nobody can be asked for an answer.
        let patience = limits.handler_timeout;
        let deadline = (patience != NEVER && upload.is_none())
            .then(|| Instant::now().checked_add(Duration::from_millis(patience)))
            .flatten();
        let ask = Ask {
            retry,
            key,
            deadline,
        };
        match handler.pool.submit(message, ask, caller) {
            Ok(ticket) => {
                self.client.set_deadline(patience);
                let scanner = Scanner::new(asked, version, keep_alive);
                let (started, opaque) = (false, false);
                self.state = State::Response(Box::new(Exchange {
                    handler,
                    ticket,
                    scanner,
                    started,
                    opaque,
                    head_request,
                    line,
                    upgrade,
                    upload,
                }));
            }
            Err(refused) => self.refuse(Trouble::Pool(refused), head_request, line),
        }
    }

    /// Reads from the client.
    pub(super) fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if self.deaf {
            return if self.outlives_input() {
                Poll::Pending
            } else {
                Poll::Ready(Err(Gone))
            };
        }
        if (matches!(
            self.state,
            State::Response(_) | State::Local(_) | State::Opening(_)
        ) && self.input.len() >= INPUT_AHEAD_MAX)
            || (matches!(self.state, State::Head) && self.is_behind())
            || self.waits()
            || (matches!(self.state, State::WebSocket(_)) && self.client.is_half_full())
        {
            return Poll::Pending;
        }
        if let State::Body(body) = &mut self.state
            && self.input.is_empty()
            && let Some((message, left)) = body.direct()
        {
            let read = match poll_read_buf(Pin::new(&mut self.stream), cx, &mut message.limit(left))
            {
                Poll::Ready(Ok(read)) => read,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.failed(&error))),
                Poll::Pending => return Poll::Pending,
            };
            if read == 0 {
                return Poll::Ready(Err(Gone));
            }
            self.client.note_read(read);
            if body.received_directly(read) {
                self.submit_body();
            }
            return Poll::Ready(Ok(()));
        }
        // Taken out for the time of this call, so that nothing is borrowed while requests are dispatched from it.
        let mut scratch = self.shard.scratch.take();
        let mut buffer = ReadBuf::new(&mut scratch);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut buffer);
        let read = buffer.filled().len();
        let result = match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.failed(&error))),
            Poll::Ready(Ok(())) if read == 0 => Poll::Ready(self.end_of_input()),
            Poll::Ready(Ok(())) => {
                self.client.note_read(read);
                Poll::Ready(self.take(&scratch[..read]))
            }
        };
        self.shard.scratch.replace(scratch);
        result
    }

    /// Uses bytes that were just read, and keeps what is left.
    fn take(&mut self, data: &[u8]) -> Result<(), Gone> {
        if let State::Linger { dropped } = &mut self.state {
            *dropped += data.len();
            return if *dropped > LINGER_BYTES_MAX {
                Err(Gone)
            } else {
                Ok(())
            };
        }
        if !self.input.is_empty() || self.is_behind() {
            self.input.extend_from_slice(data);
            if self.is_behind() {
                self.fresh = true;
            } else if !self.holds_input() {
                self.use_input();
            }
            return Ok(());
        }
        let used = self.consume(data);
        if let Some(rest) = data.get(used..).filter(|rest| !rest.is_empty())
            && !matches!(self.state, State::Flush)
        {
            self.input.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Whether what comes from the client has to wait for the end of what is open.
    fn holds_input(&self) -> bool {
        match &self.state {
            State::Response(exchange) if exchange.is_receiving() => !exchange.wants_input(),
            State::Response(exchange) => !exchange.opaque,
            State::Opening(_) => true,
            State::Local(local) => !local.wants_input(),
            _ => false,
        }
    }

    /// The client has shut down its sending side: Mongrel2 takes that for the end, and so do handlers that wait for it. Only
    /// what needs nothing more of the client goes on.
    fn end_of_input(&mut self) -> Result<(), Gone> {
        if self.outlives_input() {
            self.deaf = true;
            return Ok(());
        }
        Err(Gone)
    }

    /// Whether there is something to be done for a client that sends nothing more: last words are on their way, a file is
    /// being sent, a tunnel goes on in the other direction, or requests are here that came before the end.
    fn outlives_input(&self) -> bool {
        match &self.state {
            State::Flush => true,
            State::Local(local) => local.outlives_input(),
            State::Head => self.is_behind(),
            _ => false,
        }
    }
}

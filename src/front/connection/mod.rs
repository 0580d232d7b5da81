//! One client connection: the only task that reads and writes its socket.
//!
//! A future polled by hand, so that an idle connection is small: no buffer is held while nothing is there to read (bytes
//! are read into the shard's scratch buffer, and only what is left of them is kept), and what belongs to one request is
//! boxed for as long as the request lasts.
//!
//! The order of things in one turn: what the sweep or a handler asks for, what is still to be written, the mailbox, the
//! requests that are already here, the socket. The next request is looked at only when the response before it has ended,
//! so answers leave in the order of their requests whatever the handlers do. A response that turns out to be no HTTP has no
//! such end: its bytes pass as they are, and so do the requests behind it.

mod input;
mod local;
mod messages;
mod output;
mod upload;
mod websocket;

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tracing::debug;

use super::access_log::Line;
use super::answer::{Answer, Trouble, answer};
use super::body::Body;
use super::client::{Client, Cut, Farewell, Hold, NEVER};
use super::sendfile::Sending;
use super::stream::Stream;
use super::upgrade::Upgrading;
use super::{FLUSH_TIMEOUT, Shard};
use crate::bus::server::PeerId;
use crate::http1::{Progress, ScanState, Scanner};
use crate::metrics::Name;
use crate::pool::{Failure, Pool, Refused, Ticket};

/// Turns of the loop before other tasks get theirs.
const TURNS_MAX: usize = 32;

/// Messages of a connection that are given to handlers in one go: then the tasks of the handlers' sockets get their turn, so
/// that a client which sends many small ones does not fill a queue that would be empty a moment later.
const MESSAGES_PER_TURN: u16 = 128;

/// The status in the access log of a request whose client left before a response began: nginx's number for it.
const CLIENT_GONE: u16 = 499;

/// A client connection. See the module.
pub(super) struct Connection {
    stream: Stream,
    client: Rc<Client>,
    shard: Rc<Shard>,
    /// Bytes read and not yet used; without any, it holds no memory.
    input: Vec<u8>,
    /// The input, or what it is for, has changed since it was last looked at.
    fresh: bool,
    /// Some of a head is here, so that the whole of it is due.
    begun: bool,
    /// The client has shut down its sending side while something was still to be done for it.
    deaf: bool,
    progress: Progress,
    /// What the socket has not taken yet, oldest first.
    output: VecDeque<Bytes>,
    state: State,
    /// A file that a handler has sent; its other mail waits meanwhile.
    sending: Option<Box<Sending>>,
    /// Flow control: bytes of a payload that is being written, told to its handler when the socket has taken them.
    credits: usize,
    /// Messages that may still be given to handlers in this turn.
    messages_left: u16,
    /// What belongs to message sockets, once there was a message.
    messages: Option<Box<messages::Messages>>,
}

/// What is awaited.
enum State {
    /// A request head.
    Head,
    /// The rest of a request's body.
    Body(Box<Body>),
    /// A file for the request's body, which is being made.
    Opening(Box<upload::Opening>),
    /// A handler's response.
    Response(Box<Exchange>),
    /// A response that is made in this process.
    Local(Box<local::Local>),
    /// Frames of a WebSocket.
    WebSocket(Box<websocket::WebSocket>),
    /// The socket to take the last bytes; then its sending side is shut down.
    Flush,
    /// The client's end: closing before it could destroy what it has not read yet.
    Linger { dropped: usize },
}

/// A request that a handler has, until its response has ended.
struct Exchange {
    handler: Rc<super::site::Handler>,
    ticket: Ticket,
    scanner: Scanner,
    started: bool,
    /// What the handler writes is no HTTP, or no HTTP any more.
    opaque: bool,
    head_request: bool,
    line: Option<Line>,
    /// It asks for WebSocket.
    upgrade: Option<Box<Upgrading>>,
    /// Its body, where that is an upload.
    upload: Option<Box<upload::Receiving>>,
}

/// How long a message may wait for a handler of this pool, in milliseconds.
fn wait_max(pool: &Pool) -> u64 {
    u64::try_from(pool.settings().rules.wait_max.as_millis()).unwrap_or(NEVER)
}

/// The socket is of no more use: the client is gone, or everything was said.
struct Gone;

impl Connection {
    pub(super) fn new(stream: Stream, client: Rc<Client>, shard: Rc<Shard>) -> Self {
        client.set_deadline(shard.limits().idle_timeout);
        Self {
            stream,
            client,
            shard,
            input: Vec::new(),
            fresh: false,
            begun: false,
            deaf: false,
            progress: Progress::default(),
            output: VecDeque::new(),
            state: State::Head,
            sending: None,
            credits: 0,
            messages_left: 0,
            messages: None,
        }
    }

    /// Answers before anything was read, and closes.
    pub(super) fn turn_away(&mut self, trouble: Trouble) {
        self.refuse(trouble, false, None);
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        self.messages_left = MESSAGES_PER_TURN;
        for _ in 0..TURNS_MAX {
            if self.obey().is_err() {
                return Poll::Ready(Gone);
            }
            let more = self.poll_local(cx);
            self.poll_upload(cx);
            if self.write(cx).is_err() {
                return Poll::Ready(Gone);
            }
            self.client.tell_flow();
            if more && self.output.is_empty() {
                continue;
            }
            if self.messages_left == 0 {
                break;
            }
            if self.fresh && !self.is_behind() && !self.waits() {
                self.use_input();
                continue;
            }
            match self.read(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Gone)) => return Poll::Ready(Gone),
                // Nothing to do and nothing to read: when the front stops, this is the end.
                Poll::Pending if self.is_idle() && self.shard.closes_idle() => {
                    self.close(Farewell::Told);
                }
                // Reading may have left something to write only if it was ready.
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Does what was asked for from outside: to end, or to see to a deadline that has passed.
    fn obey(&mut self) -> Result<(), Gone> {
        if let Some(why) = self.client.cut_by() {
            debug!(client = %self.client.addr, ?why, "connection cut");
            self.end_exchange();
            self.end_local();
            self.client.leave(if why == Cut::ByHandler {
                Farewell::Silent
            } else {
                Farewell::Told
            });
            return Err(Gone);
        }
        if self.client.hold.get() == Hold::Over {
            // The deadline was that of what has gone out.
            self.client.expired.set(false);
            self.client.hold.set(Hold::Free);
            self.fresh = !self.input.is_empty();
            match self.state {
                State::WebSocket(_) => self.websocket_goes_on(),
                State::Head => self.client.deadline.set(NEVER),
                _ => {}
            }
        }
        if self.client.expired.take() {
            self.expire()?;
        }
        if self.client.streaming.take()
            && let State::Response(exchange) = &self.state
        {
            exchange.ticket.attach();
        }
        if self.shard.closes_idle() {
            self.websocket_leaves();
        }
        Ok(())
    }

    /// Whether what the client sends has to wait until a handler has taken what came before.
    fn waits(&self) -> bool {
        let hold = self.client.hold.get();
        match &self.state {
            State::Head => hold != Hold::Free,
            State::WebSocket(websocket) => websocket.waits(hold),
            _ => false,
        }
    }

    /// Whether no request is open and none has begun, and no message waits.
    fn is_idle(&self) -> bool {
        matches!(self.state, State::Head)
            && self.input.is_empty()
            && self.client.hold.get() == Hold::Free
    }

    /// Whether the client has to take what was written for it before its next request is looked at. Without that, what lies
    /// in the mailbox behind the end of a response (a close, a failure) would meet the request after it.
    fn is_behind(&self) -> bool {
        // TLS may have taken what the socket has not.
        (!self.output.is_empty() || self.client.behind.get())
            && match &self.state {
                State::Head => true,
                State::Response(exchange) => exchange.opaque,
                State::Body(_)
                | State::Opening(_)
                | State::Local(_)
                | State::WebSocket(_)
                | State::Flush
                | State::Linger { .. } => false,
            }
    }

    /// A deadline has passed.
    fn expire(&mut self) -> Result<(), Gone> {
        match &mut self.state {
            State::Head if self.client.hold.get() == Hold::Held => {
                self.refuse(Trouble::Pool(Refused::now(Failure::WaitOver)), false, None);
            }
            State::WebSocket(_) => self.websocket_expired(),
            State::Head if !self.begun => self.close(Farewell::Told),
            State::Head => self.refuse(Trouble::HeadTimeout, false, None),
            State::Body(body) => {
                let limits = self.shard.limits();
                let elapsed = self.shard.clock.milliseconds().saturating_sub(body.began);
                // On average over the whole time, so that a pause is no crime.
                if body.received.saturating_mul(1000) < limits.body_rate.saturating_mul(elapsed) {
                    self.refuse_body(Trouble::BodyTimeout);
                } else {
                    self.client.set_deadline(limits.body_grace);
                }
            }
            State::Local(_) => self.local_expired()?,
            State::Opening(_) => {}
            State::Response(exchange) if exchange.is_receiving() => self.upload_expired(),
            // What came in the meantime may be the answer, or why there is none.
            State::Response(_) if self.client.has_mail() => {}
            State::Response(exchange) => {
                let (started, head_request, line) = (
                    exchange.started,
                    exchange.head_request,
                    exchange.line.take(),
                );
                self.abandon(Trouble::HandlerTimeout, started, head_request, line);
            }
            State::Flush | State::Linger { .. } => return Err(Gone),
        }
        Ok(())
    }

    /// The open response is complete.
    fn response_ended(&mut self, close: bool) {
        if self.awaits_body(close) {
            return;
        }
        self.end_exchange();
        if close {
            self.close(Farewell::Told);
        } else {
            self.await_head();
        }
    }

    /// Ends the open exchange, if there is one: the ticket is given back, the log line written. So it is of a request whose body
    /// is not here yet.
    fn end_exchange(&mut self) {
        let mut exchange = match std::mem::replace(&mut self.state, State::Head) {
            State::Response(exchange) => exchange,
            mut other => {
                let line = match &mut other {
                    State::Body(body) => body.accepted.line.take(),
                    State::Opening(opening) => opening.take_line(),
                    _ => None,
                };
                if let Some(line) = line {
                    self.shard.log(&line, CLIENT_GONE, 0);
                }
                self.state = other;
                return;
            }
        };
        if matches!(exchange.scanner.state(), ScanState::Ended { .. }) {
            exchange.ticket.answered();
        }
        self.finish_upload(&mut exchange);
        self.client.response_began.set(NEVER);
        self.client.end_flow();
        // One that was never handed over is known to nobody; then the handler before it is still the last.
        if !exchange.started
            && let Some(peer) = exchange.ticket.peer()
        {
            self.client
                .remember_handler(&exchange.handler.pool, Some(peer));
        }
        if let Some(line) = exchange.line {
            let unanswered = if exchange.opaque { 200 } else { CLIENT_GONE };
            self.shard.log(
                &line,
                exchange.scanner.status().unwrap_or(unanswered),
                exchange.scanner.bytes(),
            );
        }
    }

    fn await_head(&mut self) {
        self.state = State::Head;
        self.fresh = !self.input.is_empty();
        self.client.set_deadline(self.shard.limits().idle_timeout);
    }

    /// The handler asks for the connection to be closed, after what it sent before.
    /// The one that knows the connection need not be told what it asked for itself.
    fn handler_closes(&mut self, voice: PeerId) {
        if matches!(self.state, State::WebSocket(_)) {
            return self.websocket_handler_ends(voice);
        }
        if let State::Response(exchange) = &self.state {
            exchange.ticket.answered();
        }
        self.end_exchange();
        let own = self.client.is_handled_by(voice);
        self.close(if own {
            Farewell::Silent
        } else {
            Farewell::Told
        });
    }

    /// The pool has given up the open request, or has ended under a WebSocket.
    fn pool_failed(&mut self, refused: Refused) {
        if matches!(self.state, State::WebSocket(_)) {
            return self.websocket_abandoned();
        }
        if let State::Response(exchange) = &mut self.state {
            let (started, head_request, line) = (
                exchange.started,
                exchange.head_request,
                exchange.line.take(),
            );
            self.abandon(Trouble::Pool(refused), started, head_request, line);
        }
    }

    /// Gives up the open request. When a response has begun there is nothing left to say but the end: the client sees that
    /// it is cut short.
    fn abandon(&mut self, trouble: Trouble, started: bool, head_request: bool, line: Option<Line>) {
        if started {
            debug!(client = %self.client.addr, ?trouble, "response cut short");
            if let State::Response(exchange) = &mut self.state {
                // What was sent of it stands in the log.
                exchange.line = line;
            }
            self.end_exchange();
            self.close(Farewell::Told);
        } else {
            self.refuse(trouble, head_request, line);
        }
    }

    /// Answers in the handler's place, and closes.
    fn refuse(&mut self, trouble: Trouble, head_request: bool, line: Option<Line>) {
        let answer: Answer = answer(trouble);
        debug!(client = %self.client.addr, ?trouble, status = answer.status, "request refused");
        Name::RequestsRefused.increment();
        if let Some(line) = line {
            self.shard.log(
                &line,
                answer.status,
                if head_request {
                    0
                } else {
                    answer.body.len() as u64
                },
            );
        }
        self.end_exchange();
        self.end_local();
        self.output.push_back(answer.bytes(head_request));
        self.close(Farewell::Told);
    }

    /// Begins the end: handlers do not know the connection any more, what is to be written is written.
    fn close(&mut self, farewell: Farewell) {
        self.end_local();
        self.client.leave(farewell);
        self.messages = None;
        self.state = State::Flush;
        self.input = Vec::new();
        self.fresh = false;
        self.client.set_deadline(FLUSH_TIMEOUT);
    }

    fn failed(&self, error: &io::Error) -> Gone {
        debug!(client = %self.client.addr, %error, "connection failed");
        Gone
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.client.set_waker(cx.waker());
        match this.drive(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Gone) => {
                this.end_exchange();
                this.end_local();
                this.client.leave(Farewell::Told);
                this.shard.registry.leave(&this.client);
                Poll::Ready(())
            }
        }
    }
}

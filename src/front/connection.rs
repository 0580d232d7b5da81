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

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;
use tracing::debug;

use super::access_log::Line;
use super::answer::{Answer, Trouble, answer};
use super::body::{Body, Fed};
use super::client::{Client, Cut, Farewell, Mail, NEVER};
use super::dispatch::{self, Accepted, Dispatched};
use super::{FLUSH_TIMEOUT, INPUT_AHEAD_MAX, LINGER, LINGER_BYTES_MAX, Shard};
use crate::bus::server::PeerId;
use crate::http1::{self, Asked, Parsed, Progress, ScanState, Scanner};
use crate::metrics::Name;
use crate::pool::{self, Failure, Ticket};

/// Turns of the loop before other tasks get theirs.
const TURNS_MAX: usize = 32;

/// What is left of a payload that the socket did not take is copied below this size, so as not to hold the receive buffer.
const COPY_BELOW: usize = 16 * 1024;

/// The status in the access log of a request whose client left before a response began: nginx's number for it.
const CLIENT_GONE: u16 = 499;

/// Payloads that are written in one system call at the most.
const GATHER_MAX: usize = 16;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A client connection. See the module.
pub(super) struct Connection {
    stream: TcpStream,
    client: Rc<Client>,
    shard: Rc<Shard>,
    /// Bytes read and not yet used; without any, it holds no memory.
    input: Vec<u8>,
    /// The input, or what it is for, has changed since it was last looked at.
    fresh: bool,
    /// Some of a head is here, so that the whole of it is due.
    begun: bool,
    /// The client has shut down its sending side while the last bytes for it were still to be written.
    deaf: bool,
    progress: Progress,
    /// What the socket has not taken yet, oldest first.
    output: VecDeque<Bytes>,
    state: State,
    /// Flow control: bytes of a payload that is being written, told to its handler when the socket has taken them.
    credits: usize,
}

/// What is awaited.
enum State {
    /// A request head.
    Head,
    /// The rest of a request's body.
    Body(Box<Body>),
    /// A handler's response.
    Response(Box<Exchange>),
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
}

/// The socket is of no more use: the client is gone, or everything was said.
struct Gone;

impl Connection {
    pub(super) fn new(stream: TcpStream, client: Rc<Client>, shard: Rc<Shard>) -> Self {
        client.set_deadline(shard.limits.idle_timeout);
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
            credits: 0,
        }
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        for _ in 0..TURNS_MAX {
            if self.obey().is_err() {
                return Poll::Ready(Gone);
            }
            if self.write(cx).is_err() {
                return Poll::Ready(Gone);
            }
            if self.fresh && !self.is_behind() {
                self.use_input();
                continue;
            }
            match self.read(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Gone)) => return Poll::Ready(Gone),
                // Nothing to do and nothing to read: when the front stops, this is the end.
                Poll::Pending if self.is_idle() && self.shard.is_draining() => {
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
            self.client.leave(if why == Cut::ByHandler {
                Farewell::Silent
            } else {
                Farewell::Told
            });
            return Err(Gone);
        }
        if self.client.expired.take() {
            self.expire()?;
        }
        if self.client.streaming.take()
            && let State::Response(exchange) = &self.state
        {
            exchange.ticket.attach();
        }
        Ok(())
    }

    /// Whether no request is open and none has begun.
    fn is_idle(&self) -> bool {
        matches!(self.state, State::Head) && self.input.is_empty()
    }

    /// Whether the client has to take what was written for it before its next request is looked at. Without that, what lies
    /// in the mailbox behind the end of a response (a close, a failure) would meet the request after it.
    fn is_behind(&self) -> bool {
        !self.output.is_empty()
            && match &self.state {
                State::Head => true,
                State::Response(exchange) => exchange.opaque,
                State::Body(_) | State::Flush | State::Linger { .. } => false,
            }
    }

    /// A deadline has passed.
    fn expire(&mut self) -> Result<(), Gone> {
        match &mut self.state {
            State::Head if !self.begun => self.close(Farewell::Told),
            State::Head => self.refuse(Trouble::HeadTimeout, false, None),
            State::Body(body) => {
                let limits = &self.shard.limits;
                let elapsed = self.shard.clock.milliseconds().saturating_sub(body.began);
                // On average over the whole time, so that a pause is no crime.
                if body.received.saturating_mul(1000) < limits.body_rate.saturating_mul(elapsed) {
                    self.refuse_body(Trouble::BodyTimeout);
                } else {
                    self.client.set_deadline(limits.body_grace);
                }
            }
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

    /// Writes what there is to write: what was left over, the mailbox, the end.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Gone> {
        loop {
            // Payloads that wait together leave together.
            let gathers = matches!(self.state, State::Response(_) | State::Head)
                && self.output.len() < GATHER_MAX
                && !self.client.behind.get()
                && self.client.has_mail();
            if !gathers && self.flush(cx)?.is_pending() {
                return Ok(());
            }
            if !gathers && self.credits > 0 {
                self.client.credit(std::mem::take(&mut self.credits));
            }
            match self.state {
                State::Flush => match Pin::new(&mut self.stream).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) if !self.deaf => {
                        self.input = Vec::new();
                        self.state = State::Linger { dropped: 0 };
                        self.client.set_deadline(LINGER);
                        return Ok(());
                    }
                    Poll::Ready(_) => return Err(Gone),
                    Poll::Pending => return Ok(()),
                },
                State::Linger { .. } => return Ok(()),
                State::Head | State::Body(_) | State::Response(_) => {}
            }
            let Some(mail) = self.client.next_mail() else {
                return Ok(());
            };
            match mail {
                Mail::Payload { mut bytes, voice } => {
                    let size = bytes.len();
                    let passed = self.scan(&bytes, voice);
                    bytes.truncate(passed);
                    if self.output.is_empty() && !self.client.has_mail() {
                        self.put(cx, bytes)?;
                    } else if !bytes.is_empty() {
                        self.output.push_back(bytes);
                    }
                    if self.shard.limits.flow_control {
                        self.credits += size;
                    }
                }
                Mail::Close => self.handler_closes(),
                Mail::Failed(why) => self.pool_failed(why),
            }
        }
    }

    /// Writes what the socket did not take before.
    fn flush(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Gone> {
        while !self.output.is_empty() {
            let mut slices = [io::IoSlice::new(&[]); GATHER_MAX];
            let mut count = 0;
            for (slice, bytes) in slices.iter_mut().zip(&self.output) {
                *slice = io::IoSlice::new(bytes);
                count += 1;
            }
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(written)) => {
                    self.client.note_written(written);
                    self.advance(written);
                    // A client that takes bytes, however slowly, is neither idle nor gone.
                    match self.state {
                        State::Flush => self.client.set_deadline(FLUSH_TIMEOUT),
                        State::Head if !self.begun => {
                            self.client.set_deadline(self.shard.limits.idle_timeout);
                        }
                        _ => {}
                    }
                }
                Poll::Ready(Err(error)) => return Err(self.failed(&error)),
                Poll::Pending => {
                    if !self.client.behind.replace(true) {
                        // What is left will lie for a while, and should not hold receive buffers meanwhile.
                        self.output.iter_mut().for_each(keep);
                    }
                    return Ok(Poll::Pending);
                }
            }
        }
        self.client.behind.set(false);
        if self.output.capacity() > 0 {
            self.output = VecDeque::new();
        }
        Ok(Poll::Ready(()))
    }

    /// The socket has taken so many bytes of the output.
    fn advance(&mut self, mut written: usize) {
        while let Some(bytes) = self.output.front_mut() {
            let taken = written.min(bytes.len());
            bytes::Buf::advance(bytes, taken);
            written -= taken;
            if !bytes.is_empty() {
                break;
            }
            self.output.pop_front();
        }
    }

    /// Writes a payload; what the socket does not take is kept.
    fn put(&mut self, cx: &mut Context<'_>, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &bytes) {
                Poll::Ready(Ok(written)) => {
                    self.client.note_written(written);
                    bytes::Buf::advance(&mut bytes, written);
                }
                Poll::Ready(Err(error)) => return Err(self.failed(&error)),
                Poll::Pending => {
                    self.client.behind.set(true);
                    keep(&mut bytes);
                    self.output.push_back(bytes);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Follows a payload: it may be the end of the response. Says how much of it is for the client: on a connection that goes
    /// on, what a handler writes behind the end of its response would be taken for the next one.
    fn scan(&mut self, payload: &[u8], voice: PeerId) -> usize {
        let State::Response(exchange) = &mut self.state else {
            return payload.len();
        };
        if !exchange.started {
            if !exchange.ticket.started(voice) {
                // It waits for a handler: this is for a request before it, and would be taken for its response.
                Name::ReplyBytesDropped.add(payload.len() as u64);
                debug!(client = %self.client.addr, %voice, "bytes for a request that no handler has: dropped");
                return 0;
            }
            exchange.started = true;
            self.client
                .remember_handler(&exchange.handler.pool, exchange.ticket.peer());
            self.client
                .response_began
                .set(self.shard.clock.milliseconds());
            self.client.deadline.set(NEVER);
        }
        let scan = exchange.scanner.scan(payload);
        match scan.state {
            ScanState::Open => {}
            ScanState::Ended { close } => {
                self.response_ended(close);
                if !close && scan.consumed < payload.len() {
                    let surplus = payload.len() - scan.consumed;
                    Name::ReplyBytesDropped.add(surplus as u64);
                    debug!(client = %self.client.addr, surplus, %voice, "a handler wrote more than its response: dropped");
                    return scan.consumed;
                }
            }
            ScanState::Opaque | ScanState::Switched => {
                if !exchange.opaque {
                    exchange.opaque = true;
                    exchange.ticket.attach();
                    // Requests that wait behind it need not wait for an end that will not come.
                    self.fresh = !self.input.is_empty();
                }
            }
        }
        payload.len()
    }

    /// The open response is complete.
    fn response_ended(&mut self, close: bool) {
        self.end_exchange();
        if close {
            self.close(Farewell::Told);
        } else {
            self.await_head();
        }
    }

    /// Ends the open exchange, if there is one: the ticket is given back, the log line written.
    fn end_exchange(&mut self) {
        let State::Response(exchange) = std::mem::replace(&mut self.state, State::Head) else {
            return;
        };
        self.client.response_began.set(NEVER);
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
        self.client.set_deadline(self.shard.limits.idle_timeout);
    }

    /// The handler asks for the connection to be closed, after what it sent before.
    fn handler_closes(&mut self) {
        self.end_exchange();
        self.close(Farewell::Silent);
    }

    /// The pool has given up the open request.
    fn pool_failed(&mut self, why: Failure) {
        if let State::Response(exchange) = &mut self.state {
            let (started, head_request, line) = (
                exchange.started,
                exchange.head_request,
                exchange.line.take(),
            );
            self.abandon(Trouble::Pool(why), started, head_request, line);
        }
    }

    /// Gives up the open request. When a response has begun there is nothing left to say but the end: the client sees that
    /// it is cut short.
    fn abandon(&mut self, trouble: Trouble, started: bool, head_request: bool, line: Option<Line>) {
        if started {
            debug!(client = %self.client.addr, ?trouble, "response cut short");
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
        self.output.push_back(answer.bytes(head_request));
        self.close(Farewell::Told);
    }

    /// Begins the end: handlers do not know the connection any more, what is to be written is written.
    fn close(&mut self, farewell: Farewell) {
        self.client.leave(farewell);
        self.state = State::Flush;
        self.input = Vec::new();
        self.fresh = false;
        self.client.set_deadline(FLUSH_TIMEOUT);
    }

    fn failed(&self, error: &io::Error) -> Gone {
        debug!(client = %self.client.addr, %error, "connection failed");
        Gone
    }

    /// Looks at the bytes that were kept.
    fn use_input(&mut self) {
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
                State::Head => match self.head(rest) {
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
                State::Response(exchange) if exchange.opaque => {
                    self.end_exchange();
                    self.await_head();
                }
                State::Response(_) => break,
                State::Flush | State::Linger { .. } => return data.len(),
            }
        }
        used
    }

    /// Looks for a request head; gives its length when there is a whole one.
    fn head(&mut self, data: &[u8]) -> Option<usize> {
        let (shard, client) = (&self.shard, &self.client);
        let parsed = http1::parse_head(&mut self.progress, data, &shard.limits.head, |head| {
            (head.len, dispatch::dispatch(shard, client, &head))
        });
        match parsed {
            Parsed::Partial => {
                if !std::mem::replace(&mut self.begun, true) {
                    self.client.set_deadline(self.shard.limits.head_timeout);
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
                self.begun = false;
                match dispatched {
                    Dispatched::Refused {
                        trouble,
                        head_request,
                        line,
                    } => self.refuse(trouble, head_request, line),
                    Dispatched::Accepted {
                        accepted,
                        wants_continue,
                    } => {
                        let here = data.len().saturating_sub(len);
                        self.accept(accepted, wants_continue, here);
                    }
                }
                Some(len)
            }
        }
    }

    /// Begins the body of a request; one without a body goes on at once.
    fn accept(&mut self, accepted: Accepted, wants_continue: bool, here: usize) {
        let body = Body::new(
            accepted,
            self.shard.limits.content_length,
            self.shard.clock.milliseconds(),
        );
        if body.is_empty() {
            let (message, accepted) = body.finish();
            return self.submit(message, accepted);
        }
        if wants_continue && body.is_missing(here) {
            self.output.push_back(Bytes::from_static(CONTINUE));
        }
        self.client.set_deadline(self.shard.limits.body_grace);
        self.state = State::Body(Box::new(body));
    }

    fn refuse_body(&mut self, trouble: Trouble) {
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
        let Accepted {
            handler,
            retry,
            asked,
            version,
            keep_alive,
            line,
            ..
        } = accepted;
        let head_request = asked == Asked::Head;
        let caller = Rc::clone(&self.client) as Rc<dyn pool::Caller>;
        match handler.pool.submit(message, retry, caller) {
            Ok(ticket) => {
                self.client.set_deadline(self.shard.limits.handler_timeout);
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
                }));
            }
            Err(why) => self.refuse(Trouble::Pool(why), head_request, line),
        }
    }

    /// Reads from the client.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if self.deaf
            || (matches!(self.state, State::Response(_)) && self.input.len() >= INPUT_AHEAD_MAX)
            || (matches!(self.state, State::Head) && self.is_behind())
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
            } else if !matches!(&self.state, State::Response(exchange) if !exchange.opaque) {
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

    /// The client has shut down its sending side: Mongrel2 takes that for the end, and so do handlers that wait for it. Only
    /// last words that are on their way are still written.
    fn end_of_input(&mut self) -> Result<(), Gone> {
        if matches!(self.state, State::Flush) {
            self.deaf = true;
            return Ok(());
        }
        Err(Gone)
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
                this.client.leave(Farewell::Told);
                this.shard.registry.leave(&this.client);
                Poll::Ready(())
            }
        }
    }
}

/// Copies small bytes that are to be kept for a while out of the buffer they were received in.
fn keep(bytes: &mut Bytes) {
    if bytes.len() < COPY_BELOW {
        *bytes = Bytes::copy_from_slice(bytes);
    }
}

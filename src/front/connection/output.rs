//! The way to the client: the mailbox, what the socket did not take before, the last bytes.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite as _;
use tracing::{debug, warn};

use super::{Connection, Gone, State};
use crate::bus::server::PeerId;
use crate::front::client::{Mail, NEVER};
use crate::front::sendfile::{self, Sending};
use crate::front::{FLUSH_TIMEOUT, LINGER, inside_chroot};
use crate::http1::{self, ScanState};
use crate::metrics::Name;

/// What is left of a payload that the socket did not take is copied below this size, so as not to hold the receive buffer.
const COPY_BELOW: usize = 16 * 1024;

/// Payloads that are written in one system call at the most.
const GATHER_MAX: usize = 16;

impl Connection {
    /// Writes what there is to write: what was left over, the mailbox, the end.
    pub(super) fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Gone> {
        loop {
            // Payloads that wait together leave together.
            let gathers = matches!(
                self.state,
                State::Response(_) | State::Head | State::WebSocket(_)
            ) && self.sending.is_none()
                && self.output.len() < GATHER_MAX
                && !self.client.behind.get()
                && self.client.has_mail();
            if !gathers && self.flush(cx)?.is_pending() {
                return Ok(());
            }
            if !gathers {
                self.client.unwritten.set(0);
            }
            if !gathers && self.credits > 0 {
                self.client.credit(std::mem::take(&mut self.credits));
            }
            if !gathers && self.websocket_says() {
                continue;
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
                State::Local(_) => {
                    self.local_mail();
                    if matches!(self.state, State::Local(_)) {
                        return Ok(());
                    }
                    continue;
                }
                State::Head
                | State::Body(_)
                | State::Opening(_)
                | State::Response(_)
                | State::WebSocket(_) => {}
            }
            if self.sending.is_some() {
                if self.write_file(cx)?.is_pending() {
                    return Ok(());
                }
                continue;
            }
            let Some(mail) = self.client.next_mail() else {
                return Ok(());
            };
            match mail {
                Mail::Payload { bytes, voice } => {
                    // Bytes of a file are not what the handler has outstanding.
                    if self.shard.limits().flow_control {
                        self.credits += bytes.len();
                    }
                    let unwritten = self.client.unwritten.get();
                    self.client.unwritten.set(unwritten + bytes.len());
                    self.pay(cx, bytes, voice)?;
                }
                Mail::File { name, voice } => self.begin_file(&name, voice)?,
                Mail::Close { voice } => self.handler_closes(voice),
                Mail::Failed(refused) => self.pool_failed(refused),
            }
        }
    }

    /// Writes what a handler has sent, as far as it is for the client.
    fn pay(&mut self, cx: &mut Context<'_>, mut bytes: Bytes, voice: PeerId) -> Result<(), Gone> {
        if self.shard.is_draining()
            && let Some(last) = self.last_response(&bytes)
        {
            bytes = last;
        }
        if matches!(self.state, State::WebSocket(_)) {
            bytes = self.websocket_payload(bytes);
        } else {
            let passed = self.scan(&bytes, voice);
            bytes.truncate(passed);
            bytes = self.websocket_answered(bytes);
        }
        if self.output.is_empty() && !self.client.has_mail() {
            self.put(cx, bytes)?;
        } else if !bytes.is_empty() {
            self.output.push_back(bytes);
        }
        Ok(())
    }

    /// A handler has named a file, to be written where its payloads are.
    fn begin_file(&mut self, name: &[u8], voice: PeerId) -> Result<(), Gone> {
        let Some(base) = self.shard.limits().sendfile_base.clone() else {
            warn!(client = %self.client.addr, "sendfile is refused, connection dropped: the setting `sendfile.base` names no directory to send from");
            return Err(Gone);
        };
        let name = std::str::from_utf8(name).ok();
        let Some(name) = name.filter(|name| name.len() <= sendfile::NAME_MAX) else {
            warn!(client = %self.client.addr, "sendfile: no file has such a name: connection dropped");
            return Err(Gone);
        };
        let chroot = &self.shard.chroot;
        let (base, path) = (inside_chroot(chroot, &base), inside_chroot(chroot, name));
        self.sending = Some(Box::new(Sending::begin(base, path, voice)));
        Ok(())
    }

    /// Writes the next block of a file; ready when it is time to look what comes next.
    fn write_file(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Gone> {
        let Some(sending) = &mut self.sending else {
            return Ok(Poll::Ready(()));
        };
        let voice = sending.voice;
        match sending.poll(cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(Ok(None)) => self.sending = None,
            Poll::Ready(Ok(Some(block))) => {
                let answers = matches!(self.state, State::Response(_));
                self.pay(cx, block, voice)?;
                if answers && !matches!(self.state, State::Response(_)) {
                    // What is left of the file lies behind the end of the response.
                    self.sending = None;
                }
            }
            Poll::Ready(Err(error)) => {
                warn!(client = %self.client.addr, "sendfile {}: {error}: connection dropped", sending.path().display());
                return Err(Gone);
            }
        }
        Ok(Poll::Ready(()))
    }

    /// While the front stops, a response that begins tells its client not to send another request behind it: that would
    /// meet a closed connection, and nobody could tell whether it was read.
    fn last_response(&self, payload: &[u8]) -> Option<Bytes> {
        match &self.state {
            State::Response(exchange) if !exchange.started => {
                http1::farewell::announce_close(payload).map(Bytes::from)
            }
            _ => None,
        }
    }

    /// Writes what the socket did not take before.
    pub(super) fn flush(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Gone> {
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
                    match &self.state {
                        // What it owes of a body is due all the same.
                        State::Local(local) if local.has_body_left() => {
                            self.client.bring_deadline(FLUSH_TIMEOUT);
                        }
                        State::Flush | State::Local(_) => {
                            self.client.set_deadline(FLUSH_TIMEOUT);
                        }
                        State::Head if !self.begun && !self.client.speaks_messages() => {
                            self.client.set_deadline(self.shard.limits().idle_timeout);
                        }
                        _ => {}
                    }
                }
                Poll::Ready(Err(error)) => return Err(self.failed(&error)),
                Poll::Pending => {
                    if matches!(self.state, State::Local(_)) && self.client.deadline.get() == NEVER
                    {
                        self.client.set_deadline(FLUSH_TIMEOUT);
                    }
                    if !self.client.behind.replace(true) {
                        // What is left will lie for a while, and should not hold receive buffers meanwhile.
                        self.output.iter_mut().for_each(keep);
                    }
                    return Ok(Poll::Pending);
                }
            }
        }
        // TLS may hold back some of what it has taken.
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Err(self.failed(&error)),
            Poll::Pending => {
                self.client.behind.set(true);
                return Ok(Poll::Pending);
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
    pub(super) fn put(&mut self, cx: &mut Context<'_>, mut bytes: Bytes) -> Result<(), Gone> {
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
            // What is pushed to a client between its requests passes, but no second response to the last one.
            if payload.starts_with(b"HTTP/1.") && !self.client.speaks_messages() {
                Name::ReplyBytesDropped.add(payload.len() as u64);
                debug!(client = %self.client.addr, %voice, "a response while no request is open: dropped");
                return 0;
            }
            return payload.len();
        };
        if exchange.is_answered() {
            Name::ReplyBytesDropped.add(payload.len() as u64);
            debug!(client = %self.client.addr, %voice, "a second response, or more than one: dropped");
            return 0;
        }
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
            if !exchange.is_receiving() {
                self.client.deadline.set(NEVER);
            }
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
}

/// Copies small bytes that are to be kept for a while out of the buffer they were received in.
fn keep(bytes: &mut Bytes) {
    if bytes.len() < COPY_BELOW {
        *bytes = Bytes::copy_from_slice(bytes);
    }
}

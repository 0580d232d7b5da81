//! A request whose body is an upload: its handler has heard of it already, and may answer, while the body still comes.
//!
//! The exchange is open from the first message on. It ends when both the response and the body have ended, so a client's next
//! request begins where it should; when it ends earlier, by whosever fault, a stored body goes with it, unless the handler
//! was told that it is complete.

use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use tracing::error;

use super::{Connection, Exchange, State};
use crate::front::access_log::Line;
use crate::front::answer::Trouble;
use crate::front::client::NEVER;
use crate::front::dispatch::Accepted;
use crate::front::inside_chroot;
use crate::front::upload::stream::{self, Parts, end_with_body};
use crate::front::upload::{Plan, Sink, Upload, file};
use crate::http1::BodyFraming;
use crate::metrics::Name;
use crate::pool::{Retry, Room};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// An upload whose file is being made.
pub(super) struct Opening {
    accepted: Accepted,
    wants_continue: bool,
    path: std::path::PathBuf,
    file: file::Opening,
    /// The message that follows the body.
    done: Bytes,
}

/// An upload that its handler knows of.
pub(super) struct Receiving {
    upload: Upload,
    /// The message that follows a stored body, and how the request may be handed on then.
    last: Option<(Bytes, Retry)>,
    /// Its handler has been told that it is complete, or is to be told nothing more.
    complete: bool,
    /// The response is complete already.
    answered: bool,
}

impl Opening {
    /// The line for the access log, when nothing comes of the request.
    pub(super) fn take_line(&mut self) -> Option<Line> {
        self.accepted.line.take()
    }
}

impl Exchange {
    /// Whether its body is still on its way.
    pub(super) fn is_receiving(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| !upload.complete)
    }

    /// Whether the response is complete, and the exchange is open for the rest of the body only.
    pub(super) fn is_answered(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.answered)
    }

    /// Whether more of the client's bytes can be taken for its body.
    pub(super) fn wants_input(&self) -> bool {
        let wants = |receiving: &Receiving| receiving.upload.wants_input();
        self.is_receiving() && self.upload.as_deref().is_some_and(wants)
    }
}

impl Connection {
    /// Begins an upload; `here` are the bytes behind the head. Says how many of them were used.
    pub(super) fn begin_upload(
        &mut self,
        mut accepted: Accepted,
        plan: Plan,
        wants_continue: bool,
        here: &[u8],
    ) -> usize {
        match plan {
            Plan::Store { name, done } => {
                let path = inside_chroot(&self.shard.chroot, &name);
                let mode = self.shard.limits().upload_mode;
                self.client.set_deadline(NEVER);
                self.state = State::Opening(Box::new(Opening {
                    accepted,
                    wants_continue,
                    file: file::Opening::begin(path.clone(), mode),
                    path,
                    done: done.into(),
                }));
                0
            }
            Plan::Stream { path } => {
                self.client.upload_credits.set(Some(0));
                let limits = self.shard.limits();
                let part_max = stream::part_max(limits.content_length);
                let chunked = accepted.framing == BodyFraming::Chunked;
                let first = if chunked {
                    0
                } else {
                    part_max.min(accepted.length())
                };
                let first = here
                    .get(..first)
                    .unwrap_or(if chunked { &[] } else { here });
                end_with_body(&mut accepted.message, first);
                let protocol = accepted.handler.protocol;
                let parts = Parts::new(path, protocol, part_max, chunked, first.len() as u64);
                if wants_continue && here.is_empty() {
                    self.output.push_back(Bytes::from_static(CONTINUE));
                }
                self.announce(accepted, Sink::Stream(parts), first.len() as u64, None);
                first.len()
            }
        }
    }

    /// Tells the handler of an upload; `begun` bytes of it are in the message.
    fn announce(
        &mut self,
        mut accepted: Accepted,
        sink: Sink,
        begun: u64,
        last: Option<(Bytes, Retry)>,
    ) {
        self.client.upload_acted.set(false);
        let limits = self.shard.limits();
        let now = self.shard.clock.milliseconds();
        let mut upload = Upload::new(accepted.framing, sink, limits.upload_bytes, now);
        upload.skip(begun);
        let message = Bytes::from(std::mem::take(&mut accepted.message));
        // Nobody has done anything yet who has only heard the announcement.
        let retry = accepted.handler.retry_announced();
        let receiving = Box::new(Receiving {
            upload,
            last,
            complete: false,
            answered: false,
        });
        self.submit_with(message, accepted, retry, Some(receiving));
        if matches!(self.state, State::Response(_)) {
            self.client.set_deadline(limits.body_grace);
        }
    }

    /// Lets the open upload go on as far as it can: what has come is written or sent, and the end is told.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>) {
        if matches!(self.state, State::Opening(_)) {
            self.poll_opening(cx);
        }
        let State::Response(exchange) = &mut self.state else {
            return;
        };
        if !exchange.is_receiving() {
            return;
        }
        let Some(receiving) = exchange.upload.as_deref_mut() else {
            return;
        };
        let received = receiving.upload.is_received();
        let answered = receiving.answered;
        if self.client.upload_acted.take()
            && let Some((_, retry)) = &receiving.last
        {
            exchange.ticket.acted(*retry);
        }
        let ended = match receiving.upload.sink() {
            Sink::Store(writer) => match writer.poll(cx, received) {
                Poll::Pending => false,
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => {
                    complain(&writer.path(), &error);
                    return self.upload_failed(Trouble::NotStored);
                }
            },
            Sink::Stream(_) if answered => {
                receiving.upload.drop_rest();
                received
            }
            Sink::Stream(parts) => {
                // Credits are for who has the request, and begin when that has begun.
                if exchange.ticket.peer().is_none() {
                    self.client.upload_credits.set(Some(0));
                }
                loop {
                    let credits = self.client.upload_credits.get().unwrap_or(0);
                    if !parts.is_due(credits, received) {
                        break;
                    }
                    match exchange.ticket.room() {
                        Room::Now => {}
                        Room::Soon => {
                            cx.waker().wake_by_ref();
                            break;
                        }
                        Room::Later => break,
                    }
                    if let Some((message, cost)) = parts.next(credits, received) {
                        let left = credits.saturating_sub(cost);
                        self.client.upload_credits.set(Some(left));
                        exchange.ticket.follow_up(message.into());
                    }
                }
                parts.is_done()
            }
            Sink::Drop => received,
        };
        if ended {
            return self.upload_ended();
        }
        let wants_input = receiving.upload.wants_input();
        let now = self.shard.clock.milliseconds();
        if receiving.upload.set_paused(!wants_input, now) {
            // The time that it waits for us is not the client's.
            self.client.set_deadline(if wants_input {
                self.shard.limits().body_grace
            } else {
                NEVER
            });
        }
        if wants_input && !self.input.is_empty() {
            self.fresh = true;
        }
    }

    fn poll_opening(&mut self, cx: &mut Context<'_>) {
        let State::Opening(opening) = &mut self.state else {
            return;
        };
        let Poll::Ready(opened) = opening.file.poll(cx) else {
            return;
        };
        let State::Opening(opening) = std::mem::replace(&mut self.state, State::Head) else {
            return;
        };
        let Opening {
            mut accepted,
            wants_continue,
            path,
            done,
            ..
        } = *opening;
        match opened {
            Ok(writer) => {
                if wants_continue && self.input.is_empty() {
                    self.output.push_back(Bytes::from_static(CONTINUE));
                }
                let last = Some((done, accepted.retry));
                self.announce(accepted, Sink::Store(writer), 0, last);
            }
            Err(error) => {
                complain(&path.display(), &error);
                let head_request = accepted.asked == crate::http1::Asked::Head;
                self.refuse(Trouble::NotStored, head_request, accepted.line.take());
            }
        }
    }

    /// The body is where it should be: its handler is told, and the response is awaited, unless it came already.
    fn upload_ended(&mut self) {
        let State::Response(exchange) = &mut self.state else {
            return;
        };
        if let Some(receiving) = exchange.upload.as_deref_mut() {
            receiving.complete = true;
            self.client.upload_credits.set(None);
            if let Some((message, retry)) = receiving.last.take() {
                exchange.ticket.complete(message, retry);
            }
        }
        if exchange.is_answered() {
            self.end_exchange();
            self.await_head();
        } else {
            let timeout = if exchange.started {
                NEVER
            } else {
                self.shard.limits().handler_timeout
            };
            self.client.set_deadline(timeout);
            // A response that is no HTTP has no end that what is behind the body could wait for.
            self.fresh = exchange.opaque && !self.input.is_empty();
        }
    }

    /// Gives an upload up: an answer of ours, or the end when the handler has begun to answer.
    fn upload_failed(&mut self, trouble: Trouble) {
        if let State::Response(exchange) = &mut self.state {
            let (started, head_request, line) = (
                exchange.started,
                exchange.head_request,
                exchange.line.take(),
            );
            self.abandon(trouble, started, head_request, line);
        }
    }

    /// Uses some of the client's bytes for the body of the open upload; `None` when they have to wait.
    pub(super) fn feed_upload(&mut self, data: &[u8]) -> Option<usize> {
        let State::Response(exchange) = &mut self.state else {
            return None;
        };
        if !exchange.wants_input() {
            return None;
        }
        let fed = exchange.upload.as_deref_mut()?.upload.feed(data);
        match fed {
            Ok(used) => Some(used),
            Err(trouble) => {
                self.upload_failed(trouble);
                Some(0)
            }
        }
    }

    /// The deadline has passed while the body is on its way.
    pub(super) fn upload_expired(&mut self) {
        let State::Response(exchange) = &mut self.state else {
            return;
        };
        let Some(receiving) = exchange.upload.as_deref_mut() else {
            return;
        };
        if !receiving.upload.is_awaited() {
            return;
        }
        let limits = self.shard.limits();
        let now = self.shard.clock.milliseconds();
        if receiving.upload.is_slower_than(limits.body_rate, now) {
            self.upload_failed(Trouble::BodyTimeout);
        } else {
            self.client.set_deadline(limits.body_grace);
        }
    }

    /// The response is complete and the body is not: true when that is to be waited for.
    pub(super) fn awaits_body(&mut self, close: bool) -> bool {
        let State::Response(exchange) = &mut self.state else {
            return false;
        };
        if close || !exchange.is_receiving() {
            return false;
        }
        if let Some(receiving) = exchange.upload.as_deref_mut() {
            receiving.answered = true;
        }
        self.client.response_began.set(NEVER);
        self.client.wake();
        true
    }

    /// What becomes of the file when the exchange ends.
    pub(super) fn finish_upload(&self, exchange: &mut Exchange) {
        if exchange.upload.is_some() {
            self.client.upload_credits.set(None);
        }
        if let Some(receiving) = exchange.upload.take()
            && let Sink::Store(writer) = receiving.upload.into_sink()
        {
            writer.finish(exchange.ticket.is_completed(), &self.shard.watch);
        }
    }
}

/// Says that a body could not be stored. Clients can repeat it at will while a disk is full, so the log gets the 1st, 2nd,
/// 4th, 8th, ….
fn complain(path: &dyn std::fmt::Display, error: &io::Error) {
    Name::UploadsNotStored.increment();
    let count = Name::UploadsNotStored.get();
    if count.is_power_of_two() {
        error!(count, "store upload {path}: {error}");
    }
}

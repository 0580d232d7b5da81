//! How requests and connections end: by a whole response, with their client, or in the name of a worker that is lost.

use std::collections::VecDeque;

use bytes::Bytes;
use tracing::{error, warn};

use super::End;
use super::answer::answer;
use super::reading::request_line;
use super::recent::Knows;
use super::server::Server;
use super::table::{Arrived, Conn, Exchange, Stage, Table};
use crate::bus::server::Origin;
use crate::pool::{Failure, Refused};
use crate::websocket::encode_close;
use crate::wire::request::Notice;
use crate::wire::{ConnId, reply};

/// The code with which a WebSocket is closed that no worker takes, as in a front (IANA's registry for RFC 6455).
const TRY_AGAIN_LATER: u16 = 1013;

impl Server {
    /// The client has left, or was never there.
    pub(super) fn client_gone(&self, table: &mut Table, id: ConnId, message: Bytes) {
        let at = table.conns.get(&id.0).map(Conn::at);
        if at.is_some() {
            drop(self.end(table, id, End::ClientGone));
        }
        let knows = table.recent.remove(id);
        match at {
            Some(Some(at)) => self.forward(Some(at), id, message),
            // No worker has heard of its request, but one may know it from before.
            Some(None) if knows.is_none() => {}
            _ => self.tell_by(knows, id, message),
        }
    }

    /// The response is whole: the next request of the connection may go out.
    pub(super) fn response_ended(&self, table: &mut Table, id: ConnId) {
        let mut held = self.end(table, id, End::Answered);
        if let Some(next) = held.pop_front() {
            self.submit(table, id, next, held);
        }
    }

    /// Ends what is open of a connection. Gives the requests behind it.
    pub(super) fn end(&self, table: &mut Table, id: ConnId, how: End) -> VecDeque<Arrived> {
        let Some(conn) = table.take(id) else {
            return VecDeque::new();
        };
        let at = conn.at();
        if let Some(at) = at {
            table.recent.note(id, Knows::Peer(at));
        }
        if let Stage::Orphan(orphan) = &conn.stage {
            self.release(Some(orphan.slot));
        }
        if let Stage::Exchange(exchange) = conn.stage {
            self.release(exchange.slot);
            let pid = match at.and_then(|at| self.pools.get(at.pool).origin(at.peer)) {
                Some(Origin::Process(pid)) => Some(pid),
                _ => None,
            };
            if how == End::Answered {
                exchange.ticket.answered();
            }
            if let (End::Answered, Some(pid)) = (how, pid) {
                self.shared.served.add(pid);
            }
            if let (Some(mut told), Some(observer)) =
                (exchange.told, &self.shared.settings.observer)
            {
                told.took = exchange.began.elapsed();
                told.status = exchange.scanner.status().or(told.status);
                told.bytes = exchange.scanner.bytes();
                told.pid = pid;
                told.end = how;
                observer.ended(&told);
            }
        }
        self.shared.ended.notify_one();
        conn.held
    }

    /// Ends a connection in the name of its worker: with an answer that says why, unless one has begun.
    pub(super) fn hang_up(&self, table: &mut Table, id: ConnId, refused: Refused) {
        let Some(conn) = table.conns.get(&id.0) else {
            return;
        };
        let at = conn.at();
        let form = self.shared.rules.borrow().form;
        let (status, last) = match &conn.stage {
            Stage::Exchange(exchange) if !exchange.started => {
                let (status, text) = answer(form, refused, exchange.head_request);
                (Some(status), text.into_bytes())
            }
            Stage::Orphan(orphan) if !orphan.started => {
                let (status, text) = answer(form, refused, orphan.head_request);
                (Some(status), text.into_bytes())
            }
            Stage::Attached(attached) if attached.is_websocket => {
                let mut frame = Vec::new();
                encode_close(TRY_AGAIN_LATER, "", &mut frame);
                (None, frame)
            }
            _ => (None, Vec::new()),
        };
        self.tell_given_up(conn, id, refused);
        if let Some(Conn {
            stage: Stage::Exchange(exchange),
            ..
        }) = table.conns.get_mut(&id.0)
            && let (Some(told), Some(_)) = (&mut exchange.told, status)
        {
            told.status = status;
        }
        drop(self.end(table, id, End::Failed(refused.why)));
        table.recent.note(id, Knows::Nobody);
        if let Some(at) = at {
            // The server does not tell of what is closed on a handler's wish.
            self.notify(at, id, Notice::Disconnect);
        }
        self.close_with(id, &last);
    }

    fn tell_given_up(&self, conn: &Conn, id: ConnId, refused: Refused) {
        if let Stage::Exchange(Exchange { message, .. }) = &conn.stage
            && refused.why == Failure::Quarantined
        {
            error!(%id, request = request_line(message), "answered with 500: {refused}");
        } else {
            let times = self.given_up.get() + 1;
            self.given_up.set(times);
            // A burst that is shed must not fill the log: it gets the 1st, 2nd, 4th, 8th, ….
            if !self.shared.rules.borrow().is_shared || times.is_power_of_two() {
                warn!(%id, times, "a request or connection is given up: {refused}");
            }
        }
    }

    /// Says something in a worker's place, if there is anything to say, and closes.
    pub(super) fn close_with(&self, id: ConnId, last: &[u8]) {
        let say = |payload: &[u8]| {
            let mut message = Vec::new();
            reply::encode(&self.sender.borrow(), &[id], payload, &mut message);
            self.say(message.into());
        };
        if !last.is_empty() {
            say(last);
        }
        say(b"");
    }
}

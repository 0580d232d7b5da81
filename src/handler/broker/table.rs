//! The requests that this worker has begun and not done. Where each of them ends is read off the replies to it, as a server and an
//! observer do it; nothing is sent here.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::http1::{Asked, ScanState, Scanner, Version};
use crate::wire::ConnId;
use crate::wire::reply::{self, Extended, Reply};
use crate::wire::request::Request;
use crate::wire::worker::RequestId;

/// Requests that are followed at once. A broker gives out as many as there are slots, where it was told how many; above this the
/// answer to a request is sent without saying whose it is, which a broker finds out by itself.
const OPEN_MAX: usize = 65_536;

/// A client as servers call it: ident and number.
pub(super) type Address = (Bytes, ConnId);

/// A request that is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) id: RequestId,
    /// Since it was begun.
    pub(super) took: Duration,
}

#[derive(Debug)]
struct Open {
    id: RequestId,
    since: Instant,
    scanner: Scanner,
    /// Something of its response was handed over.
    spoken: bool,
    /// Nobody waits for it any more.
    cancelled: bool,
}

impl Open {
    fn done(&self, now: Instant) -> Done {
        Done {
            id: self.id,
            took: now.saturating_duration_since(self.since),
        }
    }
}

/// What is open, by client; of one client the oldest first, since answers come in that order.
#[derive(Debug, Default)]
pub(super) struct Table {
    clients: HashMap<Address, VecDeque<Open>>,
    addresses: HashMap<RequestId, Address>,
}

impl Table {
    /// The program has taken this request.
    pub(super) fn begin(&mut self, id: RequestId, request: &Request, now: Instant) {
        if self.addresses.len() >= OPEN_MAX {
            return;
        }
        let version = match request.version() {
            Some(b"HTTP/1.0") => Version::Http10,
            _ => Version::Http11,
        };
        let asked = match request.method() {
            Some(b"HEAD") => Asked::Head,
            Some(b"CONNECT") => Asked::Connect,
            _ => Asked::Other,
        };
        // A copy, so that the message is not kept.
        let address = (Bytes::copy_from_slice(&request.sender), request.conn_id);
        let open = Open {
            id,
            since: now,
            scanner: Scanner::new(asked, version, !request.should_close()),
            spoken: false,
            cancelled: false,
        };
        self.addresses.insert(id, address.clone());
        self.clients.entry(address).or_default().push_back(open);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The request that a reply to one client belongs to.
    pub(super) fn of(&self, reply: &Reply<'_>) -> Option<RequestId> {
        if reply.targets.len() != 1 || self.addresses.is_empty() {
            return None;
        }
        let id = reply.targets.clone().next()?;
        let opens = self
            .clients
            .get(&(Bytes::copy_from_slice(reply.sender), id))?;
        opens.front().map(|open| open.id)
    }

    /// Follows a reply that was handed over, and says which requests it ends.
    pub(super) fn sent(&mut self, reply: &Reply<'_>, message: &[u8], now: Instant) -> Vec<Done> {
        let mut done = Vec::new();
        if self.addresses.is_empty() {
            return done;
        }
        let payload = message.get(reply.payload.clone()).unwrap_or_default();
        let sender = Bytes::copy_from_slice(reply.sender);
        for id in reply.targets.clone() {
            let address = (sender.clone(), id);
            if !self.clients.contains_key(&address) {
                continue;
            }
            if reply.extended {
                match reply::decode_extended(payload) {
                    Ok(Extended::Ctl { cancel: true, .. }) => self.end(&address, now, &mut done),
                    Ok(Extended::Other {
                        key: b"sendfile", ..
                    }) => self.file(&address, now, &mut done),
                    _ => {}
                }
            } else if payload.is_empty() {
                self.end(&address, now, &mut done);
            } else {
                self.scan(&address, payload, now, &mut done);
            }
        }
        done
    }

    fn scan(&mut self, address: &Address, mut payload: &[u8], now: Instant, done: &mut Vec<Done>) {
        while !payload.is_empty()
            && let Some(open) = self.clients.get_mut(address).and_then(VecDeque::front_mut)
        {
            let scan = open.scanner.scan(payload);
            open.spoken = true;
            // What has become a WebSocket is no request any more.
            if !matches!(scan.state, ScanState::Ended { .. } | ScanState::Switched) {
                break;
            }
            payload = payload.get(scan.consumed..).unwrap_or_default();
            done.extend(self.take(address, now));
        }
    }

    /// The server writes the rest of a response, or some of it, from a file.
    fn file(&mut self, address: &Address, now: Instant, done: &mut Vec<Done>) {
        if let Some(open) = self.clients.get_mut(address).and_then(VecDeque::front_mut) {
            open.spoken = true;
            if let ScanState::Ended { .. } = open.scanner.skip_rest() {
                done.extend(self.take(address, now));
            }
        }
    }

    fn take(&mut self, address: &Address, now: Instant) -> Option<Done> {
        let opens = self.clients.get_mut(address)?;
        let open = opens.pop_front()?;
        if opens.is_empty() {
            self.clients.remove(address);
        }
        self.addresses.remove(&open.id);
        Some(open.done(now))
    }

    /// The client is gone, or the program is done with it.
    pub(super) fn end(&mut self, address: &Address, now: Instant, done: &mut Vec<Done>) {
        for open in self.clients.remove(address).unwrap_or_default() {
            self.addresses.remove(&open.id);
            done.push(open.done(now));
        }
    }

    /// Nobody waits for the answer to this request any more: whose it is, if it was begun. It stays until the program is done with it.
    pub(super) fn cancel(&mut self, id: RequestId) -> Option<Address> {
        let address = self.addresses.get(&id)?.clone();
        for open in self.clients.get_mut(&address).into_iter().flatten() {
            open.cancelled |= open.id == id;
        }
        Some(address)
    }

    /// The connection is lost, and perhaps parts of responses with it: their clients can only be cut off. They are told, and what
    /// is left has not been answered yet.
    pub(super) fn cut(&mut self) -> Vec<Address> {
        let mut cut = Vec::new();
        self.clients.retain(|address, opens| {
            // The end of the client was told.
            let is_gone = opens.iter().any(|open| open.cancelled);
            let stays = !is_gone && !opens.iter().any(|open| open.spoken);
            if !stays {
                for open in opens {
                    self.addresses.remove(&open.id);
                }
                if !is_gone {
                    cut.push(address.clone());
                }
            }
            stays
        });
        cut
    }

    /// What is open, in the order in which it was given.
    pub(super) fn held(&self) -> Vec<(RequestId, Address)> {
        let mut held: Vec<_> = self
            .addresses
            .iter()
            .map(|(id, address)| (*id, address.clone()))
            .collect();
        held.sort_unstable_by_key(|(id, _)| *id);
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::request;

    fn request(id: u32, method: &str) -> Request {
        let headers = format!(r#"{{"METHOD":"{method}","VERSION":"HTTP/1.1","PATH":"/"}}"#);
        let mut message = Vec::new();
        request::encode_prefix(b"main", ConnId(id), &mut message);
        message.extend_from_slice(format!("/ {}:{headers},0:,", headers.len()).as_bytes());
        Request::decode(message.into()).unwrap()
    }

    fn say(table: &mut Table, ids: &[u32], payload: &[u8]) -> (Option<u64>, Vec<u64>) {
        let ids: Vec<_> = ids.iter().map(|id| ConnId(*id)).collect();
        let mut message = Vec::new();
        reply::encode(b"main", &ids, payload, &mut message);
        let reply = reply::decode(&message, 100).unwrap();
        let of = table.of(&reply).map(|id| id.0);
        let done = table.sent(&reply, &message, Instant::now());
        (of, done.iter().map(|done| done.id.0).collect())
    }

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";

    #[test]
    fn a_request_is_done_with_the_last_byte_of_its_answer() {
        let mut table = Table::default();
        let now = Instant::now();
        for (at, method) in [(1, "GET"), (2, "HEAD"), (3, "GET")] {
            table.begin(RequestId(u64::from(at) * 10), &request(at, method), now);
        }
        assert_eq!(say(&mut table, &[1], OK), (Some(10), vec![]));
        assert_eq!(say(&mut table, &[2], OK), (Some(20), vec![20]));
        assert_eq!(say(&mut table, &[1], b"ab"), (Some(10), vec![10]));
        assert_eq!(say(&mut table, &[1], b"more"), (None, vec![]));
        assert_eq!(say(&mut table, &[3], b""), (Some(30), vec![30]));
        assert_eq!(table.held(), []);
    }

    #[test]
    fn what_has_become_a_websocket_is_done_and_what_many_get_is_nobodys() {
        let mut table = Table::default();
        let now = Instant::now();
        for at in [1, 2, 3] {
            table.begin(RequestId(u64::from(at)), &request(at, "GET"), now);
        }
        let switch = b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
        assert_eq!(say(&mut table, &[1], switch), (Some(1), vec![1]));
        assert_eq!(
            say(&mut table, &[2, 3], &[OK, b"ab"].concat()),
            (None, vec![2, 3])
        );
    }

    #[test]
    fn what_was_answered_in_part_is_cut_and_the_rest_held() {
        let mut table = Table::default();
        let now = Instant::now();
        for at in [1, 2, 3] {
            table.begin(RequestId(u64::from(at)), &request(at, "GET"), now);
        }
        say(&mut table, &[2], OK);
        let main = Bytes::from_static(b"main");
        assert_eq!(table.cancel(RequestId(3)), Some((main.clone(), ConnId(3))));
        assert_eq!(table.cancel(RequestId(4)), None);
        assert_eq!(table.cut(), [(main.clone(), ConnId(2))]);
        assert_eq!(table.held(), [(RequestId(1), (main, ConnId(1)))]);
    }
}

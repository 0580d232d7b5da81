//! What the front answers itself: the full list, in one place.
//!
//! Status, body and form are Mongrel2's where it has the answer (reference: what the server answers itself); every one of
//! them closes the connection.

use std::time::Duration;

use bytes::Bytes;

use crate::http1::Refusal;
use crate::pool::{Failure, Refused};
use crate::websocket;

/// A complete answer of the front's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The body, which says why where the status does not.
    pub(super) body: &'static str,
    /// After how many seconds it may be worth asking again; only of a 503.
    retry_after: u64,
}

/// What a 503 says of the time where nobody has an idea of it, in seconds.
const RETRY_AFTER: u64 = 1;

/// The most that a 503 says of it: what is true after ten minutes nobody knows.
const RETRY_AFTER_MAX: u64 = 600;

/// Everything that can end in an answer of our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The head is refused by HTTP's rules.
    Refused(Refusal),
    /// The head did not come in time.
    HeadTimeout,
    /// The body came too slowly.
    BodyTimeout,
    /// No route, or its pattern fails, or its handler could not be bound.
    NoRoute,
    /// The route leads to files, and the method is neither GET nor HEAD.
    MethodNotAllowed,
    /// The route's target is of a kind that this build does not serve.
    NotImplemented,
    /// The body is larger than allowed.
    TooLarge,
    /// The body's chunks are malformed.
    BadChunk,
    /// What a message socket sends is no message.
    BadMessage,
    /// A handshake for WebSocket that cannot be met.
    WebSocket(websocket::Refusal),
    /// An expectation that nobody here can meet.
    Expectation,
    /// The pool gave the request up.
    Pool(Refused),
    /// The body could not be stored: the disk is full, or there is no place for it.
    NotStored,
    /// The handler did not answer in time.
    HandlerTimeout,
    /// Plain HTTP on a port that speaks TLS.
    PlainOnTls,
    /// What was to make the response in this process has ended without one.
    MakerLost,
    /// The target has characters that no request to a backend may have.
    BadTarget,
    /// A backend gave no response, or none that can be passed on.
    Backend(Fault),
}

/// What a proxied request can suffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// No address for the backend's name.
    Unknown,
    /// None of its addresses takes a connection.
    Unreachable,
    /// No connection in time.
    ConnectTimeout,
    /// All the connections it may have stay in use.
    Busy,
    /// It ended the connection before the response was complete.
    Closed,
    /// What it sends is no response, not one to this request, or one with a head larger than we take.
    Malformed,
    /// It moved no byte for too long.
    Timeout,
}

/// The answer to a trouble.
pub(super) fn answer(trouble: Trouble) -> Answer {
    let (status, body) = match trouble {
        Trouble::Refused(refusal) => match refusal.status {
            400 => (400, "Bad Request"),
            413 => (413, "Entity Too Large"),
            417 => (417, "Expectation Failed"),
            status => (status, refusal.reason),
        },
        Trouble::WebSocket(websocket::Refusal::Version) => {
            (426, "The Sec-WebSocket-Version is not 13")
        }
        Trouble::WebSocket(websocket::Refusal::Key) => {
            (400, "The Sec-WebSocket-Key is missing or malformed")
        }
        Trouble::BadChunk | Trouble::BadMessage | Trouble::BadTarget | Trouble::WebSocket(_) => {
            (400, "Bad Request")
        }
        Trouble::HeadTimeout => (408, "The request head did not arrive in time"),
        Trouble::BodyTimeout => (408, "The request body arrived too slowly"),
        Trouble::NoRoute => (404, "Not Found"),
        Trouble::MethodNotAllowed => (405, "Method Not Allowed"),
        Trouble::NotImplemented => (501, "Not Implemented"),
        Trouble::TooLarge => (413, "Entity Too Large"),
        Trouble::Expectation => (417, "Expectation Failed"),
        Trouble::Pool(refused) => of_pool(refused.why),
        Trouble::PlainOnTls => (
            400,
            "Bad Request: this port speaks TLS; use https:// instead of http://",
        ),
        Trouble::NotStored => (
            507,
            "Insufficient Storage: the request body could not be stored",
        ),
        Trouble::MakerLost => (500, "Internal Server Error"),
        Trouble::Backend(fault) => of_backend(fault),
        Trouble::HandlerTimeout => of_pool(Failure::DeadlineOver),
    };
    let retry_after = match trouble {
        Trouble::Pool(refused) => refused.retry_after.map_or(RETRY_AFTER, seconds),
        _ => RETRY_AFTER,
    };
    Answer {
        status,
        body,
        retry_after,
    }
}

/// Whole seconds, which is all that a header can say; never none, which would be an invitation to ask in a loop.
fn seconds(time: Duration) -> u64 {
    let seconds = time
        .as_secs()
        .saturating_add(u64::from(time.subsec_nanos() > 0));
    seconds.clamp(RETRY_AFTER, RETRY_AFTER_MAX)
}

const fn of_pool(why: Failure) -> (u16, &'static str) {
    match why {
        Failure::QueueFull => (
            503,
            "Service Unavailable: too many requests are waiting for a handler",
        ),
        Failure::WaitOver => (
            503,
            "Service Unavailable: no handler took the request in time",
        ),
        Failure::NoHandler => (503, "Service Unavailable: no handler is connected"),
        Failure::DeadlineOver => (504, "Gateway Timeout: the handler did not answer in time"),
        Failure::HandlerLost => (
            502,
            "Bad Gateway: the handler was lost while it had the request",
        ),
        Failure::Quarantined => (
            500,
            "Internal Server Error: several handlers were lost while they had the request",
        ),
    }
}

const fn of_backend(fault: Fault) -> (u16, &'static str) {
    match fault {
        Fault::Unknown => (502, "Bad Gateway: the backend's name has no address"),
        Fault::Unreachable => (502, "Bad Gateway: the backend cannot be reached"),
        Fault::ConnectTimeout => (
            504,
            "Gateway Timeout: the backend did not take the connection in time",
        ),
        Fault::Busy => (
            503,
            "Service Unavailable: all connections to the backend are in use",
        ),
        Fault::Closed => (
            502,
            "Bad Gateway: the backend closed the connection without an answer",
        ),
        Fault::Malformed => (
            502,
            "Bad Gateway: the backend's answer is malformed, or its head is too large",
        ),
        Fault::Timeout => (504, "Gateway Timeout: the backend did not answer in time"),
    }
}

/// The reason phrase of a status that the front uses.
fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Request Entity Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Error",
    }
}

impl Answer {
    /// The bytes, in Mongrel2's order of headers; without the body for a HEAD request.
    pub(super) fn bytes(self, head_request: bool) -> Bytes {
        let body = if head_request { "" } else { self.body };
        let extra = match self.status {
            405 => "Allow: GET, HEAD\r\n".to_owned(),
            426 => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n".to_owned(),
            503 => format!("Retry-After: {}\r\n", self.retry_after),
            _ => String::new(),
        };
        Bytes::from(format!(
            "HTTP/1.1 {} {}\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: {}\r\n{extra}Server: {}\r\n\r\n{body}",
            self.status,
            phrase(self.status),
            self.body.len(),
            super::SERVER,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_mongrel2s_form() {
        let bytes = answer(Trouble::NoRoute).bytes(false);
        assert_eq!(
            bytes,
            format!(
                "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 9\r\nServer: {}\r\n\r\nNot Found",
                super::super::SERVER
            )
        );
    }

    #[test]
    fn what_a_pool_gives_up_says_why_and_when_to_ask_again() {
        let after = |milliseconds| Some(Duration::from_millis(milliseconds));
        for (why, retry_after, status, said) in [
            (Failure::QueueFull, after(3_001), 503, Some(4)),
            (Failure::QueueFull, after(0), 503, Some(1)),
            (Failure::QueueFull, after(u64::MAX), 503, Some(600)),
            (Failure::WaitOver, after(2_000), 503, Some(2)),
            (Failure::NoHandler, None, 503, Some(1)),
            (Failure::HandlerLost, after(5_000), 502, None),
            (Failure::Quarantined, None, 500, None),
            (Failure::DeadlineOver, after(5_000), 504, None),
        ] {
            let answer = answer(Trouble::Pool(Refused { why, retry_after }));
            assert_eq!(answer.status, status, "{why}");
            assert!(answer.body.starts_with(phrase(status)), "{why}");
            let bytes = String::from_utf8(answer.bytes(false).to_vec()).unwrap();
            let line = said.map(|said| format!("\r\nRetry-After: {said}\r\n"));
            match line {
                Some(line) => assert!(bytes.contains(&line), "{why}: {bytes}"),
                None => assert!(!bytes.contains("Retry-After"), "{why}: {bytes}"),
            }
        }
    }
}

//! Named counters and gauges: plain atomics that anybody may raise and the control port may read.
//!
//! A name is declared once, in [`Name`], with its meaning; there is no registration and no lookup by text on the hot
//! path. Counts are of the whole process.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! names {
    ($($variant:ident $text:literal $meaning:literal),* $(,)?) => {
        /// What is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Name { $(#[doc = $meaning] $variant),* }

        /// Every name in order of declaration.
        pub const NAMES: &[Name] = &[$(Name::$variant),*];

        impl Name {
            /// The name as it is shown.
            pub fn text(self) -> &'static str {
                match self { $(Name::$variant => $text),* }
            }

            /// What the number says, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Name::$variant => $meaning),* }
            }
        }

        static VALUES: [AtomicU64; [$(Name::$variant),*].len()] = [const { AtomicU64::new(0) }; [$(Name::$variant),*].len()];
    };
}

names! {
    ConnectionsAccepted "connections_accepted" "Client connections accepted.",
    ConnectionsOpen "connections_open" "Client connections open now.",
    ConnectionsRefused "connections_refused" "Client connections closed at once because the limit was reached.",
    TlsHandshakes "tls_handshakes" "TLS handshakes completed.",
    TlsHandshakesFailed "tls_handshakes_failed" "TLS handshakes that ended without a session.",
    Requests "requests" "Requests parsed and routed.",
    RequestsRefused "requests_refused" "Requests answered by the front itself with a 4xx or 5xx status.",
    RequestsWaiting "requests_waiting" "Requests waiting for a handler now.",
    RequestsHandedOn "requests_handed_on" "Requests handed to another handler because theirs was lost.",
    RequestsLostHandler "requests_lost_handler" "Requests answered 502 because their handler was lost.",
    Replies "replies" "Messages received from handlers.",
    RepliesMalformed "replies_malformed" "Messages from handlers that could not be decoded.",
    RepliesUnknownId "replies_unknown_id" "Targets of replies that are no connection (any more).",
    ReplyBytesDropped "reply_bytes_dropped" "Bytes that handlers wrote behind the end of their response, not sent to the client.",
    UploadsNotStored "uploads_not_stored" "Request bodies that could not be stored in a file.",
    SlowClients "slow_clients" "Clients dropped because their mailbox was full.",
    Messages "messages" "Frames of WebSocket clients and messages of message sockets given to handlers.",
    MessagesDropped "messages_dropped" "Such messages that no handler took before their client left.",
    WebSocketsOpen "websockets_open" "WebSocket connections open now.",
    WebSocketsFailed "websockets_failed" "WebSocket connections ended because the client broke the protocol or a limit.",
    NoticesDropped "notices_dropped" "Notices that no handler was there to take.",
    HandlersJoined "handlers_joined" "Handler sockets that completed their handshake.",
    HandlersLost "handlers_lost" "Handler sockets lost.",
    WorkersEjected "workers_ejected" "Workers that got nothing for a while because they were much slower than others.",
    HandlersStalled "handlers_stalled" "Times a handler's socket stopped draining.",
    PeersRefused "peers_refused" "ZeroMQ peers closed because of what they sent.",
    AccessLinesDropped "access_lines_dropped" "Access log lines dropped because the writer was behind.",
}

impl Name {
    /// Whether it is what is there now, and falls too; the others count what has happened.
    pub fn falls(self) -> bool {
        matches!(
            self,
            Self::ConnectionsOpen | Self::RequestsWaiting | Self::WebSocketsOpen
        )
    }

    fn value(self) -> &'static AtomicU64 {
        &VALUES[self as usize]
    }

    /// Adds one.
    pub fn increment(self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(self, n: u64) {
        self.value().fetch_add(n, Ordering::Relaxed);
    }

    /// Takes one away: for gauges.
    pub fn decrement(self) {
        self.value().fetch_sub(1, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(self) -> u64 {
        self.value().load(Ordering::Relaxed)
    }
}

//! The front's limits, from the settings, in the units its hot paths compare.

use std::rc::Rc;
use std::time::Duration;

use crate::config::{ForwardedHeader, Settings};
use crate::front::client::NEVER;
use crate::front::upload::file;
use crate::http1;
use crate::networks::Networks;
use crate::websocket;
use crate::wire::request;

/// Descriptors of `superpoll.max_fd` that are left for logs, listeners and handlers.
const DESCRIPTORS_RESERVED: usize = 256;

/// What one payload costs beside its bytes, at most: its place in the queue, which grows by doubling, and an allocation.
const MAIL_COST: usize = 256;

/// Payloads that a mailbox takes whatever `limits.mailbox_bytes` is.
const MAILS_MIN: usize = 1_024;

/// See the settings of the same names in docs/SETTINGS.md. Times are milliseconds of the shard's clock.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting")]
pub(super) struct Limits {
    pub(super) head: http1::Limits,
    pub(super) header_names_max: usize,
    pub(super) header_values_max: usize,
    pub(super) content_length: usize,
    pub(super) targets_max: usize,
    pub(super) mailbox_bytes: usize,
    /// Payloads in a mailbox: each costs memory of its own, however small it is.
    pub(super) mailbox_mails: usize,
    pub(super) connections_max: usize,
    pub(super) head_timeout: u64,
    pub(super) idle_timeout: u64,
    pub(super) handler_timeout: u64,
    pub(super) body_grace: u64,
    /// Bytes per second.
    pub(super) body_rate: u64,
    pub(super) drain_timeout: Duration,
    /// The template of files for uploads, as handlers are told it; without one they are not stored.
    pub(super) upload_store: Option<Rc<str>>,
    pub(super) upload_mode: u32,
    /// Uploads are streamed, whether there is a store or not.
    pub(super) upload_stream: bool,
    /// The largest upload in bytes; 0: of any size.
    pub(super) upload_bytes: u64,
    /// The directory below which handlers may send files from.
    pub(super) sendfile_base: Option<Rc<str>>,
    pub(super) keep_forwarded_for: bool,
    pub(super) tcp_keepalive: bool,
    /// Peers that send the PROXY protocol's header before anything else.
    pub(super) proxy_protocol_from: Networks,
    /// Peers that are believed about their clients.
    pub(super) forwarded_from: Networks,
    pub(super) forwarded_header: ForwardedHeader,
    /// `download.flow_control`: handlers are told how much of what they sent a client has taken.
    pub(super) flow_control: bool,
    pub(super) proxy: ProxyLimits,
    pub(super) ping: PingLimits,
    pub(super) websocket: WebSocketLimits,
}

/// See the settings `websocket.*`. Times are milliseconds of the shard's clock.
#[derive(Debug)]
pub(super) struct WebSocketLimits {
    pub(super) frames: websocket::Limits,
    pub(super) held_bytes: usize,
    pub(super) answer_pings: bool,
    pub(super) deflate: bool,
    pub(super) close_timeout: u64,
    pub(super) ping_interval: u64,
}

/// What holds for the backends of proxies; `None` is no limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProxyLimits {
    pub(super) connect_timeout: Option<Duration>,
    /// While neither side of an open exchange moves a byte.
    pub(super) timeout: Option<Duration>,
    /// Exchanges that may be open with one backend.
    pub(super) connections: Option<usize>,
}

/// Mongrel2's rules about idle connections; a limit of 0 is off.
#[derive(Debug)]
pub(super) struct PingLimits {
    pub(super) tick: Duration,
    /// Seconds.
    pub(super) min_ping: u64,
    /// Bytes per second.
    pub(super) min_read_rate: u64,
    /// Bytes per second.
    pub(super) min_write_rate: u64,
    /// More violated limits than this end a connection.
    pub(super) kill_limit: u64,
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
        let room = settings.max_fd.saturating_sub(DESCRIPTORS_RESERVED).max(16);
        Self {
            head: http1::Limits {
                bytes: settings.head_bytes,
                relaxed: settings.relaxed,
                ..http1::Limits::default()
            },
            header_names_max: settings.header_count,
            header_values_max: request::VALUES_MAX,
            content_length: settings.content_length,
            targets_max: settings.handler_targets,
            mailbox_bytes: settings.mailbox_bytes,
            mailbox_mails: settings.mailbox_bytes.max(MAILS_MIN * MAIL_COST) / MAIL_COST,
            connections_max: settings.connections.unwrap_or(room),
            head_timeout: milliseconds(settings.head_timeout),
            idle_timeout: milliseconds(settings.idle_timeout),
            handler_timeout: settings.handler_timeout.map_or(NEVER, milliseconds),
            body_grace: milliseconds(settings.body_grace),
            body_rate: settings.body_rate,
            drain_timeout: settings.drain_timeout,
            upload_store: settings
                .upload_temp_store
                .as_deref()
                .filter(|template| template.ends_with(file::PLACEHOLDER))
                .map(Rc::from),
            upload_mode: settings.upload_temp_store_mode,
            upload_stream: settings.upload_stream,
            upload_bytes: settings.upload_bytes,
            sendfile_base: settings.sendfile_base.as_deref().map(Rc::from),
            keep_forwarded_for: settings.no_clobber_xff,
            tcp_keepalive: settings.tcp_keepalive,
            proxy_protocol_from: settings.proxy_protocol_from.clone(),
            forwarded_from: settings.forwarded_from.clone(),
            forwarded_header: settings.forwarded_header,
            flow_control: settings.download_flow_control,
            proxy: ProxyLimits {
                connect_timeout: settings.proxy_connect_timeout,
                timeout: settings.proxy_timeout,
                connections: settings.proxy_connections,
            },
            ping: PingLimits {
                tick: settings.tick_timer,
                min_ping: settings.min_ping.as_secs(),
                min_read_rate: settings.min_read_rate,
                min_write_rate: settings.min_write_rate,
                kill_limit: settings.kill_limit,
            },
            websocket: WebSocketLimits {
                frames: websocket::Limits {
                    message_bytes: settings.websocket_message_bytes,
                    fragments: u32::try_from(settings.websocket_fragments).unwrap_or(u32::MAX),
                },
                held_bytes: settings.websocket_held_bytes,
                answer_pings: settings.websocket_answer_pings,
                deflate: settings.websocket_deflate,
                close_timeout: milliseconds(settings.websocket_close_timeout),
                ping_interval: settings.websocket_ping_interval.map_or(NEVER, milliseconds),
            },
        }
    }
}

/// A setting of 0 seconds turns a deadline off.
fn milliseconds(time: Duration) -> u64 {
    if time.is_zero() {
        NEVER
    } else {
        u64::try_from(time.as_millis()).unwrap_or(NEVER)
    }
}

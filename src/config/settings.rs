//! The table of settings: every key of Mongrel2's that means something, and our own, with unit, default and meaning.
//!
//! One table makes the typed [`Settings`], their defaults, what is warned about and what `docs/SETTINGS.md` must hold.
//! Numbers are read as C's `atoi` reads them, since Mongrel2 does; a text that is no number is warned about. This
//! module looks at no file and enforces nothing: the parts that own a limit do.

use std::time::Duration;

use crate::networks::Networks;

/// What a setting does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It does what its meaning says.
    Honoured,
    /// It has no meaning here, for this reason; setting it is warned about.
    Meaningless(&'static str),
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The key, as in the table `setting` of a database and in `settings = { … }`.
    pub key: &'static str,
    /// The unit of the value, or what kind of text it is.
    pub unit: &'static str,
    /// The default, as one would write it; empty: none.
    pub default: &'static str,
    /// What it is for.
    pub meaning: &'static str,
    /// What it does here.
    pub effect: Effect,
    /// Whether Mongrel2 knows it too.
    pub origin: Origin,
}

/// Whose a setting is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Mongrel2's.
    Mongrel2,
    /// Added here; Mongrel2 ignores it.
    Lurcher,
}

/// The header by which balancers name their clients. One only: a balancer that writes the one lets a client's own other one
/// pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`, and `X-Forwarded-Proto` beside it.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

macro_rules! settings {
    ($( $field:ident: $type:ty = $read:ident($default:literal), $origin:ident $key:literal [$unit:literal]
        $effect:expr, $meaning:literal; )*) => {
        /// All settings of a configuration, typed; what was not set has its default.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Settings {
            $(
                #[doc = concat!("`", $key, "` (", $unit, "): ", $meaning, ".")]
                pub $field: $type,
            )*
        }

        /// The table, in the order of the keys.
        pub const TABLE: &[Setting] = &[
            $( Setting {
                key: $key,
                unit: $unit,
                default: $default,
                meaning: $meaning,
                effect: $effect,
                origin: Origin::$origin,
            }, )*
        ];

        impl Default for Settings {
            fn default() -> Settings {
                Settings { $( $field: $read($default).value, )* }
            }
        }

        impl Settings {
            fn assign(&mut self, key: &str, text: &str) -> Option<Option<String>> {
                match key {
                    $( $key => {
                        let reading = $read(text);
                        self.$field = reading.value;
                        Some(reading.odd)
                    } )*
                    _ => None,
                }
            }
        }
    };
}

const NO_STACKS: &str = "there are no coroutine stacks";

settings! {
    certdir: Option<String> = optional(""), Mongrel2 "certdir" ["directory"] Effect::Honoured,
        "where certificates and keys are, inside the chroot; needed with `use_ssl`";
    control_port: String = text("ipc://run/control"), Mongrel2 "control_port" ["socket spec"] Effect::Honoured,
        "the control port of servers that do not name one";
    disable_access_logging: bool = flag("0"), Mongrel2 "disable.access_logging" ["0 or 1"] Effect::Honoured,
        "1: no access log";
    download_flow_control: bool = flag("0"), Mongrel2 "download.flow_control" ["0 or 1"] Effect::Honoured,
        "1: handlers are told by credit notices how much a client has taken";
    forwarded_from: Networks = networks(""), Lurcher "forwarded.from" ["networks"] Effect::Honoured,
        "balancers that are believed about their clients: addresses or networks, separated by blanks";
    forwarded_header: ForwardedHeader = header("x-forwarded-for"), Lurcher "forwarded.header" ["header"] Effect::Honoured,
        "what they are believed by: `x-forwarded-for`, with `X-Forwarded-Proto`, or `forwarded` (RFC 7239)";
    body_grace: Duration = seconds("10"), Lurcher "limits.body_grace" ["seconds"] Effect::Honoured,
        "how long a request body may take before its rate counts";
    body_rate: u64 = number("300"), Lurcher "limits.body_rate" ["bytes per second"] Effect::Honoured,
        "the least average rate of a request body; 0: none";
    buffer_size: usize = count("4096"), Mongrel2 "limits.buffer_size" ["bytes"] Effect::Honoured,
        "raises `limits.head_bytes` where it is larger and that is not set; a smaller one is no limit here";
    client_read_retries: usize = count("5"), Mongrel2 "limits.client_read_retries" ["reads"]
        Effect::Meaningless("a head may come in any number of pieces within limits.head_timeout"),
        "in how many pieces a head may come";
    connection_stack_size: usize = count("32768"), Mongrel2 "limits.connection_stack_size" ["bytes"]
        Effect::Meaningless(NO_STACKS), "stack of a connection";
    connections: Option<usize> = limit("0"), Lurcher "limits.connections" ["connections"] Effect::Honoured,
        "how many clients may be connected at once; 0: as many as `superpoll.max_fd` allows";
    content_length: usize = count("20480"), Mongrel2 "limits.content_length" ["bytes"] Effect::Honoured,
        "the largest request body that a handler gets in one message";
    dir_cache_bytes: usize = count("16777216"), Lurcher "limits.dir_cache_bytes" ["bytes"] Effect::Honoured,
        "how much of small files is kept in memory, for all directories together, each up to 256 KiB and a sixteenth of it; 0: none";
    dir_max_path: usize = count("256"), Mongrel2 "limits.dir_max_path" ["bytes"] Effect::Honoured,
        "a directory's base and the prefix of its routes must be shorter";
    dir_send_buffer: usize = count("16384"), Mongrel2 "limits.dir_send_buffer" ["bytes"] Effect::Honoured,
        "how much of a file is read at once; held to 64 KiB and 1 MiB";
    drain_timeout: Duration = seconds("30"), Lurcher "limits.drain_timeout" ["seconds"] Effect::Honoured,
        "how long a stopping server waits for what is open";
    fdtask_stack: usize = count("102400"), Mongrel2 "limits.fdtask_stack" ["bytes"] Effect::Meaningless(NO_STACKS),
        "stack of the polling task";
    handler_queue: usize = count("4096"), Lurcher "limits.handler_queue" ["requests"] Effect::Honoured,
        "how many requests may wait for a handler, for each handler";
    handler_queue_bytes: usize = count("67108864"), Lurcher "limits.handler_queue_bytes" ["bytes"] Effect::Honoured,
        "how many bytes of requests may wait for a handler, for each handler";
    handler_stack: usize = count("102400"), Mongrel2 "limits.handler_stack" ["bytes"] Effect::Meaningless(NO_STACKS),
        "stack of a handler's task";
    handler_targets: usize = count("128"), Mongrel2 "limits.handler_targets" ["ids"] Effect::Honoured,
        "how many connections one reply may name; a reply with more is dropped";
    handler_timeout: Option<Duration> = deadline("0"), Lurcher "limits.handler_timeout" ["seconds"] Effect::Honoured,
        "how long a handler may take to answer; 0: as long as it likes";
    handler_wait: Duration = seconds("30"), Lurcher "limits.handler_wait" ["seconds"] Effect::Honoured,
        "how long a request may wait for a handler before it is answered 503";
    head_bytes: usize = count("65536"), Lurcher "limits.head_bytes" ["bytes"] Effect::Honoured,
        "the largest head of a request";
    head_timeout: Duration = seconds("10"), Lurcher "limits.head_timeout" ["seconds"] Effect::Honoured,
        "how long a client may take to send the head of a request";
    header_count: usize = count("1280"), Mongrel2 "limits.header_count" ["names"] Effect::Honoured,
        "how many different header names are kept; further ones are dropped";
    host_name: usize = count("256"), Mongrel2 "limits.host_name" ["bytes"] Effect::Honoured,
        "the `name` and the `matching` of a host must be shorter";
    idle_timeout: Duration = seconds("120"), Lurcher "limits.idle_timeout" ["seconds"] Effect::Honoured,
        "how long a connection may stay open between requests";
    kill_limit: u64 = number("2"), Mongrel2 "limits.kill_limit" ["limits"] Effect::Honoured,
        "a connection is closed when it breaks more than so many of the ping, read rate and write rate limits";
    mailbox_bytes: usize = count("16777216"), Lurcher "limits.mailbox_bytes" ["bytes"] Effect::Honoured,
        "how much may wait for a slow client before it is dropped; one message always fits";
    mime_ext_len: usize = count("128"), Mongrel2 "limits.mime_ext_len" ["bytes"] Effect::Honoured,
        "the extension of a mime type must be shorter";
    min_ping: Duration = seconds("120"), Mongrel2 "limits.min_ping" ["seconds"] Effect::Honoured,
        "a connection that has not sent a ping for so long breaks a limit; 0: none";
    min_read_rate: u64 = number("300"), Mongrel2 "limits.min_read_rate" ["bytes per second"] Effect::Honoured,
        "a connection that sends less breaks a limit; 0: none";
    min_write_rate: u64 = number("300"), Mongrel2 "limits.min_write_rate" ["bytes per second"] Effect::Honoured,
        "a connection that takes less breaks a limit; 0: none";
    proxy_read_retries: usize = count("100"), Mongrel2 "limits.proxy_read_retries" ["reads"]
        Effect::Meaningless("a backend's head may come in any number of pieces"),
        "in how many pieces a backend's head may come";
    proxy_read_retry_warn: usize = count("10"), Mongrel2 "limits.proxy_read_retry_warn" ["reads"]
        Effect::Meaningless("a backend's head may come in any number of pieces"),
        "above how many pieces of a backend's head a warning is logged";
    tick_timer: Duration = period("10"), Mongrel2 "limits.tick_timer" ["seconds"] Effect::Honoured,
        "how often connections are looked at for broken limits";
    url_path: usize = count("256"), Mongrel2 "limits.url_path" ["bytes"]
        Effect::Meaningless("Mongrel2 never enforces it, and neither does this; limits.head_bytes bounds the whole head"),
        "length of a path";
    upload_bytes: u64 = number("0"), Lurcher "limits.upload_bytes" ["bytes"] Effect::Honoured,
        "the largest request body that is stored or streamed; 0: any";
    metrics_port: Option<String> = optional(""), Lurcher "metrics_port" ["address:port"] Effect::Honoured,
        "where a Prometheus fetches figures by HTTP, at /metrics; empty: nowhere";
    tcp_keepalive: bool = flag("0"), Mongrel2 "net.tcp_keepalive" ["0 or 1"] Effect::Honoured,
        "1: the system probes idle clients (SO_KEEPALIVE)";
    no_clobber_xff: bool = flag("0"), Mongrel2 "no_clobber_xff" ["0 or 1"] Effect::Honoured,
        "1: a client's X-Forwarded-For is left alone, and none is added";
    proxy_connect_timeout: Option<Duration> = deadline("5"), Lurcher "proxy.connect_timeout" ["seconds"] Effect::Honoured,
        "how long a proxied request may wait for a connection to its backend; 0: as long as it takes";
    proxy_connections: Option<usize> = limit("0"), Lurcher "proxy.connections" ["connections"] Effect::Honoured,
        "how many connections may be in use to one backend; further requests wait for `proxy.connect_timeout`; 0: any number";
    proxy_timeout: Option<Duration> = deadline("60"), Lurcher "proxy.timeout" ["seconds"] Effect::Honoured,
        "how long a backend may neither take nor send anything while a request is open; 0: as long as it likes";
    proxy_protocol_from: Networks = networks(""), Lurcher "proxy_protocol.from" ["networks"] Effect::Honoured,
        "balancers that must begin each connection with a header of the PROXY protocol, version 1 or 2";
    reload_on_hangup: bool = flag("1"), Lurcher "reload.on_hangup" ["0 or 1"] Effect::Honoured,
        "0: SIGHUP reopens the logs and reads the certificates, and does not look at the configuration";
    relaxed: bool = flag("0"), Mongrel2 "request.relaxed" ["0 or 1"] Effect::Honoured,
        "1: `{`, `}` and `^` are allowed in a request's URI";
    sendfile_base: Option<String> = optional(""), Lurcher "sendfile.base" ["directory"] Effect::Honoured,
        "below which directory, inside the chroot, handlers may have files sent by the extended reply `sendfile`; none: nowhere";
    daemonize: bool = flag("1"), Mongrel2 "server.daemonize" ["0 or 1"] Effect::Honoured,
        "0: a server that is started by the name `mongrel2` stays in the foreground; `lurcher serve` does unless it is told `--daemon`";
    ssl_ca_chain: Option<String> = optional(""), Mongrel2 "ssl.ca_chain" ["file"] Effect::Honoured,
        "certificates that client certificates are checked against (PEM)";
    ssl_verify_optional: bool = flag("0"), Mongrel2 "ssl.verify_optional" ["0 or 1"] Effect::Honoured,
        "1: clients are asked for a certificate";
    ssl_verify_required: bool = flag("0"), Mongrel2 "ssl.verify_required" ["0 or 1"] Effect::Honoured,
        "1: clients must have a certificate";
    ssl_ciphers: Option<String> = optional(""), Mongrel2 "ssl_ciphers" ["names"] Effect::Honoured,
        "the cipher suites to offer, separated by spaces; those of TLS 1.3 stay unless some are named";
    hot_dividend: usize = count("4"), Mongrel2 "superpoll.hot_dividend" ["divisor"]
        Effect::Meaningless("all connections are polled alike"),
        "`superpoll.max_fd` by this is the number of sockets in the fast poll set";
    max_fd: usize = count("10240"), Mongrel2 "superpoll.max_fd" ["descriptors"] Effect::Honoured,
        "how many file descriptors the server may open, and so how many clients it takes";
    upload_stream: bool = flag("0"), Mongrel2 "upload.stream" ["0 or 1"] Effect::Honoured,
        "1: large bodies are streamed to the handler";
    upload_temp_store: Option<String> = optional(""), Mongrel2 "upload.temp_store" ["file name"] Effect::Honoured,
        "where large bodies are stored: a file name ending in XXXXXX, inside the chroot";
    upload_temp_store_mode: u32 = mode("0600"), Mongrel2 "upload.temp_store_mode" ["file mode"] Effect::Honoured,
        "the permissions of stored bodies; octal with a leading 0";
    websocket_answer_pings: bool = flag("0"), Lurcher "websocket.answer_pings" ["0 or 1"] Effect::Honoured,
        "1: the server answers the pings of WebSocket clients, and handlers do not see them";
    websocket_close_timeout: Duration = seconds("5"), Lurcher "websocket.close_timeout" ["seconds"] Effect::Honoured,
        "how long a handler, or a client, may take to answer a WebSocket's close";
    websocket_deflate: bool = flag("0"), Lurcher "websocket.deflate" ["0 or 1"] Effect::Honoured,
        "1: WebSocket messages are compressed for clients that offer it (permessage-deflate); handlers do not see it";
    websocket_fragments: usize = count("131072"), Lurcher "websocket.fragments" ["frames"] Effect::Honoured,
        "how many frames a WebSocket message may have";
    websocket_held_bytes: usize = count("268435456"), Lurcher "websocket.held_bytes" ["bytes"] Effect::Honoured,
        "how much of incomplete and waiting WebSocket messages is held, of all clients together; 65,536 bytes of each are always";
    websocket_message_bytes: usize = count("16777216"), Lurcher "websocket.message_bytes" ["bytes"] Effect::Honoured,
        "the largest message of a WebSocket client";
    websocket_ping_interval: Option<Duration> = deadline("0"), Lurcher "websocket.ping_interval" ["seconds"] Effect::Honoured,
        "how long a WebSocket client may be silent before the server pings it, and then again before it counts as gone; 0: no pings";
    zeromq_threads: usize = count("1"), Mongrel2 "zeromq.threads" ["threads"]
        Effect::Meaningless("the server speaks ZeroMQ's protocol itself, on the threads that serve clients"),
        "ZeroMQ's own threads";
}

/// The row of `key`.
pub fn find(key: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|setting| setting.key == key)
}

impl Settings {
    /// Reads rows of key and value in their order; a later row of the same key wins. What is odd about a row comes
    /// back with its index: a key nobody knows, one that does nothing here, a number that is none.
    pub fn read<'a>(
        rows: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> (Settings, Vec<(usize, String)>) {
        let mut settings = Settings::default();
        let mut odd = Vec::new();
        let mut head_bytes_set = false;
        for (index, (key, text)) in rows.into_iter().enumerate() {
            let Some(reading) = settings.assign(key, text) else {
                odd.push((index, unknown(key)));
                continue;
            };
            odd.extend(reading.map(|reading| (index, format!("setting `{key}`: {reading}"))));
            if let Some(Effect::Meaningless(why)) = find(key).map(|setting| setting.effect) {
                odd.push((index, format!("setting `{key}` has no meaning here: {why}")));
            }
            if key == "upload.temp_store" && !text.is_empty() && !text.ends_with("XXXXXX") {
                let why = "does not end in XXXXXX, so nothing is stored, and large bodies are answered 413";
                odd.push((index, format!("setting `{key}`: {text:?} {why}")));
            }
            head_bytes_set |= key == "limits.head_bytes";
        }
        if !head_bytes_set {
            // Whoever gave Mongrel2 more room for heads needs it here too.
            settings.head_bytes = settings.head_bytes.max(settings.buffer_size);
        }
        (settings, odd)
    }
}

fn unknown(key: &str) -> String {
    let near = TABLE
        .iter()
        .map(|setting| (distance(setting.key, key), setting.key))
        .min()
        .filter(|&(distance, _)| distance <= 3)
        .map(|(_, near)| format!("; did you mean `{near}`?"))
        .unwrap_or_default();
    format!(
        "setting `{}` is unknown and ignored{near}",
        key.escape_debug()
    )
}

/// Edit distance (Levenshtein), for hints.
pub(super) fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, r) in right.bytes().enumerate() {
            let changed = diagonal + usize::from(l != r);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

struct Reading<T> {
    value: T,
    odd: Option<String>,
}

/// What C's `atoi` reads, held to `0..=max`.
fn atoi(text: &str, max: i64) -> Reading<i64> {
    let trimmed = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (negative, digits) = match trimmed.as_bytes().first() {
        Some(b'-') => (true, trimmed.get(1..).unwrap_or_default()),
        Some(b'+') => (false, trimmed.get(1..).unwrap_or_default()),
        _ => (false, trimmed),
    };
    let end = digits.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = digits.split_at_checked(end).unwrap_or((digits, ""));
    let value = number.bytes().fold(0_i64, |value, digit| {
        value
            .saturating_mul(10)
            .saturating_add(i64::from(digit - b'0'))
    });
    let read = |value: i64, why: String| Reading {
        value,
        odd: Some(format!("{why}; read as {value}")),
    };
    if number.is_empty() {
        read(0, format!("{text:?} is no number"))
    } else if negative && value != 0 {
        read(0, format!("{text:?} is below 0"))
    } else if value > max {
        read(max, format!("{text:?} is above {max}"))
    } else if !rest.is_empty() {
        read(value, format!("{text:?} is no number"))
    } else {
        Reading { value, odd: None }
    }
}

fn map<T, U>(reading: Reading<T>, with: impl FnOnce(T) -> U) -> Reading<U> {
    Reading {
        value: with(reading.value),
        odd: reading.odd,
    }
}

/// More than any number here can mean, and still safe to add and to multiply by a few.
const NUMBER_MAX: i64 = 1 << 50;

fn number(text: &str) -> Reading<u64> {
    map(atoi(text, NUMBER_MAX), i64::unsigned_abs)
}

fn count(text: &str) -> Reading<usize> {
    map(atoi(text, NUMBER_MAX), |value| {
        usize::try_from(value).unwrap_or(usize::MAX)
    })
}

fn limit(text: &str) -> Reading<Option<usize>> {
    map(count(text), |count| (count != 0).then_some(count))
}

fn flag(text: &str) -> Reading<bool> {
    map(atoi(text, NUMBER_MAX), |value| value != 0)
}

/// Held to 32 bits, so that it can be added to any point in time.
fn seconds(text: &str) -> Reading<Duration> {
    map(atoi(text, u32::MAX.into()), |value| {
        Duration::from_secs(value.unsigned_abs())
    })
}

fn deadline(text: &str) -> Reading<Option<Duration>> {
    map(seconds(text), |time| (!time.is_zero()).then_some(time))
}

fn period(text: &str) -> Reading<Duration> {
    let reading = seconds(text);
    if reading.value.is_zero() {
        return Reading {
            value: Duration::from_secs(1),
            odd: Some(format!("{text:?} is no period; read as 1")),
        };
    }
    reading
}

/// As C's `strtoul` with base 0: `0640` is octal, `0x1a0` hexadecimal, `416` decimal.
fn mode(text: &str) -> Reading<u32> {
    let digits = text.trim();
    let value = if let Some(hex) = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        u32::from_str_radix(hex, 16)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u32::from_str_radix(digits, 8)
    } else {
        digits.parse()
    };
    match value {
        Ok(value) if value <= 0o7777 => Reading { value, odd: None },
        _ => Reading {
            value: 0o600,
            odd: Some(format!("{text:?} is no file mode; read as 0600")),
        },
    }
}

/// A mistake in a list of whom to trust makes the list shorter, never longer.
fn networks(text: &str) -> Reading<Networks> {
    let (value, odd) = Networks::read(text);
    Reading {
        value,
        odd: (!odd.is_empty()).then(|| {
            format!(
                "no address and no network: {}; left out",
                odd.join(" ").escape_debug()
            )
        }),
    }
}

fn header(text: &str) -> Reading<ForwardedHeader> {
    let (value, odd) = match text.trim() {
        name if name.eq_ignore_ascii_case("forwarded") => (ForwardedHeader::Forwarded, None),
        name if name.eq_ignore_ascii_case("x-forwarded-for") => {
            (ForwardedHeader::XForwardedFor, None)
        }
        _ => (
            ForwardedHeader::XForwardedFor,
            Some(format!(
                "{text:?} is neither `x-forwarded-for` nor `forwarded`; read as x-forwarded-for"
            )),
        ),
    };
    Reading { value, odd }
}

fn text(text: &str) -> Reading<String> {
    Reading {
        value: text.to_owned(),
        odd: None,
    }
}

fn optional(text: &str) -> Reading<Option<String>> {
    Reading {
        value: (!text.is_empty()).then(|| text.to_owned()),
        odd: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_what_the_table_says() {
        let settings = Settings::default();
        assert_eq!(settings.head_bytes, 65_536);
        assert_eq!(settings.handler_queue_bytes, 64 << 20);
        assert_eq!(settings.handler_timeout, None);
        assert_eq!(settings.upload_temp_store_mode, 0o600);
        assert!(settings.reload_on_hangup && settings.daemonize && !settings.relaxed);
    }

    #[test]
    fn the_defaults_read_without_a_warning() {
        let rows: Vec<_> = TABLE
            .iter()
            .map(|setting| (setting.key, setting.default))
            .collect();
        let (settings, odd) = Settings::read(rows.iter().copied());
        assert_eq!(settings, Settings::default());
        let honoured: Vec<_> = odd
            .iter()
            .filter(|(index, _)| TABLE[*index].effect == Effect::Honoured)
            .collect();
        assert!(honoured.is_empty(), "{honoured:?}");
    }

    /// The row of a setting in docs/SETTINGS.md.
    fn documented(setting: &Setting) -> String {
        let default = if setting.default.is_empty() {
            "–".to_owned()
        } else {
            format!("`{}`", setting.default)
        };
        let note = match setting.effect {
            Effect::Honoured => String::new(),
            Effect::Meaningless(why) => format!(" *No meaning here: {why}.*"),
        };
        format!(
            "| `{}` | {} | {default} | {}.{note} |",
            setting.key, setting.unit, setting.meaning
        )
    }

    #[test]
    fn every_setting_stands_in_the_documentation_as_the_table_has_it() {
        let text = include_str!("../../docs/SETTINGS.md");
        let (mongrel2, own) = text.split_once("## Lurcher's own").expect("two parts");
        let rows = |part: &str| {
            part.lines()
                .filter(|line| line.starts_with("| `"))
                .map(str::to_owned)
                .collect()
        };
        for (origin, part) in [(Origin::Mongrel2, mongrel2), (Origin::Lurcher, own)] {
            let written: Vec<String> = rows(part);
            let table = TABLE.iter().filter(|setting| setting.origin == origin);
            let expect: Vec<String> = table.map(documented).collect();
            assert_eq!(written, expect, "write:\n{}", expect.join("\n"));
        }
    }

    #[test]
    fn no_key_stands_twice() {
        for (index, setting) in TABLE.iter().enumerate() {
            assert!(
                TABLE[..index].iter().all(|other| other.key != setting.key),
                "{}",
                setting.key
            );
        }
    }

    #[test]
    fn numbers_read_as_atoi_does_and_say_so_when_they_are_none() {
        for (text, value, odd) in [
            ("12", 12, false),
            (" +12", 12, false),
            ("12k", 12, true),
            ("twelve", 0, true),
            ("", 0, true),
            ("-1", 0, true),
            ("-0", 0, false),
            ("99999999999999999999", NUMBER_MAX, true),
        ] {
            let reading = atoi(text, NUMBER_MAX);
            assert_eq!(
                (reading.value, reading.odd.is_some()),
                (value, odd),
                "{text:?}"
            );
        }
    }

    #[test]
    fn unknown_and_meaningless_keys_are_named() {
        let (_, odd) = Settings::read([
            ("limits.contentlength", "1"),
            ("zeromq.threads", "2"),
            ("a", "b"),
        ]);
        let lines: Vec<_> = odd.iter().map(|(_, line)| line.as_str()).collect();
        assert!(
            lines[0].contains("did you mean `limits.content_length`?"),
            "{lines:?}"
        );
        assert!(
            lines[1].starts_with("setting `zeromq.threads` has no meaning here"),
            "{lines:?}"
        );
        assert_eq!(lines[2], "setting `a` is unknown and ignored");
    }

    #[test]
    fn a_larger_buffer_leaves_room_for_larger_heads() {
        let read = |rows: &[(&'static str, &'static str)]| {
            Settings::read(rows.iter().copied()).0.head_bytes
        };
        assert_eq!(read(&[("limits.buffer_size", "2048")]), 65_536);
        assert_eq!(read(&[("limits.buffer_size", "131072")]), 131_072);
        assert_eq!(
            read(&[
                ("limits.buffer_size", "131072"),
                ("limits.head_bytes", "8192")
            ]),
            8192
        );
    }

    #[test]
    fn the_last_row_of_a_key_wins_and_modes_read_as_strtoul_does() {
        let (settings, _) = Settings::read([
            ("limits.content_length", "1"),
            ("limits.content_length", "2"),
            ("upload.temp_store_mode", "0640"),
        ]);
        assert_eq!(
            (settings.content_length, settings.upload_temp_store_mode),
            (2, 0o640)
        );
    }
}

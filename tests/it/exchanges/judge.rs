//! Judging what was observed: against the recording, strictly, or against what a deviation accepts instead.
//! The keys are those that `_format` of deviations.json explains; an unknown one is an error, never ignored.

use std::collections::BTreeMap;

use regex::bytes::Regex;
use serde_json::Value;

use super::message::{Message, Values};
use super::recording::Exchange;
use crate::support::client::{Answer, Asked, split_answer};

/// Everything that came out of one replay.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// All bytes the client got.
    pub(crate) client: Vec<u8>,
    /// What the client's requests were: answers to HEAD end with their head.
    pub(crate) asked: Asked,
    /// Whether the server had closed before the client did.
    pub(crate) closed: bool,
    /// Whether the client looked, so that `closed` means something.
    pub(crate) looked: bool,
    pub(crate) messages: Vec<Message>,
    /// Payloads that handlers sent, in order.
    pub(crate) payloads: Vec<Vec<u8>>,
    /// Contents of finished upload files.
    pub(crate) uploads: Vec<Vec<u8>>,
    pub(crate) backend: Vec<BackendRequest>,
    /// A step of a plan that did not go as planned.
    pub(crate) broken: Option<String>,
}

/// What a proxied server received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendRequest {
    /// As it was on the wire.
    pub(crate) raw: Vec<u8>,
    /// Empty when it is no request.
    pub(crate) method: String,
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    /// Without framing.
    pub(crate) body: Vec<u8>,
}

impl BackendRequest {
    pub(crate) fn parse(raw: Vec<u8>, body: Vec<u8>) -> Self {
        let text = String::from_utf8_lossy(&raw).into_owned();
        let head = text.split_once("\r\n\r\n").map_or("", |(head, _)| head);
        let mut lines = head.split("\r\n");
        let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let (method, path) = match words.as_slice() {
            [method, path, _] => ((*method).to_owned(), (*path).to_owned()),
            _ => (String::new(), String::new()),
        };
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.as_bytes().to_vec()))
            .collect();
        Self {
            raw,
            method,
            path,
            headers,
            body,
        }
    }

    fn values(&self, name: &str) -> Vec<&[u8]> {
        self.headers
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, value)| value.as_slice())
            .collect()
    }
}

/// How much of the outcome is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything.
    Whole,
    /// Only what the client got: decides when a read is over.
    Client,
}

/// Whether text that is not UTF-8 must come as it was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    /// Byte for byte, as Mongrel2.
    AsRecorded,
    /// Or read as Latin-1, so that JSON is JSON.
    Latin1,
}

type Verdict = Result<(), String>;

/// A piece of what a client received.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Handler(Vec<u8>),
    Own { status: u16, body: Vec<u8> },
    Raw(Vec<u8>),
}

/// Everything as recorded: handler bytes exactly, the server's own answers by status and body, messages as values.
pub(crate) fn as_recorded(exchange: &Exchange, observed: &Observed, text: Text) -> Verdict {
    same_client(exchange, observed)?;
    same_closed(exchange, observed)?;
    if exchange.protocol == "proxy" {
        let raw: Vec<&[u8]> = observed.backend.iter().map(|r| r.raw.as_slice()).collect();
        expect(
            raw == exchange.backend,
            "the backend got other bytes than recorded",
        )?;
    }
    same_messages(&exchange.messages, &observed.messages, text)
}

/// What must hold for every exchange, whatever its deviation says.
pub(crate) fn sound(observed: &Observed) -> Verdict {
    if let Some(broken) = &observed.broken {
        return Err(broken.clone());
    }
    if let Some(message) = observed.messages.iter().find(|message| !message.valid) {
        return Err(format!("headers that are not valid JSON: {message:?}"));
    }
    let says_close = |answer: &Answer| {
        answer.header("connection").is_some_and(|v| {
            String::from_utf8_lossy(v)
                .to_ascii_lowercase()
                .contains("close")
        })
    };
    if observed.looked && !observed.closed && final_answers(observed).iter().any(says_close) {
        return Err("an answer says Connection: close, but the connection stays open".to_owned());
    }
    Ok(())
}

/// Whether a deviation's `accept` holds.
pub(crate) fn accepted(
    accept: &Value,
    exchange: &Exchange,
    observed: &Observed,
    scope: Scope,
) -> Verdict {
    let Value::Object(keys) = accept else {
        return if accept == "any" {
            Ok(())
        } else {
            Err(format!("cannot read accept: {accept}"))
        };
    };
    for (key, wanted) in keys {
        let verdict = match key.as_str() {
            "same" => same(wanted, exchange, observed, scope),
            "any_of" => any_of(wanted, exchange, observed, scope),
            "closed" if scope == Scope::Client => Ok(()),
            "closed" => expect(
                wanted.as_bool() == Some(observed.closed),
                "another state of the connection",
            ),
            "status" | "statuses" | "body" | "headers" | "client_raw" | "ws_close" => {
                client_key(key, wanted, observed)
            }
            "live_etag" | "plan" => Ok(()),
            _ if scope == Scope::Client => Ok(()),
            "stream_body" => stream_body(wanted, exchange, observed),
            "backend_requests" | "backend_paths" | "backend_bodies" | "backend_header" => {
                backend(key, wanted, observed)
            }
            _ => handler_key(key, wanted, observed),
        };
        verdict.map_err(|why| format!("{key} {wanted}: {why}"))?;
    }
    Ok(())
}

/// Which states of the connection an `accept` allows before the client closes: (closed, open).
pub(crate) fn allowed_closed(accept: &Value, recorded: Option<bool>) -> (bool, bool) {
    if let Some(closed) = accept["closed"].as_bool() {
        return (closed, !closed);
    }
    if let (true, Some(closed)) = (list(&accept["same"]).any(|part| part == "closed"), recorded) {
        return (closed, !closed);
    }
    let mut alternatives = list(&accept["any_of"])
        .map(|one| allowed_closed(one, recorded))
        .peekable();
    if alternatives.peek().is_none() {
        return (true, true);
    }
    alternatives.fold((false, false), |(a, b), (c, d)| (a || c, b || d))
}

/// Whether an `accept` says anything about the state of the connection.
pub(crate) fn mentions_closed(accept: &Value) -> bool {
    !accept["closed"].is_null() || list(&accept["any_of"]).any(mentions_closed)
}

/// Whether the client has so far got what it had got in the recording up to `recorded`.
pub(crate) fn client_so_far(recorded: &[u8], exchange: &Exchange, observed: &Observed) -> bool {
    parts(&observed.client, exchange, observed) == parts(recorded, exchange, observed)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn expect(holds: bool, otherwise: &str) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(otherwise.to_owned())
    }
}

fn any_of(wanted: &Value, exchange: &Exchange, observed: &Observed, scope: Scope) -> Verdict {
    let mut reasons = Vec::new();
    for one in list(wanted) {
        match accepted(one, exchange, observed, scope) {
            Ok(()) => return Ok(()),
            Err(why) => reasons.push(why),
        }
    }
    Err(reasons.join("; "))
}

fn same(wanted: &Value, exchange: &Exchange, observed: &Observed, scope: Scope) -> Verdict {
    for part in list(wanted) {
        match part.as_str() {
            Some("client") => same_client(exchange, observed)?,
            _ if scope == Scope::Client => {}
            Some("closed") => same_closed(exchange, observed)?,
            Some("handler") => same_messages(&exchange.messages, &observed.messages, Text::Latin1)?,
            Some("upload") => {
                let whole = uploaded_body(exchange);
                expect(
                    observed.uploads.iter().all(|file| *file == whole),
                    "an upload file differs from the body",
                )?;
            }
            Some("backend") => same_backend(exchange, observed)?,
            _ => return Err(format!("unknown part {part}")),
        }
    }
    Ok(())
}

/// Fields of one hop, which are not passed on.
const HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "transfer-encoding",
    "te",
    "upgrade",
];

/// Fields that a proxy says itself.
const OWN: &[&str] = &[
    "via",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
];

/// The backend got the recorded requests: method, target, body, and all fields but those of the hop; beside them what a proxy
/// adds, and nothing else.
fn same_backend(exchange: &Exchange, observed: &Observed) -> Verdict {
    let seen = &observed.backend;
    expect(
        seen.len() == exchange.backend.len(),
        &format!(
            "{} requests reached the backend, recorded {}",
            seen.len(),
            exchange.backend.len()
        ),
    )?;
    for (raw, seen) in exchange.backend.iter().zip(seen) {
        let recorded = BackendRequest::parse(raw.clone(), Vec::new());
        let differs = || {
            format!(
                "the backend got {:?}, recorded {:?}",
                clip(&seen.raw),
                clip(raw)
            )
        };
        expect(
            seen.method == recorded.method && seen.path == recorded.path && seen.body.is_empty(),
            &differs(),
        )?;
        let passes = |name: &str| !HOP.contains(&name) && !OWN.contains(&name);
        let kept = recorded.headers.iter().filter(|(name, _)| passes(name));
        for (name, _) in kept.clone() {
            expect(seen.values(name) == recorded.values(name), &differs())?;
        }
        for (name, _) in &seen.headers {
            // HTTP/1.1 needs a host, where the client's 1.0 named none.
            let known = OWN.contains(&name.as_str())
                || kept.clone().any(|(n, _)| n == name)
                || (name == "host" && recorded.values("host").is_empty());
            expect(known, &differs())?;
        }
        let address = seen.values("x-forwarded-for");
        expect(address == [b"127.0.0.1"], &differs())?;
    }
    Ok(())
}

fn same_closed(exchange: &Exchange, observed: &Observed) -> Verdict {
    match exchange.closed {
        Some(closed) if observed.looked && closed != observed.closed => Err(format!(
            "recorded closed {closed}, observed {}",
            observed.closed
        )),
        _ => Ok(()),
    }
}

fn same_client(exchange: &Exchange, observed: &Observed) -> Verdict {
    let recorded = parts(&exchange.client_receives, exchange, observed);
    let seen = parts(&observed.client, exchange, observed);
    expect(
        recorded == seen,
        &format!(
            "the client got {}, recorded {}",
            short(&seen),
            short(&recorded)
        ),
    )
}

fn short(parts: &[Part]) -> String {
    let one = |part: &Part| match part {
        Part::Handler(bytes) => format!("handler bytes {:?}", clip(bytes)),
        Part::Own { status, body } => format!("own {status} {:?}", clip(body)),
        Part::Raw(bytes) => format!("raw {:?}", clip(bytes)),
    };
    format!("[{}]", parts.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn clip(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..200).unwrap_or(bytes)).into_owned()
}

/// Takes client bytes apart: payloads of handlers wherever the next ones stand, the server's own answers between them.
fn parts(bytes: &[u8], exchange: &Exchange, observed: &Observed) -> Vec<Part> {
    let recorded;
    let payloads = if observed.payloads.is_empty() {
        recorded = exchange
            .replies
            .iter()
            .map(|reply| payload(reply).to_vec())
            .collect::<Vec<_>>();
        &recorded
    } else {
        &observed.payloads
    };
    let asked = observed.asked;
    let mut parts = Vec::new();
    let mut rest = bytes;
    let mut next = 0;
    while !rest.is_empty() {
        let unsent = payloads.iter().enumerate().skip(next);
        if let Some((index, payload)) = unsent
            .into_iter()
            .find(|(_, p)| !p.is_empty() && rest.starts_with(p))
        {
            parts.push(Part::Handler(payload.clone()));
            rest = &rest[payload.len()..];
            next = index + 1;
        } else if let Some((answer, length)) = split_answer(rest, asked, false) {
            parts.push(Part::Own {
                status: answer.status,
                body: answer.body,
            });
            rest = &rest[length..];
        } else {
            parts.push(Part::Raw(rest.to_vec()));
            break;
        }
    }
    parts
}

/// What follows the ids in a reply message (everything, when it is malformed).
pub(crate) fn payload(reply: &[u8]) -> &[u8] {
    let after_ids = || {
        let colon = reply.iter().position(|&byte| byte == b':')?;
        let comma = colon + reply.get(colon..)?.iter().position(|&byte| byte == b',')?;
        reply.get(comma + 2..)
    };
    after_ids().unwrap_or(reply)
}

fn same_messages(recorded: &[Message], observed: &[Message], text: Text) -> Verdict {
    let mut handlers: Vec<char> = recorded
        .iter()
        .chain(observed)
        .map(|message| message.handler)
        .collect();
    handlers.sort_unstable();
    handlers.dedup();
    let mut ids = BTreeMap::new();
    for handler in handlers {
        let of = |list: &[Message]| {
            list.iter()
                .filter(|m| m.handler == handler)
                .cloned()
                .collect::<Vec<_>>()
        };
        let (recorded, observed) = (of(recorded), of(observed));
        let paths = |list: &[Message]| list.iter().map(|m| clip(&m.path)).collect::<Vec<_>>();
        expect(
            recorded.len() == observed.len(),
            &format!(
                "handler {handler} got {:?}, recorded {:?}",
                paths(&observed),
                paths(&recorded)
            ),
        )?;
        for (recorded, observed) in recorded.iter().zip(&observed) {
            let id = ids
                .entry(recorded.id.clone())
                .or_insert_with(|| observed.id.clone());
            let fields = recorded.sender == observed.sender
                && recorded.path == observed.path
                && recorded.body == observed.body
                && *id == observed.id
                && same_headers(&recorded.headers, &observed.headers, text);
            expect(
                fields,
                &format!("handler {handler} got {observed:?}, recorded {recorded:?}"),
            )?;
        }
    }
    let mut fresh: Vec<_> = ids.values().collect();
    fresh.sort();
    fresh.dedup();
    expect(
        fresh.len() == ids.len(),
        "two recorded connections came under one id",
    )
}

fn same_headers(
    recorded: &[(Vec<u8>, Values)],
    observed: &[(Vec<u8>, Values)],
    text: Text,
) -> bool {
    let value = |name: &[u8], a: &[u8], b: &[u8]| {
        if name.starts_with(b"x-mongrel2-upload-") {
            return a.is_empty() == b.is_empty();
        }
        if name == b"PEER_CERT_SHA1" && text == Text::Latin1 {
            return a.strip_suffix(b"00") == Some(b);
        }
        a == b || (text == Text::Latin1 && latin1(a).iter().any(|read| read == b))
    };
    recorded.len() == observed.len()
        && recorded
            .iter()
            .zip(observed)
            .all(|((name, a), (other, b))| {
                name == other
                    && match (a, b) {
                        (Values::One(a), Values::One(b)) => value(name, a, b),
                        (Values::List(a), Values::List(b)) => {
                            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| value(name, a, b))
                        }
                        _ => false,
                    }
            })
}

/// The two readings of bytes that are not UTF-8: all of them as Latin-1, or only the bytes that do not fit.
fn latin1(bytes: &[u8]) -> Vec<Vec<u8>> {
    if std::str::from_utf8(bytes).is_ok() {
        return Vec::new();
    }
    let whole: String = bytes.iter().map(|&byte| char::from(byte)).collect();
    let mut single = String::new();
    for chunk in bytes.utf8_chunks() {
        single.push_str(chunk.valid());
        single.extend(chunk.invalid().iter().map(|&byte| char::from(byte)));
    }
    vec![whole.into_bytes(), single.into_bytes()]
}

/// The answers of the server and its handlers that are final (1xx left out, but for 101, after which no HTTP follows).
fn final_answers(observed: &Observed) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut rest = observed.client.as_slice();
    while let Some((answer, length)) = split_answer(rest, observed.asked, observed.closed) {
        rest = &rest[length..];
        let switched = answer.status == 101;
        if switched || answer.status >= 200 {
            answers.push(answer);
        }
        if switched {
            break;
        }
    }
    answers
}

fn client_key(key: &str, wanted: &Value, observed: &Observed) -> Verdict {
    let answers = final_answers(observed);
    let statuses: Vec<Value> = answers
        .iter()
        .map(|answer| Value::from(answer.status))
        .collect();
    let seen = format!("the client got {:?}", clip(&observed.client));
    match key {
        "status" => expect(
            statuses
                .first()
                .is_some_and(|first| list(wanted).any(|one| one == first)),
            &seen,
        ),
        "statuses" => {
            let statuses = Value::Array(statuses);
            let several = list(wanted).any(Value::is_array);
            let holds = if several {
                list(wanted).any(|one| *one == statuses)
            } else {
                *wanted == statuses
            };
            expect(holds, &seen)
        }
        "body" => {
            let bodies: Vec<&str> = match wanted {
                Value::String(one) => vec![one],
                several => list(several).filter_map(Value::as_str).collect(),
            };
            let holds = answers.len() >= bodies.len()
                && bodies
                    .iter()
                    .zip(&answers)
                    .all(|(w, a)| w.as_bytes() == a.body);
            expect(holds, &seen)
        }
        "headers" => {
            let first = answers.first().ok_or("no answer")?;
            for (name, pattern) in wanted.as_object().ok_or("not an object")? {
                let pattern = pattern.as_str().ok_or("not a pattern")?;
                let holds = match first.header(name) {
                    None => pattern.is_empty(),
                    Some(value) => !pattern.is_empty() && matches(pattern, value)?,
                };
                expect(holds, &seen)?;
            }
            Ok(())
        }
        "client_raw" => expect(
            matches(wanted.as_str().ok_or("not a pattern")?, &observed.client)?,
            &seen,
        ),
        "ws_close" => expect(
            wanted.as_u64() == close_code(&observed.client).map(u64::from),
            &seen,
        ),
        _ => Err("unknown key".to_owned()),
    }
}

/// A regular expression on the whole text.
fn matches(pattern: &str, text: &[u8]) -> Result<bool, String> {
    // The bytes mode of the engine wants its escapes ASCII; a dot is any byte.
    let regex =
        Regex::new(&format!(r"(?s-u)\A(?:{pattern})\z")).map_err(|error| error.to_string())?;
    Ok(regex.is_match(text))
}

/// The code of the close frame among the WebSocket frames behind a 101 head.
fn close_code(client: &[u8]) -> Option<u16> {
    let head = client.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let mut rest = client.get(head..)?;
    loop {
        let (&first, &second) = (rest.first()?, rest.get(1)?);
        let (length, at) = match second & 0x7F {
            126 => (
                usize::from(u16::from_be_bytes(rest.get(2..4)?.try_into().ok()?)),
                4,
            ),
            127 => (
                usize::try_from(u64::from_be_bytes(rest.get(2..10)?.try_into().ok()?)).ok()?,
                10,
            ),
            short => (usize::from(short), 2),
        };
        let payload = rest.get(at..at + length)?;
        if first & 0x0F == 8 {
            return Some(u16::from_be_bytes(payload.get(..2)?.try_into().ok()?));
        }
        rest = rest.get(at + length..)?;
    }
}

fn count(wanted: &Value, seen: usize) -> Verdict {
    let seen = Value::from(seen);
    let holds = match wanted {
        Value::Array(range) => {
            let bound = |at: usize| range.get(at).and_then(Value::as_u64);
            let seen = seen.as_u64();
            bound(0) <= seen && seen <= bound(1)
        }
        number => *number == seen,
    };
    expect(holds, &format!("saw {seen}"))
}

fn handler_key(key: &str, wanted: &Value, observed: &Observed) -> Verdict {
    let requests: Vec<&Message> = observed
        .messages
        .iter()
        .filter(|message| !message.is_notice())
        .collect();
    let texts = |of: fn(&Message) -> &[u8]| -> Value {
        requests
            .iter()
            .map(|message| Value::from(String::from_utf8_lossy(of(message)).into_owned()))
            .collect()
    };
    match key {
        "handler_messages" => count(wanted, observed.messages.len()),
        "handler_requests" => count(wanted, requests.len()),
        "notices" => count(wanted, observed.messages.len() - requests.len()),
        "paths" => {
            let paths = texts(|message| &message.path);
            expect(*wanted == paths, &format!("saw {paths}"))
        }
        "request_bodies" => {
            let bodies = texts(|message| &message.body);
            expect(*wanted == bodies, &format!("saw {bodies}"))
        }
        "request_on" => {
            let letters: String = requests.iter().map(|message| message.handler).collect();
            let wanted = wanted.as_str().unwrap_or_default();
            let one = wanted.len() == 1
                && letters.chars().all(|letter| wanted.contains(letter))
                && !letters.is_empty();
            expect(one || wanted == letters, &format!("saw {letters}"))
        }
        "request_headers" => {
            let first = requests.first().ok_or("no request")?;
            for (name, value) in wanted.as_object().ok_or("not an object")? {
                let seen = first
                    .header(name)
                    .map_or(Value::Null, |v| String::from_utf8_lossy(v).into());
                let holds = seen == *value || list(value).any(|one| seen == *one);
                expect(holds, &format!("{name} is {seen}"))?;
            }
            Ok(())
        }
        _ => Err("unknown key".to_owned()),
    }
}

fn backend(key: &str, wanted: &Value, observed: &Observed) -> Verdict {
    let seen = &observed.backend;
    let texts = |of: fn(&BackendRequest) -> &[u8]| -> Value {
        seen.iter()
            .map(|request| Value::from(String::from_utf8_lossy(of(request)).into_owned()))
            .collect()
    };
    match key {
        "backend_requests" => count(wanted, seen.len()),
        "backend_paths" => expect(
            *wanted == texts(|request| request.path.as_bytes()),
            "other paths",
        ),
        "backend_bodies" => expect(*wanted == texts(|request| &request.body), "other bodies"),
        _ => {
            let first = seen.first().ok_or("nothing reached the backend")?;
            for (name, value) in wanted.as_object().ok_or("not an object")? {
                let of = first.headers.iter().find(|(n, _)| n == name);
                let seen = of.map_or(Value::Null, |(_, v)| String::from_utf8_lossy(v).into());
                expect(
                    seen == *value || list(value).any(|one| seen == *one),
                    &format!("{name} is {seen}"),
                )?;
            }
            Ok(())
        }
    }
}

fn stream_body(wanted: &Value, exchange: &Exchange, observed: &Observed) -> Verdict {
    let whole = uploaded_body(exchange);
    let requests = observed
        .messages
        .iter()
        .filter(|message| !message.is_notice());
    let streamed: Vec<u8> = requests.flat_map(|message| message.body.clone()).collect();
    match wanted.as_str() {
        Some("complete") => expect(streamed == whole, "the parts are not the body"),
        Some("part") => expect(
            whole.starts_with(&streamed),
            "the parts are not the beginning of the body",
        ),
        _ => Err("unknown".to_owned()),
    }
}

/// The body of the client's first request, chunks taken off; what it sent of one that is not whole.
fn uploaded_body(exchange: &Exchange) -> Vec<u8> {
    let sent = exchange.client_sends.concat();
    // A request read as if it were an answer: the framing of bodies is the same.
    let head = sent.windows(2).position(|w| w == b"\r\n").unwrap_or(0);
    let answer = [b"HTTP/1.1 200 OK", sent.get(head..).unwrap_or_default()].concat();
    split_answer(&answer, Asked::Other, true)
        .map(|(answer, _)| answer.body)
        .or_else(|| {
            let end = sent.windows(4).position(|w| w == b"\r\n\r\n")?;
            sent.get(end + 4..).map(<[u8]>::to_vec)
        })
        .unwrap_or_default()
}

//! What an application is told of a request: its `scope`.
//!
//! Most of it is the same from one request to the next. It stands in a template that is copied: what never changes, and the method, the
//! query, client and server of the request before; names and values of headers that came before are not made again. Of what identifies
//! somebody no more is kept than that, and what is kept is compared byte for byte before it is used.

use bytes::Bytes;
use lurcher::handler::Request;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};
use rustc_hash::FxHashMap;

/// Pairs of name and value that are kept.
const PAIRS: usize = 512;

/// Longer values are not kept: they seldom come again, and cost memory.
const VALUE_BYTES_MAX: usize = 256;

/// Names, methods and the like that are kept.
const WORDS_MAX: usize = 512;

/// Headers that say who somebody is.
const SECRETS: [&[u8]; 3] = [b"cookie", b"authorization", b"proxy-authorization"];

/// The version of the specification that is spoken (its changes: spec_version of the HTTP and WebSocket protocols).
const SPEC_VERSION: &str = "2.5";

/// Makes scopes, one after the other.
pub(crate) struct Scopes {
    http: Template,
    websocket: Template,
    pairs: Vec<Option<Pair>>,
    words: FxHashMap<Bytes, Py<PyBytes>>,
}

/// The scope of the request before, but for its path and its headers.
struct Template {
    scope: Py<PyDict>,
    extensions: Py<PyDict>,
    /// What stands in it, as it came.
    method: Vec<u8>,
    query: Vec<u8>,
    root: String,
    client: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
    is_secure: bool,
    is_old: bool,
}

struct Pair {
    hash: u64,
    name: Py<PyBytes>,
    value: Py<PyBytes>,
    both: Py<PyTuple>,
}

impl Scopes {
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let versions = PyDict::new(py);
        versions.set_item("version", "3.0")?;
        versions.set_item("spec_version", SPEC_VERSION)?;
        Ok(Self {
            http: Template::new(
                py,
                "http",
                &versions,
                &["http.response.trailers", "http.response.pathsend"],
            )?,
            websocket: Template::new(py, "websocket", &versions, &["websocket.http.response"])?,
            pairs: (0..PAIRS).map(|_| None).collect(),
            words: FxHashMap::default(),
        })
    }

    /// The scope of a request. `root` is the path below which its application is.
    pub(crate) fn make<'py>(
        &mut self,
        py: Python<'py>,
        request: &Request,
        is_websocket: bool,
        root: &str,
        state: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let headers = PyList::empty(py);
        let mut told = Told::default();
        for (name, values) in request.headers.iter() {
            // Those of the server have upper-case names, which a client's never have.
            if name.first().is_some_and(u8::is_ascii_uppercase) {
                told.note(name, values.first());
                continue;
            }
            match name {
                b"host" if told.host.is_none() => told.host = values.first(),
                // The chunks were taken off.
                b"transfer-encoding" => continue,
                name if name.starts_with(b"x-mongrel2-upload-") => continue,
                _ => {}
            }
            for value in values.iter() {
                headers.append(self.pair(py, name, value)?)?;
            }
        }
        let template = if is_websocket {
            &mut self.websocket
        } else {
            &mut self.http
        };
        template.follow(py, &told, root, is_websocket)?;
        let scope = template.scope.bind(py).copy()?;
        let extensions = template.extensions.bind(py).copy()?;
        let path = path_only(&request.path);
        scope.set_item(intern!(py, "path"), decoded(py, path))?;
        scope.set_item(intern!(py, "raw_path"), PyBytes::new(py, path))?;
        scope.set_item(intern!(py, "headers"), headers)?;
        scope.set_item(intern!(py, "extensions"), extensions)?;
        if is_websocket {
            let protocols = PyList::new(py, request.websocket_protocols())?;
            scope.set_item(intern!(py, "subprotocols"), protocols)?;
        }
        if let Some(state) = state {
            // Its own, so that what one request puts there is no other's.
            scope.set_item(intern!(py, "state"), state.copy()?)?;
        }
        Ok(scope)
    }

    /// A header.
    fn pair<'py>(
        &mut self,
        py: Python<'py>,
        name: &[u8],
        value: &[u8],
    ) -> PyResult<Bound<'py, PyTuple>> {
        let hash = hash(name, value);
        let at = usize::try_from(hash % PAIRS as u64).unwrap_or_default();
        if let Some(Some(kept)) = self.pairs.get(at)
            && kept.hash == hash
            && kept.name.as_bytes(py) == name
            && kept.value.as_bytes(py) == value
        {
            return Ok(kept.both.bind(py).clone());
        }
        let shown = self.word(py, name);
        let content = PyBytes::new(py, value);
        let both = PyTuple::new(py, [&shown, &content])?;
        if value.len() <= VALUE_BYTES_MAX
            && !SECRETS.contains(&name)
            && let Some(place) = self.pairs.get_mut(at)
        {
            *place = Some(Pair {
                hash,
                name: shown.unbind(),
                value: content.unbind(),
                both: both.clone().unbind(),
            });
        }
        Ok(both)
    }

    /// Bytes that probably came before.
    fn word<'py>(&mut self, py: Python<'py>, word: &[u8]) -> Bound<'py, PyBytes> {
        if let Some(known) = self.words.get(word) {
            return known.bind(py).clone();
        }
        let made = PyBytes::new(py, word);
        if self.words.len() < WORDS_MAX && word.len() <= 64 {
            let kept = made.clone().unbind();
            self.words.insert(Bytes::copy_from_slice(word), kept);
        }
        made
    }
}

impl Template {
    fn new(
        py: Python<'_>,
        kind: &str,
        versions: &Bound<'_, PyDict>,
        extensions: &[&str],
    ) -> PyResult<Self> {
        // All that a scope has, so that a copy need not grow.
        let scope = PyDict::new(py);
        scope.set_item(intern!(py, "type"), kind)?;
        scope.set_item(intern!(py, "asgi"), versions)?;
        scope.set_item(intern!(py, "http_version"), "1.1")?;
        scope.set_item(intern!(py, "path"), "")?;
        scope.set_item(intern!(py, "raw_path"), PyBytes::new(py, b""))?;
        scope.set_item(intern!(py, "query_string"), PyBytes::new(py, b""))?;
        scope.set_item(intern!(py, "root_path"), "")?;
        scope.set_item(intern!(py, "headers"), py.None())?;
        scope.set_item(intern!(py, "client"), py.None())?;
        scope.set_item(intern!(py, "server"), py.None())?;
        scope.set_item(intern!(py, "extensions"), py.None())?;
        if kind == "websocket" {
            scope.set_item(intern!(py, "scheme"), "ws")?;
            scope.set_item(intern!(py, "subprotocols"), py.None())?;
        } else {
            scope.set_item(intern!(py, "scheme"), "http")?;
            scope.set_item(intern!(py, "method"), "GET")?;
        }
        let all = PyDict::new(py);
        for name in extensions {
            all.set_item(name, PyDict::new(py))?;
        }
        Ok(Self {
            scope: scope.unbind(),
            extensions: all.unbind(),
            method: b"GET".to_vec(),
            query: Vec::new(),
            root: String::new(),
            client: None,
            host: None,
            is_secure: false,
            is_old: false,
        })
    }

    /// Changes what is not as it was in the request before.
    fn follow(
        &mut self,
        py: Python<'_>,
        told: &Told<'_>,
        root: &str,
        is_websocket: bool,
    ) -> PyResult<()> {
        let scope = self.scope.bind(py);
        let method = told.method.unwrap_or(b"GET");
        if !is_websocket && self.method != method {
            let text = PyString::new(py, &String::from_utf8_lossy(method));
            scope.set_item(intern!(py, "method"), text)?;
            replace(&mut self.method, method);
        }
        let query = told.query.unwrap_or_default();
        if self.query != query {
            scope.set_item(intern!(py, "query_string"), PyBytes::new(py, query))?;
            replace(&mut self.query, query);
        }
        if self.root != root {
            scope.set_item(intern!(py, "root_path"), root)?;
            root.clone_into(&mut self.root);
        }
        let is_old = told.version == Some(b"HTTP/1.0");
        if self.is_old != is_old {
            let version = if is_old { "1.0" } else { "1.1" };
            scope.set_item(intern!(py, "http_version"), version)?;
            self.is_old = is_old;
        }
        if self.client.as_deref() != told.client {
            // Servers do not tell the port.
            let client = told
                .client
                .map(|client| (String::from_utf8_lossy(client), 0));
            scope.set_item(intern!(py, "client"), client)?;
            self.client = told.client.map(<[u8]>::to_vec);
        }
        let is_secure = told.scheme == Some(b"https");
        if self.host.as_deref() != told.host || self.is_secure != is_secure {
            let server = told.host.map(|host| host_and_port(host, is_secure));
            scope.set_item(intern!(py, "server"), server)?;
            self.host = told.host.map(<[u8]>::to_vec);
        }
        if self.is_secure != is_secure {
            let scheme = match (is_websocket, is_secure) {
                (false, false) => "http",
                (false, true) => "https",
                (true, false) => "ws",
                (true, true) => "wss",
            };
            scope.set_item(intern!(py, "scheme"), scheme)?;
            self.is_secure = is_secure;
        }
        Ok(())
    }
}

/// Puts others in the place of these bytes. Room for long ones is not kept.
fn replace(bytes: &mut Vec<u8>, others: &[u8]) {
    bytes.clear();
    bytes.shrink_to(VALUE_BYTES_MAX);
    bytes.extend_from_slice(others);
}

/// What the server tells of a request.
#[derive(Default)]
struct Told<'a> {
    method: Option<&'a [u8]>,
    version: Option<&'a [u8]>,
    query: Option<&'a [u8]>,
    scheme: Option<&'a [u8]>,
    client: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
}

impl<'a> Told<'a> {
    fn note(&mut self, name: &[u8], value: Option<&'a [u8]>) {
        match name {
            b"METHOD" => self.method = value,
            b"VERSION" => self.version = value,
            b"QUERY" => self.query = value,
            b"URL_SCHEME" => self.scheme = value,
            b"REMOTE_ADDR" => self.client = value,
            _ => {}
        }
    }
}

/// The path below which an application is: its mount's, else what the server's route says before its first pattern.
pub(crate) fn root<'a>(mount: &'a str, request: &'a Request) -> &'a str {
    if !mount.is_empty() {
        return mount;
    }
    let pattern = request.headers.first("PATTERN").unwrap_or_default();
    let fixed = pattern
        .split(|byte| *byte == b'(')
        .next()
        .unwrap_or_default();
    let fixed = std::str::from_utf8(fixed).unwrap_or_default();
    let fixed = fixed.trim_end_matches('/');
    // Routes may match backwards, and in the middle of a name.
    match request.path.strip_prefix(fixed.as_bytes()) {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") || rest.starts_with(b"?") => fixed,
        _ => "",
    }
}

/// The path as the client has written it, without the query.
fn path_only(path: &[u8]) -> &[u8] {
    path.split(|byte| *byte == b'?').next().unwrap_or(path)
}

/// The path decoded. What is not UTF-8 then is replaced, as all servers do it.
fn decoded<'py>(py: Python<'py>, path: &[u8]) -> Bound<'py, PyString> {
    if !path.contains(&b'%') {
        return PyString::new(py, &String::from_utf8_lossy(path));
    }
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, behind)) = rest.split_first() {
        let digit = |at: usize| {
            let digit = behind.get(at).copied().map(char::from)?.to_digit(16)?;
            u8::try_from(digit).ok()
        };
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                plain.push(high << 4 | low);
                rest = behind.get(2..).unwrap_or_default();
            }
            _ => {
                plain.push(*first);
                rest = behind;
            }
        }
    }
    PyString::new(py, &String::from_utf8_lossy(&plain))
}

fn host_and_port(host: &[u8], is_secure: bool) -> (String, u16) {
    let usual = if is_secure { 443 } else { 80 };
    let text = String::from_utf8_lossy(host);
    let (name, port) = match text.rsplit_once(':') {
        // The colons of a bare IPv6 address are no port's.
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port),
        _ => (&text[..], ""),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    (name.to_owned(), port.parse().unwrap_or(usual))
}

/// Tells pairs apart; what is equal by it is compared all the same.
fn hash(name: &[u8], value: &[u8]) -> u64 {
    const FACTOR: u64 = 0x517c_c1b7_2722_0a95;
    let mut hash = (name.len() as u64).rotate_left(32) ^ value.len() as u64;
    let mut add = |word: u64| hash = (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    for bytes in [name, value] {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            add(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        add(u64::from_le_bytes(last));
    }
    // The better bits are the upper ones.
    hash ^ hash >> 32
}

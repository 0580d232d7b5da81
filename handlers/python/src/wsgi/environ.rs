//! The environ of a request (PEP 3333, "environ Variables").
//!
//! Most requests have the headers of another one before, with few values that differ: their environ is a copy of that one's, into
//! which those values are set. What is kept is found by the names of all headers, which are compared one by one, and each value is
//! compared too, so nobody ever gets what another has sent. Applications get copies only.

use lurcher::handler::Request;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::names::{self, Means, latin1};

/// Environs that are kept by each thread.
const SHAPES: usize = 64;

/// Longer values are not kept, in bytes.
const KEPT_MAX: usize = 1024;

/// Who asks with more headers than this is not worth keeping.
const NAMES_MAX: usize = 64;

/// Environs that were made, to be copied.
pub(super) struct Environs {
    /// What is the same for all requests.
    template: Py<PyDict>,
    shapes: Vec<Option<Shape>>,
}

/// The environ of the last request with these headers.
struct Shape {
    mount: usize,
    slots: Vec<Slot>,
    environ: Py<PyDict>,
    path: Vec<u8>,
    script: Vec<u8>,
    placed: bool,
    /// A name comes twice.
    repeats: bool,
}

/// A header, and what was its last value.
struct Slot {
    name: Box<[u8]>,
    means: Means,
    key: Py<PyString>,
    last: Option<Vec<u8>>,
}

/// What is not in the message.
pub(super) struct Facts<'a, 'py> {
    pub(super) mount: usize,
    /// How much of the path, as it was received, the place of the application is; none: the server's route says it.
    pub(super) place: Option<usize>,
    pub(super) input: &'a Bound<'py, PyAny>,
    /// Bytes of the body, where that is known.
    pub(super) length: Option<u64>,
}

impl Environs {
    pub(super) fn new(template: Bound<'_, PyDict>) -> Self {
        Self {
            template: template.unbind(),
            shapes: std::iter::repeat_with(|| None).take(SHAPES).collect(),
        }
    }

    /// The environ of a request: a dict of its own.
    pub(super) fn of<'py>(
        &mut self,
        py: Python<'py>,
        request: &Request,
        facts: &Facts<'_, 'py>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let at = place_of(request, facts.mount);
        let Self { template, shapes } = self;
        let mut none = None;
        let kept = if request.headers.len() <= NAMES_MAX {
            shapes.get_mut(at).unwrap_or(&mut none)
        } else {
            &mut none
        };
        // Taken out, so that nothing half set is kept when something fails.
        let mut shape = match kept.take() {
            Some(shape) if shape.fits(request, facts.mount) => shape,
            _ => Shape::new(py, template, request, facts.mount)?,
        };
        let environ = shape.fill(py, request, facts)?;
        // Of one name twice the last counts, also when it has not changed.
        *kept = Some(shape).filter(|shape| !shape.repeats);
        Ok(environ)
    }
}

/// Where the shape of a request is kept. It is compared there, so this may be simple.
fn place_of(request: &Request, mount: usize) -> usize {
    let mut sum = mount;
    for (name, _) in request.headers.iter() {
        let first = name.first().copied().unwrap_or_default();
        let last = name.last().copied().unwrap_or_default();
        let word = name.len() + (usize::from(first) << 8) + (usize::from(last) << 16);
        sum = (sum.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    (sum >> 40) % SHAPES
}

impl Shape {
    fn new(
        py: Python<'_>,
        template: &Py<PyDict>,
        request: &Request,
        mount: usize,
    ) -> PyResult<Self> {
        let environ = template.bind(py).copy()?;
        let mut slots = Vec::with_capacity(request.headers.len());
        for (name, _) in request.headers.iter() {
            let means = names::meaning(name);
            let key = match means {
                Means::Method => intern!(py, "REQUEST_METHOD").clone(),
                Means::Version => intern!(py, "SERVER_PROTOCOL").clone(),
                Means::Query => intern!(py, "QUERY_STRING").clone(),
                Means::Uri => intern!(py, "REQUEST_URI").clone(),
                Means::Scheme => intern!(py, "wsgi.url_scheme").clone(),
                _ => names::key(py, name),
            };
            slots.push(Slot {
                name: name.into(),
                means,
                key: key.unbind(),
                last: None,
            });
        }
        let known = |at: usize, slot: &Slot| {
            let before = slots.get(..at).unwrap_or_default();
            before.iter().any(|other: &Slot| other.name == slot.name)
        };
        let few = slots.len() <= NAMES_MAX;
        let repeats = few && slots.iter().enumerate().any(|(at, slot)| known(at, slot));
        Ok(Self {
            mount,
            slots,
            environ: environ.unbind(),
            path: Vec::new(),
            script: Vec::new(),
            placed: false,
            repeats,
        })
    }

    /// Whether the request has these headers, no more and no less, in this order.
    fn fits(&self, request: &Request, mount: usize) -> bool {
        self.mount == mount
            && self.slots.len() == request.headers.len()
            && self
                .slots
                .iter()
                .zip(request.headers.iter())
                .all(|(slot, (name, _))| *slot.name == *name)
    }

    fn fill<'py>(
        &mut self,
        py: Python<'py>,
        request: &Request,
        facts: &Facts<'_, 'py>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let kept = self.environ.bind(py).clone();
        let mut late = Vec::new();
        let (mut pattern, mut moved): (&[u8], _) = (b"", false);
        for (at, (_, value)) in request.headers.iter().enumerate() {
            let Some(slot) = self.slots.get_mut(at) else {
                break;
            };
            let Some(value) = value.single() else {
                late.push(at);
                continue;
            };
            match slot.means {
                Means::Nothing => continue,
                Means::Pattern => {
                    pattern = value;
                    continue;
                }
                Means::Secret => {
                    late.push(at);
                    continue;
                }
                _ if value.len() > KEPT_MAX => {
                    late.push(at);
                    continue;
                }
                _ => {}
            }
            if slot.last.as_deref() == Some(value) {
                continue;
            }
            moved |= slot.names_server();
            slot.set(py, &kept, value)?;
            let last = slot.last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(value);
        }
        if moved {
            set_server(py, &kept, request)?;
        }
        let (script, below) = names::split(&request.path, facts.place, pattern);
        if !self.placed || self.path != *request.path || self.script != script {
            set_decoded(py, &kept, intern!(py, "SCRIPT_NAME"), script)?;
            set_decoded(py, &kept, intern!(py, "PATH_INFO"), below)?;
            self.path.clear();
            self.path.extend_from_slice(&request.path);
            self.script.clear();
            self.script.extend_from_slice(script);
            self.placed = self.path.len() <= KEPT_MAX;
        }
        let environ = kept.copy()?;
        if !late.is_empty() && self.fill_late(py, request, &environ, &late)? {
            // What was made of them, the next request makes anew.
            for slot in &mut self.slots {
                if slot.names_server() {
                    slot.last = None;
                }
            }
        }
        environ.set_item(intern!(py, "wsgi.input"), facts.input)?;
        set_length(py, &environ, request, facts.length)?;
        Ok(environ)
    }

    /// Sets what is of this request alone; true when the name of the server is.
    fn fill_late(
        &self,
        py: Python<'_>,
        request: &Request,
        environ: &Bound<'_, PyDict>,
        late: &[usize],
    ) -> PyResult<bool> {
        let mut moved = false;
        for (at, (name, value)) in request.headers.iter().enumerate() {
            let Some(slot) = self.slots.get(at).filter(|_| late.contains(&at)) else {
                continue;
            };
            let between: &[u8] = if name == b"cookie" { b"; " } else { b", " };
            match slot.means {
                Means::Nothing | Means::Pattern => {}
                Means::Header | Means::Secret => {
                    let value = value.join(between);
                    slot.set(py, environ, &value)?;
                }
                // There is one of these; of several the first is as good as any.
                _ => slot.set(py, environ, value.first().unwrap_or_default())?,
            }
            moved |= slot.names_server();
        }
        if moved {
            set_server(py, environ, request)?;
        }
        Ok(moved)
    }
}

impl Slot {
    /// Whether the name of the server depends on it.
    fn names_server(&self) -> bool {
        matches!(self.means, Means::Host | Means::Scheme)
    }

    fn set(&self, py: Python<'_>, environ: &Bound<'_, PyDict>, value: &[u8]) -> PyResult<()> {
        let text = latin1(py, value);
        if self.means == Means::Uri {
            environ.set_item(intern!(py, "RAW_URI"), &text)?;
        }
        if self.means == Means::Scheme && value == b"https" {
            environ.set_item(intern!(py, "HTTPS"), intern!(py, "on"))?;
        } else if self.means == Means::Scheme && environ.contains(intern!(py, "HTTPS"))? {
            environ.del_item(intern!(py, "HTTPS"))?;
        }
        environ.set_item(&self.key, text)
    }
}

/// Name and port of the server, as the client has called it.
fn set_server(py: Python<'_>, environ: &Bound<'_, PyDict>, request: &Request) -> PyResult<()> {
    let host = request.headers.first("host").unwrap_or_default();
    let (name, port) = names::split_host(host);
    let name: &[u8] = if name.is_empty() { b"localhost" } else { name };
    let secure = request.headers.first("URL_SCHEME") == Some(b"https");
    let port = port.unwrap_or(if secure { b"443" } else { b"80" });
    environ.set_item(intern!(py, "SERVER_NAME"), latin1(py, name))?;
    environ.set_item(intern!(py, "SERVER_PORT"), latin1(py, port))
}

fn set_decoded(
    py: Python<'_>,
    environ: &Bound<'_, PyDict>,
    key: &Bound<'_, PyString>,
    text: &[u8],
) -> PyResult<()> {
    if text.contains(&b'%') {
        return environ.set_item(key, latin1(py, &names::decode(text)));
    }
    environ.set_item(key, latin1(py, text))
}

/// Says the length of the body as it is, where the head says another or, of a body that came in chunks, none. Those who read by
/// that length find a body of chunks too, then.
fn set_length(
    py: Python<'_>,
    environ: &Bound<'_, PyDict>,
    request: &Request,
    length: Option<u64>,
) -> PyResult<()> {
    let Some(length) = length else {
        return Ok(());
    };
    let said = request.headers.first("content-length");
    if said.is_none() && length == 0 {
        return Ok(());
    }
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
    if said.and_then(number) != Some(length) {
        environ.set_item(intern!(py, "CONTENT_LENGTH"), length.to_string())?;
    }
    if said.is_none() && environ.contains(intern!(py, "HTTP_TRANSFER_ENCODING"))? {
        environ.del_item(intern!(py, "HTTP_TRANSFER_ENCODING"))?;
    }
    Ok(())
}

/// What is the same for all requests of a process.
pub(super) fn template(
    py: Python<'_>,
    multithread: bool,
    multiprocess: bool,
) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item(intern!(py, "wsgi.version"), (1, 0))?;
    dict.set_item(intern!(py, "wsgi.url_scheme"), intern!(py, "http"))?;
    dict.set_item(
        intern!(py, "wsgi.errors"),
        py.import("sys")?.getattr("stderr")?,
    )?;
    dict.set_item(intern!(py, "wsgi.multithread"), multithread)?;
    dict.set_item(intern!(py, "wsgi.multiprocess"), multiprocess)?;
    dict.set_item(intern!(py, "wsgi.run_once"), false)?;
    dict.set_item(intern!(py, "wsgi.input_terminated"), true)?;
    dict.set_item(intern!(py, "wsgi.input"), py.None())?;
    dict.set_item(
        intern!(py, "wsgi.file_wrapper"),
        py.get_type::<super::file::FileWrapper>(),
    )?;
    dict.set_item(
        intern!(py, "SERVER_SOFTWARE"),
        concat!("lurcher/", env!("CARGO_PKG_VERSION")),
    )?;
    dict.set_item(intern!(py, "SERVER_NAME"), "localhost")?;
    dict.set_item(intern!(py, "SERVER_PORT"), "80")?;
    dict.set_item(intern!(py, "SERVER_PROTOCOL"), "HTTP/1.1")?;
    dict.set_item(intern!(py, "REQUEST_METHOD"), "GET")?;
    dict.set_item(intern!(py, "SCRIPT_NAME"), "")?;
    dict.set_item(intern!(py, "PATH_INFO"), "")?;
    dict.set_item(intern!(py, "QUERY_STRING"), "")?;
    Ok(dict)
}

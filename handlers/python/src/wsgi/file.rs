//! `wsgi.file_wrapper`: files as responses. A real file is read without the interpreter's lock, or written by the server itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pyo3::exceptions::PyStopIteration;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// The server's setting `sendfile.base`, where the operator has said so.
static BASE: OnceLock<PathBuf> = OnceLock::new();

/// Says below which directory the server sends files itself.
pub(crate) fn sendfile_below(base: &str) {
    let base = Path::new(base);
    // As it is called without links: so are the files.
    let real = base.canonicalize().unwrap_or_else(|_| base.to_owned());
    drop(BASE.set(real));
}

/// Wraps something that has `read(size)`, to be sent block by block.
#[pyclass(module = "lurcher", frozen)]
pub(crate) struct FileWrapper {
    /// What is read.
    #[pyo3(get)]
    filelike: Py<PyAny>,
    /// How much is read at a time.
    #[pyo3(get)]
    blksize: usize,
}

#[pymethods]
impl FileWrapper {
    #[new]
    #[pyo3(signature = (filelike, blksize=8192))]
    fn new(filelike: Py<PyAny>, blksize: usize) -> Self {
        Self { filelike, blksize }
    }

    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let read = intern!(py, "read");
        let block = self.filelike.call_method1(py, read, (self.blksize,))?;
        if block.bind(py).is_truthy()? {
            return Ok(block);
        }
        Err(PyStopIteration::new_err(()))
    }

    /// Closes what is wrapped, if that can be closed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        match self.filelike.bind(py).getattr_opt(intern!(py, "close"))? {
            Some(close) => close.call0().map(drop),
            None => Ok(()),
        }
    }
}

/// What is left of a real file.
pub(super) struct Rest {
    file: File,
    at: u64,
    /// Bytes from there to its end.
    pub(super) length: u64,
    /// What the server may call it, if it is below the base and nothing of it was read.
    pub(super) name: Option<PathBuf>,
}

impl FileWrapper {
    /// The file behind it; `None` for what only looks like one.
    pub(super) fn rest(&self, py: Python<'_>) -> Option<Rest> {
        let like = real(self.filelike.bind(py))?;
        let number: i32 = like
            .call_method0(intern!(py, "fileno"))
            .ok()?
            .extract()
            .ok()?;
        let at: u64 = like
            .call_method0(intern!(py, "tell"))
            .ok()?
            .extract()
            .ok()?;
        // Opened anew: it has a place of its own to read at then, and stays when the application closes its own.
        let own = PathBuf::from(format!("/proc/self/fd/{number}"));
        let facts = own.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let file = File::open(&own).ok()?;
        let name = (at == 0).then(|| below_base(&own, &facts)).flatten();
        let length = facts.len().saturating_sub(at);
        Some(Rest {
            file,
            at,
            length,
            name,
        })
    }
}

/// The file whose bytes are what `read` of this returns: itself, or the one that a wrapper has its `read` from, as those of `tempfile`
/// do. What makes something else of them has a descriptor and a position too: `gzip`, above all.
fn real<'py>(like: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let py = like.py();
    let read = like.getattr(intern!(py, "read")).ok()?;
    let wrapped = read.getattr_opt(intern!(py, "__wrapped__")).ok()?;
    let read = wrapped.unwrap_or(read);
    let owner = read.getattr(intern!(py, "__self__")).ok()?;
    let io = py.import(intern!(py, "io")).ok()?;
    let is = |object: &Bound<'py, PyAny>, name: &Bound<'py, PyString>| {
        let kind = io.getattr(name);
        kind.is_ok_and(|kind| object.get_type().is(&kind))
    };
    let buffered = [intern!(py, "BufferedReader"), intern!(py, "BufferedRandom")];
    let raw = if buffered.into_iter().any(|name| is(&owner, name)) {
        owner.getattr(intern!(py, "raw")).ok()?
    } else {
        owner.clone()
    };
    is(&raw, intern!(py, "FileIO")).then_some(owner)
}

/// The name of an open file, if it is still that file's and below the base.
fn below_base(own: &Path, facts: &std::fs::Metadata) -> Option<PathBuf> {
    let base = BASE.get()?;
    let name = own.read_link().ok().filter(|name| name.starts_with(base))?;
    let there = name.symlink_metadata().ok()?;
    (there.ino() == facts.ino() && there.dev() == facts.dev()).then_some(name)
}

impl Rest {
    /// Reads on; nothing at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.length)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let place = buffer.get_mut(..wanted).unwrap_or_default();
        let read = self.file.read_at(place, self.at)?;
        self.at += read as u64;
        self.length -= read as u64;
        Ok(read)
    }

    /// No more than so many bytes.
    pub(super) fn limit(&mut self, length: u64) {
        self.length = self.length.min(length);
    }
}

//! `wsgi.input`: the body of a request, as it is read, wherever it is.
//!
//! Bodies that came with their request and files of stored uploads are read without waiting; of a body that is on its way more is asked
//! for as it is read, and waited for without the interpreter's lock. What was not read goes with the request.

use std::fs::File;
use std::io::Read as _;
use std::sync::Mutex;

use bytes::{Bytes, BytesMut};
use lurcher::handler::{BodyError, BodyReader, Request, Upload, UploadError};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::queue::Body;
use crate::wait;

/// What is read of a file at a time, in bytes.
const PIECE: usize = 64 << 10;

/// The body of a request.
#[pyclass(module = "lurcher")]
pub(crate) struct Input {
    /// What was received and not read yet.
    held: Bytes,
    /// Where the rest is. Behind a lock for the compiler only: whoever has it has the whole input.
    rest: Mutex<Rest>,
}

enum Rest {
    Nothing,
    Pieces(BodyReader),
    /// Not opened yet.
    Stored(Upload),
    /// The file on the disk is removed with the upload.
    File {
        file: File,
        _upload: Upload,
    },
    Failed,
    Closed,
}

impl Input {
    /// The body of `request`, and how long it is, where that is known.
    pub(super) fn new(request: &Request, body: Body) -> (Self, Option<u64>) {
        let (held, rest, length) = match body {
            Body::Whole => {
                let held = request.body.clone();
                let length = held.len() as u64;
                (held, Rest::Nothing, Some(length))
            }
            Body::Pieces(reader) => {
                let length = reader.remaining();
                (Bytes::new(), Rest::Pieces(*reader), length)
            }
            Body::Stored(upload) => {
                let length = upload.declared_length();
                let size = || Some(upload.path().metadata().ok()?.len());
                let length = length.or_else(size);
                (Bytes::new(), Rest::Stored(*upload), length)
            }
        };
        let rest = Mutex::new(rest);
        (Self { held, rest }, length)
    }

    /// Whether the server is not through with the body, because it was not read to its end.
    pub(super) fn is_left(&mut self) -> bool {
        match self.rest() {
            Rest::Pieces(reader) => reader.is_left(),
            Rest::Failed => true,
            _ => false,
        }
    }

    /// Lets go of all that was not read.
    pub(super) fn close(&mut self) {
        self.held = Bytes::new();
        *self.rest() = Rest::Closed;
    }

    fn rest(&mut self) -> &mut Rest {
        self.rest
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Has something to be read, if anything is left; false at the end.
    fn fill(&mut self, py: Python<'_>) -> PyResult<bool> {
        if !self.held.is_empty() {
            return Ok(true);
        }
        self.open(py)?;
        let rest = self.rest();
        let more = match rest {
            Rest::Nothing | Rest::Stored(_) => return Ok(false),
            Rest::Closed => {
                return Err(PyValueError::new_err(
                    "reading the body of a request that is answered",
                ));
            }
            Rest::Failed => return Err(gone(&BodyError::Gone)),
            Rest::Pieces(reader) => {
                let piece = wait::until_polled(py, |cx| reader.poll_next(cx))?;
                piece.transpose().map_err(|error| gone(&error))
            }
            Rest::File { file, .. } => {
                let mut buffer = BytesMut::zeroed(PIECE);
                match py.detach(|| file.read(&mut buffer)) {
                    Ok(0) => Ok(None),
                    Ok(read) => {
                        buffer.truncate(read);
                        Ok(Some(buffer.freeze()))
                    }
                    Err(error) => Err(gone(&BodyError::File(error))),
                }
            }
        };
        match &more {
            Ok(None) => *rest = Rest::Nothing,
            Ok(Some(_)) => {}
            Err(_) => *rest = Rest::Failed,
        }
        self.held = more?.unwrap_or_default();
        Ok(!self.held.is_empty())
    }

    /// Opens the file of a stored upload.
    fn open(&mut self, py: Python<'_>) -> PyResult<()> {
        let Rest::Stored(upload) = self.rest() else {
            return Ok(());
        };
        let upload = upload.clone();
        let asked = upload.clone();
        let opened = wait::until(
            py,
            Box::pin(async move {
                let (file, _) = asked.open().await?;
                Ok::<_, UploadError>(file.into_std().await)
            }),
        )?;
        match opened {
            Ok(file) => {
                *self.rest() = Rest::File {
                    file,
                    _upload: upload,
                };
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "an upload cannot be read");
                *self.rest() = Rest::Failed;
                Err(PyOSError::new_err(error.to_string()))
            }
        }
    }

    /// So many bytes, or all there are; fewer only at the end.
    fn take(&mut self, py: Python<'_>, size: usize) -> PyResult<Bytes> {
        let mut all = BytesMut::new();
        while all.len() < size && self.fill(py)? {
            let wanted = (size - all.len()).min(self.held.len());
            let piece = self.held.split_to(wanted);
            if all.is_empty() && (wanted == size || self.is_all()) {
                return Ok(piece);
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Whether nothing is left anywhere.
    fn is_all(&mut self) -> bool {
        self.held.is_empty() && matches!(self.rest(), Rest::Nothing)
    }

    /// A line with its end, at most so many bytes of it.
    fn take_line(&mut self, py: Python<'_>, size: usize) -> PyResult<Bytes> {
        let mut line = BytesMut::new();
        while line.len() < size && self.fill(py)? {
            let wanted = (size - line.len()).min(self.held.len());
            let window = self.held.get(..wanted).unwrap_or_default();
            let end = memchr::memchr(b'\n', window);
            let piece = self.held.split_to(end.map_or(wanted, |end| end + 1));
            let ends = end.is_some() || line.len() + piece.len() == size;
            if line.is_empty() && ends {
                return Ok(piece);
            }
            line.extend_from_slice(&piece);
            if ends {
                break;
            }
        }
        Ok(line.freeze())
    }
}

/// How it is told to an application: as any other trouble with a file.
fn gone(error: &BodyError) -> PyErr {
    if let BodyError::Upload(error) = error {
        tracing::error!(%error, "an upload cannot be read");
    }
    PyOSError::new_err(error.to_string())
}

/// What a size means that Python has given: nothing, and less than nothing, is all.
fn size(given: Option<isize>) -> usize {
    let given = given.and_then(|size| usize::try_from(size).ok());
    given.unwrap_or(usize::MAX)
}

#[pymethods]
impl Input {
    /// Reads so many bytes, fewer only at the end; all of them without a number.
    #[pyo3(signature = (size=None, /))]
    fn read<'py>(&mut self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        let taken = self.take(py, self::size(size))?;
        Ok(PyBytes::new(py, &taken))
    }

    /// Reads a line with its end, at most so many bytes of it.
    #[pyo3(signature = (size=None, /))]
    fn readline<'py>(
        &mut self,
        py: Python<'py>,
        size: Option<isize>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let line = self.take_line(py, self::size(size))?;
        Ok(PyBytes::new(py, &line))
    }

    /// Reads lines until they have so many bytes together; all of them without a number.
    #[pyo3(signature = (hint=None, /))]
    fn readlines<'py>(
        &mut self,
        py: Python<'py>,
        hint: Option<isize>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let enough = size(hint.filter(|hint| *hint > 0));
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while bytes < enough {
            let line = self.take_line(py, usize::MAX)?;
            if line.is_empty() {
                break;
            }
            bytes += line.len();
            lines.push(PyBytes::new(py, &line));
        }
        Ok(lines)
    }

    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let line = self.take_line(py, usize::MAX)?;
        Ok((!line.is_empty()).then(|| PyBytes::new(py, &line)))
    }
}

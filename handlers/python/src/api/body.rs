//! The body of a request, read as it comes: out of its message, out of the file that the server has stored it in, or part by part
//! while the client sends it.

#![expect(
    clippy::disallowed_types,
    reason = "readers take turns: the lock is held while one waits for the next piece"
)]

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lurcher::handler::{BodyError, BodyReader, Upload};
use pyo3::prelude::*;
use tokio::sync::Mutex;

use super::errors::Fault;
use super::hub::Hub;
use super::way::{Out, Way, run_anyway};

/// Where it comes from.
pub(super) enum Source {
    Stored(Upload),
    Reader(BodyReader),
    /// All of it is in the buffer, or was read.
    Ended,
}

/// What is there and not read, and what is still to come.
pub(super) struct Content {
    buffer: BytesMut,
    source: Source,
}

impl Content {
    pub(super) fn new(source: Source, there: &[u8]) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            buffer: there.into(),
            source,
        }))
    }

    /// Where it comes from, for somebody else who reads it from there.
    pub(super) fn take(&mut self) -> Source {
        std::mem::replace(&mut self.source, Source::Ended)
    }

    /// Another piece into the buffer; false at the end.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    async fn fill(&mut self) -> Result<bool, Fault> {
        loop {
            match &mut self.source {
                Source::Ended => return Ok(false),
                Source::Stored(upload) => {
                    self.source = Source::Reader(upload.clone().into_body().await?);
                }
                Source::Reader(reader) => match reader.next().await {
                    Some(Ok(piece)) => {
                        self.buffer.extend_from_slice(&piece);
                        return Ok(true);
                    }
                    Some(Err(error)) => return Err(error.into()),
                    None => self.source = Source::Ended,
                },
            }
        }
    }

    /// So many bytes, or what there is; without a number everything, and an error above the limit.
    pub(super) async fn read(
        &mut self,
        size: Option<usize>,
        most: Option<usize>,
    ) -> Result<Bytes, Fault> {
        while size.is_none_or(|size| self.buffer.len() < size) && self.fill().await? {
            if let Some(max) = most.filter(|most| self.buffer.len() > *most) {
                return Err(BodyError::TooLarge { max }.into());
            }
        }
        if let Some(max) = most.filter(|most| self.buffer.len() > *most) {
            return Err(BodyError::TooLarge { max }.into());
        }
        let bytes = size.unwrap_or(usize::MAX).min(self.buffer.len());
        Ok(self.buffer.split_to(bytes).freeze())
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Fault> {
        if self.buffer.is_empty() && !self.fill().await? {
            return Ok(None);
        }
        Ok(Some(self.buffer.split().freeze()))
    }
}

/// The body of a request. Iterating over it yields pieces as they come.
#[pyclass(frozen, subclass, module = "lurcher", name = "BaseBody")]
pub(super) struct BaseBody {
    hub: Arc<Hub>,
    content: Arc<Mutex<Content>>,
}

/// The body of a request, read as it comes. Iterating over it yields pieces; a file that is uploaded while it is read needs no more
/// memory than a few of them. It counts as a file opened for reading, as far as ``shutil.copyfileobj`` is concerned.
#[pyclass(frozen, extends = BaseBody, module = "lurcher", name = "Body")]
pub(super) struct Body;

/// The body of a request, for asyncio: ``async for piece in body``, or ``await body.read(size)``.
#[pyclass(frozen, extends = BaseBody, module = "lurcher.aio", name = "Body")]
pub(super) struct AioBody;

pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<BaseBody>()?;
    module.add_class::<Body>()?;
    module.add("AioBody", module.py().get_type::<AioBody>())
}

/// One of the class that goes with the connection.
pub(super) fn new(
    py: Python<'_>,
    hub: &Arc<Hub>,
    content: Arc<Mutex<Content>>,
) -> PyResult<Py<PyAny>> {
    let base = BaseBody {
        hub: Arc::clone(hub),
        content,
    };
    let base = PyClassInitializer::from(base);
    Ok(match hub.way() {
        Way::Blocking => Bound::new(py, base.add_subclass(Body))?.into_any(),
        Way::Loop(_) => Bound::new(py, base.add_subclass(AioBody))?.into_any(),
    }
    .unbind())
}

#[pymethods]
impl BaseBody {
    /// So many bytes, fewer only at the end; without a size, or with -1, everything that is still to come.
    #[pyo3(signature = (size = -1), text_signature = "($self, size=-1)")]
    fn read(&self, py: Python<'_>, size: i64) -> PyResult<Py<PyAny>> {
        read(
            py,
            &self.hub,
            &self.content,
            usize::try_from(size).ok(),
            None,
        )
    }
}

impl BaseBody {
    fn next(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let content = Arc::clone(&self.content);
        run_anyway(py, &self.hub, async move {
            Ok(Out::Piece(content.lock().await.piece().await?))
        })
    }
}

#[pymethods]
impl Body {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.as_super().get().next(slf.py())
    }
}

#[pymethods]
impl AioBody {
    fn __aiter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __anext__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        slf.as_super().get().next(slf.py())
    }
}

/// Reads from a body, in whichever way goes with the connection.
pub(super) fn read(
    py: Python<'_>,
    hub: &Arc<Hub>,
    content: &Arc<Mutex<Content>>,
    size: Option<usize>,
    most: Option<usize>,
) -> PyResult<Py<PyAny>> {
    let content = Arc::clone(content);
    run_anyway(py, hub, async move {
        let mut content = content.lock().await;
        Ok(Out::Bytes(content.read(size, most).await?))
    })
}

//! What can go wrong, as Python raises it.

use std::error::Error as _;

use lurcher::handler::{BodyError, ConfigError, ConnectError, ReplyError, UploadError};
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    lurcher,
    Error,
    PyException,
    "What this library raises is one of these, mistakes in arguments (TypeError, ValueError) aside."
);
create_exception!(
    lurcher,
    ConnectError_,
    Error,
    "A connection was not made, or it is of another process."
);
create_exception!(
    lurcher,
    ConfigError_,
    ConnectError_,
    "A configuration does not say where to connect."
);
create_exception!(
    lurcher,
    ReplyError_,
    Error,
    "An answer was not sent, because it would not have been HTTP, or for lack of a connection."
);
create_exception!(
    lurcher,
    ClientGone,
    ReplyError_,
    "The client of a response that is written piece by piece has gone away."
);
create_exception!(
    lurcher,
    BodyError_,
    Error,
    "The body of a request could not be read to its end."
);

/// Adds the classes.
pub(super) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let classes = [
        ("Error", py.get_type::<Error>()),
        ("ConnectError", py.get_type::<ConnectError_>()),
        ("ConfigError", py.get_type::<ConfigError_>()),
        ("ReplyError", py.get_type::<ReplyError_>()),
        ("ClientGone", py.get_type::<ClientGone>()),
        ("BodyError", py.get_type::<BodyError_>()),
    ];
    for (name, class) in classes {
        class.setattr("__name__", name)?;
        class.setattr("__qualname__", name)?;
        module.add(name, class)?;
    }
    Ok(())
}

/// What went wrong in the library.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Reply(#[from] ReplyError),
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error(transparent)]
    Upload(#[from] UploadError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A writer that was finished, or that was cut off.
    #[error("writing a response: it has ended")]
    Ended,
    #[error("sending: the connection is closed")]
    Closed,
}

impl From<Fault> for PyErr {
    fn from(fault: Fault) -> Self {
        let mut text = fault.to_string();
        let mut cause = fault.source();
        while let Some(error) = cause {
            let more = error.to_string();
            // Some say what their cause says.
            if !text.ends_with(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            cause = error.source();
        }
        match fault {
            Fault::Reply(ReplyError::ClientGone) => ClientGone::new_err(text),
            Fault::Reply(_) | Fault::Ended | Fault::Closed => ReplyError_::new_err(text),
            Fault::Body(_) | Fault::Upload(_) => BodyError_::new_err(text),
            Fault::Config(ConfigError::Connect(_)) | Fault::Connect(_) => {
                ConnectError_::new_err(text)
            }
            Fault::Config(_) => ConfigError_::new_err(text),
        }
    }
}

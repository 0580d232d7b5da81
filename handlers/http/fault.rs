//! What a request can suffer at a backend, and what its client is told of it: which is not where the backend is.

use std::io;

use lurcher::handler::UploadError;

/// Why there is no complete response.
#[derive(Debug)]
pub(super) enum Fault {
    /// Its name is not known.
    Unknown(io::Error),
    /// None of its addresses takes a connection.
    Unreachable(io::Error),
    /// No connection in time.
    ConnectTimeout,
    /// It ended the connection before the response was complete.
    Closed,
    /// What it sends is no response, or none to this request.
    Malformed,
    /// The request is none that could be passed on.
    Refused,
    /// What the server has stored of it cannot be read.
    Upload(UploadError),
    /// It moved no byte for too long.
    Timeout,
}

impl Fault {
    /// The status and the words for the client.
    pub(super) fn answer(&self) -> (u16, &'static str) {
        match self {
            Self::Unknown(_) => (502, "The backend's name is not known"),
            Self::Unreachable(_) => (502, "The backend takes no connection"),
            Self::ConnectTimeout => (504, "The backend takes no connection in time"),
            Self::Closed => (502, "The backend closed the connection without a response"),
            Self::Malformed => (502, "The backend's response is malformed"),
            Self::Refused => (400, "The request cannot be passed on"),
            Self::Upload(_) => (500, "The request's body cannot be read"),
            Self::Timeout => (504, "The backend does not answer in time"),
        }
    }

    /// For the log.
    pub(super) fn why(&self) -> String {
        match self {
            Self::Unknown(error) | Self::Unreachable(error) => error.to_string(),
            Self::Upload(error) => error.to_string(),
            other => other.answer().1.to_owned(),
        }
    }
}

impl From<&hyper::Error> for Fault {
    fn from(error: &hyper::Error) -> Self {
        tracing::debug!(%error, source = ?std::error::Error::source(error), "exchange with a backend failed");
        if error.is_parse() {
            Self::Malformed
        } else {
            Self::Closed
        }
    }
}

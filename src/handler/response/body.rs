//! The body of a response, piece by piece.
//!
//! It cuts nothing and joins nothing: a piece that is written is a message.

use std::fmt;

use http::HeaderMap;
use http::header;

use super::{Framing, HOP_BY_HOP, Respond, send_last};
use crate::handler::http::{self as fields, HttpError};
use crate::handler::replies::{ReplyError, begin, note};
use crate::handler::request::Client;
use crate::wire::reply::{self, Extended};

/// What has become of the head.
enum Head {
    /// It may still be one with a length.
    Open(Box<Respond>),
    /// Written, with the address before it; not sent.
    Written(Vec<u8>),
    Sent,
}

/// The body of a response, written piece by piece. [`BodyWriter::finish`] has to be called: a writer that is dropped before cuts the
/// client's connection, so that what it has got does not look like the whole.
#[must_use = "dropping it cuts the client off"]
pub struct BodyWriter {
    client: Client,
    head: Head,
    framing: Framing,
    /// Bytes of the body.
    written: u64,
    close: bool,
    done: bool,
}

impl fmt::Debug for BodyWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyWriter")
            .field("client", &self.client)
            .field("framing", &self.framing)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl BodyWriter {
    pub(super) fn new(respond: Respond) -> Self {
        Self {
            client: respond.client.clone(),
            framing: Framing::Bodiless,
            written: 0,
            close: false,
            head: Head::Open(Box::new(respond)),
            done: false,
        }
    }

    /// The client that it writes to.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a piece of the body, as one message, with the head before it if it is the first. An empty piece sends nothing; see
    /// [`BodyWriter::flush`]. Waits while the server is behind.
    ///
    /// # Errors
    ///
    /// [`ReplyError::Http`] when the body becomes longer than was said, [`ReplyError::Io`].
    ///
    /// # Cancel safety
    ///
    /// Safe: the piece is sent if and only if the future completes.
    pub async fn write(&mut self, data: impl AsRef<[u8]>) -> Result<(), ReplyError> {
        let data = data.as_ref();
        if data.is_empty() {
            return Ok(());
        }
        self.end_head(None);
        let written = self.count(data)?;
        let message = self.message(data, b"");
        if let Some(message) = message {
            self.send(message).await?;
        }
        self.written = written;
        Ok(())
    }

    /// Sends the head now if it has not left yet. Pieces that were written have left already.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`BodyWriter::write`].
    pub async fn flush(&mut self) -> Result<(), ReplyError> {
        self.end_head(None);
        match self.message(b"", b"") {
            Some(message) => self.send(message).await,
            None => Ok(()),
        }
    }

    /// Ends the body, and closes the connection where the request or the response says so.
    ///
    /// # Errors
    ///
    /// [`ReplyError::Http`] when the body is shorter than was said: the client is cut off then.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, either the end is sent, or the client is cut off.
    pub async fn finish(self) -> Result<(), ReplyError> {
        self.end(b"", None).await
    }

    /// Sends the last piece and the end in one message. If it is the only piece, the response gets a `Content-Length` as if
    /// [sent](Respond::send) whole.
    ///
    /// # Errors
    ///
    /// As [`BodyWriter::write`] and [`BodyWriter::finish`].
    ///
    /// # Cancel safety
    ///
    /// As [`BodyWriter::finish`].
    pub async fn finish_with(self, data: impl AsRef<[u8]>) -> Result<(), ReplyError> {
        self.end(data.as_ref(), None).await
    }

    /// As [`BodyWriter::finish`], with trailer fields (RFC 9112 7.1.2). They need chunks: in other framings, where nothing could
    /// carry them, they are left out, as are names that have no business there (RFC 9110 6.5.1: framing, connection).
    ///
    /// # Errors
    ///
    /// As [`BodyWriter::finish`].
    ///
    /// # Cancel safety
    ///
    /// As [`BodyWriter::finish`].
    pub async fn finish_with_trailers(self, trailers: &HeaderMap) -> Result<(), ReplyError> {
        self.end(b"", Some(trailers)).await
    }

    async fn end(mut self, data: &[u8], trailers: Option<&HeaderMap>) -> Result<(), ReplyError> {
        let whole = trailers.is_none() && matches!(self.head, Head::Open(_));
        self.end_head(whole.then(|| u64::try_from(data.len()).unwrap_or(u64::MAX)));
        let written = self.count(data)?;
        if let Framing::Length(declared) = self.framing
            && written != declared
        {
            return Err(HttpError::Length { declared, written }.into());
        }
        let mut last = Vec::new();
        if self.framing == Framing::Chunked {
            last.extend_from_slice(b"0\r\n");
            for (name, value) in trailers.into_iter().flatten() {
                if !HOP_BY_HOP.contains(name)
                    && ![header::CONNECTION, header::CONTENT_LENGTH, header::TRAILER].contains(name)
                {
                    fields::write_field(&mut last, name.as_str().as_bytes(), value.as_bytes());
                }
            }
            last.extend_from_slice(b"\r\n");
        }
        let message = self.message(data, &last).unwrap_or_default();
        send_last(&self.client, message, self.close).await?;
        self.done = true;
        Ok(())
    }

    /// Decides the framing, once: by the length that was said, or the `whole` body, if that is known now.
    fn end_head(&mut self, whole: Option<u64>) {
        let Head::Open(respond) = &mut self.head else {
            return;
        };
        // What was said before is a promise that the body is held to.
        let known = if respond.length.is_some() {
            None
        } else {
            whole
        };
        self.framing = respond.framing(known);
        respond.end_head(self.framing);
        self.close = respond.closes();
        self.head = Head::Written(std::mem::take(&mut respond.message));
    }

    /// Bytes of the body with these; an error when they are too many.
    fn count(&self, data: &[u8]) -> Result<u64, HttpError> {
        let more = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let written = self.written.saturating_add(more);
        match self.framing {
            Framing::Length(declared) if written > declared => {
                Err(HttpError::Length { declared, written })
            }
            _ => Ok(written),
        }
    }

    /// The next message: the head if it has not left, the piece, the `last` bytes of the body. Nothing when it would be empty.
    fn message(&self, data: &[u8], last: &[u8]) -> Option<Vec<u8>> {
        let data = match self.framing {
            Framing::Bodiless => b"",
            _ => data,
        };
        let room = data.len() + last.len() + 32;
        let mut out = match &self.head {
            Head::Written(head) => {
                let mut out = Vec::with_capacity(head.len() + room);
                out.extend_from_slice(head);
                out
            }
            // An empty payload would close the connection.
            _ if data.is_empty() && last.is_empty() => return None,
            _ => begin(self.client.sender(), &[self.client.conn_id()], room),
        };
        if self.framing == Framing::Chunked && !data.is_empty() {
            write_hex(&mut out, data.len());
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(data);
            out.extend_from_slice(b"\r\n");
        } else {
            out.extend_from_slice(data);
        }
        out.extend_from_slice(last);
        Some(out)
    }

    async fn send(&mut self, message: Vec<u8>) -> Result<(), ReplyError> {
        let server = self.client.server();
        note(server, server.send(message).await?);
        self.head = Head::Sent;
        Ok(())
    }
}

impl Drop for BodyWriter {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (client, mut message) = (&self.client, Vec::new());
        let cancel = Extended::Ctl {
            keep_alive: false,
            credits: None,
            cancel: true,
        };
        reply::encode_extended(client.sender(), &[client.conn_id()], &cancel, &mut message);
        if let Err(error) = client.server().send_when_possible(message) {
            tracing::debug!(%error, ?client, "cutting off a client whose response was given up");
        }
    }
}

fn write_hex(out: &mut Vec<u8>, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        let value = (number >> (digit * 4)) & 0xf;
        out.push(b"0123456789abcdef".get(value).copied().unwrap_or(b'0'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        for number in [0, 1, 9, 15, 16, 255, 256, 4095, 65_536, usize::MAX] {
            let mut out = Vec::new();
            write_hex(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{number:x}"));
        }
    }
}

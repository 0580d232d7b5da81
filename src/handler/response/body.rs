//! The body of a response, piece by piece: its framing. How much of it leaves when is for [`super::super::flow`] to say.

use std::fmt;

use bytes::BytesMut;
use http::HeaderMap;
use http::header;

use super::{Framing, HOP_BY_HOP, Respond};
use crate::handler::flow::Outflow;
use crate::handler::http::{self as fields, HttpError};
use crate::handler::replies::{ReplyError, begin};
use crate::handler::request::Client;
use crate::wire::reply::{self, Extended};

/// The body of a response, written piece by piece. [`BodyWriter::finish`] has to be called: a writer that is dropped before cuts the
/// client's connection, so that what it has got does not look like the whole.
#[must_use = "dropping it cuts the client off"]
pub struct BodyWriter {
    client: Client,
    /// The head, as long as it may still be one with a length.
    head: Option<Box<Respond>>,
    /// What is to be sent and was not yet.
    pending: BytesMut,
    flow: Outflow,
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
        let client = respond.client.clone();
        let server = std::sync::Arc::clone(client.server());
        Self {
            flow: Outflow::new(server, client.sender(), client.conn_id()),
            client,
            pending: BytesMut::new(),
            framing: Framing::Bodiless,
            written: 0,
            close: false,
            head: Some(Box::new(respond)),
            done: false,
        }
    }

    /// One for bytes as they are.
    fn bare(client: &Client) -> Self {
        let server = std::sync::Arc::clone(client.server());
        Self {
            flow: Outflow::new(server, client.sender(), client.conn_id()),
            client: client.clone(),
            pending: BytesMut::new(),
            framing: Framing::UntilClose,
            written: 0,
            close: true,
            head: None,
            done: false,
        }
    }

    /// The client that it writes to.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the server has told that the client is gone.
    pub fn is_gone(&self) -> bool {
        self.flow.is_gone()
    }

    /// Sends a piece of the body, with the head before it if it is the first. An empty piece sends nothing; see
    /// [`BodyWriter::flush`]. Waits while the server is behind, and while its client is: [`Connection::recv`](crate::handler::Connection::recv) has to be called
    /// meanwhile, in another task, since it is what tells.
    ///
    /// A server that does not tell what its client has taken (Mongrel2 without `download.flow_control`) keeps 16 messages for a client
    /// at most. Of what goes there, pieces are gathered into messages that double in size while much is written in little time, so
    /// [flush](BodyWriter::flush) where a client should see what there is.
    ///
    /// # Errors
    ///
    /// [`ReplyError::Http`] when the body becomes longer than was said (nothing of the piece is sent then);
    /// [`ReplyError::ClientGone`], [`ReplyError::NotReceiving`] and [`ReplyError::Io`], after which the writer is of no more use.
    ///
    /// # Cancel safety
    ///
    /// Dropped early, the piece has been taken all the same: what of it was not sent goes before what is written next. Do not write
    /// it again.
    pub async fn write(&mut self, data: impl AsRef<[u8]>) -> Result<(), ReplyError> {
        let data = data.as_ref();
        if data.is_empty() {
            return Ok(());
        }
        self.end_head(None);
        self.append(data)?;
        if self.flow.is_due(self.pending.len()) {
            self.flow.send(&mut self.pending).await?;
        }
        Ok(())
    }

    /// Sends what was written and gathered, or the head if nothing was. Where messages are precious (see [`BodyWriter::write`]) it
    /// may wait for up to a second: write on meanwhile, if there is something, rather than flush piece by piece.
    ///
    /// # Errors
    ///
    /// As [`BodyWriter::write`].
    ///
    /// # Cancel safety
    ///
    /// Safe: what was not sent goes before what is written next.
    pub async fn flush(&mut self) -> Result<(), ReplyError> {
        self.end_head(None);
        if !self.pending.is_empty() {
            self.flow.flush_is_due().await;
        }
        self.flow.send(&mut self.pending).await
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

    /// Closes the connection behind the body, which the head may not have said: where it turns out too late that the client should not
    /// use it again, since a body of its own was not read.
    pub fn close_behind(&mut self) {
        match &mut self.head {
            Some(respond) => respond.form.close = true,
            None => self.close = true,
        }
    }

    /// Whether something has left: then no other answer can be given.
    #[cfg(feature = "service")]
    pub(in crate::handler) fn has_begun(&self) -> bool {
        self.flow.has_begun()
    }

    /// Gives up without cutting anybody off: where nothing has left, and something else will be said.
    #[cfg(feature = "service")]
    pub(in crate::handler) fn forget(mut self) {
        self.done = true;
    }

    async fn end(mut self, data: &[u8], trailers: Option<&HeaderMap>) -> Result<(), ReplyError> {
        let whole = trailers.is_none() && self.head.is_some();
        self.end_head(whole.then(|| u64::try_from(data.len()).unwrap_or(u64::MAX)));
        self.append(data)?;
        if let Framing::Length(declared) = self.framing
            && self.written != declared
        {
            let written = self.written;
            return Err(HttpError::Length { declared, written }.into());
        }
        if self.framing == Framing::Chunked {
            let mut last = Vec::new();
            last.extend_from_slice(b"0\r\n");
            for (name, value) in trailers.into_iter().flatten() {
                if !HOP_BY_HOP.contains(name)
                    && ![header::CONNECTION, header::CONTENT_LENGTH, header::TRAILER].contains(name)
                {
                    fields::write_field(&mut last, name.as_str().as_bytes(), value.as_bytes());
                }
            }
            last.extend_from_slice(b"\r\n");
            self.pending.extend_from_slice(&last);
        }
        self.flow.finish(&mut self.pending, self.close).await?;
        self.done = true;
        Ok(())
    }

    /// Decides the framing, once: by the length that was said, or the `whole` body, if that is known now.
    fn end_head(&mut self, whole: Option<u64>) {
        let Some(mut respond) = self.head.take() else {
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
        self.pending.extend_from_slice(respond.payload());
    }

    /// Gives the body up: what was written still arrives, and then the connection ends. Where that would look like the whole, because its
    /// end is that of the connection, the client is cut off as by a drop, and may lose what was written.
    pub fn abandon(mut self) {
        let shows = match self.framing {
            Framing::Chunked => true,
            Framing::Length(declared) => self.written < declared,
            Framing::Bodiless | Framing::UntilClose => false,
        };
        if shows && !self.done && !self.flow.is_gone() {
            self.client.end_when_possible(&self.pending);
            self.done = true;
        }
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

    /// Puts a piece of the body where it waits to be sent.
    fn append(&mut self, data: &[u8]) -> Result<(), HttpError> {
        self.written = self.count(data)?;
        match self.framing {
            Framing::Bodiless => {}
            Framing::Chunked if data.is_empty() => {}
            Framing::Chunked => {
                self.pending.reserve(data.len() + 32);
                write_hex(&mut self.pending, data.len());
                self.pending.extend_from_slice(b"\r\n");
                self.pending.extend_from_slice(data);
                self.pending.extend_from_slice(b"\r\n");
            }
            Framing::Length(_) | Framing::UntilClose => self.pending.extend_from_slice(data),
        }
        Ok(())
    }
}

impl Drop for BodyWriter {
    fn drop(&mut self) {
        // Of one that is gone, the number may be somebody else's by now.
        if !self.done && !self.flow.is_gone() {
            self.client.cancel_when_possible();
        }
    }
}

impl Client {
    /// Bytes as they are, as fast as the client takes them: frames of a WebSocket, or anything else that is framed already and may be
    /// long. [`BodyWriter::finish`] closes the connection behind them; dropped before, the writer cuts the client off.
    ///
    /// What is sent to the client past the writer meanwhile comes between its pieces.
    pub fn stream(&self) -> BodyWriter {
        BodyWriter::bare(self)
    }

    /// Ends the connection behind these last words, for those who cannot wait.
    fn end_when_possible(&self, last: &[u8]) {
        let last = Some(last).filter(|last| !last.is_empty());
        for words in last.into_iter().chain([&[][..]]) {
            let mut message = begin(self.sender(), &[self.conn_id()], words.len());
            message.extend_from_slice(words);
            if let Err(error) = self.server().send_when_possible(message) {
                tracing::debug!(%error, client = ?self, "ending a response that is not whole");
            }
        }
    }

    /// [`Client::cancel`] for those who cannot wait.
    pub(in crate::handler) fn cancel_when_possible(&self) {
        let cancel = Extended::Ctl {
            keep_alive: false,
            credits: None,
            cancel: true,
            flow: None,
        };
        let mut message = Vec::new();
        reply::encode_extended(self.sender(), &[self.conn_id()], &cancel, &mut message);
        if let Err(error) = self.server().send_when_possible(message) {
            tracing::debug!(%error, client = ?self, "cutting off a client");
        }
    }
}

fn write_hex(out: &mut BytesMut, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        let value = (number >> (digit * 4)) & 0xf;
        out.extend(b"0123456789abcdef".get(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        for number in [0, 1, 9, 15, 16, 255, 256, 4095, 65_536, usize::MAX] {
            let mut out = BytesMut::new();
            write_hex(&mut out, number);
            assert_eq!(out, format!("{number:x}"));
        }
    }
}

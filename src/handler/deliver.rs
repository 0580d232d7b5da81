//! To many clients at once, whichever servers they came through; and the rest of the names that Mongrel2's own library has.
//!
//! Who is in the crowd is the program's business: nothing here keeps a list.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::Connection;
use super::http::{self, Form};
use super::publisher::Publisher;
use super::replies::{self, IDS_PER_MESSAGE, Replies, ReplyError};
use super::request::{Client, Request};
use super::websocket;
use crate::websocket::Opcode;
use crate::wire::ConnId;

/// To handles on clients, in any mixture of servers: sorted by server and ident, and [`IDS_PER_MESSAGE`] at a time, so that a
/// thousand clients of one server are ten messages. A client that is named twice gets it twice.
///
/// A server that does not read holds up those whose clients come later in the list. Clients that are gone are no error: the server
/// answers with disconnect notices.
impl Replies {
    /// Sends bytes as they are; no bytes at all close the connections.
    ///
    /// # Cancel safety
    ///
    /// Each message of [`IDS_PER_MESSAGE`] ids is sent or not; dropped early, those before have been.
    pub async fn deliver_to<'a>(
        &self,
        clients: impl IntoIterator<Item = &'a Client>,
        data: impl AsRef<[u8]>,
    ) -> Result<(), ReplyError> {
        Crowd::of(clients).send(data.as_ref()).await
    }

    /// Sends a whole HTTP response, as [`Replies::deliver_http`]: to clients that wait for an answer, each for its own.
    ///
    /// # Errors
    ///
    /// As [`Replies::reply_http`].
    ///
    /// # Cancel safety
    ///
    /// As [`Replies::deliver_to`].
    pub async fn deliver_to_http<'a>(
        &self,
        clients: impl IntoIterator<Item = &'a Client>,
        body: impl AsRef<[u8]>,
        code: u16,
        status: &str,
        headers: &[(&str, &str)],
    ) -> Result<(), ReplyError> {
        let crowd = Crowd::of(clients);
        let mut response = Vec::new();
        let status = (code, status);
        let close = http::write(
            &mut response,
            Form::default(),
            status,
            headers,
            body.as_ref(),
        )?;
        crowd.send(&response).await?;
        if close {
            crowd.send(&[]).await?;
        }
        Ok(())
    }

    /// Sends the value as bare JSON: to clients of a message socket, or as a piece of a response. In a response of its own it goes with
    /// [`Replies::deliver_to_http`], in a WebSocket message with [`Replies::deliver_to_websocket`].
    ///
    /// # Errors
    ///
    /// When the value cannot be written as JSON.
    ///
    /// # Cancel safety
    ///
    /// As [`Replies::deliver_to`].
    pub async fn deliver_to_json<'a, T: Serialize + ?Sized>(
        &self,
        clients: impl IntoIterator<Item = &'a Client>,
        value: &T,
    ) -> Result<(), ReplyError> {
        let crowd = Crowd::of(clients);
        let text = serde_json::to_vec(value).map_err(ReplyError::Json)?;
        crowd.send(&text).await
    }

    /// Sends a WebSocket message or a control frame.
    ///
    /// # Errors
    ///
    /// As [`Replies::reply_websocket`].
    ///
    /// # Cancel safety
    ///
    /// As [`Replies::deliver_to`].
    pub async fn deliver_to_websocket<'a>(
        &self,
        clients: impl IntoIterator<Item = &'a Client>,
        payload: impl AsRef<[u8]>,
        opcode: Opcode,
    ) -> Result<(), ReplyError> {
        let crowd = Crowd::of(clients);
        let mut frame = Vec::new();
        websocket::encode(opcode, payload.as_ref(), &mut frame)?;
        crowd.send(&frame).await
    }

    /// Closes the connections, each when all that was sent to it before is written.
    ///
    /// # Cancel safety
    ///
    /// As [`Replies::deliver_to`].
    pub async fn deliver_to_close<'a>(
        &self,
        clients: impl IntoIterator<Item = &'a Client>,
    ) -> Result<(), ReplyError> {
        Crowd::of(clients).send(&[]).await
    }

    /// Sends the value as bare JSON to many clients of the server with that ident, [`IDS_PER_MESSAGE`] at a time.
    ///
    /// # Errors
    ///
    /// When the value cannot be written as JSON, and as [`Replies::deliver`].
    ///
    /// # Cancel safety
    ///
    /// As [`Replies::deliver`].
    pub async fn deliver_json<T: Serialize + ?Sized>(
        &self,
        sender: impl AsRef<[u8]>,
        ids: &[ConnId],
        value: &T,
    ) -> Result<(), ReplyError> {
        let text = serde_json::to_vec(value).map_err(ReplyError::Json)?;
        self.deliver(sender, ids, text).await
    }
}

impl Connection {
    /// As [`Connection::recv`], with the body read as JSON: of a message from a JSON socket, or of a request that has one. A notice
    /// reads as what it says: `{"type":"disconnect"}`.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Connection::recv`].
    pub async fn recv_json<T: DeserializeOwned>(
        &mut self,
    ) -> Option<(Request, serde_json::Result<T>)> {
        let request = self.recv().await?;
        let value = request.json();
        Some((request, value))
    }
}

impl Request {
    /// The body read as JSON.
    ///
    /// # Errors
    ///
    /// When it is none, or not of that type.
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.body)
    }
}

/// Clients of one server under one ident.
struct Group<'a> {
    server: &'a Publisher,
    sender: &'a Bytes,
    ids: Vec<ConnId>,
}

/// Clients sorted by where a message to them goes.
struct Crowd<'a>(Vec<Group<'a>>);

impl<'a> Crowd<'a> {
    fn of(clients: impl IntoIterator<Item = &'a Client>) -> Self {
        let mut groups: Vec<Group<'a>> = Vec::new();
        let mut known: HashMap<(*const Publisher, &'a Bytes), usize> = HashMap::new();
        for client in clients {
            let (server, sender) = (client.server(), client.sender());
            let at = *known
                .entry((Arc::as_ptr(server), sender))
                .or_insert_with(|| {
                    groups.push(Group {
                        server,
                        sender,
                        ids: Vec::new(),
                    });
                    groups.len() - 1
                });
            if let Some(group) = groups.get_mut(at) {
                group.ids.push(client.conn_id());
            }
        }
        Self(groups)
    }

    async fn send(&self, data: &[u8]) -> Result<(), ReplyError> {
        for group in &self.0 {
            for ids in group.ids.chunks(IDS_PER_MESSAGE) {
                replies::send(group.server, group.sender, ids, data).await?;
            }
        }
        Ok(())
    }
}

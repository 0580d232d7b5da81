//! What a handler can ask of a server beside answering: extended replies (`ctl` and `sendfile`).

use super::replies::{self, ReplyError};
use super::request::Client;
use crate::tnetstring::Value;
use crate::wire::reply::Extended;

/// The members of a `ctl` command.
fn ctl(keep_alive: bool, credits: Option<i64>, cancel: bool) -> Extended<'static> {
    Extended::Ctl {
        keep_alive,
        credits,
        cancel,
        flow: None,
    }
}

/// The command to write a file of this name.
pub(super) fn file(name: &[u8]) -> Extended<'_> {
    Extended::Other {
        key: b"sendfile",
        value: Value::Bytes(name),
    }
}

/// What can be asked for beside payloads. A client that is gone is no error: the server answers with a disconnect notice, except
/// to [`Client::cancel`].
impl Client {
    /// Resets the clock of the server's idle limit (`limits.min_ping`): the client says nothing, and is wanted all the same.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Client::send`].
    pub async fn keep_alive(&self) -> Result<(), ReplyError> {
        self.control(&ctl(true, None, false)).await
    }

    /// Lets the server send so many bytes more of a body that is streamed (`upload.stream`), beyond what was granted before.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Client::send`].
    pub async fn grant(&self, credits: i64) -> Result<(), ReplyError> {
        self.control(&ctl(false, Some(credits), false)).await
    }

    /// Drops the connection at once: what was sent and is not written yet is lost, an upload is given up. No notice follows.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Client::send`].
    pub async fn cancel(&self) -> Result<(), ReplyError> {
        self.control(&ctl(false, None, true)).await
    }

    /// Has the server write a file, in order with what is sent before and after: usually the body of a response whose head, with
    /// the right `Content-Length`, was sent before. [`super::Respond::send_file`] does both.
    ///
    /// `name` is the server's, inside its chroot. Lurcher sends regular files below its setting `sendfile.base`, Mongrel2 needs
    /// its plug-in. A file that cannot be sent drops the connection.
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Client::send`].
    pub async fn send_file(&self, name: impl AsRef<[u8]>) -> Result<(), ReplyError> {
        self.control(&file(name.as_ref())).await
    }

    async fn control(&self, command: &Extended<'_>) -> Result<(), ReplyError> {
        replies::send_extended(self.server(), self.sender(), self.conn_id(), command).await
    }
}

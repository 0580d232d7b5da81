//! One request on one connection: its body goes out while the response comes in, and each waits for nobody but its own side.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lurcher::handler::{BodyWriter, ReplyError, Request};
use tokio::time::{Instant, sleep_until};

use super::backend::Stream;
use super::codec::{self, End, Record};
use super::head::{self, Head};
use crate::handlers::exchanges::Body;

/// Bytes of complaints that are logged for one request; a script may have more of them than anybody wants to read.
const STDERR_MAX: usize = 16 * 1024;

/// Bytes of a body that are passed on at once: more is a copy that waits, less costs more than the bytes.
const PIECE: usize = 64 * 1024;

/// Why there is no response, or no end of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("connecting: {0}")]
    Connect(#[source] io::Error),
    /// Nothing came at all: a kept connection may have been closed just then.
    #[error("it closed the connection before it answered")]
    Unanswered,
    #[error("it closed the connection in the middle of a response")]
    Gone,
    #[error("it was silent for {} seconds", .0.as_secs())]
    Silent(Duration),
    #[error("it has no room for the request")]
    Overloaded,
    #[error("it does not answer requests")]
    Unable,
    #[error("what it says is no FastCGI: {0}")]
    Protocol(#[from] codec::Malformed),
    #[error("the script's response: {0}")]
    Head(#[from] head::Malformed),
    #[error("the script has answered nothing (exit status {0})")]
    Nothing(u32),
    /// The client's side of the request has ended before its end.
    #[error("{0}")]
    Body(String),
    #[error(transparent)]
    Reply(#[from] ReplyError),
}

/// What has come of an exchange.
pub(super) struct Done {
    /// The connection may be used again.
    pub(super) reusable: bool,
    pub(super) result: Result<(), Fault>,
    /// The client has a part of the response.
    pub(super) begun: bool,
}

/// A request on its way. Dropped before its end, it is given up: the application is told so where it can be.
struct Open<'a> {
    stream: &'a Stream,
    /// A record was written in part: what follows would be taken for its content.
    torn: Cell<bool>,
    ended: Cell<bool>,
    /// When the application did something last; `None` while it waits for the client.
    active: Cell<Option<Instant>>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.ended.get() && !self.torn.get() {
            // Nothing waits for it, and the connection ends in any case.
            drop(self.stream.try_write(&codec::abort()));
        }
    }
}

impl Open<'_> {
    fn touch(&self) {
        self.active.set(Some(Instant::now()));
    }

    /// Writes whole records.
    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        self.touch();
        while !bytes.is_empty() {
            let written = self.stream.write(bytes).await?;
            self.touch();
            bytes = bytes.get(written..).unwrap_or_default();
            self.torn.set(!bytes.is_empty());
        }
        Ok(())
    }

    /// Completes when the application has done nothing for so long.
    async fn silence(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let due = self.active.get().unwrap_or(now) + limit;
            if due <= now {
                return;
            }
            sleep_until(due).await;
        }
    }
}

/// How the sending of a request has ended.
enum Sent {
    All,
    /// The application has closed its ear; it may answer all the same.
    Refused,
}

/// Sends a request and passes the response on. `begin` is its beginning as records.
pub(super) async fn run(
    stream: &Stream,
    begin: &[u8],
    body: &mut Body,
    request: &Request,
    limit: Duration,
) -> Done {
    let open = Open {
        stream,
        torn: Cell::new(false),
        ended: Cell::new(false),
        active: Cell::new(Some(Instant::now())),
    };
    let begun = Cell::new(false);
    let clean = Cell::new(false);
    let (mut sent_all, mut sending) = (false, true);
    let result = {
        let mut send = pin!(send(&open, begin, body));
        let mut receive = pin!(receive(&open, request, &begun, &clean));
        let mut silence = pin!(open.silence(limit));
        loop {
            tokio::select! {
                sent = &mut send, if sending => match sent {
                    Ok(sent) => {
                        sending = false;
                        sent_all = matches!(sent, Sent::All);
                        open.touch();
                    }
                    Err(fault) => break Err(fault),
                },
                received = &mut receive => break received,
                () = &mut silence => break Err(Fault::Silent(limit)),
            }
        }
    };
    Done {
        reusable: clean.get() && sent_all && open.ended.get(),
        begun: begun.get(),
        result,
    }
}

async fn send(open: &Open<'_>, begin: &[u8], body: &mut Body) -> Result<Sent, Fault> {
    let mut records = begin.to_vec();
    match body {
        Body::Whole(bytes) => {
            for piece in bytes.chunks(PIECE) {
                codec::stdin(piece, &mut records);
                if open.write(&records).await.is_err() {
                    return Ok(Sent::Refused);
                }
                records.clear();
            }
        }
        Body::Pieces(reader) => loop {
            if !records.is_empty() && open.write(&records).await.is_err() {
                return Ok(Sent::Refused);
            }
            records.clear();
            open.active.set(None);
            match reader.next().await {
                Some(Ok(piece)) => codec::stdin(&piece, &mut records),
                Some(Err(error)) => return Err(Fault::Body(error.to_string())),
                None => break,
            }
        },
    }
    codec::stdin_end(&mut records);
    match open.write(&records).await {
        Ok(()) => Ok(Sent::All),
        Err(_) => Ok(Sent::Refused),
    }
}

async fn receive(
    open: &Open<'_>,
    request: &Request,
    begun: &Cell<bool>,
    clean: &Cell<bool>,
) -> Result<(), Fault> {
    let mut bytes = BytesMut::new();
    let mut response = Response::new(request, begun);
    let mut complaints = Complaints::default();
    let mut any = false;
    let end = loop {
        let Some(record) = codec::next(&mut bytes)? else {
            // All that is here goes on before there is more.
            response.flush().await?;
            match open.stream.read(&mut bytes).await {
                Ok(count) if count > 0 => {}
                _ if any => return Err(Fault::Gone),
                _ => return Err(Fault::Unanswered),
            }
            any = true;
            open.touch();
            continue;
        };
        match record {
            Record::Stdout(piece) => {
                response.add(&piece).await?;
                // The client has taken its time, not the application.
                open.touch();
            }
            Record::Stderr(text) => complaints.add(&text, request),
            Record::End(end) => break end,
            Record::Other => {}
        }
    };
    open.ended.set(true);
    clean.set(bytes.is_empty());
    response.end(end).await
}

/// The response as far as it is known.
struct Response<'a> {
    request: &'a Request,
    stage: Stage,
    /// What was received and not sent: of the head until that is whole, then of the body.
    pending: BytesMut,
    /// Whether the client has something of it.
    begun: &'a Cell<bool>,
}

enum Stage {
    /// So much of the head was looked at.
    Head(usize),
    /// It is known, and not sent yet.
    Headed(Head),
    Body(BodyWriter),
}

impl<'a> Response<'a> {
    fn new(request: &'a Request, begun: &'a Cell<bool>) -> Self {
        Self {
            request,
            stage: Stage::Head(0),
            pending: BytesMut::new(),
            begun,
        }
    }

    /// Takes a piece of it. Pieces are joined up to a size: php-fpm's have 8 KiB, and each message has its price.
    async fn add(&mut self, piece: &Bytes) -> Result<(), Fault> {
        self.pending.extend_from_slice(piece);
        if let Stage::Head(seen) = &mut self.stage
            && let Some(head) = head::split(&mut self.pending, seen)?
        {
            self.stage = Stage::Headed(head);
        }
        if self.pending.len() >= PIECE {
            self.flush().await?;
        }
        Ok(())
    }

    /// Sends what can be sent.
    async fn flush(&mut self) -> Result<(), Fault> {
        if let Stage::Headed(head) = &self.stage {
            self.stage = Stage::Body(begin(self.request, head)?);
        }
        if let Stage::Body(writer) = &mut self.stage {
            if self.pending.is_empty() && self.begun.replace(true) {
                return Ok(());
            }
            self.begun.set(true);
            let piece = self.pending.split().freeze();
            if piece.is_empty() {
                writer.flush().await?;
            } else {
                writer.write(piece).await?;
            }
        }
        Ok(())
    }

    async fn end(self, end: End) -> Result<(), Fault> {
        match (end, self.stage) {
            (End::Complete(status), Stage::Head(_)) if self.pending.is_empty() => {
                Err(Fault::Nothing(status))
            }
            (End::Complete(_), Stage::Head(_)) => Err(head::Malformed::Unended.into()),
            (End::Complete(_), Stage::Headed(ref head)) => {
                let writer = begin(self.request, head)?;
                self.begun.set(true);
                Ok(writer.finish_with(self.pending).await?)
            }
            (End::Complete(_), Stage::Body(writer)) => Ok(writer.finish_with(self.pending).await?),
            (_, Stage::Body(_)) => Err(Fault::Gone),
            (End::Refused, _) => Err(Fault::Overloaded),
            (End::Unable, _) => Err(Fault::Unable),
        }
    }
}

fn begin(request: &Request, head: &Head) -> Result<BodyWriter, ReplyError> {
    let mut respond = request.respond(head.status);
    if !head.reason.is_empty() {
        respond = respond.reason(&head.reason);
    }
    for (name, value) in &head.fields {
        respond = respond.header(name, value);
    }
    if let Some(length) = head.length {
        respond = respond.length(length);
    }
    respond.stream()
}

/// What a script writes to its standard error.
#[derive(Default)]
struct Complaints {
    bytes: usize,
}

impl Complaints {
    fn add(&mut self, text: &[u8], request: &Request) {
        let room = STDERR_MAX.saturating_sub(self.bytes);
        self.bytes = self.bytes.saturating_add(text.len());
        let path = request.path.escape_ascii();
        let said = text.get(..room).unwrap_or(text);
        for line in said.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii) {
            if !line.is_empty() {
                tracing::warn!("{path}: {}", String::from_utf8_lossy(line).escape_debug());
            }
        }
        if room > 0 && text.len() > room {
            tracing::warn!("{path}: more than {STDERR_MAX} bytes of that: the rest is left out");
        }
    }
}

//! Bodies in pieces: of a message, of a stored upload, complete or not, and of a streamed one, whose parts are asked for as they are read.
//!
//! A streamed upload comes as messages between all others, so somebody has to sort them: [`Bodies`]. It never waits; what it
//! holds is bounded by the credits that a reader has granted.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use tokio_util::io::poll_read_buf;

use super::arriving::{Arriving, Tail};
use super::replies::ReplyError;
use super::request::{Client, Request};
use super::upload::{self, Early, Upload, UploadError};

/// Bytes of a streamed upload that may be on their way or wait to be read: enough to keep a client of a fast network busy while
/// a handler writes to a disk.
pub const BODY_WINDOW: u32 = 256 << 10;

/// What one part may have beyond the credits, in bytes: a chunk of a chunked body comes whole.
const PART_BYTES_MAX: usize = 1 << 20;

/// The size of the pieces of a stored upload, in bytes.
const FILE_PIECE: usize = 64 << 10;

/// Bodies are looked through for forgotten ones when there are so many, and whenever their number has doubled.
const SWEEP_MIN: usize = 64;

/// A body that did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The client went, or the connection to the server ended, or the server has given the upload up.
    #[error("reading a body: the client is gone")]
    Gone,
    /// A part is missing: it went to another handler of the same `send_spec`. A Mongrel2 deals parts out in turn, so streamed
    /// uploads need one process that receives there.
    #[error("reading a body: the part behind {at} bytes went elsewhere")]
    Missing {
        /// What was received.
        at: u64,
    },
    /// The server has sent more than it was given credits for.
    #[error("reading a body: more came than was asked for")]
    Overrun,
    /// It is larger than the program wants it: see [`BodyReader::collect`].
    #[error("reading a body: it is larger than {max} bytes")]
    TooLarge {
        /// What was wanted at most.
        max: usize,
    },
    /// More parts could not be asked for.
    #[error("asking for more of a body")]
    Reply(#[from] ReplyError),
    /// The file of a stored upload could not be opened.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// The file of a stored upload could not be read.
    #[error("reading an upload")]
    File(#[source] io::Error),
}

/// A part of a streamed upload (setting `upload.stream`). The first is the request itself, with what of the body was there.
///
/// It dereferences to the [`Request`] that it came as; all parts of an upload have its `sender` and `conn_id`, the first alone has
/// a method and headers. Parts come as credits allow: [`Client::grant`], which [`BodyReader`] does by itself.
#[derive(Debug, Clone)]
pub struct Part {
    request: Request,
    offset: u64,
    first: bool,
    last: bool,
}

impl Part {
    pub(super) fn first(request: Request) -> Self {
        let last = request.headers.contains("UPLOAD_STREAM_DONE");
        Self {
            request,
            offset: 0,
            first: true,
            last,
        }
    }

    pub(super) fn next(request: Request, offset: u64, last: bool) -> Self {
        Self {
            request,
            offset,
            first: false,
            last,
        }
    }

    /// The request that it came as.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// The bytes of this part; perhaps none.
    pub fn bytes(&self) -> &Bytes {
        &self.request.body
    }

    /// How many bytes of the body came before this part.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether this begins an upload: the one to answer.
    pub fn is_first(&self) -> bool {
        self.first
    }

    /// Whether no part follows.
    pub fn is_last(&self) -> bool {
        self.last
    }
}

impl Deref for Part {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.request
    }
}

/// Sorts the parts of streamed uploads to those who read them.
///
/// ```no_run
/// use lurcher::handler::{Bodies, Connection, Event, ReplyError};
///
/// # async fn run(mut connection: Connection) -> Result<(), ReplyError> {
/// let mut bodies = Bodies::new();
/// while let Some(request) = connection.recv().await {
///     match request.into_event() {
///         Event::UploadPart(part) => {
///             // The first part of an upload has a body to be read, by another task.
///             if let Some(body) = bodies.part(&part) {
///                 let replies = connection.replies();
///                 tokio::spawn(async move {
///                     let all = body.collect(1 << 20).await;
///                     let said = all.map_or("that was not all\n", |_| "thank you\n");
///                     replies.reply_http(&part, said, 200, "OK", &[]).await
///                 });
///             }
///         }
///         Event::Disconnect(client) => bodies.gone(&client),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Bodies {
    open: HashMap<Client, Arc<Pipe>>,
    /// Those of stored uploads that are read since they were announced.
    arriving: HashMap<Client, Arc<Tail>>,
    window: u32,
    sweep_at: usize,
}

impl Default for Bodies {
    fn default() -> Self {
        Self::new()
    }
}

impl Bodies {
    /// No bodies yet, each to be read through a window of [`BODY_WINDOW`] bytes.
    pub fn new() -> Self {
        Self::with_window(BODY_WINDOW)
    }

    /// The same with so many bytes, at least one, that may be on their way or wait to be read, for each body.
    pub fn with_window(window: u32) -> Self {
        Self {
            open: HashMap::new(),
            arriving: HashMap::new(),
            window: window.max(1),
            sweep_at: SWEEP_MIN,
        }
    }

    /// Takes a part: the body of a first one, which is to be read elsewhere, as the parts come through here. Of a body whose reader is
    /// gone nothing is kept, and no more is asked for.
    pub fn part(&mut self, part: &Part) -> Option<BodyReader> {
        let client = part.client();
        if part.first {
            return Some(self.begin(part, client));
        }
        let pipe = self.open.get(&client)?;
        let ended = pipe.push(part, self.window as usize + PART_BYTES_MAX);
        if ended || Arc::strong_count(pipe) == 1 {
            self.open.remove(&client);
        }
        None
    }

    /// Takes a stored upload when it is announced ([`super::Event::UploadStarted`]): its body, which is to be read elsewhere while the server
    /// writes it. None where it may not be read yet ([`Early::Never`]). Where others might be told of its end ([`Early::IfAlone`]) it is
    /// on the caller that there are none.
    ///
    /// The request is answered with this; its [`super::Event::UploadDone`] is to be given to [`Bodies::done`], without which the body
    /// does not end. The file goes when that has come and the reader is dropped, unless it is kept by then.
    ///
    /// Tell the server first ([`Upload::act`]): else it may give the request to another handler when this one dies.
    pub fn announced(&mut self, upload: &Upload) -> Option<BodyReader> {
        if upload.early() == Early::Never {
            return None;
        }
        let length = upload.declared_length()?;
        let client = upload.client();
        self.sweep();
        self.gone(&client);
        upload.begin();
        let tail = Arc::new(Tail::default());
        self.arriving.insert(client, Arc::clone(&tail));
        let arriving = Arriving::new(upload.clone(), tail, length);
        Some(BodyReader {
            remaining: Some(length),
            source: Source::Arriving(Box::new(arriving)),
        })
    }

    /// A stored upload is complete. True where its request was taken when it was announced: whoever reads it comes to its end, and
    /// nothing else is to be done with it. False for a request that is to be answered now.
    pub fn done(&mut self, upload: &Upload) -> bool {
        let begun = upload.is_begun();
        if let Some(tail) = self.arriving.remove(&upload.client()) {
            if begun {
                tail.complete();
            } else {
                // Another file than the announced one.
                tail.gone();
            }
        }
        begun
    }

    /// The client is gone: who reads its body gets [`BodyError::Gone`].
    pub fn gone(&mut self, client: &Client) {
        if let Some(pipe) = self.open.remove(client) {
            pipe.fail(Failure::Gone);
        }
        if let Some(tail) = self.arriving.remove(client) {
            tail.gone();
        }
    }

    /// Forgets bodies that nobody reads.
    fn sweep(&mut self) {
        if self.open.len() + self.arriving.len() >= self.sweep_at {
            self.open.retain(|_, pipe| Arc::strong_count(pipe) > 1);
            self.arriving.retain(|_, tail| Arc::strong_count(tail) > 1);
            let left = self.open.len() + self.arriving.len();
            self.sweep_at = (left * 2).max(SWEEP_MIN);
        }
    }

    fn begin(&mut self, part: &Part, client: Client) -> BodyReader {
        self.sweep();
        let pipe = Arc::new(Pipe::default());
        pipe.push(part, usize::MAX);
        // One that is not complete, and that nobody said was gone.
        self.gone(&client);
        if !part.last {
            self.open.insert(client.clone(), Arc::clone(&pipe));
        }
        let length = upload::length(&part.request.headers);
        let early = part.bytes().len() as u64;
        BodyReader {
            remaining: length,
            source: Source::Stream(Stream {
                pipe,
                client,
                window: u64::from(self.window),
                rest: length.map(|length| length.saturating_sub(early)),
                early,
                granted: 0,
                taken: 0,
                granting: None,
            }),
        }
    }
}

impl Drop for Bodies {
    fn drop(&mut self) {
        for pipe in self.open.values() {
            pipe.fail(Failure::Gone);
        }
        for tail in self.arriving.values() {
            tail.gone();
        }
    }
}

/// What lies between the one who receives and the one who reads.
#[derive(Debug, Default)]
struct Pipe(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    parts: VecDeque<Bytes>,
    /// Bytes in `parts`.
    waiting: usize,
    /// Bytes received so far.
    received: u64,
    last: bool,
    failure: Option<Failure>,
    waker: Option<Waker>,
}

#[derive(Debug, Clone, Copy)]
enum Failure {
    Gone,
    Missing,
    Overrun,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a part; true when nothing more is to come.
    fn push(&self, part: &Part, max: usize) -> bool {
        let mut held = self.lock();
        if held.last || held.failure.is_some() {
            return true;
        }
        let bytes = part.bytes();
        if part.offset != held.received {
            held.failure = Some(Failure::Missing);
        } else if held.waiting.saturating_add(bytes.len()) > max {
            held.failure = Some(Failure::Overrun);
        } else {
            held.received += bytes.len() as u64;
            held.last = part.last;
            if !bytes.is_empty() {
                held.waiting += bytes.len();
                held.parts.push_back(bytes.clone());
            }
        }
        let ended = held.last || held.failure.is_some();
        wake(held);
        ended
    }

    fn fail(&self, failure: Failure) {
        let mut held = self.lock();
        if !held.last {
            held.failure.get_or_insert(failure);
        }
        wake(held);
    }
}

/// Wakes the reader, outside the lock.
fn wake(mut held: MutexGuard<'_, Held>) {
    let waker = held.waker.take();
    drop(held);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Reads a body piece by piece, wherever it is. May be given to any task; to stop reading, drop it.
///
/// A body that was not read to its end keeps its client waiting, or the connection useless for the next request: close it behind the
/// answer, where [`BodyReader::is_left`] says so.
pub struct BodyReader {
    source: Source,
    /// Bytes still to come, where that is known.
    remaining: Option<u64>,
}

enum Source {
    Whole(Option<Bytes>),
    File {
        file: Box<tokio::fs::File>,
        buffer: BytesMut,
        /// Removes the file when this is dropped.
        _upload: Box<Upload>,
    },
    Arriving(Box<Arriving>),
    Stream(Stream),
    Ended,
}

/// A grant of credits that is being sent.
type Granting = Pin<Box<dyn Future<Output = Result<(), ReplyError>> + Send>>;

struct Stream {
    pipe: Arc<Pipe>,
    client: Client,
    window: u64,
    /// What may be granted altogether, where the length is known.
    rest: Option<u64>,
    /// Bytes that came with the first part, for which no credits were needed, and that are not read yet.
    early: u64,
    granted: u64,
    /// Bytes read that credits were needed for.
    taken: u64,
    granting: Option<Granting>,
}

impl fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Whole(_) => "whole",
            Source::File { .. } => "file",
            Source::Arriving(_) => "arriving",
            Source::Stream(_) => "stream",
            Source::Ended => "ended",
        };
        f.debug_struct("BodyReader")
            .field("source", &source)
            .field("remaining", &self.remaining)
            .finish()
    }
}

/// A body that is there already.
impl From<Bytes> for BodyReader {
    fn from(bytes: Bytes) -> Self {
        Self {
            remaining: Some(bytes.len() as u64),
            source: Source::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())),
        }
    }
}

impl BodyReader {
    pub(super) fn file(file: tokio::fs::File, size: u64, upload: Upload) -> Self {
        Self {
            source: Source::File {
                file: Box::new(file),
                buffer: BytesMut::new(),
                _upload: Box::new(upload),
            },
            remaining: Some(size),
        }
    }

    /// How many bytes are still to come; `None` for what comes chunked.
    pub fn remaining(&self) -> Option<u64> {
        self.remaining
    }

    /// Whether everything was read.
    pub fn is_ended(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_none(),
            Source::Ended => true,
            Source::File { .. } => self.remaining == Some(0),
            Source::Arriving(arriving) => arriving.is_ended(),
            Source::Stream(stream) => {
                let held = stream.pipe.lock();
                held.last && held.parts.is_empty()
            }
        }
    }

    /// Whether something of it may still be on its way from the client. Dropped then, it leaves a connection that is of no use for the next
    /// request: close it behind the answer.
    pub fn is_left(&self) -> bool {
        match &self.source {
            Source::Whole(_) | Source::File { .. } | Source::Ended => false,
            Source::Arriving(arriving) => arriving.is_left(),
            Source::Stream(_) => !self.is_ended() && self.remaining != Some(0),
        }
    }

    /// The next piece, never empty; `None` at the end. Of a streamed upload more is asked for as pieces are taken, and nothing before
    /// the first is wanted.
    ///
    /// # Errors
    ///
    /// Then the body is not complete, and nothing more comes.
    ///
    /// # Cancel safety
    ///
    /// Safe: a piece is taken only by a future that returns it.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`BodyReader::next`] for those who write a `Stream` or a `Body` of their own.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let piece = match &mut self.source {
            Source::Whole(bytes) => Poll::Ready(bytes.take().map(Ok)),
            Source::File { file, buffer, .. } => {
                buffer.reserve(FILE_PIECE);
                poll_read_buf(Pin::new(file), cx, buffer).map(|read| match read {
                    Ok(0) => None,
                    Ok(_) => Some(Ok(buffer.split().freeze())),
                    Err(error) => Some(Err(BodyError::File(error))),
                })
            }
            Source::Arriving(arriving) => arriving.poll_next(cx),
            Source::Stream(stream) => stream.poll_next(cx),
            Source::Ended => Poll::Ready(None),
        };
        match &piece {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(bytes))) => {
                if let Some(remaining) = &mut self.remaining {
                    *remaining = remaining.saturating_sub(bytes.len() as u64);
                }
            }
            Poll::Ready(None) => {
                self.source = Source::Ended;
                self.remaining = Some(0);
            }
            Poll::Ready(Some(Err(_))) => self.source = Source::Ended,
        }
        piece
    }

    /// Everything that is still to come, in one piece.
    ///
    /// # Errors
    ///
    /// [`BodyError::TooLarge`] above `max` bytes, as soon as that is known; else as [`BodyReader::next`].
    ///
    /// # Cancel safety
    ///
    /// Dropped early, the body is dropped.
    pub async fn collect(mut self, max: usize) -> Result<Bytes, BodyError> {
        let too_large = |length: u64| usize::try_from(length).is_ok_and(|length| length <= max);
        if !self.remaining.is_none_or(too_large) {
            return Err(BodyError::TooLarge { max });
        }
        let mut all = BytesMut::new();
        while let Some(piece) = self.next().await {
            let piece = piece?;
            if all.len().saturating_add(piece.len()) > max {
                return Err(BodyError::TooLarge { max });
            }
            if all.is_empty() && self.is_ended() {
                return Ok(piece);
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }
}

impl Stream {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let piece = {
            let mut held = self.pipe.lock();
            if let Some(piece) = held.parts.pop_front() {
                held.waiting -= piece.len();
                Some(piece)
            } else if held.last {
                return Poll::Ready(None);
            } else if let Some(failure) = held.failure {
                let at = held.received;
                return Poll::Ready(Some(Err(match failure {
                    Failure::Gone => BodyError::Gone,
                    Failure::Missing => BodyError::Missing { at },
                    Failure::Overrun => BodyError::Overrun,
                })));
            } else {
                held.waker = Some(cx.waker().clone());
                None
            }
        };
        if let Some(piece) = &piece {
            let bytes = piece.len() as u64;
            let free = bytes.min(self.early);
            self.early -= free;
            self.taken += bytes - free;
        }
        if let Err(error) = self.grant(cx) {
            return Poll::Ready(Some(Err(error.into())));
        }
        piece.map_or(Poll::Pending, |piece| Poll::Ready(Some(Ok(piece))))
    }

    /// Opens the window again when half of it was read.
    fn grant(&mut self, cx: &mut Context<'_>) -> Result<(), ReplyError> {
        loop {
            if let Some(granting) = &mut self.granting {
                match granting.as_mut().poll(cx) {
                    // It goes on with the next piece: those who wait for the server's socket are woken.
                    Poll::Pending => return Ok(()),
                    Poll::Ready(done) => {
                        self.granting = None;
                        done?;
                    }
                }
            }
            let wanted = self.rest.unwrap_or(u64::MAX).min(self.taken + self.window);
            let more = wanted.saturating_sub(self.granted);
            let small = more < self.window.div_ceil(2) && self.rest != Some(wanted);
            if more == 0 || small || self.pipe.lock().last {
                return Ok(());
            }
            self.granted = wanted;
            let client = self.client.clone();
            let credits = i64::try_from(more).unwrap_or(i64::MAX);
            self.granting = Some(Box::pin(async move { client.grant(credits).await }));
        }
    }
}

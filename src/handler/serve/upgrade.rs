//! Handshakes of WebSocket clients: the service sees an ordinary request that it can upgrade, and then bytes, as if the client were
//! connected to it.
//!
//! Only hyper's server makes the `OnUpgrade` that frameworks look for, so one of its connections is run in memory, for this request. It
//! is given the handshake as the client wrote it, and after the 101 each message of the client as one frame.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Body as HttpBody;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tower_service::Service;

use super::BoxError;
use super::body::Body;
use super::message::{Asked, Origin, client_headers, target};
use super::reply::{self, Failed};
use super::run::call;
use crate::handler::flow::Outflow;
use crate::handler::http as fields;
use crate::handler::{Frame, ReplyError};
use crate::websocket;

/// Bytes that may lie between the service and the messages, each way.
const PIPE: usize = 64 << 10;

/// Messages of one client that wait for the service to read.
const FRAMES_MAX: usize = 1024;

/// Their bytes, beyond one message that always fits: what a server keeps for a connection in the other direction.
const FRAME_BYTES_MAX: usize = 16 << 20;

/// Header lines that a handshake may have: more than a server takes of a client.
const HEADERS_MAX: usize = 1000;

/// Close code: this end is going down (RFC 6455 7.4.1).
const GOING_AWAY: u16 = 1001;

/// The handshake is answered otherwise: what is told to hyper, who need not go on.
#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

/// Where the messages of one client go in.
#[derive(Debug)]
pub(super) struct Frames {
    sender: mpsc::Sender<Frame>,
    held: Arc<AtomicUsize>,
}

/// Where the service gets them from.
#[derive(Debug)]
pub(super) struct FrameSource {
    receiver: mpsc::Receiver<Frame>,
    held: Arc<AtomicUsize>,
}

pub(super) fn frames() -> (Frames, FrameSource) {
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    let held = Arc::new(AtomicUsize::new(0));
    let source = FrameSource {
        receiver,
        held: Arc::clone(&held),
    };
    (Frames { sender, held }, source)
}

impl Frames {
    /// Adds one; false when the service reads too slowly for its client, who cannot be made to wait.
    pub(super) fn push(&self, frame: Frame) -> bool {
        let bytes = frame.payload().len();
        let held = self.held.fetch_add(bytes, Ordering::AcqRel);
        (held == 0 || held.saturating_add(bytes) <= FRAME_BYTES_MAX)
            && self.sender.try_send(frame).is_ok()
    }
}

impl FrameSource {
    async fn next(&mut self) -> Option<Frame> {
        let frame = self.receiver.recv().await?;
        self.held.fetch_sub(frame.payload().len(), Ordering::AcqRel);
        Some(frame)
    }
}

/// Serves one client from its handshake to the end.
pub(super) async fn serve<S, B>(
    service: S,
    asked: &Arc<Asked>,
    source: FrameSource,
    permit: OwnedSemaphorePermit,
) -> Result<(), Failed>
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Send,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: HttpBody + Send,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let Some(head) = head(asked) else {
        return reply::refuse(asked, StatusCode::BAD_REQUEST).await;
    };
    let (mut ours, theirs) = tokio::io::duplex(PIPE.max(head.len()));
    let (refuse, mut refused) = oneshot::channel();
    let once = Mutex::new(Some((service, refuse, Arc::clone(asked))));
    let service = service_fn(move |request: http::Request<Incoming>| {
        let once = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            let (service, refuse, asked) = once.ok_or(Refused)?;
            let mut request = request.map(|_| Body::empty());
            request.extensions_mut().insert(Origin::new(asked));
            match call(service, request).await {
                Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    Ok(response.map(|_| Empty::<Bytes>::new()))
                }
                other => {
                    // The way of all responses is not through here.
                    drop(refuse.send(other));
                    Err(Refused)
                }
            }
        }
    });
    let mut driven = pin!(async move {
        http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(theirs), service)
            .with_upgrades()
            .await
    });
    let mut is_driven = true;
    let mut is_open = true;
    let accepted = {
        let mut talk = pin!(async {
            ours.write_all(&head).await?;
            read_head(&mut ours).await
        });
        loop {
            tokio::select! {
                biased;
                _ = &mut driven, if is_driven => is_driven = false,
                response = &mut refused, if is_open => match response {
                    Ok(Ok(response)) => return reply::send(asked, response, true, Some(permit)).await,
                    Ok(Err(error)) => return Err(Failed::Service(error)),
                    Err(_) => is_open = false,
                },
                head = &mut talk => break head,
            }
        }
    };
    let Ok(Some(accepted)) = accepted else {
        // Nothing that hyper takes for a request.
        return reply::refuse(asked, StatusCode::BAD_REQUEST).await;
    };
    drop(permit);
    let (mut read, write) = tokio::io::split(ours);
    let mut out = Outgoing::new(asked, accepted);
    tokio::select! {
        ended = out.pass_on(asked, &mut read) => ended?,
        () = from_client(source, write) => out.go_away(&mut read).await?,
        () = async {
            if is_driven {
                // It ends with the upgrade.
                drop(driven.await);
            }
            std::future::pending::<()>().await;
        } => {}
    }
    asked.request.client().close().await?;
    Ok(())
}

/// The head of the handshake as the client has sent it: what is between client and server is the service's now. Nothing when it would
/// not be HTTP.
fn head(asked: &Asked) -> Option<Vec<u8>> {
    let target = target(&asked.request)?;
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"GET ");
    out.extend_from_slice(target.to_string().as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n");
    for (name, values) in client_headers(&asked.request) {
        let between = [
            "connection",
            "upgrade",
            "content-length",
            "transfer-encoding",
        ];
        if between.iter().any(|between| name == between.as_bytes()) {
            continue;
        }
        for value in values.iter() {
            // Or it would be another line.
            if fields::check(name, value).is_ok() {
                fields::write_field(&mut out, name, value);
            }
        }
    }
    out.extend_from_slice(b"\r\n");
    Some(out)
}

/// Reads a response head; nothing when it is no 101.
async fn read_head(pipe: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Option<BytesMut>> {
    let mut head = BytesMut::with_capacity(1024);
    loop {
        if pipe.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
        if end_of_head(&head).is_some() {
            return Ok(head.starts_with(b"HTTP/1.1 101 ").then_some(head));
        }
    }
}

/// How reading went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Some,
    /// Nothing for a moment, and what is there should go out.
    Lull,
    End,
}

/// What the service writes, on its way to the client: no faster than that takes it.
struct Outgoing {
    flow: Outflow,
    /// Read and not sent.
    pending: BytesMut,
    /// Where frames end in what was read.
    frames: websocket::Follower,
}

impl Outgoing {
    /// Begins with the 101 and what came with it.
    fn new(asked: &Asked, accepted: BytesMut) -> Self {
        let client = asked.request.client();
        let server = Arc::clone(client.server());
        let mut frames = websocket::Follower::default();
        let head = end_of_head(&accepted).unwrap_or(accepted.len());
        frames.follow(accepted.get(head..).unwrap_or_default());
        Self {
            flow: Outflow::new(server, client.sender(), client.conn_id()),
            pending: accepted,
            frames,
        }
    }

    /// Sends what the service writes, until it has written everything.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was read and not sent goes before what is sent next.
    async fn pass_on(
        &mut self,
        asked: &Asked,
        from: &mut (impl AsyncReadExt + Unpin),
    ) -> Result<(), ReplyError> {
        self.flow.send(&mut self.pending).await?;
        asked.begin();
        loop {
            let read = self.read(from).await;
            if read != Read::Some || self.flow.is_due(self.pending.len()) {
                self.flow.send(&mut self.pending).await?;
            }
            if read == Read::End {
                return Ok(());
            }
        }
    }

    /// Reads some. What was read before does not wait for it longer than a flush may.
    async fn read(&mut self, from: &mut (impl AsyncReadExt + Unpin)) -> Read {
        let before = self.pending.len();
        self.pending.reserve(PIPE);
        let read = async {
            // It can only be at its end: the other half is this process.
            from.read_buf(&mut self.pending).await.unwrap_or(0)
        };
        let read = if before == 0 {
            read.await
        } else {
            tokio::select! {
                biased;
                read = read => read,
                () = self.flow.flush_is_due() => return Read::Lull,
            }
        };
        self.frames
            .follow(self.pending.get(before..).unwrap_or_default());
        if read == 0 { Read::End } else { Read::Some }
    }

    /// Tells the client to go away, behind the frame that is open.
    async fn go_away(&mut self, from: &mut (impl AsyncReadExt + Unpin)) -> Result<(), ReplyError> {
        while !self.frames.is_between() && self.read(from).await != Read::End {
            self.flow.send(&mut self.pending).await?;
        }
        if self.frames.is_between() && !self.frames.has_closed() {
            let mut last = Vec::new();
            websocket::frame::encode_close(GOING_AWAY, "", &mut last);
            self.pending.extend_from_slice(&last);
        }
        self.flow.send(&mut self.pending).await
    }
}

/// Where a response head ends.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|end| end == b"\r\n\r\n")?;
    end.checked_add(4)
}

/// Gives the client's messages to the service; returns when there will be none any more.
async fn from_client(mut frames: FrameSource, mut to: impl AsyncWriteExt + Unpin) {
    while let Some(frame) = frames.next().await {
        let head = masked_head(frame.flags(), frame.payload().len());
        let written = async {
            to.write_all(&head).await?;
            to.write_all(frame.payload()).await
        };
        if written.await.is_err() {
            // The service reads no more. What it still writes decides.
            std::future::pending::<()>().await;
        }
    }
}

/// The head of a client's frame. The mask is of zeros, so that the payload stays as it is: nobody is between here and the service.
fn masked_head(flags: u8, length: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(14);
    head.push(flags);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => head.push(0x80 | short),
        (_, Ok(medium)) => {
            head.push(0x80 | 0x7e);
            head.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            head.push(0x80 | 0x7f);
            head.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    head.extend_from_slice(&[0; 4]);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_headed_as_a_client_does_it() {
        assert_eq!(masked_head(0x81, 5), [0x81, 0x85, 0, 0, 0, 0]);
        assert_eq!(masked_head(0x82, 125)[..2], [0x82, 0xfd]);
        assert_eq!(masked_head(0x82, 126), [0x82, 0xfe, 0, 126, 0, 0, 0, 0]);
        assert_eq!(masked_head(0x82, 65_535)[..4], [0x82, 0xfe, 255, 255]);
        let long = [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(masked_head(0x82, 65_536), long);
    }
}

//! What a service answers becomes what the client gets.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, StatusCode, header};
use http_body::Body as HttpBody;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::BoxError;
use super::message::Asked;
use crate::handler::response::{BodyWriter, Respond};
use crate::handler::{ReplyError, UploadError};

/// A response that goes on for longer is a stream, and counts no more as work. As the server's own rule has it.
const STREAM_AFTER: Duration = Duration::from_secs(1);

/// Why a response did not reach its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("the body of a response failed: {0}")]
    Body(BoxError),
    #[error(transparent)]
    Reply(#[from] ReplyError),
    #[error("status {0} is not a response")]
    Status(StatusCode),
    #[error("the service failed: {0}")]
    Service(BoxError),
    #[error(transparent)]
    Upload(#[from] UploadError),
}

/// Answers in the name of the service, shortly, and closes the connection: what the client still sends is of no use.
pub(super) async fn refuse(asked: &Asked, status: StatusCode) -> Result<(), Failed> {
    let text = format!("{status}\n");
    let respond = asked.request.respond(status.as_u16());
    respond
        .header("Content-Type", "text/plain")
        .close()
        .send(text)
        .await?;
    asked.begin();
    Ok(())
}

/// Sends the response; gives the permit back at its end, or when it turns out to be a stream.
pub(super) async fn send<B>(
    asked: &Asked,
    response: http::Response<B>,
    close: bool,
    permit: Option<OwnedSemaphorePermit>,
) -> Result<(), Failed>
where
    B: HttpBody + Send,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (parts, body) = response.into_parts();
    if parts.status.is_informational() {
        return Err(Failed::Status(parts.status));
    }
    let mut respond = asked
        .request
        .respond(parts.status.as_u16())
        .headers(&parts.headers);
    let closes = parts
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"));
    if close || closes {
        respond = respond.close();
    }
    let whole = respond.is_bodiless() || body.is_end_stream();
    if whole && !asked.is_read() {
        respond = respond.close();
    }
    let exact = body.size_hint().exact();
    if let Some(length) = exact
        && !parts.headers.contains_key(header::CONTENT_LENGTH)
        && (length > 0 || !respond.is_bodiless())
    {
        respond = respond.length(length);
    }
    if whole {
        respond.send(b"").await?;
        asked.begin();
        return Ok(());
    }
    stream(asked, respond, pin!(body), permit).await
}

async fn stream<B>(
    asked: &Asked,
    respond: Respond,
    body: Pin<&mut B>,
    permit: Option<OwnedSemaphorePermit>,
) -> Result<(), Failed>
where
    B: HttpBody + Send,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let mut writer = respond.stream()?;
    let mut permit = permit.map(|permit| (permit, Instant::now() + STREAM_AFTER));
    let result = write(asked, &mut writer, body, &mut permit).await;
    if !asked.is_read() {
        writer.close_behind();
    }
    let result = match result {
        Ok(Last::Data(data)) => wait(writer.finish_with(data), &mut permit).await,
        Ok(Last::Trailers(trailers)) => {
            wait(writer.finish_with_trailers(&trailers), &mut permit).await
        }
        Err(failed) => {
            if writer.has_begun() {
                asked.begin();
            } else {
                // Nothing has left: an answer of another kind can be given.
                writer.forget();
            }
            return Err(failed);
        }
    };
    result?;
    asked.begin();
    Ok(())
}

/// With what a body ends.
enum Last {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// Writes all of the body but its end.
async fn write<B>(
    asked: &Asked,
    writer: &mut BodyWriter,
    mut body: Pin<&mut B>,
    permit: &mut Permit,
) -> Result<Last, Failed>
where
    B: HttpBody + Send,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    loop {
        let at_once = poll_fn(|cx| Poll::Ready(poll_piece(body.as_mut(), cx))).await;
        let piece = match at_once {
            Poll::Ready(piece) => piece,
            Poll::Pending => {
                // The client need not wait for what is not there: the head goes out, and all that was written. Which may take a
                // while, and what comes meanwhile goes along.
                let next = poll_fn(|cx| poll_piece(body.as_mut(), cx));
                let mut piece = pin!(wait(next, permit));
                tokio::select! {
                    biased;
                    flushed = writer.flush() => {
                        flushed?;
                        asked.begin();
                        piece.await
                    }
                    piece = &mut piece => piece,
                }
            }
        };
        let data = match piece.transpose().map_err(Failed::Body)? {
            None => return Ok(Last::Data(Bytes::new())),
            Some(Piece::Trailers(trailers)) => return Ok(Last::Trailers(trailers)),
            Some(Piece::Data(data)) => data,
        };
        if body.is_end_stream() {
            return Ok(Last::Data(data));
        }
        if !data.is_empty() {
            wait(writer.write(data), permit).await?;
            asked.begin();
        }
    }
}

/// A frame of a body.
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

fn poll_piece<B>(body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BoxError>>>
where
    B: HttpBody,
    B::Error: Into<BoxError>,
{
    body.poll_frame(cx).map(|frame| {
        let frame = match frame? {
            Ok(frame) => frame,
            Err(error) => return Some(Err(error.into())),
        };
        let piece = match frame.into_data() {
            // In one piece, and without a copy where it is one.
            Ok(mut data) => Piece::Data(data.copy_to_bytes(data.remaining())),
            Err(frame) => Piece::Trailers(frame.into_trailers().unwrap_or_default()),
        };
        Some(Ok(piece))
    })
}

/// What a request holds while it is work, and until when it can be that.
type Permit = Option<(OwnedSemaphorePermit, Instant)>;

/// Waits, and gives the permit back when that takes long.
async fn wait<F: Future>(future: F, permit: &mut Permit) -> F::Output {
    let mut future = pin!(future);
    if let Some((_, until)) = permit {
        tokio::select! {
            biased;
            output = &mut future => return output,
            () = tokio::time::sleep_until(*until) => {}
        }
        *permit = None;
    }
    future.await
}

//! A client's WebSocket, through to the backend and back: a handshake of the bridge's own, with the client's key, then the client's
//! messages as masked frames, and the backend's bytes as they are.
//!
//! Messages are not looked at, pings and closes neither: they are the two ends' business. Compression is not offered to the backend;
//! between client and server it is the server's own.

use std::sync::Arc;

use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use lurcher::handler::{Client, Frame, ReplyError, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Bridge;
use super::backend::Link;
use super::body::Body;
use super::desk::Frames;
use super::fault::Fault;
use super::forward::{self, Length};

/// Bytes that are read from the backend at once.
const BLOCK_BYTES: usize = 16 * 1024;

/// Bytes of frames that are written at once, when so many wait.
const BATCH_BYTES: usize = 64 * 1024;

/// The longest body of a refusal that is passed on, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// A code for clients whose WebSocket has ended on this side alone: try again later (registered by IANA).
const TRY_AGAIN: u16 = 1013;

/// Ends a WebSocket that is not known here, or whose backend takes too little.
pub(super) async fn refuse(frame: &Frame) -> Result<(), ReplyError> {
    let client = frame.client();
    client.close_websocket(TRY_AGAIN, "").await?;
    client.close().await
}

/// Sees a WebSocket to its end.
pub(super) async fn run(
    bridge: Arc<Bridge>,
    request: Request,
    frames: Frames,
) -> Result<(), ReplyError> {
    let result = carry(&bridge, &request, frames).await;
    bridge.desk.close(&request.client());
    result
}

async fn carry(bridge: &Bridge, request: &Request, frames: Frames) -> Result<(), ReplyError> {
    let asked = ask(bridge, request);
    let asked = match bridge.timeout {
        Some(time) => tokio::time::timeout(time, asked)
            .await
            .unwrap_or(Err(Fault::Timeout)),
        None => asked.await,
    };
    let (response, mut link) = match asked {
        Ok(answered) => answered,
        Err(fault) => {
            let (status, words) = fault.answer();
            return request.respond(status).send(words).await;
        }
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return decline(bridge, request, response, &mut link).await;
    }
    let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    // The key is the client's, so the server has told the only right answer.
    if accept.map(header::HeaderValue::as_bytes) != Some(&request.body) {
        let (status, words) = Fault::Malformed.answer();
        return request.respond(status).send(words).await;
    }
    let fields = response.headers().clone();
    let upgraded = link.driver.during(hyper::upgrade::on(response)).await;
    let Ok(upgraded) = upgraded else {
        let (status, words) = Fault::Closed.answer();
        return request.respond(status).send(words).await;
    };
    accept_client(bridge, request, &fields).await?;
    let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
    let client = request.client();
    let said_all = tokio::select! {
        result = down(&mut from, &client) => { result?; true }
        sent = up(&mut to, frames) => !sent,
    };
    if !said_all {
        // We are stopping: both sides are told.
        client.close_websocket(1001, "").await?;
        let mut last = Vec::new();
        mask(0x88, &1001_u16.to_be_bytes(), &mut last);
        // A backend that is gone need not know.
        drop(to.write_all(&last).await);
    }
    client.close().await
}

/// Sends the handshake to the backend.
async fn ask(bridge: &Bridge, request: &Request) -> Result<(Response<Incoming>, Link), Fault> {
    let head = forward::request(request, &bridge.context, Length::None, true);
    let head = head.map_err(|_| Fault::Refused)?;
    let mut link = bridge.backend.connect().await?;
    let sent = link
        .sender
        .send_request(http::Request::from_parts(head, Body::Empty));
    let response = link.driver.during(sent).await;
    Ok((response.map_err(|error| Fault::from(&error))?, link))
}

/// Passes on what the backend says instead of a 101.
async fn decline(
    bridge: &Bridge,
    request: &Request,
    response: Response<Incoming>,
    link: &mut Link,
) -> Result<(), ReplyError> {
    let (mut head, body) = response.into_parts();
    let whole = link
        .driver
        .during(Limited::new(body, REFUSAL_BYTES_MAX).collect());
    let whole = match bridge.timeout {
        Some(time) => tokio::time::timeout(time, whole).await.ok(),
        None => Some(whole.await),
    };
    let body = match whole {
        Some(Ok(body)) => body.to_bytes(),
        _ => bytes::Bytes::new(),
    };
    forward::response(&mut head.headers, false);
    head.headers.remove(header::CONTENT_LENGTH);
    let answer = request.respond(head.status.as_u16()).headers(&head.headers);
    answer.close().send(body).await
}

/// Passes the 101 on.
async fn accept_client(
    bridge: &Bridge,
    request: &Request,
    fields: &HeaderMap,
) -> Result<(), ReplyError> {
    let own = [
        header::CONNECTION,
        header::UPGRADE,
        header::SEC_WEBSOCKET_ACCEPT,
        header::SEC_WEBSOCKET_EXTENSIONS,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
    ];
    let passed: Vec<(&str, &str)> = fields
        .iter()
        .filter(|(name, _)| !own.contains(name))
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .collect();
    bridge.replies.reply_handshake(request, None, &passed).await
}

/// The backend's bytes, until it ends.
async fn down(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    client: &Client,
) -> Result<(), ReplyError> {
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match from.read(&mut block).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(length) => client.send(block.get(..length).unwrap_or_default()).await?,
        }
    }
}

/// The client's messages; true when no more come, false when the backend takes none.
async fn up(to: &mut (impl tokio::io::AsyncWrite + Unpin), mut frames: Frames) -> bool {
    let mut out = Vec::new();
    while let Some(frame) = frames.next().await {
        out.clear();
        mask(frame.flags(), frame.payload(), &mut out);
        while out.len() < BATCH_BYTES
            && let Some(frame) = frames.try_next()
        {
            mask(frame.flags(), frame.payload(), &mut out);
        }
        if to.write_all(&out).await.is_err() || to.flush().await.is_err() {
            return false;
        }
    }
    true
}

/// Appends a frame as clients send them (RFC 6455 5.2): what a key that nobody can foresee makes of the payload.
fn mask(flags: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(flags);
    let length = payload.len();
    match (u8::try_from(length), u16::try_from(length)) {
        // 0x80: it is masked. Lengths above 125 follow in 16 or 64 bits.
        (Ok(short @ 0..126), _) => out.push(0x80 | short),
        (_, Ok(medium)) => {
            out.push(0xfe);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(0xff);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mut key = [0; 4];
    // Without randomness the frame is still right; only proxies that misread it would be less safe, and there are none here.
    let _unseeded = getrandom::fill(&mut key);
    out.extend_from_slice(&key);
    let masked = payload.iter().zip(key.iter().cycle());
    out.extend(masked.map(|(byte, key)| byte ^ key));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_frame_says_its_length_in_the_shortest_form() {
        for (length, head) in [
            (0, vec![0x82, 0x80]),
            (125, vec![0x82, 0xfd]),
            (126, vec![0x82, 0xfe, 0, 126]),
            (65_535, vec![0x82, 0xfe, 0xff, 0xff]),
            (65_536, vec![0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let payload: Vec<u8> = (0..=250).cycle().take(length).collect();
            let mut out = Vec::new();
            mask(0x82, &payload, &mut out);
            let (found, rest) = out.split_at(head.len());
            assert_eq!(found, head);
            let (key, masked) = rest.split_at(4);
            let plain: Vec<u8> = masked
                .iter()
                .zip(key.iter().cycle())
                .map(|(a, b)| a ^ b)
                .collect();
            assert_eq!(plain, payload);
        }
    }
}

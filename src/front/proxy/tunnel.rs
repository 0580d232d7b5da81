//! Bytes both ways once a backend has switched the protocol. What they mean is none of our business.

use std::cell::Cell;
use std::time::Duration;

use bytes::BytesMut;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tracing::debug;

use crate::front::local::{BodyPart, Part};

/// Bytes that are read from the backend at once.
const BLOCK_BYTES: usize = 16 * 1024;

/// How long a backend may be silent when the client has ended its direction: most clients that do are gone altogether.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(30);

/// Carries bytes until the backend ends its direction. The client's end is passed on, and what the backend still says then is
/// passed back.
///
/// There is no deadline of our own for a tunnel in which nobody speaks: the rules about idle clients hold.
pub(super) async fn carry(
    upgraded: Upgraded,
    parts: &mpsc::Sender<Part>,
    mut body: mpsc::Receiver<BodyPart>,
) {
    let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
    let moved = Cell::new(false);
    let down = async {
        let mut block = BytesMut::new();
        loop {
            block.reserve(BLOCK_BYTES);
            match from.read_buf(&mut block).await {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    debug!(%error, "backend's end of a tunnel failed");
                    return;
                }
            }
            moved.set(true);
            if parts
                .send(Part::Data(block.split().freeze()))
                .await
                .is_err()
            {
                return;
            }
        }
    };
    let up = async {
        while let Some(BodyPart::Data(data)) = body.recv().await {
            if to.write_all(&data).await.is_err() {
                break;
            }
        }
        // One that is closed already needs no end.
        drop(to.shutdown().await);
    };
    tokio::pin!(down, up);
    tokio::select! {
        () = &mut down => return,
        () = &mut up => {}
    }
    loop {
        tokio::select! {
            () = &mut down => return,
            () = tokio::time::sleep(HALF_CLOSED_TIMEOUT) => {
                if !moved.replace(false) {
                    return;
                }
            }
        }
    }
}

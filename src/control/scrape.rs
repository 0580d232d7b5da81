//! Figures by HTTP, for a Prometheus to fetch: `GET /metrics`, and nothing else.
//!
//! A port of its own, which tells figures and takes no orders. It keeps no connection, reads no body, and has nothing to do with
//! what a front serves.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::commands::{self, Subject};
use super::exposition::MEDIA_TYPE;
use crate::drain::Watch;
use crate::http1::{Field, Limits, Parsed, Progress, parse_head};

/// Connections at once; a further one is closed. Two or three servers that fetch are many.
const CONNECTIONS_MAX: usize = 16;

/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;

/// How long a connection may take, from its first byte to its end.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long nothing is accepted after that failed: descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Where figures are to be had, bound and not served yet.
#[derive(Debug)]
pub struct BoundFigures {
    listener: TcpListener,
    address: SocketAddr,
}

/// Binds the address for figures; a warning is logged when others than this machine can reach it.
///
/// # Errors
///
/// When the address cannot be had.
pub async fn bind(address: SocketAddr) -> io::Result<BoundFigures> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        warn!(
            "figures at {address}: the address is not loopback, whoever reaches it can read them"
        );
    }
    Ok(BoundFigures { listener, address })
}

impl BoundFigures {
    /// Where it is bound, with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until draining begins. What is being answered then may end.
    pub fn run(self, subject: Rc<dyn Subject>, watch: &Watch) {
        info!("figures at http://{}/metrics", self.address);
        let inner = watch.clone();
        watch.spawn_local(async move {
            tokio::select! {
                () = inner.draining() => {}
                never = self.accept(&subject, &inner) => match never {},
            }
        });
    }

    async fn accept(&self, subject: &Rc<dyn Subject>, watch: &Watch) -> std::convert::Infallible {
        // Its count is how many are at work.
        let open = Rc::new(());
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    debug!(%error, "accepting a reader of figures");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if Rc::strong_count(&open) > CONNECTIONS_MAX {
                debug!("too many readers of figures: one is closed");
                continue;
            }
            let (open, subject) = (Rc::clone(&open), Rc::clone(subject));
            watch.spawn_local(async move {
                match timeout(CONNECTION_TIMEOUT, serve(stream, &*subject)).await {
                    Ok(Err(error)) => debug!(%error, "a reader of figures left"),
                    Ok(Ok(())) => {}
                    Err(_) => debug!("a reader of figures was too slow"),
                }
                drop(open);
            });
        }
    }
}

/// Answers one request, and ends the connection.
async fn serve(mut stream: TcpStream, subject: &dyn Subject) -> io::Result<()> {
    let limits = Limits {
        bytes: HEAD_BYTES_MAX,
        ..Limits::default()
    };
    let (mut head, mut progress) = (Vec::with_capacity(1024), Progress::default());
    let answer = loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
        match parse_head(&mut progress, &head, &limits, |head| answer(subject, &head)) {
            Parsed::Complete(answer) => break answer,
            Parsed::Refused(refusal) => break plain(refusal.status, "", refusal.reason, false),
            Parsed::Partial => {}
        }
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Who has sent more than a head would lose the answer if the rest were left unread.
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

fn answer(subject: &dyn Subject, head: &crate::http1::Head<'_, '_, Field<'_>>) -> String {
    match (head.method, head.target.path) {
        (b"GET" | b"HEAD", b"/metrics") => {
            let text = commands::exposition(subject);
            response(200, "OK", "", MEDIA_TYPE, &text, head.head_request)
        }
        (b"GET" | b"HEAD", _) => plain(404, "", "figures are at /metrics", head.head_request),
        _ => plain(405, "Allow: GET, HEAD\r\n", "figures are only read", false),
    }
}

fn plain(status: u16, fields: &str, why: &str, is_head: bool) -> String {
    let reason = match status {
        404 => "Not Found",
        405 => "Method Not Allowed",
        414 => "URI Too Long",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => "Bad Request",
    };
    response(
        status,
        reason,
        fields,
        "text/plain; charset=utf-8",
        &format!("{why}\n"),
        is_head,
    )
}

fn response(
    status: u16,
    reason: &str,
    fields: &str,
    media_type: &str,
    body: &str,
    is_head: bool,
) -> String {
    let length = body.len();
    let body = if is_head { "" } else { body };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\n{fields}Connection: close\r\n\r\n{body}"
    )
}

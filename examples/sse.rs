//! Server-sent events behind a Mongrel2 or a Lurcher: a page, and a clock that ticks in it.
//!
//!     cargo run --example sse -- tcp://127.0.0.1:9999
//!
//! where the server has `Handler(send_spec='tcp://127.0.0.1:9999', …, recv_spec='tcp://127.0.0.1:9998', …)`.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::response::Html;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::get;
use futures_util::stream::{self, Stream};
use lurcher::handler::{Connection, Options, serve};

const PAGE: &str = "<!doctype html><title>Ticks</title><p id=p>Waiting…<script>
new EventSource('/ticks').onmessage = event => p.textContent = event.data
</script>";

/// Each event is with the browser at once. When the browser goes, the stream is dropped.
async fn ticks() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let ticks = tokio::time::interval(Duration::from_secs(1));
    let events = stream::unfold((ticks, 0), async |(mut ticks, count)| {
        ticks.tick().await;
        let event = Event::default().data(format!("tick {count}"));
        Some((Ok(event), (ticks, count + 1)))
    });
    // Whatever sits between does not take silence for an end.
    Sse::new(events).keep_alive(KeepAlive::default())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spec = std::env::args().nth(1);
    let spec = spec.as_deref().unwrap_or("tcp://127.0.0.1:9999");
    let connection = Connection::connect(Options::to(spec)?).await?;
    let app = Router::new()
        .route("/", get(async || Html(PAGE)))
        .route("/ticks", get(ticks));
    serve(connection, app)
        .graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        // Streams would go on for ever.
        .graceful_timeout(Duration::from_secs(3))
        .await;
    Ok(())
}

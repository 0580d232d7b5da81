//! An axum application behind a Mongrel2 or a Lurcher: paths, JSON, bodies that stream both ways, WebSocket.
//!
//!     cargo run --example axum -- tcp://127.0.0.1:9999
//!
//! where the server has `Handler(send_spec='tcp://127.0.0.1:9999', …, recv_spec='tcp://127.0.0.1:9998', …)`.

use axum::body::Body;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{DefaultBodyLimit, Path};
use axum::http::StatusCode;
use axum::routing::{any, get, post};
use axum::{Extension, Json, Router};
use futures_util::StreamExt as _;
use lurcher::handler::{Connection, Options, Origin, serve};
use serde_json::{Value, json};

/// The application.
pub fn app() -> Router {
    Router::new()
        .route("/", get(async || "hello\n"))
        .route("/greet/{name}", get(greet))
        .route("/count", post(count))
        .route("/echo", post(echo))
        .route(
            "/talk",
            any(async |upgrade: WebSocketUpgrade| upgrade.on_upgrade(talk)),
        )
        // The server has limits of its own.
        .layer(DefaultBodyLimit::disable())
}

/// A path, JSON, and where the request comes from.
async fn greet(Path(name): Path<String>, Extension(origin): Extension<Origin>) -> Json<Value> {
    let address = origin.remote_addr().map(|address| address.to_string());
    Json(json!({ "hello": name, "address": address, "route": origin.pattern() }))
}

/// An upload, read piece by piece: a large one never is in memory as a whole.
async fn count(body: Body) -> Result<String, StatusCode> {
    let mut pieces = body.into_data_stream();
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        bytes += piece.map_err(|_| StatusCode::BAD_REQUEST)?.len();
    }
    Ok(format!("{bytes}\n"))
}

/// What comes goes back while it still comes.
async fn echo(body: Body) -> Body {
    body
}

/// A WebSocket that says everything back.
async fn talk(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        // Pings are answered, and a close is, by axum.
        if matches!(message, Message::Text(_) | Message::Binary(_))
            && socket.send(message).await.is_err()
        {
            break;
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spec = std::env::args().nth(1);
    let spec = spec.as_deref().unwrap_or("tcp://127.0.0.1:9999");
    let connection = Connection::connect(Options::to(spec)?).await?;
    serve(connection, app())
        // Takes no more, and finishes what is open.
        .graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await;
    Ok(())
}

//! Answers every request with its own body, however large and by whichever way it came, and every WebSocket message with itself. It
//! is the handler of the benchmarks and the conformance suites, so it does nothing else.

use std::error::Error;

use lurcher::handler::{Bodies, BodyReader, Connection, Event, Frame, ReplyError, Request, Upload};
use lurcher::launcher::{BuiltIn, Handler};
use tokio::task::JoinSet;

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: "echo",
    about: "Answer 200 with the request's body, for any method; send WebSocket messages back\n\n\
        To see that a route works, and what becomes of a body:\n  lurcher run echo tcp://127.0.0.1:9999\n  \
        curl -d hello http://localhost:6767/",
    targets: &[],
    options: &[],
    run: |_| Ok(Handler::new(serve)),
};

async fn serve(mut connection: Connection) -> Result<(), ReplyError> {
    let (mut bodies, mut large) = (Bodies::new(), JoinSet::new());
    while let Some(request) = connection.recv().await {
        match request.into_event() {
            Event::Request(request) => {
                connection
                    .reply_http(
                        &request,
                        &request.body,
                        200,
                        "OK",
                        &[("Content-Type", "text/plain")],
                    )
                    .await?;
            }
            Event::UploadDone(upload) => drop(large.spawn(stored(upload))),
            Event::UploadPart(part) => {
                if let Some(body) = bodies.part(&part) {
                    let request = part.request().clone();
                    large.spawn(async move { told(&request, send_body(&request, body).await) });
                }
            }
            Event::UploadRefused(request, fault) => {
                let close = [("Connection", "close")];
                let why = format!("{fault}\n");
                connection
                    .reply_http(&request, why, 400, "", &close)
                    .await?;
            }
            Event::Disconnect(client) => bodies.gone(&client),
            Event::WebSocketHandshake(handshake) => {
                let protocol = handshake.websocket_protocols().next();
                connection
                    .reply_handshake(&handshake, protocol, &[])
                    .await?;
            }
            Event::WebSocketFrame(frame) => send_back(&connection, &frame).await?,
            Event::Message(message) if !message.body.is_empty() => {
                connection.reply(&message, &message.body).await?;
            }
            _ => {}
        }
        while large.try_join_next().is_some() {}
    }
    // Whose parts can no longer come must not wait for them.
    drop(bodies);
    large.join_all().await;
    connection.finish().await;
    Ok(())
}

async fn send_back(connection: &Connection, frame: &Frame) -> Result<(), ReplyError> {
    if connection.answer_control(frame).await? {
        return Ok(());
    }
    connection
        .reply_websocket(frame, frame.payload(), frame.opcode())
        .await
}

async fn stored(upload: Upload) {
    let request = upload.request().clone();
    let sent = match upload.into_body().await {
        Ok(body) => send_body(&request, body).await,
        Err(error) => {
            tracing::error!(%error, "an upload cannot be read");
            let why = format!("{error}\n");
            let answer = request.respond(500).close().send(why);
            answer.await.map_err(Into::into)
        }
    };
    told(&request, sent);
}

async fn send_body(
    request: &Request,
    mut body: BodyReader,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut response = request.respond(200).header("Content-Type", "text/plain");
    if let Some(length) = body.remaining() {
        response = response.length(length);
    }
    let mut writer = response.stream()?;
    while let Some(piece) = body.next().await {
        writer.write(piece?).await?;
    }
    writer.finish().await?;
    Ok(())
}

/// What goes wrong with one body is its client's affair: the response was cut off.
fn told(request: &Request, sent: Result<(), Box<dyn Error + Send + Sync>>) {
    if let Err(error) = sent {
        tracing::debug!(%error, client = ?request.client(), "gave up an upload");
    }
}

//! Answers every request with its own body, and every WebSocket message with itself. It is the handler of the benchmarks and the
//! conformance suites, so it does nothing else.

use lurcher::handler::{Connection, Event, Frame, ReplyError};
use lurcher::launcher::{BuiltIn, Handler};

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: "echo",
    about: "Answer 200 with the request's body, for any method; send WebSocket messages back",
    targets: &[],
    options: &[],
    run: |_| Ok(Handler::new(serve)),
};

async fn serve(mut connection: Connection) -> Result<(), ReplyError> {
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
    }
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

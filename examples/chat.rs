//! One room for everybody, by WebSocket and by long poll:
//!
//!     cargo run --example chat -- tcp://127.0.0.1:9999
//!     curl http://127.0.0.1:6767/chat              # waits for the next message
//!     curl -d hello http://127.0.0.1:6767/chat     # says something
//!
//! A WebSocket on the same address does both. `lurcher run chat` is the same with a page, a memory and limits.

use std::collections::HashSet;

use lurcher::handler::{Client, Connection, Event, Opcode, Options, ReplyError, Request};

/// Who listens.
#[derive(Default)]
struct Room {
    sockets: HashSet<Client>,
    polls: HashSet<Client>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spec = std::env::args().nth(1);
    let spec = spec.as_deref().unwrap_or("tcp://127.0.0.1:9999");
    let mut connection = Connection::connect(Options::to(spec)?).await?;
    let stop = connection.stop_handle();
    let mut room = Room::default();
    loop {
        tokio::select! {
            request = connection.recv() => match request {
                Some(request) => room.take(&connection, request).await?,
                None => break,
            },
            _ = tokio::signal::ctrl_c() => stop.stop(),
        }
    }
    room.say(&connection, b"good-bye\n").await?;
    connection.finish().await;
    Ok(())
}

impl Room {
    async fn take(&mut self, connection: &Connection, request: Request) -> Result<(), ReplyError> {
        match request.into_event() {
            Event::WebSocketHandshake(handshake) => {
                connection.reply_handshake(&handshake, None, &[]).await?;
                self.sockets.insert(handshake.client());
            }
            Event::WebSocketFrame(frame) => {
                if frame.opcode() == Opcode::Close {
                    self.sockets.remove(&frame.client());
                }
                // Pings, pongs and closes are done with in here.
                if !connection.answer_control(&frame).await? {
                    self.say(connection, frame.payload()).await?;
                }
            }
            Event::Request(request) if request.method() == Some(b"POST") => {
                self.say(connection, &request.body).await?;
                request.respond(204).send("").await?;
            }
            // The answer is whatever is said next.
            Event::Request(request) => drop(self.polls.insert(request.client())),
            Event::Disconnect(client) => {
                self.sockets.remove(&client);
                self.polls.remove(&client);
            }
            _ => {}
        }
        Ok(())
    }

    /// Each of these is a message for a hundred clients.
    async fn say(&mut self, connection: &Connection, text: &[u8]) -> Result<(), ReplyError> {
        connection
            .deliver_to_websocket(&self.sockets, text, Opcode::Text)
            .await?;
        let headers = [("Content-Type", "text/plain"), ("Connection", "close")];
        connection
            .deliver_to_http(&self.polls, text, 200, "OK", &headers)
            .await?;
        self.polls.clear();
        Ok(())
    }
}

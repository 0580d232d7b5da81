//! One room for everybody: what one says goes to all, by WebSocket and to those who wait with a long poll, and a page to try it from
//! a browser. It keeps the last messages in memory and knows nobody's name.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use lurcher::handler::{Client, Connection, Event, Frame, Opcode, ReplyError, Request};
use lurcher::launcher::{BuiltIn, Handler};
use tokio::time::{MissedTickBehavior, interval};

const PAGE: &str = include_str!("chat.html");

/// Nothing but the page itself and its own server.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";

/// Messages that who comes late, or polls slowly, can still get.
const KEPT_MAX: usize = 100;

/// The longest message, in bytes.
const SAID_BYTES_MAX: usize = 2000;

/// Clients in the room; more are refused. What each costs here is a few hundred bytes.
const CLIENTS_MAX: usize = 100_000;

/// How often those who only listen are heard of: a long poll is answered with nothing, a WebSocket gets a ping. Well below the idle
/// limits of browsers, proxies and servers.
const EVERY: Duration = Duration::from_secs(25);

/// Close code of WebSocket: going away (RFC 6455 7.4.1).
const GOING_AWAY: u16 = 1001;

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: "chat",
    about: "One room for all who come: WebSocket, long polls and a page to try them\n\n\
        The page is at the route itself. `socket` below it is a WebSocket: every text message goes to all. A POST to `messages` says \
        something too, and GET `messages?after=NUMBER` waits for what is said after that message. Each is a JSON object with a \
        number and a text. The room is one process: run one.\n\n\
        At a route /chat/, with the page at http://localhost:6767/chat/:\n  lurcher run chat tcp://127.0.0.1:9999",
    targets: &[],
    options: &[],
    run: |_| Ok(Handler::new(serve)),
};

async fn serve(mut connection: Connection) -> Result<(), ReplyError> {
    let mut room = Room::default();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            request = connection.recv() => match request {
                Some(request) => room.take(&connection, request.into_event()).await?,
                None => break,
            },
            _ = ticks.tick() => {
                room.answer_polls(&connection, "[]").await?;
                connection.deliver_to_websocket(&room.sockets, "", Opcode::Ping).await?;
            }
        }
    }
    room.answer_polls(&connection, "[]").await?;
    let code = GOING_AWAY.to_be_bytes();
    connection
        .deliver_to_websocket(&room.sockets, code, Opcode::Close)
        .await?;
    connection.deliver_to_close(&room.sockets).await?;
    connection.finish().await;
    Ok(())
}

#[derive(Default)]
struct Room {
    sockets: HashSet<Client>,
    /// Long polls that wait, on connections that stay and on those that end with the answer.
    polls: HashSet<Client>,
    last_polls: HashSet<Client>,
    /// The last messages, as JSON.
    kept: VecDeque<String>,
    /// How many there have been: the number of the last.
    count: u64,
}

impl Room {
    async fn take(&mut self, connection: &Connection, event: Event) -> Result<(), ReplyError> {
        match event {
            Event::WebSocketHandshake(handshake) if self.is_full() => {
                refuse(connection, &handshake, 503, "the room is full\n").await
            }
            Event::WebSocketHandshake(handshake) => {
                connection.reply_handshake(&handshake, None, &[]).await?;
                let client = handshake.client();
                for message in &self.kept {
                    client.send_websocket(message, Opcode::Text).await?;
                }
                self.sockets.insert(client);
                Ok(())
            }
            Event::WebSocketFrame(frame) => self.frame(connection, frame).await,
            Event::Request(request) => self.answer(connection, &request).await,
            Event::UploadStarted(upload) => {
                refuse(connection, &upload, 413, "that is no message\n").await
            }
            Event::UploadPart(part) if part.is_first() => {
                refuse(connection, &part, 413, "that is no message\n").await
            }
            Event::UploadRefused(request, _) => refuse(connection, &request, 400, "no\n").await,
            Event::Disconnect(client) => {
                self.forget(&client);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn frame(&mut self, connection: &Connection, frame: Frame) -> Result<(), ReplyError> {
        if frame.opcode() == Opcode::Close {
            self.forget(&frame.client());
        }
        if connection.answer_control(&frame).await? {
            return Ok(());
        }
        match frame.text() {
            Some(text) if text.len() <= SAID_BYTES_MAX => self.say(connection, text).await,
            // Too long, or no text: not for others.
            _ => Ok(()),
        }
    }

    async fn answer(
        &mut self,
        connection: &Connection,
        request: &Request,
    ) -> Result<(), ReplyError> {
        let name = request.path.rsplit(|byte| *byte == b'/').next();
        match (request.method(), name) {
            (Some(b"GET" | b"HEAD"), Some(b"")) => {
                let headers = [
                    ("Content-Type", "text/html; charset=utf-8"),
                    ("Content-Security-Policy", POLICY),
                ];
                connection
                    .reply_http(request, PAGE, 200, "", &headers)
                    .await
            }
            (Some(b"POST"), Some(b"messages")) => match std::str::from_utf8(&request.body) {
                Ok(text) if !text.is_empty() && text.len() <= SAID_BYTES_MAX => {
                    connection.reply_http(request, "", 204, "", &[]).await?;
                    self.say(connection, text).await
                }
                _ => refuse(connection, request, 400, "1 to 2000 bytes of UTF-8\n").await,
            },
            (Some(b"GET"), Some(b"messages")) => self.poll(connection, request).await,
            _ => {
                refuse(
                    connection,
                    request,
                    404,
                    "there is the page, messages and socket\n",
                )
                .await
            }
        }
    }

    /// Answers with what came after the message that the client has; when there is none, later.
    async fn poll(&mut self, connection: &Connection, request: &Request) -> Result<(), ReplyError> {
        let query = request.headers.first("QUERY").unwrap_or_default();
        let after = query
            .strip_prefix(b"after=")
            .and_then(|number| str::from_utf8(number).ok());
        let after: u64 = after.and_then(|number| number.parse().ok()).unwrap_or(0);
        // Whoever has more than there is has it from an earlier process.
        if after != self.count && !self.kept.is_empty() {
            let missed = self
                .count
                .checked_sub(after)
                .and_then(|missed| usize::try_from(missed).ok());
            let have = self.kept.len() - missed.unwrap_or(usize::MAX).min(self.kept.len());
            let missed: Vec<_> = self.kept.range(have..).map(String::as_str).collect();
            let list = format!("[{}]", missed.join(","));
            return connection.reply_http(request, list, 200, "", &JSON).await;
        }
        if self.is_full() {
            return refuse(connection, request, 503, "the room is full\n").await;
        }
        let polls = if request.should_close() {
            &mut self.last_polls
        } else {
            &mut self.polls
        };
        polls.insert(request.client());
        Ok(())
    }

    async fn say(&mut self, connection: &Connection, text: &str) -> Result<(), ReplyError> {
        self.count += 1;
        let message = serde_json::json!({ "number": self.count, "text": text }).to_string();
        connection
            .deliver_to_websocket(&self.sockets, &message, Opcode::Text)
            .await?;
        // All who wait have heard everything before this.
        self.answer_polls(connection, &format!("[{message}]"))
            .await?;
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(message);
        Ok(())
    }

    async fn answer_polls(
        &mut self,
        connection: &Connection,
        list: &str,
    ) -> Result<(), ReplyError> {
        let polls = std::mem::take(&mut self.polls);
        connection
            .deliver_to_http(&polls, list, 200, "", &JSON)
            .await?;
        let polls = std::mem::take(&mut self.last_polls);
        let headers = [JSON[0], JSON[1], ("Connection", "close")];
        connection
            .deliver_to_http(&polls, list, 200, "", &headers)
            .await
    }

    fn is_full(&self) -> bool {
        self.sockets.len() + self.polls.len() + self.last_polls.len() >= CLIENTS_MAX
    }

    fn forget(&mut self, client: &Client) {
        self.sockets.remove(client);
        self.polls.remove(client);
        self.last_polls.remove(client);
    }
}

const JSON: [(&str, &str); 2] = [
    ("Content-Type", "application/json"),
    ("Cache-Control", "no-store"),
];

async fn refuse(
    connection: &Connection,
    request: &Request,
    code: u16,
    why: &str,
) -> Result<(), ReplyError> {
    let headers = [("Content-Type", "text/plain"), ("Connection", "close")];
    connection
        .reply_http(request, why, code, "", &headers)
        .await
}

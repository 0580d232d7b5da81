//! Answers with a line now and then, for a while: a response that grows, as a chat, a log or a long job would send it.
//!
//! One task for all clients: at every tick each of them gets its next line. Clients that leave are forgotten.

use std::time::Duration;

use lurcher::handler::{Client, Connection, Event, ReplyError, Request};
use lurcher::launcher::{BuiltIn, Handler, Opt, Values};
use tokio::time::{MissedTickBehavior, interval};

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: "ticker",
    about: "Answer with a line now and then, for a while: a response that grows",
    targets: &[],
    options: &[
        Opt {
            name: "lines",
            value: "COUNT",
            help: "Lines in a response [default: 20]",
            repeat: false,
        },
        Opt {
            name: "every",
            value: "MILLISECONDS",
            help: "Time between lines [default: 300]",
            repeat: false,
        },
    ],
    run: |values| {
        let lines = number(values, "lines", 20)?;
        let every = Duration::from_millis(number(values, "every", 300)?);
        Ok(Handler::new(move |connection| {
            serve(connection, lines, every)
        }))
    },
};

fn number(values: &Values, name: &str, default: u64) -> Result<u64, String> {
    let Some(text) = values.get(name) else {
        return Ok(default);
    };
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("--{name} is not a number above 0"))
}

async fn serve(mut connection: Connection, lines: u64, every: Duration) -> Result<(), ReplyError> {
    let mut streams: Vec<(Client, Stream)> = Vec::new();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut receiving = true;
    while receiving || !streams.is_empty() {
        tokio::select! {
            request = connection.recv(), if receiving => match request.map(Request::into_event) {
                Some(Event::Request(request)) => {
                    if let Some(stream) = Stream::begin(&connection, &request).await? {
                        streams.push((request.client(), stream));
                    }
                }
                Some(Event::Disconnect(gone)) => streams.retain(|(client, _)| *client != gone),
                Some(_) => {}
                // Stopping: those who have a part of a response get the rest.
                None => receiving = false,
            },
            _ = ticks.tick(), if !streams.is_empty() => {
                let listening = streams.len();
                for (client, stream) in &mut streams {
                    stream.sent += 1;
                    let line = format!(
                        "line {} of {lines} from process {}, to {listening} at once\n",
                        stream.sent,
                        std::process::id()
                    );
                    client.send(stream.piece(&line)).await?;
                    if stream.sent == lines {
                        stream.end(client).await?;
                    }
                }
                streams.retain(|(_, stream)| stream.sent < lines);
            }
        }
    }
    connection.finish().await;
    Ok(())
}

/// A response that is being sent.
struct Stream {
    sent: u64,
    /// HTTP/1.0 knows no chunks: there the end of the connection is the end of the response.
    chunked: bool,
    close: bool,
}

impl Stream {
    /// Sends the head; `None` when that was all.
    async fn begin(connection: &Connection, request: &Request) -> Result<Option<Self>, ReplyError> {
        let chunked = request.version() != Some(b"HTTP/1.0");
        let close = !chunked || request.should_close();
        let mut head = String::from(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n",
        );
        if chunked {
            head.push_str("Transfer-Encoding: chunked\r\n");
        }
        if close {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("\r\n");
        connection.reply(request, head).await?;
        if request.method() == Some(b"HEAD") {
            if close {
                connection.close(request).await?;
            }
            return Ok(None);
        }
        Ok(Some(Self {
            sent: 0,
            chunked,
            close,
        }))
    }

    fn piece(&self, text: &str) -> String {
        if self.chunked {
            format!("{:x}\r\n{text}\r\n", text.len())
        } else {
            text.to_owned()
        }
    }

    async fn end(&self, client: &Client) -> Result<(), ReplyError> {
        if self.chunked {
            client.send("0\r\n\r\n").await?;
        }
        if self.close {
            client.close().await?;
        }
        Ok(())
    }
}

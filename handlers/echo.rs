//! Answers every request with its own body. It is the handler of the benchmarks and the conformance suites, so it does
//! nothing else.

use lurcher::handler::{Connection, Event, ReplyError};
use lurcher::launcher::{BuiltIn, Handler};

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: "echo",
    about: "Answer 200 with the request's body, for any method",
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
            Event::Message(message) if !message.body.is_empty() => {
                connection.reply(&message, &message.body).await?;
            }
            _ => {}
        }
    }
    connection.finish().await;
    Ok(())
}

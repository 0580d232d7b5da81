//! A whole handler: greets whoever asks, and says good-bye on ctrl-C when all are answered.
//!
//!     cargo run --example hello -- tcp://127.0.0.1:9999
//!
//! where the server has `Handler(send_spec='tcp://127.0.0.1:9999', …, recv_spec='tcp://127.0.0.1:9998', …)`.

use lurcher::handler::{Connection, Options};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spec = std::env::args().nth(1);
    let spec = spec.as_deref().unwrap_or("tcp://127.0.0.1:9999");
    // The way back is one port down. This returns when the server listens to replies, at the latest after a second.
    let mut connection = Connection::connect(Options::to(spec)?).await?;
    loop {
        let request = tokio::select! {
            request = connection.recv() => request,
            // From now on `recv` returns only what was pushed already, and then `None`.
            _ = tokio::signal::ctrl_c() => {
                connection.shutdown();
                continue;
            }
        };
        let Some(request) = request else { break };
        // The client went away: news for handlers that keep something for each of them.
        if request.is_disconnect() {
            continue;
        }
        let path = String::from_utf8_lossy(&request.path);
        let body = format!("Hello, you asked for {path}.\n");
        connection
            .reply_http(&request, body, 200, "OK", &[("Content-Type", "text/plain")])
            .await?;
    }
    // Waits until the last replies are written.
    connection.finish().await;
    Ok(())
}

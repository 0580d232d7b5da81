//! A handler without tokio: four threads that answer what they get, each for itself, until standard input ends.
//!
//!     cargo run --example blocking -- config.sqlite /slow
//!
//! where to connect is read from the server's own configuration: the handler of the route that is named.

use std::io::Read as _;
use std::thread;
use std::time::Duration;

use lurcher::handler::blocking::Connection;
use lurcher::handler::{Event, ReplyError, Selector};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let configuration = arguments.next().unwrap_or("config.sqlite".to_owned());
    let route = arguments.next().unwrap_or("/".to_owned());
    let connection = Connection::from_config(configuration, &Selector::new().route(route))?;

    let threads: Vec<_> = (1..=4)
        .map(|number| {
            // Clones are cheap; each request goes to one of them.
            let connection = connection.clone();
            thread::spawn(move || work(&connection, number))
        })
        .collect();

    // From now until ctrl-D the threads do it all.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    connection.shutdown();
    for thread in threads {
        thread.join().map_err(|_| "a thread has panicked")??;
    }
    connection.finish();
    Ok(())
}

fn work(connection: &Connection, number: usize) -> Result<(), ReplyError> {
    for request in connection {
        let Event::Request(request) = request.into_event() else {
            continue;
        };
        // As a query of a database would take it.
        thread::sleep(Duration::from_millis(100));
        let body = format!("thread {number} has answered this\n");
        connection.reply_http(&request, body, 200, "OK", &[("Content-Type", "text/plain")])?;
    }
    Ok(())
}

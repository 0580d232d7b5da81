//! A worker of one thread, and one with an event loop, drive sockets and clocks themselves between requests: what that must not
//! cost those who wait.

use std::time::Duration;

use super::{each, text};
use crate::support::client::Client;
use crate::support::scratch;

/// Longer than it takes until the attendant sleeps.
const LULL: Duration = Duration::from_millis(150);

/// An answer that is said leaves, although the same thread has begun with something that takes long.
#[track_caller]
fn leaves_while_the_next_one_works(app: &str, options: &[&str]) {
    let folder = scratch();
    each(app, options, |server, _| {
        let name = format!("{:?} {}", server.kind, server.protocol).replace(' ', "-");
        let file = folder.path().join(name);
        let mut client = Client::connect(server.address);
        for _ in 0..3 {
            drop(std::fs::remove_file(&file));
            let requests = format!(
                "GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hold?{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
                file.display()
            );
            client.send(requests.as_bytes()).expect("send two requests");
            assert_eq!(text(&client.answer()), "/quick\n");
            std::fs::write(&file, "").expect("write a file");
            assert_eq!(text(&client.answer()), "/hold\n");
        }
    });
}

#[test]
fn a_thread_that_works_holds_up_no_answer_that_it_has_given() {
    leaves_while_the_next_one_works("holds:application", &[]);
}

#[test]
fn a_loop_that_is_held_up_holds_up_no_answer_that_it_has_given() {
    leaves_while_the_next_one_works("holds:app", &[]);
    leaves_while_the_next_one_works("holds:app", &["--loop", "asyncio"]);
}

#[test]
fn a_request_after_a_lull_is_answered_as_are_many_at_once() {
    for app in ["holds:application", "holds:app"] {
        each(app, &[], |server, _| {
            let mut clients = [(); 20].map(|()| Client::connect(server.address));
            for round in 0..4 {
                for client in &mut clients {
                    for number in 0..5 {
                        let request =
                            format!("GET /{round}/{number} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                        client.send(request.as_bytes()).expect("send a request");
                    }
                }
                for client in &mut clients {
                    for number in 0..5 {
                        assert_eq!(text(&client.answer()), format!("/{round}/{number}\n"));
                    }
                }
                std::thread::sleep(LULL);
            }
        });
    }
}

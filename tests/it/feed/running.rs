//! A feed in a thread of its own, as a supervisor has it, and workers in processes of their own.

use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lurcher::broker::{Feed, Settings};
use lurcher::endpoint::Endpoint;

use crate::support::peer::{Peer, Replies, address};
use crate::support::program::Program;
use crate::support::{PATIENCE, scratch};

/// Names the specs of the worker that this program shall be instead of a test.
const WORKER: &str = "LURCHER_IT_FEED_WORKER";

type Question = Box<dyn FnOnce(&Feed) + Send>;

/// A running feed.
pub(super) struct Running {
    orders: Option<tokio::sync::mpsc::UnboundedSender<Question>>,
    thread: Option<JoinHandle<()>>,
    /// What workers of the first server connect to.
    pub(super) send: String,
    pub(super) recv: String,
    _directory: tempfile::TempDir,
}

impl Running {
    /// A feed of servers by their specs.
    pub(super) fn start(
        servers: &[(&str, &str)],
        settings: impl FnOnce() -> Settings + Send + 'static,
    ) -> Self {
        let directory = scratch();
        let servers: Vec<(Endpoint, Endpoint)> = servers
            .iter()
            .map(|(send, recv)| (send.parse().expect("a spec"), recv.parse().expect("a spec")))
            .collect();
        let (orders, mut ordered) = tokio::sync::mpsc::unbounded_channel::<Question>();
        let (tell, told) = mpsc::channel();
        let own = directory.path().to_owned();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let run = async {
                let (signal, watch) = lurcher::drain::channel();
                let feed = Feed::start(&servers, &own, settings(), &watch)
                    .await
                    .expect("start a feed");
                let specs = feed.specs();
                tell.send(
                    specs
                        .iter()
                        .map(|(s, r)| (s.to_string(), r.to_string()))
                        .collect(),
                )
                .expect("the test waits");
                while let Some(order) = ordered.recv().await {
                    order(&feed);
                }
                feed.stop(Duration::from_secs(10)).await;
                let outcome = signal.finish(Duration::from_secs(5)).await;
                assert_eq!(outcome, lurcher::drain::Outcome::Clean);
            };
            tokio::task::LocalSet::new().block_on(&runtime, run);
        });
        let specs: Vec<(String, String)> = told.recv().expect("the feed starts");
        let (send, recv) = specs.into_iter().next().expect("a server");
        Self {
            orders: Some(orders),
            thread: Some(thread),
            send,
            recv,
            _directory: directory,
        }
    }

    /// Asks the feed something.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Feed) -> T + Send + 'static,
    ) -> T {
        let (answer, answered) = mpsc::channel();
        let orders = self.orders.as_ref().expect("running");
        let order: Question = Box::new(move |feed| {
            answer.send(question(feed)).expect("the test waits");
        });
        assert!(orders.send(order).is_ok(), "the feed runs");
        answered.recv_timeout(PATIENCE).expect("an answer")
    }

    /// Waits until something is true of the feed.
    pub(super) fn until(&self, what: &str, is: impl Fn(&Feed) -> bool + Send + Copy + 'static) {
        let end = std::time::Instant::now() + PATIENCE;
        while !self.ask(is) {
            assert!(std::time::Instant::now() < end, "not in time: {what}");
            thread::yield_now();
        }
    }

    /// Waits until so many workers take requests.
    pub(super) fn ready(&self, count: usize) {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let workers = self.ask(Feed::workers);
            if workers
                .iter()
                .filter(|worker| worker.state == "ready")
                .count()
                == count
            {
                return;
            }
            assert!(std::time::Instant::now() < end, "{workers:?}");
            thread::yield_now();
        }
    }

    /// Stops it in order.
    pub(super) fn stop(mut self) {
        self.orders = None;
        let thread = self.thread.take().expect("stopped once");
        thread.join().expect("the feed does not panic");
    }

    /// A worker in this process.
    pub(super) fn worker(&self) -> Peer {
        let peer = Peer::connect(&self.send, &self.recv, Replies::Xpub);
        peer.joined();
        peer
    }

    /// A worker in a process of its own: see [`serve_if_asked`].
    pub(super) fn process(&self) -> Program {
        let program = std::env::current_exe().expect("this program");
        Program::start(
            Command::new(program)
                .args(["--exact", "feed::running::serve_if_asked", "--nocapture"])
                .env(WORKER, format!("{} {}", self.send, self.recv)),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && !thread::panicking()
        {
            thread.join().expect("the feed does not panic");
        }
    }
}

/// Whoever names specs by the environment gets a worker that answers with its process id and the path, tells of every request
/// by a line `got METHOD PATH`, and never answers what is under `/hold`.
#[test]
fn serve_if_asked() {
    let Ok(specs) = std::env::var(WORKER) else {
        return;
    };
    let (send, recv) = specs.split_once(' ').expect("two specs");
    let peer = Peer::connect(send, recv, Replies::Xpub);
    peer.joined();
    println!("\nready");
    let own = std::process::id();
    loop {
        let Some(message) = peer.recv(PATIENCE) else {
            continue;
        };
        let (sender, id, path, rest) = address(&message);
        if path == "@*" {
            println!("notice {id}");
            continue;
        }
        println!("got {path}");
        if !path.starts_with("/hold") {
            let body = format!("{own}{path}");
            let close = rest.windows(5).any(|word| word == b"close");
            peer.reply(sender, id, &answer(&body));
            if close {
                peer.reply(sender, id, b"");
            }
        }
    }
}

/// A whole response.
pub(super) fn answer(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

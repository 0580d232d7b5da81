//! Clients that were cut off: what they had sent before they learnt of it still comes, and is for nobody.
//!
//! A Mongrel2 hands over all that a client pipelines, so a request behind the one too many would otherwise begin anew with a client
//! that has no connection any more. It is cut off once more instead: a server that is busy with a client may miss the first time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use lurcher::handler::Client;

/// How long what was under way may take to come. Servers do not give the number of a connection to another one so soon.
const TIME: Duration = Duration::from_secs(10);

/// Clients that are remembered; above that the oldest is forgotten.
const CLIENTS_MAX: usize = 256;

/// Those who were cut off lately.
#[derive(Debug, Default)]
pub(crate) struct Departed(VecDeque<(Client, Instant)>);

impl Departed {
    /// Remembers one.
    pub(crate) fn add(&mut self, client: &Client) {
        if self.0.len() >= CLIENTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((client.clone(), Instant::now()));
    }

    /// Whether it is one of them.
    pub(crate) fn has(&mut self, client: &Client) -> bool {
        while let Some((_, since)) = self.0.front()
            && since.elapsed() > TIME
        {
            self.0.pop_front();
        }
        self.0.iter().any(|(known, _)| known == client)
    }

    /// The server has told of its end: nothing of it comes behind that.
    pub(crate) fn forget(&mut self, client: &Client) {
        self.0.retain(|(known, _)| known != client);
    }
}

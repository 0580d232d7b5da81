//! The control port: an operator's questions and orders to a running server, over a ZeroMQ REP socket.
//!
//! The protocol is Mongrel2's, byte for byte: a question is a tnetstring list of a command and its arguments
//! (`question`), an answer a dict with `headers` and `rows` or with `code` and `error` (`answer`); `commands` has the
//! commands and finds the answers. What is governed stands behind [`Subject`]: a front here, and whatever else is run by
//! the launcher. Questions are answered at once, so nothing that takes time is done for an answer: orders are taken, and
//! carried out when the answer has left.
//!
//! Pools of workers are shown by `pools` as tables and by `figures` as numbers, which `exposition` writes for Prometheus; those are also
//! to be had by HTTP (`scrape`), at an address of their own that takes no orders.
//!
//! There is no authentication, as there is none in Mongrel2: who can connect can stop the server. Nothing here opens a
//! client's socket, but both directions of the protocol are here.

mod answer;
mod commands;
mod exposition;
mod figures;
mod pools;
mod question;
mod scrape;

use std::rc::Rc;

use tokio::sync::Notify;
use tracing::info;

use crate::bus::server::{self, BindError, Bound, Kind, answering};
use crate::drain::Watch;
use crate::endpoint::Endpoint;

pub use answer::{Answer, Cell, Table};
pub use commands::{Connection, INFO, Order, Subject, Task};
pub use exposition::Kind as FigureKind;
pub use figures::{Figure, figures};
pub use pools::Pool;
pub use question::{Argument, Question};
pub use scrape::{BoundFigures, bind as bind_figures};

/// A question may be so long, in bytes: the longest command with all its arguments takes a hundred.
const QUESTION_BYTES_MAX: usize = 64 << 10;

/// Operators connected at once. Each question of a command line is a connection; more than a few is a mistake.
const OPERATORS_MAX: usize = 256;

/// The port, bound and not served yet.
#[derive(Debug)]
pub struct BoundPort(Bound);

/// Binds the port.
///
/// # Errors
///
/// When the address cannot be had.
pub async fn bind(endpoint: &Endpoint) -> Result<BoundPort, BindError> {
    let mut options = server::Options {
        peers_max: OPERATORS_MAX,
        handshakes_max: OPERATORS_MAX / 2,
        ..server::Options::default()
    };
    options.protocol.message_bytes_max = QUESTION_BYTES_MAX;
    server::bind(endpoint, Kind::Rep, options)
        .await
        .map(BoundPort)
}

impl BoundPort {
    /// Where it is bound, with its real port.
    pub fn endpoint(&self) -> &Endpoint {
        self.0.endpoint()
    }

    /// Answers until draining begins or an operator stops the port; either way every answer given is written first. The
    /// tasks are spawned on `watch`, which should drain when the subject has ended: a server that finishes its open requests
    /// can be asked how it goes, and told to end at once.
    pub fn run(self, subject: Rc<dyn Subject>, watch: &Watch) {
        let stopped = Rc::new(Notify::new());
        let stop = Rc::clone(&stopped);
        let listening = self.0.run(
            answering(move |_, question| {
                let (answer, ends) = commands::answer(&*subject, question);
                if ends == commands::Ends::Port {
                    stop.notify_one();
                }
                answer.encode()
            }),
            watch,
        );
        let inner = watch.clone();
        watch.spawn_local(async move {
            tokio::select! {
                () = inner.draining() => {}
                () = stopped.notified() => info!("the control port is stopped: an operator asked for it"),
            }
            listening.close();
        });
    }
}

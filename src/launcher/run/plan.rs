//! What will be done: one handler, where it is connected to, and how its processes are kept. Made from what was typed, from a
//! TOML file and the environment; the supervisor and its workers know nothing else. Nothing is looked up or opened here.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::{BuiltIn, Group, Program, Values};
use crate::endpoint::Endpoint;

/// More workers than this are a typing mistake.
pub(super) const WORKERS_MAX: u32 = 1024;

/// The whole of `lurcher run`, decided.
#[derive(Debug, Clone)]
pub(in crate::launcher) struct Plan {
    /// What logs and `status` call it: `--name`, else the handler.
    pub(in crate::launcher) name: String,
    /// What a worker does.
    pub(in crate::launcher) app: App,
    /// The servers, each as (`send_spec`, `recv_spec`), never empty. Of a broker both are the same.
    pub(in crate::launcher) servers: Vec<(Endpoint, Endpoint)>,
    /// The ZeroMQ identity of the handler's sockets where a spec names none.
    pub(in crate::launcher) ident: Option<String>,
    /// What the servers are locked into: names of uploads are below it.
    pub(in crate::launcher) chroot: Option<PathBuf>,
    /// The servers' place for uploads, with its `XXXXXX`.
    pub(in crate::launcher) upload_store: Option<PathBuf>,
    /// Who takes the requests from the servers.
    pub(in crate::launcher) feed: Feed,
    /// Worker processes at the start; 0 serves in this process, which nobody supervises then.
    pub(in crate::launcher) workers: u32,
    /// Threads of a worker's runtime.
    pub(in crate::launcher) threads: u32,
    /// Requests that a worker has open at once, where its handler bounds them; more wait in the server.
    pub(in crate::launcher) concurrency: Option<u32>,
    /// Requests that a worker takes from a broker at once; none: as [`Plan::concurrency`].
    pub(in crate::launcher) slots: Option<u32>,
    /// The pool of a broker that workers work for.
    pub(in crate::launcher) pool: Option<String>,
    /// The share of a worker in a broker's sticky clients.
    pub(in crate::launcher) weight: u32,
    /// After so many requests a worker is replaced: the number, and the most that chance adds to it.
    pub(in crate::launcher) max_requests: Option<(u64, u64)>,
    /// Above so many bytes of resident memory a worker is replaced.
    pub(in crate::launcher) max_memory: Option<u64>,
    /// How long a worker may finish what it has.
    pub(in crate::launcher) graceful_timeout: Duration,
    /// Files and folders whose change replaces the workers.
    pub(in crate::launcher) watch: Vec<PathBuf>,
    /// Where the process id is written.
    pub(in crate::launcher) pid_file: Option<PathBuf>,
    /// Where it is asked for its status and told to stop, reload, scale.
    pub(in crate::launcher) control: Option<Endpoint>,
    /// Who workers run as: names or numbers.
    pub(in crate::launcher) user: Option<String>,
    /// The group of workers; without it that of the user.
    pub(in crate::launcher) group: Option<String>,
    /// The file mode creation mask of workers.
    pub(in crate::launcher) umask: Option<u32>,
    /// Added to the environment of workers, later ones win.
    pub(in crate::launcher) env: Vec<(OsString, OsString)>,
    /// The working directory of workers.
    pub(in crate::launcher) chdir: Option<PathBuf>,
    /// Where a line for each request goes; `-` is standard output.
    pub(in crate::launcher) access_log: Option<PathBuf>,
    /// Stop when standard input ends.
    pub(in crate::launcher) stop_on_eof: bool,
    /// Workers are replaced when what they have read changes.
    pub(in crate::launcher) reload: bool,
    /// The groups of processes that serve, each for itself; none: this one has its workers.
    pub(in crate::launcher) groups: Vec<Group>,
    /// Nothing is served: the handler is loaded, and that is all.
    pub(in crate::launcher) check: bool,
}

/// How long a handler may take to answer what it has, when asked to stop.
const GRACEFUL_TIMEOUT: Duration = Duration::from_secs(30);

impl Plan {
    /// What the lines of a worker begin with: of one group of several with that one's name.
    pub(in crate::launcher) fn worker(&self, number: u32) -> String {
        let group = self.name.rsplit_once('/').map(|(_, group)| group);
        match group.filter(|group| self.pool.as_deref() == Some(group)) {
            Some(group) => format!("{group} worker {number}"),
            None => format!("worker {number}"),
        }
    }

    /// Whether workers are forked from a process that has loaded everything.
    pub(in crate::launcher) fn forks(&self) -> bool {
        matches!(
            &self.app,
            App::BuiltIn {
                program: Some(Program { forks: true, .. }),
                ..
            }
        )
    }

    /// The defaults, for an app and the servers that it is connected to.
    pub(in crate::launcher) fn new(
        name: String,
        app: App,
        servers: Vec<(Endpoint, Endpoint)>,
    ) -> Self {
        Self {
            name,
            app,
            servers,
            ident: None,
            chroot: None,
            upload_store: None,
            feed: Feed::Auto,
            workers: 1,
            threads: 1,
            concurrency: None,
            slots: None,
            pool: None,
            weight: 1,
            max_requests: None,
            max_memory: None,
            graceful_timeout: GRACEFUL_TIMEOUT,
            watch: Vec::new(),
            pid_file: None,
            control: None,
            user: None,
            group: None,
            umask: None,
            env: Vec::new(),
            chdir: None,
            access_log: None,
            stop_on_eof: false,
            reload: false,
            groups: Vec::new(),
            check: false,
        }
    }

    /// Whether a broker is among the servers.
    pub(in crate::launcher) fn has_broker(&self) -> bool {
        self.servers.iter().any(|(send, _)| send.is_broker())
    }
}

/// What a worker does.
#[derive(Debug, Clone)]
pub(in crate::launcher) enum App {
    /// A handler compiled into the program.
    BuiltIn {
        /// Which.
        handler: &'static BuiltIn,
        /// Its options, and what it was called with.
        values: Box<Values>,
        /// The program that it lives in, where that is another one.
        program: Option<Program>,
    },
    /// A program of the user's own, which connects by itself.
    Exec {
        /// The program, looked for in `PATH` when it has no slash.
        program: OsString,
        /// Its arguments.
        arguments: Vec<OsString>,
    },
}

/// Who takes the requests from the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::launcher) enum Feed {
    /// Workers, when all servers are Lurchers and the handler is built in; otherwise the supervisor.
    Auto,
    /// Each worker by itself.
    Direct,
    /// The supervisor, which hands them to its workers: nothing is lost when one stops or dies, whatever the server is.
    Supervisor,
}

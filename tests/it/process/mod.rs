//! The server as a process: jail, privileges, pid file, background, several servers, logs that are rotated, service managers.
//!
//! What needs root is skipped without it, with a printed reason. Processes in the background are killed when a test ends,
//! however it ends.

mod certificates;
mod daemon;
mod jail;
mod logs;
mod m2sh;
mod manager;
mod several;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::client::{Asked, Client};
use crate::support::program::Program;
use crate::support::{PATIENCE, scratch};

/// A user and a group that nobody has an account for.
const USER: u32 = 54_321;
const GROUP: u32 = 54_322;

/// Whether this is root; prints why a test is skipped if not.
fn is_root() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !root {
        println!("skipped: a jail needs root");
    }
    root
}

/// Waits until something is so.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The configuration of one server without a handler, as lines of a `.conf`; what differs from test to test is replaced.
struct Site {
    directory: tempfile::TempDir,
    servers: Vec<String>,
    settings: String,
}

impl Site {
    fn new() -> Self {
        let directory = scratch();
        for folder in ["logs", "run", "jail/logs", "jail/run"] {
            fs::create_dir_all(directory.path().join(folder)).expect("a folder");
        }
        // The server is another user than the one that runs the tests.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        Self {
            directory,
            servers: Vec::new(),
            settings: String::new(),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn in_jail(&self, path: &str) -> PathBuf {
        self.path().join("jail").join(path)
    }

    /// Adds a server; its files are `logs/NAME.access`, `logs/NAME.error` and `run/NAME.pid` under the chroot, or in the
    /// working directory.
    fn server(mut self, name: &str, chroot: &str, addr: &str, port: u16) -> Self {
        let slash = if chroot.is_empty() { "" } else { "/" };
        self.servers.push(format!(
            "{name} = Server(uuid='{name}-uuid', name='{name}', access_log='{slash}logs/{name}.access', error_log='{slash}logs/{name}.error',\n\
             \x20   chroot='{chroot}', pid_file='{slash}run/{name}.pid', control_port='ipc://run/{name}.control', default_host='localhost',\n\
             \x20   bind_addr='{addr}', port={port}, hosts=[Host(name='localhost', routes={{'/no/such/path': app}})])\n"
        ));
        self
    }

    /// Adds a server in the jail, which belongs to [`USER`].
    fn jailed(self, name: &str, port: u16) -> Self {
        self.give_away();
        let jail = self.in_jail("").display().to_string();
        self.server(name, jail.trim_end_matches('/'), "127.0.0.1", port)
    }

    fn give_away(&self) {
        for path in ["", "logs", "run"] {
            std::os::unix::fs::chown(self.in_jail(path), Some(USER), Some(GROUP)).expect("chown");
        }
    }

    fn settings(mut self, settings: &str) -> Self {
        settings.clone_into(&mut self.settings);
        self
    }

    /// Writes `main.conf`, and says where.
    fn write(&self) -> PathBuf {
        let names: Vec<_> = self
            .servers
            .iter()
            .filter_map(|server| server.split(' ').next())
            .collect();
        let text = format!(
            "app = Handler(send_spec='ipc://run/send', send_ident='app', recv_spec='ipc://run/recv', recv_ident='')\n\
             {}settings = {{{}}}\nservers = [{}]\n",
            self.servers.concat(),
            self.settings,
            names.join(", ")
        );
        let path = self.path().join("main.conf");
        fs::write(&path, text).expect("write a configuration");
        path
    }

    /// The program under test, about to be started in the directory of the configuration.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lurcher"));
        command.args(arguments).current_dir(self.path());
        command
    }

    /// The same by the name `mongrel2`.
    fn mongrel2(&self, arguments: &[&str]) -> Command {
        let link = self.path().join("mongrel2");
        if !link.exists() {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_lurcher"), &link).expect("a symlink");
        }
        let mut command = Command::new(link);
        command.args(arguments).current_dir(self.path());
        command
    }

    /// What is in a file of the site.
    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path().join(path)).unwrap_or_default()
    }
}

/// Asks for a path that has no route: the front itself answers.
fn asks(address: SocketAddr, path: &str) -> u16 {
    let mut client = Client::connect(address);
    client
        .send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
        .expect("send");
    client
        .try_answer(Asked::Other, PATIENCE)
        .expect("an answer")
        .status
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Whether a process runs; one that nobody has buried does not.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|state| !state.starts_with('Z'))
}

/// The only process that this one has started and that still runs.
fn child_of(pid: u32) -> u32 {
    let mut child = None;
    until("a child process", || {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        child = text
            .unwrap_or_default()
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        child.is_some()
    });
    child.expect("a child")
}

/// A process in the background, killed with the value.
struct Background(u32);

impl Background {
    /// The one that a pid file names.
    fn of(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("a pid file");
        assert!(!text.ends_with('\n'), "{text:?}");
        Self(text.parse().expect("a pid"))
    }

    fn signal(&self, name: &str) {
        signal(self.0, name);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if runs(self.0) {
            signal(self.0, "KILL");
        }
    }
}

/// Sends a signal by name. Through the shell: the tests hold no unsafe code.
fn signal(pid: u32, name: &str) {
    let status = Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "kill -{name} {pid}"
    );
}

/// The one line that tells why a start has failed; the exit code is 1.
#[track_caller]
fn refused(command: &mut Command) -> String {
    let mut program = Program::start(command);
    let error = program.line("why it does not start", |line| {
        line.starts_with("lurcher: ").then(|| line.to_owned())
    });
    assert_eq!(program.ended().code(), Some(1), "{program}");
    let errors = program.to_string().matches("\n    lurcher: ").count();
    assert_eq!(errors, 1, "{program}");
    error
}

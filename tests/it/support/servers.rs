//! Both servers that handlers are written for, in both protocols: one set of tests for all four.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::program::Program;
use super::{free_port, scratch};

/// Which program serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Lurcher,
    Mongrel2,
}

/// A running server whose `/` goes to one handler.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    /// `json` or `tnetstring`.
    pub(crate) protocol: &'static str,
    pub(crate) program: Program,
    pub(crate) address: SocketAddr,
    pub(crate) send: String,
    pub(crate) recv: String,
    /// Its configuration as a database; its server's uuid is `main-uuid`, its handler's ident `app-ident`.
    pub(crate) database: PathBuf,
    directory: tempfile::TempDir,
}

impl Server {
    /// Starts one; `settings` are lines as they stand in a `.conf`. `None`, with a printed line, where Mongrel2 is not installed.
    ///
    /// Large bodies want a `limits.content_length` of 4096 at least: below that, its `limits.buffer_size`, Mongrel2 puts what lies about in
    /// its memory in place of what it has read of them with their heads.
    pub(crate) fn start(kind: Kind, protocol: &'static str, settings: &str) -> Option<Self> {
        let directory = scratch();
        let here = directory.path().display().to_string();
        let [port, send, recv] = [free_port(), free_port(), free_port()];
        let [send, recv] = [send, recv].map(|port| format!("tcp://127.0.0.1:{port}"));
        let text = format!(
            "app = Handler(send_spec='{send}', send_ident='app-ident', recv_spec='{recv}', recv_ident='',\n\
             \x20   protocol='{protocol}')\n\
             main = Server(uuid='main-uuid', name='main', access_log='{here}/access.log', error_log='{here}/error.log',\n\
             \x20   chroot='', pid_file='{here}/main.pid', control_port='ipc://{here}/control', default_host='localhost',\n\
             \x20   bind_addr='127.0.0.1', port={port}, hosts=[Host(name='localhost', routes={{'/': app}})])\n\
             settings = {{'server.daemonize': 0{settings}}}\n\
             servers = [main]\n"
        );
        let file = directory.path().join("main.conf");
        fs::write(&file, text).expect("write a configuration");
        let database = directory.path().join("config.sqlite");
        let paths = [&file, &database].map(|path| path.to_str().expect("a UTF-8 path"));
        let mut load = Program::lurcher(
            &["config", "load", paths[0], "--db", paths[1]],
            directory.path(),
        );
        assert!(load.ended().success(), "{load}");
        let address = ([127, 0, 0, 1], port).into();
        let mut program = match kind {
            Kind::Lurcher => Program::lurcher(&["serve", paths[1]], directory.path()),
            Kind::Mongrel2 => Program::mongrel2(&database, "main-uuid", directory.path())?,
        };
        program.answering(address);
        Some(Self {
            kind,
            protocol,
            program,
            address,
            send,
            recv,
            database,
            directory,
        })
    }

    /// kill -9, and another with the same configuration.
    pub(crate) fn restart(&mut self) {
        self.program.kill();
        let database = self.database.to_str().expect("a UTF-8 path");
        self.program = match self.kind {
            Kind::Lurcher => Program::lurcher(&["serve", database], self.directory.path()),
            Kind::Mongrel2 => Program::mongrel2(&self.database, "main-uuid", self.directory.path())
                .expect("it was there before"),
        };
        self.program.answering(self.address);
    }

    /// Its working directory.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// Runs a test on Lurcher and on Mongrel2 (where it is installed), each with both protocols.
pub(crate) fn each(settings: &str, mut test: impl FnMut(Server)) {
    for kind in [Kind::Lurcher, Kind::Mongrel2] {
        for protocol in ["json", "tnetstring"] {
            if let Some(server) = Server::start(kind, protocol, settings) {
                println!("on {kind:?} with {protocol}");
                test(server);
            }
        }
    }
}

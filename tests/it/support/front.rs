//! A front with one route to one handler, on free ports: what most tests of behaviour need.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::program::Program;
use super::{free_port, scratch};

/// A running `lurcher serve` and where its handlers connect.
pub(crate) struct Front {
    pub(crate) program: Program,
    pub(crate) address: SocketAddr,
    pub(crate) send: String,
    pub(crate) recv: String,
    directory: tempfile::TempDir,
}

impl Front {
    /// Starts a front whose `/` goes to one handler; `settings` are lines as they stand in a `.conf`.
    pub(crate) fn start(settings: &str) -> Self {
        Self::over(settings, "tcp")
    }

    /// As [`Front::start`], with the handler's sockets on `tcp` or `ipc`.
    pub(crate) fn over(settings: &str, transport: &str) -> Self {
        let directory = scratch();
        let path = directory.path().to_str().expect("a UTF-8 path");
        let [send, recv] = match transport {
            "ipc" => ["send", "recv"].map(|name| format!("ipc://{path}/{name}")),
            _ => [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}")),
        };
        let config = conf(directory.path(), 0, &send, &recv, settings);
        let config = config.to_str().expect("a UTF-8 path");
        let mut program = Program::lurcher(&["serve", config], directory.path());
        let address = program.listening();
        Self {
            program,
            address,
            send,
            recv,
            directory,
        }
    }

    /// As [`Front::start`], with these routes (as in a `.conf`) in place of the one; the handler is `app`.
    pub(crate) fn routed(settings: &str, routes: &str) -> Self {
        let directory = scratch();
        let [send, recv] = [free_port(), free_port()].map(|port| format!("tcp://127.0.0.1:{port}"));
        let config = conf(directory.path(), 0, &send, &recv, settings);
        let text = fs::read_to_string(&config).expect("the configuration");
        let text = text.replace("{'/': app}", &format!("{{{routes}}}"));
        fs::write(&config, text).expect("write a configuration");
        let mut program = Program::lurcher(&["serve", "main.conf"], directory.path());
        let address = program.listening();
        Self {
            program,
            address,
            send,
            recv,
            directory,
        }
    }

    /// The file of the access log.
    pub(crate) fn access_log(&self) -> PathBuf {
        self.directory.path().join("access.log")
    }

    /// Where its files are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// Writes a `.conf` with one server of one route, and says where.
pub(crate) fn conf(directory: &Path, port: u16, send: &str, recv: &str, settings: &str) -> PathBuf {
    let here = directory.display();
    let text = format!(
        "app = Handler(send_spec='{send}', send_ident='app-ident', recv_spec='{recv}', recv_ident='')\n\
         main = Server(uuid='main-uuid', name='main', access_log='{here}/access.log', error_log='{here}/error.log',\n\
         \x20   chroot='', pid_file='{here}/main.pid', control_port='ipc://{here}/control', default_host='localhost',\n\
         \x20   bind_addr='127.0.0.1', port={port}, hosts=[Host(name='localhost', routes={{'/': app}})])\n\
         settings = {{'server.daemonize': 0{settings}}}\n\
         servers = [main]\n"
    );
    let file = directory.join("main.conf");
    fs::write(&file, text).expect("write a configuration");
    file
}

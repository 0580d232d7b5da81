//! Python applications by `lurcher run`: WSGI and ASGI, on both servers in both protocols. `basics` is what any application sees, `wsgi_rules`
//! and `asgi_rules` go through what the two interfaces ask, `drives` what threads owe to who waits, `uploads` are those that are read early, `sites` are Django, Flask, `FastAPI` and Starlette, `failures` what becomes of
//! requests when an application, a worker or a client does not do as it should.
//!
//! The extension module is another package, which `cargo test` does not build: the first of these tests does. Without a Python from 3.10 on they
//! say so by a printed line and pass.

mod api;
mod apps;
mod asgi;
mod asgi_rules;
mod basics;
mod drives;
mod failures;
mod sites;
mod uploads;
mod wsgi;
mod wsgi_rules;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::support::client::{Answer, Client};
use crate::support::program::Program;
use crate::support::servers::{self, Server};

/// The interpreter that the applications run in, with the extension module built; `None`, with a printed line, where there is none.
///
/// `LURCHER_TEST_PYTHON`, else the environment that `./test` has made, else the first `python3`.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let python = PYTHON.get_or_init(|| {
        let named = std::env::var_os("LURCHER_TEST_PYTHON").map(PathBuf::from);
        let made = program().with_file_name("../python/test/bin/python");
        let python = named
            .or_else(|| made.exists().then_some(made))
            .unwrap_or_else(|| "python3".into());
        let found = runs(&python, "import sys; sys.exit(sys.version_info < (3, 10))");
        if found {
            build_extension();
        }
        found.then_some(python)
    });
    if python.is_none() {
        println!("skipped: no Python from 3.10 on (Debian: python3)");
    }
    python.as_deref()
}

/// The same, if it has these packages.
fn python_with(packages: &[&str]) -> Option<&'static Path> {
    let python = python()?;
    let missing = packages
        .iter()
        .filter(|package| !runs(python, &format!("import {package}")));
    let missing: Vec<_> = missing.copied().collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        println!("skipped: this Python has no {missing}; ./test makes one that has");
        return None;
    }
    Some(python)
}

fn runs(python: &Path, text: &str) -> bool {
    let mut command = Command::new(python);
    command.args(["-c", text]).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The program under test.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_lurcher"))
}

/// Builds the extension module beside the program, as it is built.
fn build_extension() {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["build", "--quiet", "--package", "lurcher-python"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let folder = program().parent().expect("a file is in a folder");
    if folder.ends_with("release") {
        command.arg("--release");
    }
    command
        .arg("--target-dir")
        .arg(folder.parent().expect("a profile's folder is in another"));
    let output = command.output().expect("run cargo");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Where the sample applications are.
fn samples(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/python")
        .join(folder)
}

/// A running `lurcher run` of a Python application.
struct App {
    program: Program,
}

impl App {
    /// Starts it and waits until its first worker is ready.
    fn start(python: &Path, server: &Server, app: &str, options: &[&str]) -> Self {
        let mut app = Self::starting(python, server, app, options, |_| {});
        app.ready(1);
        app
    }

    /// Starts it, in the folder of the sample applications unless `prepare` says otherwise.
    fn starting(
        python: &Path,
        server: &Server,
        app: &str,
        options: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let control = format!("ipc://{}/run.control", server.directory().display());
        let mut command = Command::new(program());
        command
            .args(["run", app, &server.send, &server.recv])
            .args(["--control", &control])
            .arg("--python")
            .arg(python)
            .args(options)
            .current_dir(samples("apps"))
            // Nothing is written beside the sources.
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("TMPDIR", server.directory());
        prepare(&mut command);
        Self {
            program: Program::start(&mut command),
        }
    }

    /// Waits until so many workers have become ready; their process ids in that order.
    fn ready(&mut self, count: usize) -> Vec<u32> {
        self.program.said(") is ready", count);
        let lines = self.program.lines();
        let pids = lines.iter().filter_map(|line| {
            let (_, rest) = line.split_once("(process ")?;
            rest.strip_suffix(") is ready")?.parse().ok()
        });
        pids.collect()
    }
}

/// Runs a test on a sample application behind both servers, in both protocols.
fn each(app: &str, options: &[&str], mut test: impl FnMut(&Server, &mut App)) {
    let Some(python) = python() else { return };
    servers::each("", |server| {
        let mut app = App::start(python, &server, app, options);
        test(&server, &mut app);
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}

/// One request, written out but for its host, on a connection of its own.
fn ask(address: SocketAddr, line: &str, fields: &str, body: &[u8]) -> Answer {
    let mut client = Client::connect(address);
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    client
        .send(&[head.as_bytes(), body].concat())
        .expect("send a request");
    client.answer()
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

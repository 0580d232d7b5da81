//! The Python API, by scripts of Python's own test framework: each runs once behind each server, in both protocols.
//!
//! They import the package as it is installed: its own folder, with the extension module in it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{program, python, samples};
use crate::support::program::Program;
use crate::support::scratch;
use crate::support::servers::{self, Kind, Server};

/// The package as pip would install it, below this folder.
fn package(folder: &Path) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("handlers/python/python/lurcher");
    let packages = folder.join("packages");
    let package = packages.join("lurcher");
    std::fs::create_dir_all(&package).unwrap();
    for entry in std::fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            symlink(&path, package.join(path.file_name().unwrap())).unwrap();
        }
    }
    let module = program().with_file_name("liblurcher_python.so");
    symlink(module, package.join("_lurcher.abi3.so")).unwrap();
    packages
}

/// Runs a script behind a server; it ends well when all of its tests have passed.
fn script(python: &Path, name: &str, server: &Server, uploads: &str) {
    let path = samples("api").join(name);
    let kind = match server.kind {
        Kind::Lurcher => "Lurcher",
        Kind::Mongrel2 => "Mongrel2",
    };
    let mut command = Command::new(python);
    command
        .args(["-X", "faulthandler", "-W", "error::ResourceWarning"])
        .arg(path)
        .current_dir(server.directory())
        .env("PYTHONPATH", package(server.directory()))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("LURCHER_SEND", &server.send)
        .env("LURCHER_RECV", &server.recv)
        .env("LURCHER_HTTP", server.address.to_string())
        .env("LURCHER_DATABASE", &server.database)
        .env("LURCHER_KIND", kind)
        .env("LURCHER_UPLOADS", uploads);
    let mut tests = Program::start(&mut command);
    let status = tests.ended();
    tests.line("how many tests were run", |line| {
        line.strip_prefix("Ran ")?
            .split(' ')
            .next()?
            .parse()
            .ok()
            .filter(|ran: &u32| *ran > 0)
    });
    assert!(status.success(), "{name}: {tests}");
}

fn each(name: &str) {
    let Some(python) = python() else { return };
    servers::each("", |server| script(python, name, &server, ""));
}

#[test]
fn connections_receive_and_answer() {
    each("connections.py");
}

#[test]
fn handlers_serve_and_stop() {
    each("handlers.py");
}

#[test]
fn web_sockets_speak() {
    each("web_sockets.py");
}

#[test]
fn what_the_library_says_reaches_logging() {
    each("logs.py");
}

#[test]
fn coroutines_receive_and_answer() {
    each("coroutines.py");
}

#[test]
fn middleware_keeps_to_the_rules() {
    let Some(python) = python() else { return };
    let server = Server::start(Kind::Lurcher, "json", "").expect("a Lurcher is there");
    script(python, "middleware.py", &server, "");
}

#[test]
fn the_package_is_what_its_stubs_say() {
    let Some(python) = python() else { return };
    let server = Server::start(Kind::Lurcher, "json", "").expect("a Lurcher is there");
    script(python, "package.py", &server, "");
}

#[test]
fn the_guide_s_examples_run() {
    each("documentation.py");
}

#[test]
fn stored_uploads_are_read_and_removed() {
    let Some(python) = python() else { return };
    let store = scratch();
    let settings = format!(
        ", 'upload.temp_store': '{}/body.XXXXXX', 'limits.content_length': 10000",
        store.path().display()
    );
    servers::each(&settings, |server| {
        script(python, "uploads.py", &server, "stored");
    });
}

#[test]
fn streamed_uploads_are_read_as_they_come() {
    let Some(python) = python() else { return };
    let settings = ", 'upload.stream': 1, 'limits.content_length': 10000";
    servers::each(settings, |server| {
        script(python, "uploads.py", &server, "streamed");
    });
}

//! The sample sites in Django, Flask, `FastAPI` and Starlette, behind both servers: pages, forms, files of 100 MB in flat memory, sessions, streams,
//! server-sent events and WebSocket, as `tests/python/check_site.py` asks for them.

use std::path::Path;
use std::process::Command;

use super::failures::{GROWTH, peak};
use super::{App, python_with, samples};
use crate::support::scratch;
use crate::support::servers::{self, Server};

/// What every site is asked.
const VISITS: [&str; 7] = [
    "page",
    "form",
    "small_upload",
    "session",
    "stream",
    "events",
    "fault",
];

/// A site, and how it is run.
struct Site<'a> {
    /// Its folder below `tests/python/sites`, which is also what its framework is imported as.
    folder: &'a str,
    app: &'a str,
    options: &'a [&'a str],
    /// What else it is asked.
    visits: &'a [&'a str],
    /// What else is needed.
    packages: &'a [&'a str],
}

/// Runs a site behind both servers in both protocols, and asks it everything.
fn visit(site: &Site<'_>) {
    let packages = [&[site.folder, "httpx", "websockets"], site.packages].concat();
    let Some(python) = python_with(&packages) else {
        return;
    };
    let store = scratch();
    let settings = format!(
        ", 'upload.temp_store': '{}/up.XXXXXX'",
        store.path().display()
    );
    servers::each(&settings, |server| {
        let folder = samples("sites").join(site.folder);
        let mut app = App::starting(python, &server, site.app, site.options, |command| {
            command.current_dir(folder);
        });
        let worker = app.ready(1)[0];
        ask(python, &server, &app, &[&VISITS, site.visits].concat());
        // One protocol is enough for what takes seconds: a body in a file is the same in both.
        if server.protocol == "tnetstring" {
            let before = peak(worker);
            ask(python, &server, &app, &["upload"]);
            let after = peak(worker);
            assert!(
                after < before + GROWTH,
                "{before} KiB before 100 MB, {after} KiB after"
            );
        }
        app.program.said("a fault of the shop", 1);
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}

fn ask(python: &Path, server: &Server, app: &App, visits: &[&str]) {
    let output = Command::new(python)
        .arg(samples("check_site.py"))
        .arg(format!("http://{}", server.address))
        .args(visits)
        .output()
        .expect("run the visitor");
    assert!(
        output.status.success(),
        "{}\n{}{}",
        app.program,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_django_site_runs_as_wsgi() {
    visit(&Site {
        folder: "django",
        app: "shop.wsgi:application",
        options: &["--threads=4"],
        visits: &[],
        packages: &[],
    });
}

#[test]
fn a_django_site_runs_as_asgi() {
    visit(&Site {
        folder: "django",
        app: "shop.asgi:application",
        options: &[],
        visits: &[],
        packages: &[],
    });
}

#[test]
fn a_flask_site_runs() {
    visit(&Site {
        folder: "flask",
        app: "shop:app",
        options: &["--threads=4"],
        visits: &[],
        packages: &[],
    });
}

#[test]
fn a_flask_site_runs_in_greenlets() {
    for io in [
        ("gevent", &["--io=gevent", "--concurrency=20"]),
        ("eventlet", &["--io=eventlet", "--concurrency=20"]),
    ] {
        visit(&Site {
            folder: "flask",
            app: "shop:app",
            options: io.1,
            visits: &[],
            packages: &[io.0],
        });
    }
}

#[test]
fn a_fastapi_site_runs() {
    visit(&Site {
        folder: "fastapi",
        app: "shop:app",
        options: &["--loop=uvloop"],
        visits: &["echo"],
        packages: &["uvloop"],
    });
}

#[test]
fn a_starlette_site_runs() {
    visit(&Site {
        folder: "starlette",
        app: "shop:app",
        options: &["--loop=asyncio"],
        visits: &["echo"],
        packages: &[],
    });
}

//! How applications are found, where they are, and in which processes: names, mounts, hosts, groups, middleware, reloads, forks.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::{App, ask, each, program, python, samples, text};
use crate::support::PATIENCE;
use crate::support::client::{Client, fetch};
use crate::support::servers::{self, Server};

/// `lurcher run ARGUMENTS --check`, in the folder of the sample applications; nothing is connected to.
fn check(arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> (Option<i32>, String, String) {
    let mut command = Command::new(program());
    command
        .arg("run")
        .args(arguments)
        .args(["tcp://127.0.0.1:9", "--check"])
        .current_dir(samples("apps"))
        .env_remove("VIRTUAL_ENV")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    prepare(&mut command);
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("run the program");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (status.code(), text(&stdout), text(&stderr))
}

/// The same with the interpreter of the tests.
fn check_app(python: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    check(arguments, |command| {
        command.arg("--python").arg(python);
    })
}

#[test]
fn an_application_is_named_in_every_usual_way() {
    let Some(python) = python() else { return };
    for (name, speaks) in [
        ("hello:application", "WSGI"),
        ("hello.application", "WSGI"),
        ("hello.py", "WSGI"),
        ("./hello.py:application", "WSGI"),
        ("python:hello", "WSGI"),
        ("parts:make()", "WSGI"),
        ("parts:make('other')", "WSGI"),
        ("parts:whole.__call__", "WSGI"),
        ("parts:told_async", "ASGI"),
    ] {
        let (code, stdout, stderr) = check_app(python, &[name]);
        let name = name.strip_prefix("python:").unwrap_or(name);
        assert_eq!(stdout, format!("{name}: {speaks}\n"), "{stderr}");
        assert_eq!(code, Some(0));
    }
    let (code, stdout, _) = check_app(python, &["parts:make", "--factory"]);
    assert_eq!((code, &*stdout), (Some(0), "parts:make: WSGI\n"));
}

#[test]
fn what_is_not_there_is_told_with_what_is() {
    let Some(python) = python() else { return };
    for (arguments, expected) in [
        (
            &["nowhere:app"][..],
            "load nowhere:app: there is no module nowhere in ",
        ),
        (
            &["parts:nope"],
            "load parts:nope: parts has no nope; it has asks, ",
        ),
        (
            &["python:parts"],
            "load parts: parts has no application or app; it has asks, ",
        ),
        (&["none.py"], "load none.py: there is no file "),
        (
            &["parts:heard"],
            "it is no application but a list, which cannot be called",
        ),
        (&["parts:make(open)"], "is called with more than constants"),
        (
            &["hello:application", "--middleware", "parts:none"],
            "load the middleware parts:none: parts has no none",
        ),
        (
            &["hello:application", "--log-config", "/none.json"],
            "configure logging from /none.json: ",
        ),
    ] {
        let (code, _, stderr) = check_app(python, arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("Traceback"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn what_an_application_raises_when_it_is_loaded_is_shown_from_its_own_first_line() {
    let Some(python) = python() else { return };
    let (code, _, stderr) = check(&["parts:whole"], |command| {
        command.arg("--python").arg(python).env("PARTS_FAIL", "1");
    });
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("ValueError: parts does not load"),
        "{stderr}"
    );
    let frames: Vec<_> = stderr
        .lines()
        .filter(|line| line.starts_with("  File "))
        .collect();
    assert_eq!(frames.len(), 1, "{stderr}");
    assert!(frames[0].contains("parts.py"), "{stderr}");
}

#[test]
fn mistakes_in_places_are_told_before_anything_starts() {
    if python().is_none() {
        return;
    }
    for (arguments, expected) in [
        (
            &["--mount", "a=parts:blog"][..],
            "--mount `a=parts:blog`: no path before the `=`",
        ),
        (
            &["--mount", "/a=parts:blog", "--mount", "/a/=parts:shop"],
            "two applications are at `/a/`",
        ),
        (
            &["--host", "a:80=parts:blog"],
            "--host `a:80=parts:blog`: a host has no port here",
        ),
        (
            &["--mount", "/a=parts:blog,workers=2"],
            "only a group has settings of its own",
        ),
        (
            &["--mount", "/a=parts:blog,group=x,io=y"],
            "--io `y`: it is none of standard, gevent, eventlet",
        ),
        (&["python"], "no application named: MODULE:NAME"),
        (&["hello"], "; a module of that name is `python:hello`"),
        (
            &["hello:application", "--timeout", "x"],
            "--timeout `x`: not a number of seconds",
        ),
        (
            &["hello:application", "--preload", "--reload"],
            "--preload does not go with --reload",
        ),
    ] {
        let (code, _, stderr) = check(arguments, |_| {});
        assert_ne!(code, Some(0), "{arguments:?}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}

/// A program that answers as an interpreter with these lines would.
fn pretender(folder: &Path, lines: &str) -> std::path::PathBuf {
    let path = folder.join("python");
    fs::write(&path, format!("#!/bin/sh\nprintf '{lines}'\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn an_interpreter_that_will_not_do_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    for (lines, expected) in [
        (
            "cpython\\n3.9.18\\n\\n/p\\n\\n",
            "it is Python 3.9.18, and 3.10 or newer is needed",
        ),
        (
            "pypy\\n3.11.1\\n\\n/p\\n\\n",
            "it is pypy, and CPython 3.10 or newer is needed",
        ),
        (
            "cpython\\n3.14.0\\nfree-threaded\\n/p\\n\\n",
            "it is a free-threaded Python 3.14.0, and one with the GIL is needed",
        ),
    ] {
        let python = pretender(folder.path(), lines);
        let (code, _, stderr) = check_app(&python, &["hello:application"]);
        assert_eq!(code, Some(2), "{stderr}");
        let shown = python.display();
        assert_eq!(
            stderr,
            format!("lurcher: running `hello:application`: --python `{shown}`: {expected}\n")
        );
    }
    let (code, _, stderr) = check_app(Path::new("/nowhere/python"), &["hello:application"]);
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("start /nowhere/python: No such file"),
        "{stderr}"
    );
    let (code, _, stderr) = check(&["hello:application"], |command| {
        command.env("VIRTUAL_ENV", folder.path());
    });
    assert_eq!(code, Some(2));
    assert!(
        stderr.contains("VIRTUAL_ENV has no interpreter"),
        "{stderr}"
    );
}

#[test]
fn the_interpreter_of_an_environment_is_found_and_named() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let environment = folder.path().join(".venv");
    let mut command = Command::new(python);
    let made = command
        .args(["-m", "venv", "--without-pip"])
        .arg(&environment)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: this Python makes no environments (Debian: python3-venv)");
        return;
    }
    fs::write(
        folder.path().join("app.py"),
        "import sys\nprint(sys.prefix)\nimport os\nassert os.environ['WORD'] == 'a b'\ndef app(environ, start_response): pass\n",
    )
    .unwrap();
    fs::write(folder.path().join("env"), "WORD='a b'\n").unwrap();
    let app_dir = folder.path().to_str().unwrap();
    let env_file = folder.path().join("env");
    let arguments = [
        "app:app",
        "--app-dir",
        app_dir,
        "--env-file",
        env_file.to_str().unwrap(),
    ];
    let shown = environment.display();
    for (variable, because) in [(None, ".venv"), (Some(&environment), "VIRTUAL_ENV")] {
        let (code, stdout, stderr) = check(&arguments, |command| {
            if let Some(folder) = variable {
                command.env("VIRTUAL_ENV", folder);
            }
        });
        assert_eq!(
            (code, &*stdout),
            (Some(0), &*format!("{shown}\napp:app: WSGI\n")),
            "{stderr}"
        );
        let line = format!("python: {shown}/bin/python ({because}), version 3.");
        assert!(stderr.contains(&line), "{stderr}");
        let line = format!(", of the virtual environment {shown}");
        assert!(stderr.contains(&line), "{stderr}");
    }
}

const PLACES: &[&str] = &[
    "--mount",
    "/blog=parts:blog",
    "--mount",
    "/blog/old/=parts:old",
    "--host",
    "shop.example.com=parts:shop",
    "--host",
    "*.example.com=parts:wild",
];

/// Where requests go that the places are asked for.
fn find_their_way(server: &Server) {
    let body = |host: &str, path: &str| {
        let answer = fetch(
            server.address,
            &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        );
        assert_eq!(answer.status, 200, "{host} {path}");
        text(&answer)
    };
    assert_eq!(body("localhost", "/"), "whole |/");
    assert_eq!(body("localhost", "/blogs"), "whole |/blogs");
    assert_eq!(body("localhost", "/blog"), "blog /blog|");
    assert_eq!(body("localhost:80", "/blog/a%20b?c=d"), "blog /blog|/a b");
    assert_eq!(body("localhost", "/blog/old"), "old /blog/old|");
    assert_eq!(body("localhost", "/%62log/old/x"), "old /blog/old|/x");
    assert_eq!(body("Shop.Example.com:8080", "/blog"), "shop |/blog");
    assert_eq!(body("a.b.example.com", "/"), "wild |/");
}

#[test]
fn requests_find_their_application_by_host_and_path() {
    each("parts:whole", PLACES, |server, _| find_their_way(server));
}

#[test]
fn what_no_application_has_is_not_found() {
    let Some(python) = python() else { return };
    servers::each("", |server| {
        let mut app = App::start(python, &server, "python", &["--mount", "/blog=parts:blog"]);
        assert_eq!(ask(server.address, "GET /blog/x", "", b"").status, 200);
        assert_eq!(ask(server.address, "GET /x", "", b"").status, 404);
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}

#[test]
fn groups_are_in_processes_of_their_own_and_requests_find_them() {
    let Some(python) = python() else { return };
    let options = [
        PLACES,
        &[
            "--mount",
            "/process=parts:process,group=two,workers=2",
            "--mount",
            "x.org/also=parts:process,group=two",
        ],
    ]
    .concat();
    servers::each("", |server| {
        let mut app = App::starting(python, &server, "parts:whole", &options, |_| {});
        app.program.said("all groups have workers", 1);
        find_their_way(&server);
        let processes = |host: &str, path: &str| {
            let answer = fetch(
                server.address,
                &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            );
            text(&answer)
                .split(' ')
                .next()
                .unwrap_or_default()
                .parse::<u32>()
                .unwrap()
        };
        let one = processes("localhost", "/process");
        processes("x.org", "/also/x");
        // Its end is its group's alone.
        assert_eq!(
            ask(server.address, "POST /process/exit", "", b"").status,
            502
        );
        assert_ne!(processes("localhost", "/process"), 0);
        find_their_way(&server);
        assert_ne!(one, app.program.id());
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}

#[test]
fn a_group_that_does_not_load_ends_the_whole_with_its_reason() {
    let Some(python) = python() else { return };
    servers::each("", |server| {
        let options = ["--mount", "/x=parts:nothing,group=x"];
        let mut app = App::starting(python, &server, "parts:whole", &options, |_| {});
        // On a machine that has much to do each attempt takes its time.
        for times in 1..=5 {
            app.program
                .said("x worker 1: lurcher: load parts:nothing: ", times);
        }
        app.program
            .said("the group x does not start: exit status: 1", 1);
        assert_eq!(app.program.ended().code(), Some(1), "{}", app.program);
    });
}

#[test]
fn applications_hear_each_others_signals_and_one_that_fails_stops_nobody() {
    let options = [
        "--mount",
        "/speak=parts:speaker",
        "--mount",
        "/listen=parts:listener",
    ];
    each("parts:whole", &options, |server, _| {
        let get = |path: &str| text(&ask(server.address, &format!("GET {path}"), "", b""));
        assert_eq!(get("/speak"), "1");
        assert_eq!(get("/speak"), "1");
        assert_eq!(get("/listen"), "17 18");
    });
}

#[test]
fn applications_ask_each_other_without_a_socket_whatever_they_speak() {
    let options = [
        "--mount",
        "/asks=parts:asks",
        "--mount",
        "/aasks=parts:asks_async",
        "--mount",
        "/told=parts:told",
        "--mount",
        "/atold=parts:told_async",
    ];
    each("python", &options, |server, _| {
        let get = |path: &str| text(&ask(server.address, &format!("GET {path}"), "", b""));
        assert_eq!(
            get("/asks?/told/a%20b?q=%20"),
            "201 text/plain wsgi /told|/a b|q=%20 body w"
        );
        assert_eq!(
            get("/asks?/atold/x"),
            "202 text/x-told asgi /atold|/atold/x body"
        );
        let fields = "X-Host: [::1]:8080\r\n";
        assert_eq!(
            text(&ask(
                server.address,
                "GET /asks?/atold/%78?EURO",
                fields,
                b""
            )),
            r#"202 text/x-told asgi /atold|/atold/x /atold/%78 {"word": "lasting", "server": ["::1", 8080], "query": "\u20ac"}"#
        );
        assert_eq!(get("/aasks?/told/x"), "201 wsgi /told|/x| body ");
        assert_eq!(get("/aasks?/atold/x"), "202 asgi /atold|/atold/x body");
        assert_eq!(get("/asks?/nobody"), "nobody");
    });
}

#[test]
fn middleware_is_around_the_application_the_first_outermost() {
    let options = ["--middleware", "parts:outer", "--middleware", "parts.inner"];
    each("parts:make('app')", &options, |server, _| {
        let answer = ask(server.address, "GET /", "", b"");
        assert_eq!(text(&answer), "outer(inner(app |/))");
    });
}

#[test]
fn logging_is_configured_from_json_or_ini() {
    let Some(python) = python() else { return };
    let json = r#"{"version": 1, "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "f"}},
        "formatters": {"f": {"format": "LOG %(name)s %(message)s"}}, "root": {"level": "INFO", "handlers": ["h"]}}"#;
    let ini = "[loggers]\nkeys=root\n[handlers]\nkeys=h\n[formatters]\nkeys=f\n[logger_root]\nlevel=INFO\nhandlers=h\n\
        [handler_h]\nclass=StreamHandler\nformatter=f\n[formatter_f]\nformat=LOG %(name)s %(message)s\n";
    servers::each("", |server| {
        for (name, text) in [("log.json", json), ("log.ini", ini)] {
            let path = server.directory().join(name);
            fs::write(&path, text).unwrap();
            let options = ["--log-config", path.to_str().unwrap()];
            let mut app = App::start(python, &server, "parts:logs", &options);
            assert_eq!(ask(server.address, "GET /", "", b"").status, 200);
            app.program.said("LOG parts a word of the application", 1);
            assert!(app.program.terminate().success(), "{}", app.program);
        }
    });
}

#[test]
fn a_change_of_a_module_is_served_and_one_that_does_not_load_waits_for_the_next() {
    let Some(python) = python() else { return };
    servers::each("", |server| {
        let folder = server.directory().join("dev");
        fs::create_dir_all(&folder).unwrap();
        let write = |text: &str| fs::write(folder.join("part.py"), text).unwrap();
        fs::write(
            folder.join("dev.py"),
            "import part\ndef application(environ, start_response):\n    start_response('200 OK', [])\n    return [part.TEXT]\n",
        )
        .unwrap();
        write("TEXT = b'one'\n");
        let app_dir = folder.to_str().unwrap();
        let options = ["--reload", "--app-dir", app_dir];
        let mut app = App::start(python, &server, "dev:application", &options);
        let get = || ask(server.address, "GET /", "", b"");
        assert_eq!(text(&get()), "one");
        // It is watched a moment after it was read.
        // It is watched a moment after it was read, and the old worker answers until a new one is there.
        let change = |written: &str, expected: &str| {
            for attempt in 0..100 {
                if attempt % 10 == 0 {
                    write(written);
                }
                let answer = get();
                if text(&answer).contains(expected) {
                    return answer.status;
                }
                app.program.wait_for_lines(Duration::from_millis(500));
            }
            panic!("{}\nnever answered {expected:?}", app.program);
        };
        assert_eq!(change("TEXT = b'the second'\n", "the second"), 200);
        assert_eq!(change("TEXT = b'the third\n", "SyntaxError: "), 500);
        assert_eq!(change("TEXT = b'fourth'\n", "fourth"), 200);
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}

#[test]
fn workers_are_forked_from_one_process_that_has_loaded_everything() {
    let Some(python) = python() else { return };
    servers::each("", |server| {
        let options = ["--preload", "--workers", "2"];
        let mut app = App::starting(python, &server, "parts:process", &options, |_| {});
        let workers = app.ready(2);
        let get = |path: &str| -> Vec<u32> {
            let answer = text(&ask(server.address, &format!("GET {path}"), "", b""));
            answer
                .split(' ')
                .map(|number| number.parse().unwrap())
                .collect()
        };
        let [worker, parent, loaded] = get("/")[..] else {
            panic!("three numbers")
        };
        assert!(workers.contains(&worker) && parent == loaded && worker != loaded);
        assert_eq!(title(loaded), "lurcher zygote of parts:process");
        let number = title(worker);
        assert!(
            ["1", "2"]
                .map(|number| format!("lurcher worker {number} of parts:process"))
                .contains(&number),
            "{number}"
        );
        // One that ends is forked anew from the same.
        assert_eq!(ask(server.address, "POST /exit", "", b"").status, 502);
        app.program.said("died: exit status: 3", 1);
        app.ready(3);
        assert_eq!(get("/")[2], loaded);
        // A reload loads anew.
        app.program.signal("HUP");
        app.program.said("handler parts:process: stopped", 2);
        assert_ne!(get("/")[2], loaded);
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}

#[test]
fn a_client_is_answered_in_order_whatever_its_applications_speak() {
    let Some(python) = python() else { return };
    let options = [
        "--mount",
        "/wsgi=troubles:application",
        "--mount",
        "/asgi=troubles:app",
        "--mount",
        "/hello=hello:application",
        "--mount",
        "/ahello=hello:app",
        "--threads=2",
    ];
    servers::each("", |server| {
        let mut app = App::start(python, &server, "python", &options);
        let slow_and_quick = [
            ("/wsgi/wait?0.3", "well\n"),
            ("/ahello", "hello\n"),
            ("/asgi/wait?0.3", "well\n"),
            ("/hello", "hello\n"),
            ("/wsgi/wait?0.3", "well\n"),
            ("/none", "Not Found: no application is here\n"),
            ("/ahello", "hello\n"),
        ];
        let asked = slow_and_quick
            .map(|(path, _)| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        let mut client = Client::connect(server.address);
        client.send(asked.concat().as_bytes()).expect("send all");
        for (path, expected) in slow_and_quick {
            assert_eq!(text(&client.answer()), expected, "{path}");
        }
        // What waits for its turn is answered when the end comes; a Lurcher has not handed it over yet.
        if server.kind == servers::Kind::Lurcher {
            return;
        }
        let mut client = Client::connect(server.address);
        client.send(asked.concat().as_bytes()).expect("send all");
        assert_eq!(text(&client.answer()), "well\n");
        assert!(app.program.terminate().success(), "{}", app.program);
        for (path, expected) in slow_and_quick.into_iter().skip(1) {
            assert_eq!(text(&client.answer()), expected, "{path}");
        }
    });
}

/// What a list of processes shows of one.
fn title(pid: u32) -> String {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    line.trim_end_matches('\0').to_owned()
}

#[test]
fn a_worker_is_called_by_its_number_and_its_application() {
    let Some(python) = python() else { return };
    let server = Server::start(servers::Kind::Lurcher, "json", "").expect("one of ours");
    let mut app = App::start(python, &server, "hello:application", &[]);
    let pid = app.ready(1)[0];
    assert_eq!(title(pid), "lurcher worker 1 of hello:application");
}

/// How many lines of an access log are about `GET /`.
fn logged(log: &Path) -> usize {
    let lines = fs::read_to_string(log).unwrap_or_default();
    lines.matches("\"GET / HTTP").count()
}

#[test]
fn the_access_log_of_forked_workers_has_every_request_of_those_that_end_by_themselves() {
    let Some(python) = python() else { return };
    servers::each("", |server| {
        let log = server.directory().join("requests.log");
        let log_option = format!("--access-log={}", log.display());
        let options = ["--preload", &log_option];
        let mut app = App::start(python, &server, "parts:process", &options);
        let ask_thrice = || {
            for _ in 0..3 {
                assert_eq!(ask(server.address, "GET /", "", b"").status, 200);
            }
        };
        ask_thrice();
        app.program.signal("HUP");
        app.program.said("handler parts:process: stopped", 1);
        assert_eq!(logged(&log), 3);
        ask_thrice();
        // A line is written behind its answer: one that dies first takes it along.
        let end = Instant::now() + PATIENCE;
        while logged(&log) < 6 && Instant::now() < end {
            app.program.wait_for_lines(Duration::from_millis(10));
        }
        assert_eq!(ask(server.address, "POST /exit", "", b"").status, 502);
        app.ready(3);
        ask_thrice();
        assert!(app.program.terminate().success(), "{}", app.program);
        assert_eq!(logged(&log), 9);
    });
}

#[test]
fn a_worker_is_replaced_after_so_many_requests_and_none_is_lost() {
    let options = ["--max-requests", "20", "--max-requests-jitter", "5"];
    each("parts:process", &options, |server, app| {
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 3 {
            let answer = ask(server.address, "GET /", "", b"");
            assert_eq!(answer.status, 200);
            seen.insert(text(&answer));
        }
        app.program.said("it is replaced", 2);
    });
}

#[test]
fn m2wsgis_command_line_runs_an_application() {
    let Some(python) = python() else { return };
    servers::each("", |server| {
        let link = server.directory().join("m2wsgi");
        if !link.exists() {
            std::os::unix::fs::symlink(program(), &link).unwrap();
        }
        let mut command = Command::new(&link);
        command
            .args([
                "--num-threads=2",
                "--middleware",
                "parts.outer",
                "--io",
                "standard",
                "parts.whole",
            ])
            .args([&server.send, &server.recv])
            .current_dir(samples("apps"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PATH", first_in_path(python));
        let mut app = App {
            program: crate::support::program::Program::start(&mut command),
        };
        app.ready(1);
        assert_eq!(
            text(&ask(server.address, "GET /", "", b"")),
            "outer(whole |/)"
        );
        assert!(app.program.terminate().success(), "{}", app.program);
    });
}

/// A search path in which `python3` is that interpreter, if it has a folder.
fn first_in_path(python: &Path) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folder = python.parent().filter(|folder| *folder != Path::new(""));
    let folders = folder.map(Path::to_owned).into_iter();
    std::env::join_paths(folders.chain(std::env::split_paths(&path))).unwrap()
}

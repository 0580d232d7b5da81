//! `lurcher config …` as it is typed: output, findings, exit codes; and databases that the real Mongrel2 runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use lurcher::config::{self, Config, Mimetypes, Selector, Severity, sqlite};

use crate::support::program::Program;
use crate::support::{free_port, scratch};

const GOLDEN: [&str; 10] = [
    "filter", "full", "golden", "jail", "limits", "minimal", "misc", "sendfile", "stream", "tls",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/configs")
        .join(name)
}

/// What a command said, and how it ended.
#[derive(Debug)]
struct Said {
    out: String,
    err: String,
    code: Option<i32>,
}

fn lurcher(directory: &Path, arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_lurcher"))
        .arg("config")
        .args(arguments)
        .env("LOGNAME", "tester")
        .current_dir(directory)
        .output()
        .expect("start lurcher");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Said {
        out: text(output.stdout),
        err: text(output.stderr),
        code: output.status.code(),
    }
}

/// Runs a command that must do well, without a word on stderr.
#[track_caller]
fn well(directory: &Path, arguments: &[&str]) -> String {
    let said = lurcher(directory, arguments);
    assert_eq!(
        (said.code, said.err.as_str()),
        (Some(0), ""),
        "{arguments:?}: {said:?}"
    );
    said.out
}

fn model(path: &Path) -> Config {
    let reading = config::read(path).expect("readable");
    let errors: Vec<_> = reading
        .diagnostics
        .iter()
        .filter(|found| found.severity == Severity::Error)
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    reading.into_config()
}

/// A small configuration with a directory to serve, own parameters and all, on a port of its own.
fn small(directory: &Path) -> (u16, String) {
    let (port, send, recv, workers) = (free_port(), free_port(), free_port(), free_port());
    fs::create_dir_all(directory.join("www")).expect("a directory");
    fs::write(directory.join("www/hello.txt"), "hello\n").expect("a file");
    let here = directory.display();
    let text = format!(
        "h = Handler(send_spec='tcp://127.0.0.1:{send}' send_ident='h' recv_spec='tcp://127.0.0.1:{recv}' recv_ident=''
    slots=3 queue=7 retry='no' wait=9 workers='tcp://127.0.0.1:{workers}' sticky='cookie:sid,strict=2')
main = Server(uuid='the-uuid' name='main' default_host='localhost' bind_addr='127.0.0.1' port={port} chroot=''
    access_log='{here}/access.log' error_log='{here}/error.log' error_log_level=3 pid_file='{here}/run.pid'
    control_port='ipc://{here}/control'
    hosts=[Host(name='localhost' routes={{'/dir/': Dir(base='www/' index_file='x' default_ctype='text/x') '/h': h}})])
settings = {{'server.daemonize': 0, 'limits.mailbox_bytes': 1000000}}
servers = [main]
"
    );
    fs::write(directory.join("mongrel2.conf"), &text).expect("a .conf");
    (port, text)
}

#[test]
fn each_recorded_conf_means_what_m2sh_made_of_it() {
    for name in GOLDEN {
        let mut conf = model(&golden(&format!("{name}.conf")));
        let mut database = model(&golden(&format!("{name}.sqlite")));
        let types = |config: &mut Config| std::mem::take(&mut config.mimetypes);
        let (conf_types, database_types) = (types(&mut conf), types(&mut database));
        if ["full", "golden"].contains(&name) {
            // m2sh deletes what a `mimetypes` block names and inserts nothing; here the block works.
            let named = if name == "full" {
                [".txt", ".new"]
            } else {
                [".xyz", ".txt"]
            };
            assert!(
                named
                    .iter()
                    .all(|extension| database_types.get(extension).is_none())
            );
            assert!(
                named
                    .iter()
                    .all(|extension| conf_types.get(extension).is_some())
            );
        } else {
            assert!(
                conf_types == database_types && conf_types == Mimetypes::default(),
                "{name}"
            );
        }
        // The order of settings decides nothing.
        let sorted =
            |config: &mut Config| BTreeMap::from_iter(std::mem::take(&mut config.setting_rows));
        assert_eq!(sorted(&mut conf), sorted(&mut database), "{name}");
        // Everything else is equal, the order of routes included.
        assert_eq!(conf, database, "{name}");
    }
}

#[test]
fn recorded_databases_survive_dump_and_load() {
    let directory = scratch();
    let here = directory.path();
    for name in GOLDEN {
        let database = golden(&format!("{name}.sqlite"));
        let dumped = well(here, &["dump", database.to_str().expect("UTF-8")]);
        fs::write(here.join("dumped.conf"), &dumped).expect("a .conf");
        let said = lurcher(here, &["load", "dumped.conf", "--db", "loaded.sqlite"]);
        assert_eq!(said.code, Some(0), "{name}: {said:?}\n{dumped}");
        let (mut before, mut after) = (model(&database), model(&here.join("loaded.sqlite")));
        for (before, after) in before.servers.iter_mut().zip(&mut after.servers) {
            for (before, after) in before.hosts.iter_mut().zip(&mut after.hosts) {
                assert!(
                    before.route_table().routes_like(&after.route_table()),
                    "{name}, host {}",
                    before.name
                );
                before
                    .routes
                    .sort_by(|left, right| left.path.cmp(&right.path));
                after
                    .routes
                    .sort_by(|left, right| left.path.cmp(&right.path));
            }
        }
        assert_eq!(before, after, "{name}\n{dumped}");
    }
}

#[test]
fn a_loaded_database_runs_under_mongrel2_with_lurchers_columns_in_it() {
    let directory = scratch();
    let (port, _) = small(directory.path());
    let out = well(directory.path(), &["load"]);
    assert_eq!(
        out,
        "config.sqlite: 1 server, 1 host, 2 routes from mongrel2.conf\n"
    );
    let Some(mut mongrel2) =
        Program::mongrel2(Path::new("config.sqlite"), "the-uuid", directory.path())
    else {
        return;
    };
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    mongrel2.answering(address);
    let mut client = TcpStream::connect(address).expect("connect");
    client
        .write_all(b"GET /dir/hello.txt HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("send");
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello\n") {
        let mut more = [0; 1024];
        let count = client.read(&mut more).expect("an answer");
        assert_ne!(count, 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&more[..count]);
    }
    let answer = String::from_utf8(answer).expect("text");
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n")
            && answer.contains("Content-Type: text/plain\r\n"),
        "{answer}"
    );
}

#[test]
fn a_load_with_mistakes_names_them_all_and_changes_nothing() {
    let directory = scratch();
    let here = directory.path();
    let (_, text) = small(here);
    well(here, &["load"]);
    let before = fs::read(here.join("config.sqlite")).expect("a database");
    let broken = text
        .replace("port=", "prot=")
        .replace("'www/'", "'www'")
        .replace("slots=3", "slots=-3,");
    fs::write(here.join("mongrel2.conf"), broken).expect("a .conf");
    let said = lurcher(here, &["load"]);
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{said:?}");
    let lines: Vec<_> = said.err.lines().collect();
    assert!(
        lines.iter().all(|line| line.starts_with("mongrel2.conf:")),
        "{lines:#?}"
    );
    for part in [
        "2:11: \"-\" means nothing here",
        "Server needs `port`",
        "must end with `/`: \"www/\"",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(part)),
            "{part}: {lines:#?}"
        );
    }
    assert_eq!(
        fs::read(here.join("config.sqlite")).expect("a database"),
        before
    );
}

#[test]
fn the_journal_outlives_loads_and_takes_commits() {
    let directory = scratch();
    let here = directory.path();
    small(here);
    well(here, &["load"]);
    well(
        here,
        &[
            "commit", "--what", "upgrade", "--why", "testing", "--how", "by hand", "--where",
            "web1", "--who", "me",
        ],
    );
    well(here, &["load"]);
    let journal = sqlite::journal(&here.join("config.sqlite")).expect("a journal");
    let short: Vec<_> = journal
        .iter()
        .map(|entry| (entry.who.as_str(), entry.what.as_str(), entry.how.as_str()))
        .collect();
    assert_eq!(
        short,
        [
            ("tester", "load", "mongrel2.conf"),
            ("me", "upgrade", "by hand"),
            ("tester", "load", "mongrel2.conf")
        ]
    );
    let out = well(here, &["log"]);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 4);
    let words: Vec<_> = lines[2].split_whitespace().skip(2).collect();
    assert_eq!(
        words,
        ["me", "web1", "by", "hand", "upgrade", "testing"],
        "{out}"
    );
}

#[test]
fn m2shs_own_journal_is_listed() {
    let out = well(&golden(""), &["log", "full.sqlite"]);
    assert!(
        out.contains("2026-11-20 09:41:28  root  web1   me         upgrade  testing\n"),
        "{out}"
    );
}

#[test]
fn servers_hosts_and_routes_are_listed() {
    let here = golden("");
    assert_eq!(
        well(&here, &["servers", "full.sqlite"]),
        "NAME    UUID                                  ADDRESS                 DEFAULT HOST\n\
         main    f400bf85-4538-4f7a-8908-67e313d515aa  http://127.0.0.1:16790  localhost\n\
         second  second                                http://0.0.0.0:16791    localhost\n"
    );
    assert_eq!(
        well(&here, &["hosts", "full.conf", "--server", "main"]),
        "SERVER  HOST       MATCHING                 ROUTES\n\
         main    localhost  localhost                10 (default)\n\
         main    pattern    ([a-z0-9]+).example.com  1\n\
         main    third      third                    1\n"
    );
    assert_eq!(
        well(
            &here,
            &[
                "routes",
                "full.sqlite",
                "--server",
                "f400bf85-4538-4f7a-8908-67e313d515aa",
                "--host",
                "third"
            ]
        ),
        "SERVER  HOST   ROUTE  TARGET\nmain    third  /      dir www/\n"
    );
    let said = lurcher(&here, &["hosts", "full.sqlite", "--server", "nope"]);
    assert_eq!(
        (said.code, said.err.as_str()),
        (Some(1), "full.sqlite: there is no server \"nope\"\n")
    );
}

#[test]
fn match_says_which_route_and_why() {
    let none = Some(1);
    let some = Some(0);
    let cases: [(&str, &str, &str, Option<i32>, &str); 6] = [
        (
            "",
            "/us?er",
            "misc.sqlite",
            some,
            "host def: the default host, as no host is named\n\
             route /users: \"/us\" is only the beginning of it, and of no route that ends there\n\
             target handler tcp://127.0.0.1:25081 tcp://127.0.0.1:25082\n",
        ),
        (
            "b.one.test:80",
            "/x",
            "misc.sqlite",
            none,
            "host h2: \"b.one.test:80\" is itself the tail of \"sub.one.test\"\n\
             no route: \"/x\" begins with none, and none begins with it\n",
        ),
        (
            "default.test",
            "/img/a.png",
            "misc.conf",
            some,
            "host def: \"default.test\" ends with \"default.test\"\n\
             route /img/(.*).png$: its prefix is the longest that \"/img/a.png\" begins with, after /img/(.*).jpg$ failed\n\
             target handler tcp://127.0.0.1:25081 tcp://127.0.0.1:25082\n",
        ),
        (
            "1.pat.org",
            "/pat/12a",
            "golden.conf",
            none,
            "host localhost: the default host: \"1.pat.org\" fails the pattern of \"([a-z]+).pat.org\"\n\
             no route: /pat/ is the longest prefix of \"/pat/12a\", and the rest fails /pat/([0-9]+)$; \
             there is no falling back to a shorter one\n",
        ),
        (
            "nobody",
            "/dir/",
            "golden.sqlite",
            some,
            "host localhost: the default host, as no host has \"nobody\" for its tail\n\
             route /dir/: it is \"/dir/\" itself\n\
             target dir www/\n",
        ),
        (
            "nobody",
            "@chatty",
            "golden.sqlite",
            some,
            "host localhost: the default host, as no host has \"nobody\" for its tail\n\
             route @chat: its prefix is the longest that \"@chatty\" begins with\n\
             target handler tcp://127.0.0.1:25001 tcp://127.0.0.1:25002\n",
        ),
    ];
    for (host, path, file, code, out) in cases {
        let said = lurcher(&golden(""), &["match", host, path, file]);
        assert_eq!(
            (said.code, said.out.as_str(), said.err.as_str()),
            (code, out, "")
        );
    }
    let said = lurcher(&golden(""), &["match", "x", "/", "full.conf"]);
    assert!(
        said.code == none && said.err.contains("name one with --server"),
        "{said:?}"
    );
}

#[test]
fn a_missing_or_foreign_file_is_one_clear_line() {
    let directory = scratch();
    let here = directory.path();
    fs::write(here.join("text.conf"), "").expect("a file");
    fs::write(here.join("binary"), b"\x7fELF\0\0").expect("a file");
    fs::write(here.join("cut.sqlite"), b"SQLite format 3\0 and no more").expect("a file");
    for (file, part) in [
        ("nothing", "cannot be read: No such file"),
        ("binary", "is neither a SQLite database nor a .conf"),
        ("cut.sqlite", "file is not a database"),
        (".", "cannot be read: Is a directory"),
    ] {
        for verb in ["servers", "check", "dump", "load"] {
            let said = lurcher(here, &[verb, file]);
            assert_eq!(
                (said.code, said.out.as_str(), said.err.lines().count()),
                (Some(1), "", 1),
                "{verb} {said:?}"
            );
            assert!(said.err.starts_with(&format!("{file}: {part}")), "{said:?}");
        }
    }
    let said = lurcher(here, &["servers"]);
    assert_eq!(said.code, Some(1));
    assert_eq!(
        said.err,
        "config.sqlite: not found, nor is mongrel2.conf; name a configuration\n"
    );
    assert_eq!(lurcher(here, &["nonsense"]).code, Some(2));
    assert_eq!(lurcher(here, &["match", "host"]).code, Some(2));
}

#[test]
fn several_servers_and_none_named_is_an_error_that_lists_them() {
    let error =
        config::load(Some(&golden("full.sqlite")), &Selector::Only).expect_err("two servers");
    let text = error.to_string();
    assert!(
        text.ends_with(
            "name one with --server: main (f400bf85-4538-4f7a-8908-67e313d515aa), second (second)"
        ),
        "{text}"
    );
    for name in ["main", "f400bf85-4538-4f7a-8908-67e313d515aa"] {
        let loaded = config::load(
            Some(&golden("full.sqlite")),
            &Selector::Named(name.to_owned()),
        )
        .expect("named");
        assert_eq!(loaded.config.servers[loaded.server].name, "main");
        assert!(
            loaded
                .warnings
                .iter()
                .any(|warning| warning.message.contains("null.so is a C plug-in"))
        );
    }
    assert!(
        config::load(
            Some(&golden("full.sqlite")),
            &Selector::Named("third".to_owned())
        )
        .is_err()
    );
}

#[test]
fn check_explains_and_only_errors_count() {
    let directory = scratch();
    let here = directory.path();
    let said = lurcher(
        here,
        &["check", golden("misc.conf").to_str().expect("UTF-8")],
    );
    assert_eq!(said.code, Some(0), "{said:?}");
    for part in [
        "server misc, handler tcp://127.0.0.1:25081: warning: another handler has the same send_spec",
        "its send_ident \"ffffffff-0000-4000-8000-00000000000a\"",
        "server misc, host h5: warning: matching \"(x[0-9]+)\" never matches",
        "host def, route \"/x(a)\": warning: never matches: \"/x\" takes everything before it",
        "\"/sam\" goes to \"/same\"",
        "misc.conf: 1 server, 6 hosts, 30 routes; 0 errors, ",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    small(here);
    let clean = well(here, &["check"]);
    assert!(
        clean.ends_with("mongrel2.conf: 1 server, 1 host, 2 routes; 0 errors, 0 warnings\n"),
        "{clean}"
    );
    fs::write(here.join("bad.conf"), "servers = [").expect("a file");
    let said = lurcher(here, &["check", "bad.conf"]);
    assert_eq!(
        (said.code, said.out.lines().count()),
        (Some(1), 2),
        "{said:?}"
    );
    assert!(
        said.out
            .starts_with("bad.conf:1:11: `[` is never closed by a `]`\n"),
        "{said:?}"
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lurcher"))
        .args(["config", "dump", "golden.sqlite"])
        .current_dir(golden(""))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start lurcher");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("an end").code(), Some(0));
}

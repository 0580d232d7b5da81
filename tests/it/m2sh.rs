//! The program by the name `m2sh` beside Mongrel2's own: its recorded transcript, the patterns it was asked about, and,
//! where it is installed, the same commands to both. What servers do is in `process::m2sh`.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rusqlite::Connection;
use serde_json::Value;

use crate::support::scratch;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// A directory with the recorded database, in which `m2sh` is this program.
struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Self {
        let directory = scratch();
        for name in ["full.sqlite", "full.conf"] {
            fs::copy(data("configs").join(name), directory.path().join(name)).expect("a copy");
        }
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_lurcher"), directory.path().join("m2sh"))
            .expect("a symlink");
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs a program with words as its arguments.
    fn run(&self, program: &Path, words: &[&str]) -> Said {
        self.run_with(program, words, "")
    }

    /// The same with lines to read.
    fn run_with(&self, program: &Path, words: &[&str], input: &str) -> Said {
        let mut child = Command::new(program)
            .args(words)
            .env("LOGNAME", "tester")
            .env("HOME", self.path())
            .current_dir(self.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start m2sh");
        let mut stdin = child.stdin.take().expect("piped");
        // One that reads nothing may have ended.
        drop(stdin.write_all(input.as_bytes()));
        drop(stdin);
        let output = child.wait_with_output().expect("m2sh");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said {
            out: text(output.stdout),
            err: told(&text(output.stderr)),
            code: output.status.code(),
        }
    }

    /// Runs Mongrel2's own, which crashes now and then, until it does not.
    fn theirs(&self, program: &Path, words: &[&str]) -> Said {
        let mut said = self.run(program, words);
        for _ in 0..20 {
            if said.code.is_some() {
                break;
            }
            said = self.run(program, words);
        }
        said
    }

    fn ours(&self, words: &[&str]) -> Said {
        self.run(&self.path().join("m2sh"), words)
    }
}

/// What was said, and the exit status.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    out: String,
    /// Without what changes from time to time.
    err: String,
    code: Option<i32>,
}

/// Lines without their date, and without the system's word on the cause, which m2sh takes from whatever failed last.
fn told(text: &str) -> String {
    let mut lines = String::new();
    for line in text.lines() {
        let line = line.split_once(" GMT ").map_or(line, |(_, line)| line);
        let line = match line.split_once("errno: ").zip(line.split_once(") ")) {
            Some(((level, _), (_, text))) => {
                let level = level.split(" (").next().unwrap_or_default();
                format!("{level} {text}")
            }
            None => line.to_owned(),
        };
        let _ok = writeln!(lines, "{line}");
    }
    lines
}

/// The commands of the transcript, with what was said and the exit status.
fn transcript() -> Vec<(String, String, i32)> {
    let text = fs::read_to_string(data("configs/m2sh-transcript.txt")).expect("the transcript");
    text.split("$ m2sh ")
        .skip(1)
        .map(|record| {
            let (command, rest) = record.split_once('\n').expect("a command");
            let (said, code) = rest.rsplit_once("[exit ").expect("an exit status");
            let code = code.trim_end().trim_end_matches(']').parse();
            (command.to_owned(), said.to_owned(), code.expect("a number"))
        })
        .collect()
}

/// Rows of the journal without when and where.
fn journal(text: &str) -> String {
    text.lines()
        .map(|line| {
            let cells: Vec<_> = line.split(' ').collect();
            match cells.as_slice() {
                [_, _, who, _, rest @ ..] if line.starts_with("20") => {
                    format!("{who} {}\n", rest.join(" "))
                }
                _ => format!("{line}\n"),
            }
        })
        .collect()
}

#[test]
fn the_transcript_of_m2sh_is_said_again() {
    let site = Site::new();
    // As it was before the first command: one row, of the load.
    Connection::open(site.path().join("full.sqlite"))
        .and_then(|database| {
            database.execute_batch("DELETE FROM log WHERE id > 1; UPDATE log SET who = 'tester'")
        })
        .expect("the journal");
    let mut log = String::new();
    for (port, time, method, path, size) in [
        ("54688", "1795167612", "GET", "/dir/f.txt", "9"),
        ("54690", "1795167613", "POST", "/", "20"),
    ] {
        let texts = [
            ("localhost", ','),
            ("127.0.0.1", ','),
            (port, '#'),
            (time, '#'),
        ];
        let more = [
            (method, ','),
            (path, ','),
            ("HTTP/1.1", ','),
            ("200", '#'),
            (size, '#'),
        ];
        let mut line = String::new();
        for (text, tag) in texts.into_iter().chain(more) {
            let _ok = write!(line, "{}:{text}{tag}", text.len());
        }
        let _ok = writeln!(log, "{}:{line}]", line.len());
    }
    fs::write(site.path().join("access.log"), log).expect("a log");
    let records = transcript();
    assert_eq!(records.len(), 40);
    let mut wrong = Vec::new();
    for (command, said, code) in records {
        let mut code = code;
        match command.as_str() {
            // Needs `uuidgen` there, and nothing here.
            "uuid" => {
                let uuid = site.ours(&["uuid"]);
                assert_eq!((uuid.out.len(), uuid.code), (37, Some(0)), "{uuid:?}");
                assert_eq!(uuid.out.matches('-').count(), 4, "{uuid:?}");
                continue;
            }
            // Starts a server, whose log is its own.
            "start -db full.sqlite -name main" => continue,
            // Several servers were too many for it.
            "running --db full.sqlite --every" => {
                let said = site.ours(&["running", "--db", "full.sqlite", "--every"]);
                assert_eq!(said.code, Some(0));
                assert_eq!(
                    said.out,
                    "main: mongrel2 is not running because pid_file isn't there.\n\
                     second: mongrel2 is not running because pid_file isn't there.\n"
                );
                continue;
            }
            // A load that fails, fails.
            "load --config /nonexistent.conf --db /var/m2run/bad/z.sqlite" => code = 255,
            _ => {}
        }
        let command = command.replace("/var/m2run/jail/logs/", "");
        let words: Vec<_> = command.split_whitespace().collect();
        // Both outputs into one, as they were recorded.
        let arguments = ["-c", "exec ./m2sh \"$@\" 2>&1", "sh"];
        let arguments: Vec<_> = arguments.into_iter().chain(words).collect();
        let ours = site.run(Path::new("/bin/sh"), &arguments);
        let own = if command == "version" {
            // To people, on stderr.
            "[INFO] This is Lurcher "
        } else {
            "\0"
        };
        let told = |text: &str| -> String {
            let lines = told(text);
            let lines = lines.split_inclusive('\n');
            journal(
                &lines
                    .filter(|line| !line.starts_with(own))
                    .collect::<String>(),
            )
        };
        let (expected, found) = ((told(&said), Some(code)), (told(&ours.out), ours.code));
        if expected != found {
            wrong.push(format!("m2sh {command}\n{expected:#?}\n{found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn patterns_are_told_in_its_words() {
    let site = Site::new();
    let text = fs::read_to_string(data("routes.json")).expect("recorded routes");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let records = golden["single_pattern_m2sh_route"]
        .as_array()
        .expect("a list");
    assert_eq!(records.len(), 59);
    for record in records {
        let text = |key: &str| record[key].as_str();
        let words = if let Some(pattern) = text("pattern") {
            let path = text("path").expect("a path");
            vec!["route", "--pattern", pattern, "--match", path]
        } else {
            let pattern = text("host_pattern").expect("a pattern");
            let host = text("host").expect("a name");
            let words = ["route", "--reversed", "--suffix", "--pattern"];
            words
                .into_iter()
                .chain([pattern, "--match", host])
                .collect()
        };
        let said = site.ours(&words);
        assert_eq!(Some(said.out.trim_end()), text("raw"), "{record}");
        assert_eq!(
            said.code.map(i64::from),
            record["exit"].as_i64(),
            "{record}"
        );
    }
}

#[test]
fn a_load_that_fails_says_so_and_changes_nothing() {
    let site = Site::new();
    let good = site.ours(&["load", "-config", "full.conf", "-db", "new.sqlite"]);
    assert_eq!((good.code, good.out.as_str()), (Some(0), ""), "{good:?}");
    let before = fs::read(site.path().join("new.sqlite")).expect("a database");
    let text = fs::read_to_string(site.path().join("full.conf")).expect("a .conf");
    fs::write(
        site.path().join("bad.conf"),
        text.replace("default_host", "default_hots"),
    )
    .expect("a .conf");
    for verb in ["load", "config"] {
        let bad = site.ours(&[verb, "-config", "bad.conf", "-db", "new.sqlite"]);
        assert_eq!((bad.code, bad.out.as_str()), (Some(255), ""), "{bad:?}");
        assert!(
            bad.err.contains("[ERROR] bad.conf:") && bad.err.contains("default_host"),
            "{bad:?}"
        );
    }
    assert_eq!(
        fs::read(site.path().join("new.sqlite")).expect("a database"),
        before
    );
    // What is no database, and what cannot be written.
    for db in ["full.conf", "none/new.sqlite"] {
        let said = site.ours(&["load", "-config", "full.conf", "-db", db]);
        assert_eq!(said.code, Some(255), "{said:?}");
    }
    assert_eq!(
        fs::read_to_string(site.path().join("full.conf")).expect("a .conf"),
        text
    );
    // Its defaults are told.
    let said = site.ours(&["load"]);
    assert_eq!(
        said.err,
        "[WARN] No option --db given, using \"config.sqlite\" as the default.\n\
         [WARN] No option --config given, using \"mongrel2.conf\" as the default.\n\
         [ERROR] Can't access config file 'mongrel2.conf' properly.\n"
    );
}

#[test]
fn an_access_log_is_shown_without_what_a_terminal_would_obey() {
    let site = Site::new();
    let line = |path: &str| {
        let fields = format!(
            "4:name,9:127.0.0.1,2:80#1:1#3:GET,{}:{path},8:HTTP/1.1,3:200#1:0#",
            path.len()
        );
        format!("{}:{fields}]\n", fields.len())
    };
    let log = line("/a\u{1b}[m") + "rubbish\n" + "0:]\n" + "\n" + &line("/ü");
    fs::write(site.path().join("access.log"), log).expect("a log");
    let said = site.ours(&["access", "-log", "access.log"]);
    assert_eq!(
        said.out,
        "[1] 127.0.0.1:80 name \"GET /a?[m HTTP/1.1\" 200 0\n[1] 127.0.0.1:80 name \"GET /ü HTTP/1.1\" 200 0\n"
    );
    assert_eq!(
        said.err,
        "[WARN] Malformed log line: 2.\n[WARN] Malformed log line: 3.\n[WARN] Malformed log line: 4.\n"
    );
    assert_eq!(said.code, Some(0));
}

/// Mongrel2's own m2sh, if it is installed.
fn theirs() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&paths)
        .map(|directory| directory.join("m2sh"))
        .find(|path| path.exists());
    if found.is_none() {
        println!("skipped: m2sh is not installed (Debian: mongrel2-core)");
    }
    found
}

#[test]
fn both_say_the_same() {
    const COMMANDS: &[&str] = &[
        "help",
        "help extra",
        "help -on",
        "help --on start",
        "help -on commit -on log",
        "-name main",
        "bogus",
        "SERVERS",
        "servers",
        "servers -db",
        "servers --db=full.sqlite",
        "servers -db full.sqlite -x",
        "servers -db nope -db full.sqlite",
        "servers -x.y z -db full.sqlite",
        "servers -db -1",
        "servers -db -full.sqlite",
        "servers -db full.sqlite -5",
        "servers -a-b 1",
        "servers -- db full.sqlite",
        "servers --- db",
        "servers - db",
        "hosts -db full.sqlite",
        "hosts -db full.sqlite -server",
        "hosts -db full.sqlite -server main",
        "hosts -db full.sqlite -server nope",
        "routes -db full.sqlite",
        "routes -db full.sqlite -server main",
        "routes -db full.sqlite -host localhost",
        "routes -db full.sqlite -server main -host localhost",
        "routes -db full.sqlite -server main -host nope",
        "routes -db full.sqlite -id 1 -server main -host third",
        "routes -db full.sqlite -id 99",
        "log -db full.sqlite",
        "log",
        "access",
        "running -db full.sqlite",
        "running -db full.sqlite -name main",
        "running -db full.sqlite -name nope",
        "running -db full.sqlite -uuid second",
        "running -db full.sqlite -every -name main",
        "stop -db full.sqlite",
        "stop -db full.sqlite -name main",
        "stop -db full.sqlite -uuid second -murder",
        "reload -db full.sqlite -name main",
        "start -db full.sqlite",
        "start -db full.sqlite -name nope",
        "start -db full.sqlite -url x -style y",
        "control",
        "control -db full.sqlite -every",
        "control -db full.sqlite -name nope",
        "route",
        "route -match x",
        "route -pattern x",
        "route -pattern -match x",
        "route -pattern /a(b -match /ab",
        "route -pattern (a) -match a",
        "route -reversed -pattern example.com -match www.example.com",
        "route -suffix -pattern example.com -match www.example.com",
    ];
    let Some(theirs) = theirs() else { return };
    let (site, other) = (Site::new(), Site::new());
    for command in COMMANDS {
        let words: Vec<_> = command.split(' ').collect();
        let (expected, found) = (other.theirs(&theirs, &words), site.ours(&words));
        let plain = |said: Said| Said {
            out: journal(&said.out),
            ..said
        };
        assert_eq!(plain(found), plain(expected), "m2sh {command}");
    }
    let shell = "servers -db full.sqlite\nhosts -db full.sqlite -server main\n\n  help -on load\nbogus\nload extra\n\
        route --pattern \"/a b\" --match '/a b'\nservers -db \"full.sqlite\"\nhelp -on 'load\nhelp -on \"a\\\"b c\"\n\
        shell\n-db\nquit\nhelp -on log";
    for words in [vec![], vec!["shell"]] {
        let expected = other.run_with(&theirs, &words, shell);
        let found = site.run_with(&site.path().join("m2sh"), &words, shell);
        assert_eq!(found, expected);
        assert!(
            found.out.ends_with("log\tPrints the commit log.\n"),
            "{found:?}"
        );
    }
}

#[test]
fn either_reads_what_the_other_has_written() {
    let Some(theirs) = theirs() else { return };
    let site = Site::new();
    // Without plug-ins and their settings, on which Mongrel2's m2sh stumbles.
    fs::copy(data("configs/misc.conf"), site.path().join("misc.conf")).expect("a copy");
    let ours = site.path().join("m2sh");
    for (program, db) in [(&ours, "ours.sqlite"), (&theirs, "theirs.sqlite")] {
        let said = site.run(program, &["load", "-config", "misc.conf", "-db", db]);
        assert_eq!(said.code, Some(0), "{said:?}");
        // Mongrel2's own may crash when it has written the row.
        let words = ["commit", "-db", db, "-what", "it's", "-where", "here"];
        let said = site.ours(&words);
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    let lists: [&[&str]; 4] = [
        &["servers"],
        &["hosts", "-server", "misc"],
        &["routes", "-id", "1"],
        &["log"],
    ];
    for list in lists {
        let mut seen = Vec::new();
        for (program, db) in [
            (&ours, "ours.sqlite"),
            (&ours, "theirs.sqlite"),
            (&theirs, "ours.sqlite"),
            (&theirs, "theirs.sqlite"),
        ] {
            let words: Vec<_> = list.iter().copied().chain(["-db", db]).collect();
            let said = site.theirs(program, &words);
            assert_eq!(
                (said.code, said.err.as_str()),
                (Some(0), ""),
                "{words:?}: {said:?}"
            );
            seen.push(journal(&said.out));
        }
        assert!(seen[0].lines().count() > 2, "{seen:?}");
        assert!(
            seen.iter().all(|said| *said == seen[0]),
            "{list:?}: {seen:#?}"
        );
    }
}

//! The house stays as it was drawn: edges between modules point down, crates stay with their owner, every file says what
//! it is for. Reads the sources as text; a macro could hide an edge from it, and nobody should want to.

#![expect(
    clippy::string_slice,
    reason = "positions come from match_indices and find"
)]

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may name whom. `launcher` sees all; nobody sees `launcher` but `main`.
const EDGES: &[(&str, &[&str])] = &[
    ("tnetstring", &[]),
    ("endpoint", &[]),
    ("wire", &["tnetstring"]),
    ("zmtp", &[]),
    ("http1", &[]),
    ("websocket", &["http1"]),
    ("routing", &[]),
    ("balancer", &[]),
    ("networks", &[]),
    ("numbered", &[]),
    ("sticky", &[]),
    ("drain", &[]),
    ("metrics", &[]),
    ("sys", &[]),
    ("files", &["sys"]),
    ("bus", &["zmtp", "endpoint", "drain", "metrics", "sys"]),
    (
        "config",
        &["routing", "endpoint", "wire", "networks", "sticky"],
    ),
    (
        "pool",
        &[
            "balancer", "wire", "http1", "bus", "drain", "metrics", "endpoint", "numbered",
        ],
    ),
    (
        "front",
        &[
            "config",
            "routing",
            "wire",
            "http1",
            "tnetstring",
            "pool",
            "balancer",
            "bus",
            "drain",
            "metrics",
            "sys",
            "endpoint",
            "files",
            "websocket",
            "networks",
            "sticky",
        ],
    ),
    (
        "control",
        &[
            "pool",
            "http1",
            "bus",
            "tnetstring",
            "endpoint",
            "drain",
            "metrics",
        ],
    ),
    (
        "broker",
        &[
            "pool",
            "bus",
            "wire",
            "http1",
            "websocket",
            "drain",
            "metrics",
            "endpoint",
            "routing",
            "sticky",
            "sys",
            "numbered",
        ],
    ),
    (
        "handler",
        &[
            "wire",
            "http1",
            "websocket",
            "bus",
            "drain",
            "tnetstring",
            "endpoint",
            "metrics",
            "sys",
            "config",
            "routing",
        ],
    ),
    (
        "launcher",
        &[
            "tnetstring",
            "endpoint",
            "wire",
            "zmtp",
            "http1",
            "websocket",
            "routing",
            "balancer",
            "drain",
            "metrics",
            "sys",
            "files",
            "bus",
            "config",
            "pool",
            "front",
            "control",
            "broker",
            "handler",
            "networks",
            "numbered",
            "sticky",
        ],
    ),
];

/// What the built-in handlers may name: what any stranger could, and the table they are listed in.
const HANDLERS_SEE: &[&str] = &[
    "handler",
    "wire",
    "tnetstring",
    "endpoint",
    "drain",
    // `files` serves what a Dir does, by the same rules and with the same types.
    "files",
    "config",
    // Python's applications have places, and several of them are groups.
    "routing",
    // ASGI's WebSockets write their frames on the loop's thread, without a hop.
    "websocket",
    "launcher",
];

/// Crates that only these files (or folders) may name; `handlers/` is the folder of the built-in ones.
const OWNERS: &[(&str, &[&str])] = &[
    // Not in the product: the peer of its tests.
    ("zmq", &["bus/client/tests.rs"]),
    ("regex", &["sticky.rs"]),
    ("rusqlite", &["config/sqlite.rs", "config/sqlite/"]),
    ("clap", &["launcher/"]),
    ("mimalloc", &["main.rs"]),
    ("anyhow", &["launcher/"]),
    ("toml", &["launcher/given.rs"]),
    ("tracing_subscriber", &["launcher/"]),
    (
        "http_body_util",
        &["front/proxy/", "handler/serve/", "handlers/http/"],
    ),
    (
        "hyper",
        &["front/proxy/", "handler/serve/", "handlers/http/"],
    ),
    (
        "hyper_util",
        &["front/proxy/", "handler/serve/", "handlers/http/"],
    ),
    ("tower_service", &["handler/serve/"]),
    ("libc", &["sys.rs"]),
    (
        "nix",
        &[
            "sys.rs",
            "launcher/process/",
            "launcher/run/",
            "handlers/python/src/asgi/inbox.rs",
        ],
    ),
    ("flate2", &["websocket/"]),
    ("rustls", &["front/tls/"]),
    ("tokio_rustls", &["front/tls/"]),
    ("socket2", &["sys.rs", "bus/"]),
];

/// Floor 0: no runtime, no I/O, no clock.
const PURE: &[&str] = &[
    "tnetstring",
    "endpoint",
    "wire",
    "zmtp",
    "http1",
    "websocket",
    "routing",
    "balancer",
    "networks",
    "sticky",
];
const IMPURE: &[&str] = &[
    "tokio",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "std::fs",
    "Instant::now",
    "SystemTime::now",
];

/// Left unfinished, or waiting for luck. Put together here so that this file does not name them.
const REFUSED: &[&str] = &["todo!", "unimplemented!", "#[ignore", "thread::sleep"];

/// A file above this is two files.
const LINES_MAX: usize = 1200;

/// What is wrong in which line of which file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Which part of the tree a file is in: other rules hold for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tree {
    /// The library and the program.
    Source,
    /// The built-in handlers: strangers that may name only the public handler library.
    Handlers,
}

/// All violations in one file; `path` is relative to its tree.
fn violations(tree: Tree, path: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |line: usize, what: String| {
        found.push(Violation {
            file: path.to_owned(),
            line,
            what,
        });
    };
    if !text.starts_with("//!") {
        report(
            1,
            "does not begin by saying what it is for (//!)".to_owned(),
        );
    }
    let count = text.lines().count();
    if count > LINES_MAX {
        report(
            count,
            format!("has more than {LINES_MAX} lines: look for a seam"),
        );
    }
    let module = path
        .split('/')
        .next()
        .unwrap_or_default()
        .trim_end_matches(".rs");
    let whole = code(text);
    let tests = if path.ends_with("/tests.rs") || path.contains("/tests/") {
        0
    } else {
        tests_from(&whole)
    };
    for (number, line) in whole.iter().enumerate() {
        let tested = number >= tests;
        let number = number + 1;
        for refused in REFUSED.iter().filter(|refused| line.contains(*refused)) {
            report(
                number,
                format!("`{refused}` does not belong in a finished tree"),
            );
        }
        for krate in foreign(line, OWNERS.iter().map(|(krate, _)| *krate)) {
            let owners = OWNERS
                .iter()
                .find(|(k, _)| *k == krate)
                .map_or(&[][..], |(_, owners)| owners);
            let place = match tree {
                Tree::Source => path.to_owned(),
                Tree::Handlers => format!("handlers/{path}"),
            };
            let owned = owners
                .iter()
                .any(|owner| place == *owner || (owner.ends_with('/') && place.starts_with(owner)));
            if !owned && !tested {
                report(
                    number,
                    format!(
                        "names the crate {krate}, which belongs to {}",
                        owners.join(", ")
                    ),
                );
            }
        }
        if tree == Tree::Source && PURE.contains(&module) && !tested {
            for impure in IMPURE.iter().filter(|impure| line.contains(*impure)) {
                report(number, format!("{module} is pure and names {impure}"));
            }
        }
    }
    for (line, target) in edges(tree, &whole) {
        if points_up(tree, module, &target) {
            let from = if tree == Tree::Handlers {
                "a built-in handler"
            } else {
                module
            };
            report(line + 1, format!("{from} must not name {target}"));
        }
    }
    if tree == Tree::Source
        && !matches!(module, "lib" | "main")
        && !EDGES.iter().any(|(known, _)| *known == module)
    {
        report(1, format!("{module} has no place in the floor plan"));
    }
    found
}

/// Whether this edge is not in the plan.
fn points_up(tree: Tree, module: &str, target: &str) -> bool {
    match (tree, module) {
        (Tree::Handlers, _) => !HANDLERS_SEE.contains(&target),
        (Tree::Source, "lib") => false,
        (Tree::Source, "main") => target != "launcher",
        (Tree::Source, module) => {
            let allowed = EDGES.iter().find(|(from, _)| *from == module);
            allowed.is_none_or(|(_, to)| {
                target != module && is_module(target) && !to.contains(&target)
            })
        }
    }
}

fn is_module(name: &str) -> bool {
    EDGES.iter().any(|(module, _)| *module == name)
}

/// The lines without comments and without the text in string literals.
fn code(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut chars = text.chars().peekable();
    let (mut string, mut comment, mut depth) = (false, false, 0_usize);
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        match c {
            '\n' => {
                comment = false;
                lines.push(std::mem::take(&mut line));
            }
            _ if comment => {}
            '/' if depth > 0 || string => {}
            '*' if depth > 0 && next == Some('/') => depth -= 1,
            _ if depth > 0 => {}
            '\\' if string => {
                if next != Some('\n') {
                    chars.next();
                }
            }
            '"' => string = !string,
            _ if string => {}
            '/' if next == Some('/') => comment = true,
            '/' if next == Some('*') => depth += 1,
            // A quote character as a literal opens no string; lifetimes have no closing quote.
            '\'' if next == Some('"') => {
                chars.next();
            }
            '\'' if next == Some('\\') => {
                chars.next();
                chars.next();
            }
            other => line.push(other),
        }
    }
    lines.push(line);
    lines
}

/// The line from which a file holds only its tests: unit tests may use what the module itself may not.
fn tests_from(lines: &[String]) -> usize {
    let test = lines
        .windows(2)
        .position(|two| two[0].trim() == "#[cfg(test)]" && two[1].trim_start().starts_with("mod "));
    test.unwrap_or(usize::MAX)
}

/// The crates among `names` that a line of code names: `name::` or `use name`.
fn foreign<'a>(line: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    names
        .filter(|name| {
            line.match_indices(*name).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let after = &line[at + name.len()..];
                let path = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':');
                let outside = path || line[..at].ends_with(" ::") || line[..at].trim_end() == "::";
                let imported = line
                    .trim_start()
                    .trim_start_matches("pub ")
                    .starts_with("use ")
                    && path;
                outside
                    && (after.starts_with("::")
                        || (imported && after.starts_with([';', ' ', ',', '}'])))
            })
        })
        .collect()
}

/// The modules that a file names, each with its line (from 0): `crate::a::b`, `crate::{a, b::c}`, `use crate::{` over
/// several lines; in a program or a handler `lurcher::a`.
fn edges(tree: Tree, lines: &[String]) -> BTreeSet<(usize, String)> {
    let text = lines.join("\n");
    let mut found = BTreeSet::new();
    for root in ["crate::", "lurcher::"] {
        if tree == Tree::Handlers && root == "crate::" {
            continue;
        }
        for (at, _) in text.match_indices(root) {
            if text[..at]
                .chars()
                .next_back()
                .is_some_and(|c| c.is_alphanumeric() || c == '_')
            {
                continue;
            }
            let line = text[..at].matches('\n').count();
            let rest = &text[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => {
                    found.extend(first_names(group).into_iter().map(|name| (line, name)));
                }
                None => {
                    found.insert((line, name(rest)));
                }
            }
        }
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

fn name(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// The first names of the items of a `{…}` group, whose opening brace is already taken off.
fn first_names(group: &str) -> Vec<String> {
    let mut depth = 0_usize;
    let mut names = Vec::new();
    let mut fresh = true;
    let mut rest = group;
    while let Some(c) = rest.chars().next() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && (c.is_alphabetic() || c == '_') => {
                names.push(name(rest));
                fresh = false;
            }
            _ => {}
        }
        rest = &rest[c.len_utf8()..];
    }
    names
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn the_house_is_as_it_was_drawn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for (tree, folder) in [(Tree::Source, "src"), (Tree::Handlers, "handlers")] {
        let mut paths = Vec::new();
        files(&root.join(folder), &mut paths);
        assert!(!paths.is_empty(), "{folder} has no sources");
        for path in paths {
            let text = fs::read_to_string(&path).expect("a source file");
            let relative = path
                .strip_prefix(root.join(folder))
                .expect("inside")
                .to_string_lossy()
                .into_owned();
            wrong.extend(
                violations(tree, &relative, &text)
                    .into_iter()
                    .map(|v| format!("{folder}/{v}")),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[cfg(test)]
mod catches {
    use super::*;

    #[track_caller]
    fn check(path: &str, text: &str, expected: &[&str]) {
        let found: Vec<String> = violations(Tree::Source, path, text)
            .into_iter()
            .map(|v| format!("{}: {}", v.line, v.what))
            .collect();
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                found.contains(expected),
                "{found} does not contain {expected}"
            );
        }
    }

    #[test]
    fn an_edge_that_points_up_or_sideways() {
        check(
            "wire/mod.rs",
            "//! W.\nuse crate::front::Front;\n",
            &["2: wire must not name front"],
        );
        check(
            "front/mod.rs",
            "//! F.\nuse crate::handler::Request;\n",
            &["2: front must not name handler"],
        );
        check(
            "bus/server.rs",
            "//! B.\nfn f() { crate::pool::g(); }\n",
            &["2: bus must not name pool"],
        );
        check(
            "pool/mod.rs",
            "//! P.\npub use crate::launcher;\n",
            &["2: pool must not name launcher"],
        );
    }

    #[test]
    fn an_edge_in_a_group_over_several_lines() {
        let text =
            "//! C.\nuse crate::{\n    endpoint::Endpoint,\n    bus::{a, b},\n    wire,\n};\n";
        check("config/mod.rs", text, &["2: config must not name bus"]);
    }

    #[test]
    fn edges_that_are_allowed_and_words_that_are_none() {
        let text = "//! P. crate::front\nuse crate::{balancer, wire::{self, ConnId}};\n// crate::front\n\
                    const A: &str = \"crate::front \\\" crate::handler\";\n/* crate::front */ fn f() { crate::pool::g(); }\n";
        check("pool/mod.rs", text, &[]);
        check("pool/peer.rs", "//! P.\nuse crate::TOP;\n", &[]);
    }

    #[test]
    fn a_module_that_is_not_in_the_plan() {
        check("helpers.rs", "//! H.\n", &["1: helpers has no place"]);
    }

    #[test]
    fn a_crate_away_from_its_owner() {
        check(
            "bus/mod.rs",
            "//! B.\nuse zmq::Context;\n",
            &["2: names the crate zmq"],
        );
        check(
            "front/mod.rs",
            "//! F.\nlet c = ::libc::getpid();\n",
            &["2: names the crate libc"],
        );
        check(
            "config/mod.rs",
            "//! C.\nuse rusqlite;\n",
            &["2: names the crate rusqlite"],
        );
        check(
            "pool/mod.rs",
            "//! P.\nfn f() -> anyhow::Result<()> {}\n",
            &["2: names the crate anyhow"],
        );
        check(
            "front/mod.rs",
            "//! F.\nuse socket2::Socket;\n",
            &["2: names the crate socket2"],
        );
        check("bus/client/tests.rs", "//! B.\nuse zmq::Context;\n", &[]);
        check(
            "bus/server/listener.rs",
            "//! B.\nuse socket2::Socket;\n",
            &[],
        );
        check(
            "zmtp/mod.rs",
            "//! Z.\nlet zmq = my::zmq::x; other_zmq::f();\n",
            &[],
        );
    }

    #[test]
    fn a_file_that_does_not_say_what_it_is_for() {
        check("wire/mod.rs", "use std::fmt;\n", &["1: does not begin"]);
    }

    #[test]
    fn what_is_left_unfinished() {
        for refused in REFUSED {
            check(
                "wire/mod.rs",
                &format!("//! W.\n    {refused}(1);\n"),
                &["2: `"],
            );
        }
    }

    #[test]
    fn a_file_that_is_too_long() {
        let text = format!("//! W.\n{}", "\n".repeat(LINES_MAX));
        check("wire/mod.rs", &text, &["has more than"]);
    }

    #[test]
    fn a_pure_module_that_reads_the_clock_or_the_network() {
        check(
            "http1/mod.rs",
            "//! H.\nlet now = std::time::Instant::now();\n",
            &["2: http1 is pure"],
        );
        check(
            "balancer.rs",
            "//! B.\nuse tokio::time;\n",
            &["2: balancer is pure"],
        );
        check(
            "zmtp/mod.rs",
            "//! Z.\nuse std::net::TcpStream;\n",
            &["2: zmtp is pure"],
        );
        check(
            "http1/mod.rs",
            "//! H.\nfn f(now: std::time::Instant) {}\n",
            &[],
        );
        check(
            "http1/mod.rs",
            "//! H.\n#[cfg(test)]\nmod tests {\n    use std::time::Instant::now;\n}\n",
            &[],
        );
    }

    #[test]
    fn a_handler_that_reaches_behind_the_public_library() {
        let found = violations(
            Tree::Handlers,
            "echo.rs",
            "//! E.\nuse lurcher::bus::Bus;\nuse lurcher::handler::Request;\n",
        );
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].line, 2);
        assert_eq!(
            violations(Tree::Handlers, "echo.rs", "//! E.\nuse zmq::Context;\n").len(),
            1
        );
    }
}

//! What the `.conf` language means, and what is said of its mistakes.

use std::path::Path;
use std::time::Duration;

use super::super::{Config, Reading, Retry, Target};
use super::{print, read};

const SERVER: &str = r#"s = Server(uuid="u" access_log="/a" error_log="/e" pid_file="/p" default_host="d" name="n" port=80
    hosts=[Host(name="d" routes=ROUTES)])
servers=[s]
"#;

const HANDLER: &str = "Handler(send_spec='tcp://127.0.0.1:1' send_ident='' recv_spec='tcp://127.0.0.1:2' recv_ident='')";

fn reading(text: &str) -> Reading {
    read(Path::new("t.conf"), text.as_bytes())
}

#[track_caller]
fn config(text: &str) -> Config {
    let reading = reading(text);
    assert!(!reading.has_errors(), "{:#?}", reading.diagnostics);
    reading.into_config()
}

#[track_caller]
fn findings(text: &str, expect: &[&str]) {
    let lines: Vec<_> = reading(text)
        .diagnostics
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(lines, expect);
}

fn with_routes(routes: &str) -> String {
    SERVER.replace("ROUTES", routes)
}

fn paths(config: &Config) -> Vec<&str> {
    config.servers[0].hosts[0]
        .routes
        .iter()
        .map(|route| route.path.as_str())
        .collect()
}

#[test]
fn forward_references_strings_and_comments_read_as_m2sh_reads_them() {
    let text = with_routes(r#"{"/q\"d": h '/it"s': h}"#) + "h = i # forward\ni = " + HANDLER;
    let config = config(&text);
    // A backslash keeps the quote from ending the string, and stays.
    assert_eq!(paths(&config), [r#"/q\"d"#, "/it\"s"]);
    let routes = &config.servers[0].hosts[0].routes;
    assert!(routes[0].target.is(&routes[1].target));
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    findings(
        "a = \nb = Handler(send_spec=1, x)\nservers = [1,, 2,]\nc = \"x\" ; `\n",
        &[
            "t.conf:2:1: expected a value (string, number, Class(…), [list], {hash} or variable), found `b`",
            "t.conf:2:27: expected `=` after `x`, found `)`",
            "t.conf:3:12: expected Server(…), found a number",
            "t.conf:3:13: expected another item after `,`, found `,`",
            "t.conf:3:16: expected Server(…), found a number",
            "t.conf:3:17: expected another item after `,`, found `]`",
            "t.conf:4:9: \";\" means nothing here (a line needs nothing at its end)",
            "t.conf:4:11: \"`\" means nothing here (quotes are \" and ')",
        ],
    );
}

#[test]
fn what_m2sh_loses_without_a_word_is_an_error() {
    let dir = with_routes("{'/': Dir(base='www' index_file='' default_ctype='')}");
    findings(
        &dir,
        &["t.conf:2:48: the base of a directory must end with `/`: \"www/\""],
    );
    let server = with_routes("{}").replace(" error_log=\"/e\"", "");
    findings(
        &server,
        &[
            "t.conf:1:5: Server needs `error_log`, a string",
            "t.conf:2:12: warning: the host has no routes",
        ],
    );
}

#[test]
fn an_open_bracket_is_told_where_it_was_opened_and_nothing_else_is() {
    findings(
        "servers = [\nServer(\n  hosts=[",
        &["t.conf:3:9: `[` is never closed by a `]`"],
    );
    findings(
        "servers = ['x",
        &[
            "t.conf:1:11: `[` is never closed by a `]`",
            "t.conf:1:12: the string opened by ' is never closed",
        ],
    );
    findings(
        "servers = [Server(hosts=[]\nsettings = {}]",
        &["t.conf:2:14: expected `)` for the `(` opened at 1:18, found `]`"],
    );
}

#[test]
fn an_empty_file_says_what_is_missing() {
    findings(
        "# nothing\n",
        &[
            "t.conf: there is no `servers = [ … ]`, the list of servers",
            "t.conf:2:1: expected at least `servers = [ … ]`, found the end of the file",
        ],
    );
}

#[test]
fn misspelt_names_are_hinted_at() {
    let text = with_routes("{'/': hh}").replace("port", "prot")
        + "hx = "
        + HANDLER
        + "\nseting = {}\nsettings = {\"limits.kil_limit\": 1}";
    findings(
        &text,
        &[
            "t.conf:1:5: Server needs `port`, a number",
            "t.conf:1:92: warning: Server has no parameter `prot`, so it is ignored; did you mean `port`?",
            "t.conf:2:39: there is no variable `hh`; did you mean `hx`?",
            "t.conf:5:1: warning: variable `seting` is never used; did you mean `settings`?",
            "t.conf:6:13: warning: setting `limits.kil_limit` is unknown and ignored; did you mean `limits.kill_limit`?",
        ],
    );
}

#[test]
fn a_variable_that_stands_for_itself_is_told_and_ends() {
    findings(
        "servers = a\na = b\nb = a",
        &["t.conf:1:11: variable `a` stands for itself"],
    );
}

#[test]
fn settings_of_a_plug_in_that_hold_themselves_end() {
    let text = with_routes("{}").replace(
        "port=80",
        "port=80 filters=[Filter(name='f' settings={'a': x})]",
    ) + "x = {'a': x}";
    let reading = reading(&text);
    assert!(
        reading
            .diagnostics
            .iter()
            .any(|finding| finding.message.contains("nested too deep")),
        "{reading:#?}"
    );
}

#[test]
fn deep_nesting_is_refused_and_not_a_crash() {
    let text = format!("servers = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    let reading = reading(&text);
    assert!(
        reading
            .diagnostics
            .iter()
            .any(|finding| finding.message.starts_with("nested deeper"))
    );
}

#[test]
fn routes_stand_in_the_order_of_m2shs_database() {
    let text = with_routes("{'/x(a)': h '/x': h '/': h}") + "h = " + HANDLER;
    assert_eq!(paths(&config(&text)), ["/", "/x", "/x(a)"]);
    let text = with_routes("[{'/x(a)': h '/x': h} {'/': h}]") + "h = " + HANDLER;
    assert_eq!(paths(&config(&text)), ["/x(a)", "/x", "/"]);
}

#[test]
fn what_lurcher_adds_to_a_handler_is_read() {
    let handler = HANDLER.replace(
        "recv_ident=''",
        "recv_ident='' slots=4 queue=10 retry='no' wait=5 workers='tcp://127.0.0.1:7' sticky='cookie:sid,strict=2'",
    );
    let config = config(&with_routes(&format!("{{'/': {handler}}}")));
    let Target::Handler(handler) = &config.servers[0].hosts[0].routes[0].target else {
        panic!("a handler")
    };
    assert_eq!(
        (handler.slots, handler.queue, handler.retry),
        (Some(4), Some(10), Retry::No)
    );
    let workers = handler.workers.as_ref().map(|spec| spec.text.as_str());
    let sticky = handler.sticky.as_ref().map(ToString::to_string);
    assert_eq!(
        (handler.wait, workers, sticky.as_deref()),
        (
            Some(Duration::from_secs(5)),
            Some("tcp://127.0.0.1:7"),
            Some("cookie:sid,strict=2")
        )
    );
}

#[test]
fn what_lurcher_cannot_use_of_a_handler_is_told() {
    let wrong = "recv_ident='' slots=0 retry='maybe' workers='tcp://x' sticky='path:0'";
    let handler = HANDLER.replace("recv_ident=''", wrong);
    findings(
        &(with_routes("{'/': h}") + "h = " + &handler),
        &[
            "t.conf:4:107: slots must be at least 1, and is 0",
            "t.conf:4:115: retry must be \"no\", \"safe\" or \"always\", and is \"maybe\"",
            "t.conf:4:131: workers \"tcp://x\": no port: write tcp://HOST:PORT, with * for any free port",
            "t.conf:4:148: sticky \"path:0\": \"0\" is no number of a part of a path, which are counted from 1",
        ],
    );
}

#[test]
fn the_mimetypes_block_works() {
    let config = config(
        &(with_routes("{}") + "mimetypes = {'.txt': 'text/x-a' '.new': 'text/x-new' '.gif': ''}"),
    );
    assert_eq!(config.mimetypes.get(".txt"), Some("text/x-a"));
    assert_eq!(config.mimetypes.get(".new"), Some("text/x-new"));
    assert_eq!(config.mimetypes.get(".gif"), None);
    assert_eq!(config.mimetypes.iter().count(), 857);
}

#[test]
fn a_comment_may_be_in_any_encoding_and_a_string_may_not() {
    let text = with_routes("{}") + "# caf";
    let mut bytes = text.into_bytes();
    bytes.extend(b"\xe9\n");
    assert!(!read(Path::new("t.conf"), &bytes).has_errors());
    bytes.extend(b"x = '\xe9'\n");
    assert!(read(Path::new("t.conf"), &bytes).has_errors());
}

#[test]
fn what_is_printed_reads_back_and_what_cannot_be_written_is_told() {
    let text = with_routes(r#"{"/q\"d": h "/it's": h '/"': h}"#) + "h = " + HANDLER;
    let first = config(&text);
    let printed = print(&first).expect("printable");
    assert_eq!(config(&printed), first, "{printed}");
    let mut broken = first.clone();
    broken.servers[0].name = "both \" and '".to_owned();
    assert!(
        print(&broken)
            .expect_err("both quotes")
            .contains("both quotes")
    );
    broken.servers[0].name = "end\\".to_owned();
    assert!(print(&broken).is_err());
}

#[test]
fn an_order_that_m2sh_cannot_make_survives_printing() {
    let text = with_routes("[{'/x(a)': h} {'/x': h}]") + "h = " + HANDLER;
    let first = config(&text);
    assert_eq!(config(&print(&first).expect("printable")), first);
}

#[test]
fn hostile_text_never_panics() {
    let text =
        with_routes(r#"{"/q\"d": h '/it"s': Dir(base='x/' index_file='' default_ctype='')}"#)
            + "h = "
            + HANDLER;
    for at in (0..text.len()).step_by(3) {
        let (front, back) = text.split_at(at);
        reading(front);
        reading(back);
        for byte in *b"\"}[(,:=#\\\xff" {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = byte;
            read(Path::new("t.conf"), &bytes);
        }
    }
}

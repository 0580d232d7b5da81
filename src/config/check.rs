//! What is allowed and yet surprises: routes that can never match, hosts that shadow others, sockets that clash.
//!
//! Works on the model alone, so a database and a `.conf` are told the same. Nothing here stands against running; that
//! was settled when the model was made.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use super::diagnostic::{Diagnostic, Place, Severity};
use super::{Config, Handler, Host, Server, Settings, Spec};
use crate::endpoint::{Endpoint, Transport};
use crate::routing::{self, Case, HostChoice, Pattern, Reach, RouteChoice};

/// How many examples one finding gives.
const EXAMPLES_MAX: usize = 3;

/// Everything that is odd about a configuration, server by server.
pub fn check(path: &Path, config: &Config) -> Vec<Diagnostic> {
    let mut checker = Checker {
        path,
        found: Vec::new(),
    };
    let mut uuids = HashSet::new();
    let mut addresses = HashSet::new();
    for server in &config.servers {
        let part = format!("server {}", label(server));
        if !uuids.insert(&server.uuid) {
            checker.warning(
                &part,
                format!(
                    "another server has the uuid {:?} too, and is the one that is run",
                    server.uuid
                ),
            );
        }
        if server.port == 0 {
            checker.note(&part, "port 0 is any free port here; Mongrel2 refuses it");
        } else if !addresses.insert((server.bind_addr, server.port)) {
            let message = format!(
                "another server listens on {} port {} too",
                server.bind_addr, server.port
            );
            checker.warning(&part, message);
        }
        if server.use_ssl && config.settings.certdir.is_none() {
            checker.warning(&part, "use_ssl needs the setting `certdir`");
        }
        checker
            .found
            .extend(at_start(path, server, &config.settings));
        checker.sockets(&part, server);
        checker.hosts(&part, server);
        for host in &server.hosts {
            checker.routes(&format!("{part}, host {}", host.name), host);
        }
    }
    checker.found
}

/// What is told whenever a server starts: plug-ins, none of which can be loaded, and sockets that others can reach.
pub fn at_start(path: &Path, server: &Server, settings: &Settings) -> Vec<Diagnostic> {
    let mut checker = Checker {
        path,
        found: Vec::new(),
    };
    let part = format!("server {}", label(server));
    checker.plugins(&part, server);
    checker.exposed(&part, server, settings);
    checker.found
}

fn stem(name: &str) -> &str {
    Path::new(name)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or(name)
}

fn label(server: &Server) -> &str {
    if server.name.is_empty() {
        &server.uuid
    } else {
        &server.name
    }
}

struct Checker<'p> {
    path: &'p Path,
    found: Vec<Diagnostic>,
}

impl Checker<'_> {
    fn push(&mut self, severity: Severity, part: &str, message: impl Into<String>) {
        let place = Place::Part(part.to_owned());
        self.found.push(Diagnostic {
            severity,
            path: self.path.to_owned(),
            place,
            message: message.into(),
        });
    }

    fn warning(&mut self, part: &str, message: impl Into<String>) {
        self.push(Severity::Warning, part, message);
    }

    fn note(&mut self, part: &str, message: impl Into<String>) {
        self.push(Severity::Note, part, message);
    }

    fn plugins(&mut self, part: &str, server: &Server) {
        for filter in &server.filters {
            let instead = match stem(&filter.name) {
                "null" => "; it is not built in: leave out the routes that it keeps from answering",
                "rewrite" => {
                    "; it is not built in, and paths go to a proxy as they came: let the backend, or a handler, take the path with its prefix"
                }
                _ => "",
            };
            let message = format!(
                "filter {} is a C plug-in and cannot be loaded; requests pass without it{instead}",
                filter.name
            );
            self.warning(part, message);
        }
        for xrequest in &server.xrequests {
            let message = match stem(&xrequest.name) {
                "sendfile" => format!(
                    "xrequest {} is not loaded: sendfile is built in, for files below the directory that the setting `sendfile.base` names",
                    xrequest.name
                ),
                _ => format!(
                    "xrequest {} is a C plug-in and cannot be loaded; replies that ask for it drop their connection",
                    xrequest.name
                ),
            };
            self.warning(part, message);
        }
    }

    /// Warns of sockets that others can reach.
    fn exposed(&mut self, part: &str, server: &Server, settings: &Settings) {
        let control_port = if server.control_port.is_empty() {
            &settings.control_port
        } else {
            &server.control_port
        };
        match control_port.parse::<Endpoint>() {
            Ok(endpoint) => self.open(part, "control_port", control_port, &endpoint),
            Err(why) => self.warning(part, format!("control_port {control_port:?}: {why}")),
        }
        for handler in server.handlers() {
            let part = format!("{part}, handler {}", handler.send_spec.text);
            for (what, spec) in handler.specs() {
                self.open(&part, what, &spec.text, &spec.endpoint);
            }
        }
    }

    fn sockets(&mut self, part: &str, server: &Server) {
        let handlers = server.handlers();
        for (index, handler) in handlers.iter().enumerate() {
            let part = format!("{part}, handler {}", handler.send_spec.text);
            let named = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if !handler.send_ident.bytes().all(named) {
                let message = format!(
                    "send_ident {:?} has more than letters, digits and `-`: replies with it are not understood",
                    handler.send_ident
                );
                self.warning(&part, message);
            }
            if handler.send_spec.text == handler.recv_spec.text
                && fixed(&handler.send_spec.endpoint)
            {
                self.push(
                    Severity::Error,
                    &part,
                    "send_spec and recv_spec are the same, and only one can be bound",
                );
            }
            let before = handlers.iter().take(index);
            for other in before.clone() {
                self.clash(&part, handler, other);
            }
            self.workers(&part, handler, before);
        }
        let all = server.hosts.iter().flat_map(|host| &host.routes);
        let mut told: Vec<&Arc<Handler>> = Vec::new();
        for route in all {
            let super::Target::Handler(handler) = &route.target else {
                continue;
            };
            let first = handlers.iter().find(|first| first.same_sockets(handler));
            if let Some(first) = first
                && first != handler
                && !told.contains(&handler)
            {
                told.push(handler);
                let part = format!("{part}, handler {}", handler.send_spec.text);
                let message = format!(
                    "route {:?} has a handler with the specs of another one, and is that one: its send_ident {:?} and \
                     everything else of it count",
                    route.path, first.send_ident
                );
                self.warning(&part, message);
            }
        }
    }

    /// Warns of sockets that others can reach: whoever connects there is a handler.
    fn open(&mut self, part: &str, what: &str, text: &str, endpoint: &Endpoint) {
        if !endpoint.is_local() {
            let who = if what == "control_port" {
                "can stop the server"
            } else {
                "can take part"
            };
            let message =
                format!("{what} {text} is neither loopback nor ipc: whoever reaches it {who}");
            self.warning(part, message);
        }
    }

    /// Compares the address for workers with the handler's own others and with all of those before it.
    fn workers<'h>(
        &mut self,
        part: &str,
        handler: &Handler,
        before: impl Iterator<Item = &'h Arc<Handler>>,
    ) {
        let own = handler.workers.iter();
        for (what, spec) in handler.specs().filter(|(what, _)| *what != "workers") {
            if own.clone().any(|workers| workers.is_at(spec)) {
                let message = format!("{what} and workers are the same, and only one can be bound");
                self.push(Severity::Error, part, message);
            }
        }
        for other in before {
            let twice = |(mine, spec): &(&'static str, &Spec)| {
                let theirs = other.specs().find(|(_, theirs)| theirs.is_at(spec));
                let theirs = theirs.filter(|(theirs, _)| [*mine, theirs].contains(&"workers"));
                theirs.map(|(theirs, _)| (*mine, theirs, spec.text.clone()))
            };
            let twice: Vec<_> = handler.specs().filter_map(|own| twice(&own)).collect();
            for (mine, theirs, text) in twice {
                let message = format!(
                    "its {mine} {text} is another handler's {theirs}: only one of them can be bound, and the routes of this one \
                     answer nothing"
                );
                self.warning(part, message);
            }
        }
    }

    fn clash(&mut self, part: &str, handler: &Handler, other: &Handler) {
        // Two ports of the system's choice are never the same.
        let pairs = [
            (
                "send_spec",
                &handler.send_spec,
                "recv_spec",
                &other.send_spec,
            ),
            (
                "recv_spec",
                &handler.recv_spec,
                "send_spec",
                &other.recv_spec,
            ),
        ];
        for (same, mine, different, theirs) in pairs {
            if mine.text == theirs.text && fixed(&mine.endpoint) {
                let message = format!(
                    "another handler has the same {same} {} and another {different}: only one of them can be bound, and \
                     the routes of the other answer nothing",
                    mine.text
                );
                self.warning(part, message);
            }
        }
        let crossed = [
            (&handler.send_spec, &other.recv_spec),
            (&handler.recv_spec, &other.send_spec),
        ];
        for (mine, theirs) in crossed {
            if mine.text == theirs.text && fixed(&mine.endpoint) {
                self.push(
                    Severity::Error,
                    part,
                    format!("{} is a send_spec and a recv_spec at once", mine.text),
                );
            }
        }
    }

    fn hosts(&mut self, part: &str, server: &Server) {
        let table = server.host_table();
        let mut tails = Vec::new();
        for (index, host) in server.hosts.iter().enumerate() {
            let part = format!("{part}, host {}", host.name);
            let default = if index == server.default_host {
                "; it takes what no other host takes"
            } else {
                ""
            };
            let matching = &host.matching;
            let (front, tail) = match matching
                .rfind(')')
                .and_then(|at| matching.split_at_checked(at + 1))
            {
                Some((front, tail)) => (Some(front), tail),
                None => (None, matching.as_str()),
            };
            let problem =
                front.and_then(|front| Pattern::with_case(front, Case::Ignored).problem());
            if let Some(problem) = problem {
                self.warning(
                    &part,
                    format!("matching {matching:?} never matches: {problem}{default}"),
                );
            } else if tail.is_empty() {
                let why = if front.is_some() {
                    "nothing fixed follows its last `)`"
                } else {
                    "it is empty"
                };
                self.warning(
                    &part,
                    format!("matching {matching:?} never matches, since {why}{default}"),
                );
            } else if tail.contains(':')
                && matching.trim_matches(['[', ']']).parse::<IpAddr>().is_err()
            {
                self.warning(
                    &part,
                    format!(
                        "matching {matching:?} never matches: names are cut at their port{default}"
                    ),
                );
            } else if front.is_none() {
                match table.explain(matching.as_bytes()) {
                    HostChoice::Tail { value, .. } | HostChoice::LongerTail { value, .. }
                        if *value != index =>
                    {
                        let other = &server.hosts[*value].name;
                        self.warning(
                            &part,
                            format!("host {other} shadows it: that one takes {matching:?}"),
                        );
                    }
                    HostChoice::NoPattern { matching: first } => {
                        self.warning(
                            &part,
                            format!("{first:?} shadows it: {matching:?} goes to the default host"),
                        );
                    }
                    _ => {}
                }
            } else if let Some(first) = server.hosts.iter().take(index).find(|first| {
                let tail_of_first = first.matching.rsplit(')').next().unwrap_or_default();
                tail_of_first.eq_ignore_ascii_case(tail)
            }) {
                self.warning(
                    &part,
                    format!(
                        "host {} shadows it: only the first host that ends in {tail:?} counts",
                        first.name
                    ),
                );
            } else {
                tails.push((index, tail));
            }
        }
        for (index, tail) in tails {
            // No second choice: a name that fits the tail and not the pattern leaves all other hosts out.
            let left_out = server.hosts.iter().enumerate().find(|(other, host)| {
                *other != index
                    && !host.matching.contains(')')
                    && !host.matching.is_empty()
                    && tail.ends_with(&host.matching)
            });
            if let Some((_, left_out)) = left_out {
                let part = format!("{part}, host {}", server.hosts[index].name);
                let message = format!(
                    "a name that ends in {tail:?} and fails its pattern goes to the default host, not to host {}",
                    left_out.name
                );
                self.note(&part, message);
            }
        }
    }

    fn routes(&mut self, part: &str, host: &Host) {
        let table = host.route_table();
        let mut backward = Vec::new();
        let mut dead_ends = Vec::new();
        for (index, route) in host.routes.iter().enumerate() {
            let part = format!("{part}, route {:?}", route.path);
            let (prefix, pattern) = routing::split(&route.path);
            if let Some(why) = never(&route.path) {
                self.warning(&part, format!("never matches: {why}"));
                continue;
            }
            if let Some(hiding) = hidden(host, index) {
                self.warning(
                    &part,
                    format!("never matches: {hiding:?} takes everything before it"),
                );
                continue;
            }
            if let Some(pattern) = pattern {
                self.pattern(&part, pattern);
                let first = host
                    .routes
                    .iter()
                    .find(|other| routing::split(&other.path).0 == prefix);
                let plain = host
                    .routes
                    .iter()
                    .skip(index)
                    .any(|other| other.path == prefix);
                if plain && first.is_some_and(|first| first.path == route.path) {
                    self.warning(&part, format!("stands before {prefix:?} in the order of rows, which Mongrel2 itself trips over"));
                }
                let shorter = host.routes.iter().any(|other| {
                    let other = routing::split(&other.path).0;
                    !other.is_empty() && other.len() < prefix.len() && prefix.starts_with(other)
                });
                if shorter {
                    dead_ends.push(prefix);
                }
            } else if let Some((end, _)) = prefix.trim_end_matches('/').char_indices().next_back()
                && let Some(short) = prefix.get(..end)
                && let RouteChoice::Taken {
                    text,
                    reach: Reach::Backward,
                    ..
                } = table.explain(short.as_bytes())
                && short.len() > 1
                && short.starts_with('/')
            {
                backward.push(format!("{short:?} goes to {text:?}"));
            }
        }
        if !backward.is_empty() {
            let message = format!(
                "a path that is only the beginning of a route reaches it, as in Mongrel2: {}",
                some(&backward)
            );
            self.note(part, message);
        }
        dead_ends.dedup();
        if !dead_ends.is_empty() {
            let prefixes: Vec<_> = dead_ends
                .iter()
                .map(|prefix| format!("{prefix:?}"))
                .collect();
            let message = format!(
                "a path that fails the pattern behind {} is answered 404, whatever shorter routes there are",
                some(&prefixes)
            );
            self.note(part, message);
        }
    }

    /// What looks like a regular expression and is none.
    fn pattern(&mut self, part: &str, pattern: &str) {
        let mut odd = Vec::new();
        let plain = outside_sets(pattern);
        if plain.contains(&b'|') {
            odd.push("`|` is an ordinary byte: there are no alternatives");
        }
        if plain
            .windows(2)
            .any(|pair| pair[0] == b')' && matches!(pair[1], b'*' | b'+' | b'?'))
        {
            odd.push("a `*`, `+` or `?` after `)` is an ordinary byte: only single items repeat");
        }
        if plain.contains(&b'{') {
            odd.push("`{` is an ordinary byte: there are no counts");
        }
        if plain.starts_with(b"(^") {
            odd.push("`^` is an ordinary byte: patterns begin right after the prefix anyway");
        }
        if plain.ends_with(b"$)") {
            odd.push(
                "`$` is an ordinary byte unless it is the very last one: put it behind the `)`",
            );
        }
        for message in odd {
            self.warning(part, message);
        }
    }
}

/// The bytes of a pattern that stand neither in a set nor behind a `\`.
fn outside_sets(pattern: &str) -> Vec<u8> {
    let mut bytes = pattern.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
                plain.push(0);
            }
            b'[' => {
                let mut first = bytes.next();
                if first == Some(b'^') {
                    first = bytes.next();
                }
                let mut escaped = first == Some(b'\\');
                bytes
                    .by_ref()
                    .take_while(|&byte| {
                        let more = byte != b']' || escaped;
                        escaped = byte == b'\\' && !escaped;
                        more
                    })
                    .for_each(drop);
                plain.push(0);
            }
            other => plain.push(other),
        }
    }
    plain
}

fn fixed(endpoint: &Endpoint) -> bool {
    match &endpoint.transport {
        Transport::Tcp { port, .. } => port.is_some(),
        Transport::Ipc { path } => path != "*",
        Transport::Inproc { .. } => true,
    }
}

fn some(examples: &[String]) -> String {
    let more = if examples.len() > EXAMPLES_MAX {
        ", …"
    } else {
        ""
    };
    let shown: Vec<_> = examples
        .iter()
        .take(EXAMPLES_MAX)
        .map(String::as_str)
        .collect();
    format!("{}{more}", shown.join(", "))
}

/// Why the text of a route matches nothing, if it is so.
fn never(text: &str) -> Option<String> {
    let (prefix, pattern) = routing::split(text);
    if text.is_empty() {
        return Some("it is empty".to_owned());
    }
    if prefix.is_empty() {
        return Some("nothing fixed stands before its first `(`".to_owned());
    }
    if !prefix.starts_with(['/', '@', '<', '*']) {
        return Some("paths begin with `/`, messages with `@` or `<`".to_owned());
    }
    if prefix.starts_with('/') && prefix.contains(['?', '#']) {
        return Some("a path holds neither query nor fragment".to_owned());
    }
    Pattern::new(pattern?)
        .problem()
        .map(|problem| problem.to_string())
}

/// The route that takes everything before the route at `index` is tried.
fn hidden(host: &Host, index: usize) -> Option<&str> {
    let prefix = routing::split(&host.routes[index].path).0;
    let mut chain: Vec<usize> = Vec::new();
    for (at, route) in host.routes.iter().enumerate() {
        if routing::split(&route.path).0 == prefix {
            // The order in which routes of one prefix are tried.
            chain.insert(chain.len().min(1), at);
        }
    }
    let before = chain.into_iter().take_while(|&at| at != index);
    before
        .map(|at| host.routes[at].path.as_str())
        .find(|path| *path == prefix || *path == host.routes[index].path)
}

#[cfg(test)]
mod tests {
    use super::super::conf;
    use super::*;

    #[track_caller]
    fn check_routes(routes: &str, expect: &[&str]) {
        let text = format!(
            "h = Handler(send_spec='tcp://127.0.0.1:1' send_ident='' recv_spec='tcp://127.0.0.1:2' recv_ident='')\n\
             servers = [Server(uuid='u' access_log='' error_log='' pid_file='' default_host='d' name='n' port=80
             hosts=[Host(name='d' routes={routes})])]"
        );
        check_text(&text, expect);
    }

    #[track_caller]
    fn check_text(text: &str, expect: &[&str]) {
        let reading = conf::read(Path::new("t"), text.as_bytes());
        assert!(!reading.has_errors(), "{:#?}", reading.diagnostics);
        let found = check(Path::new("t"), &reading.into_config());
        let mut lines: Vec<_> = found.iter().map(ToString::to_string).collect();
        let mut expect = expect.to_vec();
        lines.sort();
        expect.sort_unstable();
        assert_eq!(lines, expect);
    }

    #[test]
    fn a_plain_configuration_is_quiet() {
        check_routes(
            "{'/': h '/a(.*)': h '@chat': h}",
            &[
                "t: server n, host d: note: a path that fails the pattern behind \"/a\" is answered 404, whatever shorter routes there are",
            ],
        );
        check_routes("{'/': h}", &[]);
    }

    #[test]
    fn routes_that_never_match_say_why() {
        check_routes(
            "{'(/a)': h 'a': h '/q?x': h '/s([a)': h '/x': h '/x(a)': h}",
            &[
                "t: server n, host d, route \"a\": warning: never matches: paths begin with `/`, messages with `@` or `<`",
                "t: server n, host d, route \"(/a)\": warning: never matches: nothing fixed stands before its first `(`",
                "t: server n, host d, route \"/q?x\": warning: never matches: a path holds neither query nor fragment",
                "t: server n, host d, route \"/x(a)\": warning: never matches: \"/x\" takes everything before it",
                "t: server n, host d, route \"/s([a)\": warning: never matches: a set is opened by `[` and never closed (a `]` right after the `[` counts as a member)",
            ],
        );
    }

    #[test]
    fn regular_expressions_that_are_none_are_told() {
        check_routes(
            "{'/(a|b)': h '/b(x)+': h '/c([|{])$': h '/d(a$)': h '/e(^a\\|)': h}",
            &[
                "t: server n, host d, route \"/(a|b)\": warning: `|` is an ordinary byte: there are no alternatives",
                "t: server n, host d, route \"/d(a$)\": warning: `$` is an ordinary byte unless it is the very last one: put it behind the `)`",
                "t: server n, host d, route \"/b(x)+\": warning: a `*`, `+` or `?` after `)` is an ordinary byte: only single items repeat",
                "t: server n, host d, route \"/e(^a\\\\|)\": warning: `^` is an ordinary byte: patterns begin right after the prefix anyway",
                "t: server n, host d: note: a path that fails the pattern behind \"/b\", \"/d\", \"/c\", … is answered 404, whatever shorter routes there are",
            ],
        );
    }

    #[test]
    fn short_paths_that_reach_longer_routes_are_noted() {
        check_routes(
            "{'/': h '/users': h}",
            &[
                "t: server n, host d: note: a path that is only the beginning of a route reaches it, as in Mongrel2: \"/user\" goes to \"/users\"",
            ],
        );
    }

    #[test]
    fn addresses_for_workers_that_clash_or_are_open_to_others_are_told() {
        let text = "h = Handler(send_spec='tcp://127.0.0.1:1' send_ident='a' recv_spec='tcp://127.0.0.1:2' recv_ident=''
                workers='tcp://127.0.0.1:2')
            g = Handler(send_spec='tcp://127.0.0.1:3' send_ident='b' recv_spec='tcp://127.0.0.1:4' recv_ident=''
                workers='tcp://*:5')
            c = Handler(send_spec='tcp://127.0.0.1:6' send_ident='c' recv_spec='tcp://127.0.0.1:7' recv_ident=''
                workers='tcp://127.0.0.1:3')
            d = Handler(send_spec='tcp://127.0.0.1:8' send_ident='d' recv_spec='tcp://127.0.0.1:9' recv_ident=''
                workers='tcp://127.0.0.1:*')
            servers = [Server(uuid='u' access_log='' error_log='' pid_file='' default_host='d' name='n' port=80
            hosts=[Host(name='d' routes={'/': h '/g/': g '/h/': c '/i/': d})])]";
        check_text(
            text,
            &[
                "t: server n, handler tcp://127.0.0.1:1: recv_spec and workers are the same, and only one can be bound",
                "t: server n, handler tcp://127.0.0.1:3: warning: workers tcp://*:5 is neither loopback nor ipc: whoever reaches it can take part",
                "t: server n, handler tcp://127.0.0.1:6: warning: its workers tcp://127.0.0.1:3 is another handler's send_spec: only one of them can be bound, and the routes of this one answer nothing",
            ],
        );
    }

    #[test]
    fn hosts_that_shadow_others_and_sockets_that_clash_are_told() {
        let text = "h = Handler(send_spec='tcp://127.0.0.1:1' send_ident='a' recv_spec='tcp://127.0.0.1:2' recv_ident='')
            g = Handler(send_spec='tcp://127.0.0.1:1' send_ident='b' recv_spec='tcp://127.0.0.1:2' recv_ident='')
            c = Handler(send_spec='tcp://127.0.0.1:1' send_ident='c_c' recv_spec='tcp://*:3' recv_ident='')
            servers = [Server(uuid='u' access_log='' error_log='' pid_file='' default_host='d' name='n' port=80
            filters=[Filter(name='/x/null.so' settings={})]
            hosts=[Host(name='d' routes={'/': h}) Host(name='e' matching='D' routes={'/': g})
                Host(name='f' matching='([0-9]+).x.org' routes={'/': c}) Host(name='x.org' routes={'/': h})
                Host(name='j' matching='([a-z]+).x.org' routes={'/': h})
                Host(name='g' matching='(.+)' routes={'/': h}) Host(name='i' matching='a:80' routes={'/': h})])]";
        check_text(
            text,
            &[
                "t: server n: warning: filter /x/null.so is a C plug-in and cannot be loaded; requests pass without it; it is not built in: leave out the routes that it keeps from answering",
                "t: server n, handler tcp://127.0.0.1:1: warning: recv_spec tcp://*:3 is neither loopback nor ipc: whoever reaches it can take part",
                "t: server n, handler tcp://127.0.0.1:1: warning: send_ident \"c_c\" has more than letters, digits and `-`: replies with it are not understood",
                "t: server n, handler tcp://127.0.0.1:1: warning: another handler has the same send_spec tcp://127.0.0.1:1 and another recv_spec: only one of them can be bound, and the routes of the other answer nothing",
                "t: server n, handler tcp://127.0.0.1:1: warning: route \"/\" has a handler with the specs of another one, and is that one: its send_ident \"a\" and everything else of it count",
                "t: server n, host e: warning: host d shadows it: that one takes \"D\"",
                "t: server n, host j: warning: host f shadows it: only the first host that ends in \".x.org\" counts",
                "t: server n, host g: warning: matching \"(.+)\" never matches, since nothing fixed follows its last `)`",
                "t: server n, host i: warning: matching \"a:80\" never matches: names are cut at their port",
                "t: server n, host f: note: a name that ends in \".x.org\" and fails its pattern goes to the default host, not to host x.org",
            ],
        );
    }
}

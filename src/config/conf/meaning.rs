//! What a `.conf` means: variables resolved, classes turned into servers, hosts, routes and targets.

use std::collections::{HashMap, HashSet};

use super::super::diagnostic::Place;
use super::super::draft::{
    self, DraftDir, DraftHandler, DraftHost, DraftRoute, DraftServer, Findings, Located,
    MimetypeRow, SettingRow, Told,
};
use super::super::settings::distance;
use super::super::{Mimetypes, Plugin, Reading, Settings, Target, plugin};
use super::order::breadth_first;
use super::parser::{Document, Expr, Kind};

/// Plug-in settings nested deeper than this are refused, since references make any depth possible.
const DEPTH_MAX: usize = 32;

/// The variables that mean something by their name.
const TOP_LEVEL: [&str; 3] = ["servers", "settings", "mimetypes"];

/// Reads the meaning of a document.
pub(super) fn read(document: &Document, findings: &mut Findings) -> Reading {
    let sound = !findings.has_errors();
    let mut variables = HashMap::new();
    for (name, value) in &document.variables {
        // Duplicates: the last one wins, as in m2sh.
        if variables.insert(name.value.as_str(), value).is_some() {
            findings.warning(
                &name.place,
                format!(
                    "variable `{}` is given again; the last one counts",
                    name.value
                ),
            );
        }
    }
    let mut reader = Reader {
        variables,
        used: HashSet::new(),
        settings: Settings::default(),
        targets: HashMap::new(),
        findings,
    };
    let setting_rows = reader.settings();
    reader.settings = draft::settings(&setting_rows, reader.findings);
    let mut mimetypes = Mimetypes::default();
    let mimetype_rows = reader.mimetypes();
    draft::mimetypes(
        &mimetype_rows,
        &mut mimetypes,
        &reader.settings,
        reader.findings,
    );
    let servers = reader.servers();
    // Where syntax is wrong, uses may have been lost.
    if sound {
        reader.unused(document);
    }
    let Reader {
        settings, findings, ..
    } = reader;
    let candidates = servers
        .into_iter()
        .map(|server| draft::server(server, &settings, findings))
        .collect();
    let setting_rows = setting_rows
        .into_iter()
        .map(|row| (row.key, row.value))
        .collect();
    Reading {
        candidates,
        settings,
        setting_rows,
        mimetypes,
        diagnostics: Vec::new(),
        fatal: false,
    }
}

struct Reader<'d, 'f> {
    variables: HashMap<&'d str, &'d Expr>,
    used: HashSet<&'d str>,
    settings: Settings,
    /// By the place of the class: one written target is one target, however many routes lead to it.
    targets: HashMap<Place, Option<Target>>,
    findings: &'f mut Findings,
}

/// A class with its parameters, references resolved only when asked for.
struct Class<'d> {
    name: &'d str,
    place: &'d Place,
    params: HashMap<&'d str, &'d Expr>,
}

impl<'d> Reader<'d, '_> {
    /// Follows references to what they stand for. `None`: told.
    fn resolve(&mut self, expr: &'d Expr) -> Option<&'d Expr> {
        let mut at = expr;
        let mut passed = HashSet::new();
        loop {
            match &at.kind {
                Kind::Reference(name) => {
                    if !passed.insert(name.as_str()) {
                        self.findings
                            .error(&expr.place, format!("variable `{name}` stands for itself"));
                        return None;
                    }
                    let Some((&name, &value)) = self.variables.get_key_value(name.as_str()) else {
                        let near = near(name, self.variables.keys().copied());
                        self.findings
                            .error(&at.place, format!("there is no variable `{name}`{near}"));
                        return None;
                    };
                    self.used.insert(name);
                    at = value;
                }
                Kind::Wrong => return None,
                _ => return Some(at),
            }
        }
    }

    fn expected(&mut self, what: &str, asked: &Expr, found: &Expr) {
        let through = match &asked.kind {
            Kind::Reference(name) => format!("`{name}`, which is {}", found.kind.noun()),
            _ => found.kind.noun().to_owned(),
        };
        self.findings
            .error(&asked.place, format!("expected {what}, found {through}"));
    }

    fn hash(&mut self, what: &str, expr: &'d Expr) -> Option<&'d [(Located<String>, Expr)]> {
        let value = self.resolve(expr)?;
        if let Kind::Hash(pairs) = &value.kind {
            return Some(pairs);
        }
        self.expected(
            &format!("{what} as a hash {{ \"key\": value }}"),
            expr,
            value,
        );
        None
    }

    fn list(&mut self, what: &str, expr: &'d Expr) -> Option<&'d [Expr]> {
        let value = self.resolve(expr)?;
        if let Kind::List(items) = &value.kind {
            return Some(items);
        }
        self.expected(&format!("{what} as a list [ … ]"), expr, value);
        None
    }

    fn class(&mut self, wanted: &str, expr: &'d Expr) -> Option<Class<'d>> {
        let value = self.resolve(expr)?;
        match &value.kind {
            Kind::Class { name, params } if name == wanted => {
                Some(self.params(name, params, &value.place))
            }
            Kind::Class { name, .. } => {
                self.findings.error(
                    &expr.place,
                    format!("expected {wanted}(…), found {name}(…)"),
                );
                None
            }
            _ => {
                self.expected(&format!("{wanted}(…)"), expr, value);
                None
            }
        }
    }

    fn params(
        &mut self,
        name: &'d str,
        params: &'d [(Located<String>, Expr)],
        place: &'d Place,
    ) -> Class<'d> {
        let known = parameters(name);
        let mut class = Class {
            name,
            place,
            params: HashMap::new(),
        };
        for (param, value) in params {
            if !known.contains(&param.value.as_str()) {
                let near = near(&param.value, known.iter().copied());
                let message = format!(
                    "{name} has no parameter `{}`, so it is ignored{near}",
                    param.value
                );
                self.findings.warning(&param.place, message);
            }
            if class.params.insert(&param.value, value).is_some() {
                let message = format!(
                    "parameter `{}` is given again; the last one counts",
                    param.value
                );
                self.findings.warning(&param.place, message);
            }
        }
        class
    }

    fn needed(&mut self, class: &Class<'d>, param: &str, kind: &str) -> Option<&'d Expr> {
        let value = class.params.get(param).copied();
        if value.is_none() {
            self.findings.error(
                class.place,
                format!("{} needs `{param}`, {kind}", class.name),
            );
        }
        value
    }

    fn string(&mut self, expr: &'d Expr, param: &str) -> Told<String> {
        let value = self.resolve(expr)?;
        if let Kind::Text(text) = &value.kind {
            return Some(Located {
                value: text.clone(),
                place: expr.place.clone(),
            });
        }
        self.expected(&format!("a string for `{param}`"), expr, value);
        None
    }

    fn number(&mut self, expr: &'d Expr, param: &str) -> Told<i64> {
        let value = self.resolve(expr)?;
        let Kind::Number(digits) = &value.kind else {
            self.expected(&format!("a number for `{param}`"), expr, value);
            return None;
        };
        // Too many digits are a large number; every rule about it will say so.
        let number = digits.parse().unwrap_or(i64::MAX);
        Some(Located {
            value: number,
            place: expr.place.clone(),
        })
    }

    fn text(&mut self, class: &Class<'d>, param: &str) -> Told<String> {
        let expr = self.needed(class, param, "a string")?;
        self.string(expr, param)
    }

    fn text_or(&mut self, class: &Class<'d>, param: &str, default: &str) -> Told<String> {
        match class.params.get(param) {
            Some(expr) => self.string(expr, param),
            None => Some(Located {
                value: default.to_owned(),
                place: class.place.clone(),
            }),
        }
    }

    fn whole(&mut self, class: &Class<'d>, param: &str) -> Told<i64> {
        let expr = self.needed(class, param, "a number")?;
        self.number(expr, param)
    }

    fn whole_or(&mut self, class: &Class<'d>, param: &str, default: i64) -> Told<i64> {
        match class.params.get(param) {
            Some(expr) => self.number(expr, param),
            None => Some(Located {
                value: default,
                place: class.place.clone(),
            }),
        }
    }

    fn top_level(&mut self, name: &'static str) -> Option<&'d Expr> {
        self.variables.get(name).copied()
    }

    fn settings(&mut self) -> Vec<SettingRow> {
        let Some(pairs) = self
            .top_level("settings")
            .and_then(|expr| self.hash("the settings", expr))
        else {
            return Vec::new();
        };
        let mut rows = Vec::new();
        for (key, expr) in pairs {
            let Some(value) = self.resolve(expr) else {
                continue;
            };
            if let Kind::Text(text) | Kind::Number(text) = &value.kind {
                rows.push(SettingRow {
                    key: key.value.clone(),
                    value: text.clone(),
                    place: key.place.clone(),
                });
            } else {
                self.expected(
                    &format!("a string or a number for setting `{}`", key.value),
                    expr,
                    value,
                );
            }
        }
        rows
    }

    fn mimetypes(&mut self) -> Vec<MimetypeRow> {
        let Some(pairs) = self
            .top_level("mimetypes")
            .and_then(|expr| self.hash("the mime types", expr))
        else {
            return Vec::new();
        };
        let mut rows = Vec::new();
        for (extension, expr) in pairs {
            if let Some(mimetype) = self.string(expr, &extension.value) {
                let (extension, place) = (extension.value.clone(), extension.place.clone());
                rows.push(MimetypeRow {
                    extension,
                    mimetype: mimetype.value,
                    place,
                });
            }
        }
        rows
    }

    fn servers(&mut self) -> Vec<DraftServer> {
        let Some(expr) = self.top_level("servers") else {
            let near = near("servers", self.variables.keys().copied());
            let message = format!("there is no `servers = [ … ]`, the list of servers{near}");
            self.findings.error(&Place::File, message);
            return Vec::new();
        };
        let Some(servers) = self.list("the servers", expr) else {
            return Vec::new();
        };
        if servers.is_empty() {
            self.findings
                .error(&expr.place, "the list of servers is empty");
        }
        servers
            .iter()
            .filter_map(|server| self.server(server))
            .collect()
    }

    fn server(&mut self, expr: &'d Expr) -> Option<DraftServer> {
        let class = self.class("Server", expr)?;
        let hosts = self.needed(&class, "hosts", "a list of Host(…)");
        let hosts = hosts
            .and_then(|expr| self.list("the hosts", expr))
            .unwrap_or_default();
        Some(DraftServer {
            uuid: self.text(&class, "uuid"),
            name: self.text(&class, "name"),
            access_log: self.text(&class, "access_log"),
            error_log: self.text(&class, "error_log"),
            error_log_level: self.whole_or(&class, "error_log_level", 2),
            chroot: self.text_or(&class, "chroot", ""),
            pid_file: self.text(&class, "pid_file"),
            control_port: self.text_or(&class, "control_port", ""),
            default_host: self.text(&class, "default_host"),
            bind_addr: self.text_or(&class, "bind_addr", "0.0.0.0"),
            port: self.whole(&class, "port"),
            use_ssl: self.whole_or(&class, "use_ssl", 0),
            hosts: hosts.iter().map(|host| self.host(host)).collect(),
            filters: self.plugins(&class, "filters", "Filter"),
            xrequests: self.plugins(&class, "xrequests", "Xrequest"),
        })
    }

    fn host(&mut self, expr: &'d Expr) -> DraftHost {
        let mut host = DraftHost {
            place: expr.place.clone(),
            name: None,
            matching: None,
            routes: Vec::new(),
        };
        let Some(class) = self.class("Host", expr) else {
            return host;
        };
        host.name = self.text(&class, "name");
        host.matching = match class.params.get("matching") {
            Some(expr) => self.string(expr, "matching"),
            None => host.name.clone(),
        };
        let routes = self.needed(&class, "routes", "a hash of paths and targets");
        let Some(value) = routes.and_then(|expr| self.resolve(expr)) else {
            host.name = None;
            return host;
        };
        if let Kind::List(hashes) = &value.kind {
            // Lurcher's own form, for databases that m2sh cannot make: hashes in a list are taken in the order as written.
            for expr in hashes {
                let pairs = self.hash("routes", expr);
                host.routes.extend(
                    self.routes(pairs.unwrap_or_default())
                        .into_iter()
                        .map(|(_, route)| route),
                );
                if pairs.is_none() {
                    host.name = None;
                }
            }
        } else if let Some(pairs) = routes.and_then(|expr| self.hash("the routes", expr)) {
            let mut seen = HashSet::new();
            for (path, _) in pairs {
                if !seen.insert(path.value.as_str()) {
                    let message =
                        format!("route {:?} is given again; the last one counts", path.value);
                    self.findings.warning(&path.place, message);
                }
            }
            host.routes = breadth_first(self.routes(pairs));
        } else {
            host.name = None;
        }
        host
    }

    fn routes(&mut self, pairs: &'d [(Located<String>, Expr)]) -> Vec<(String, DraftRoute)> {
        let route = |(path, expr): &'d (Located<String>, Expr)| {
            let target = self.target(expr);
            (
                path.value.clone(),
                DraftRoute {
                    path: Some(path.clone()),
                    target,
                },
            )
        };
        pairs.iter().map(route).collect()
    }

    fn target(&mut self, expr: &'d Expr) -> Option<Target> {
        const WHAT: &str = "Handler(…), Dir(…) or Proxy(…)";
        let value = self.resolve(expr)?;
        let Kind::Class { name, params } = &value.kind else {
            self.expected(WHAT, expr, value);
            return None;
        };
        if let Some(made) = self.targets.get(&value.place) {
            return made.clone();
        }
        // Case does not count in these three names, as in m2sh.
        let target = match name.to_ascii_lowercase().as_str() {
            "handler" => {
                let class = self.params("Handler", params, &value.place);
                self.handler(&class)
            }
            "dir" => {
                let class = self.params("Dir", params, &value.place);
                self.dir(&class)
            }
            "proxy" => {
                let class = self.params("Proxy", params, &value.place);
                let (addr, port) = (self.text(&class, "addr"), self.whole(&class, "port"));
                draft::proxy(addr, port, self.findings)
            }
            _ => {
                self.findings
                    .error(&value.place, format!("expected {WHAT}, found {name}(…)"));
                None
            }
        };
        self.targets.insert(value.place.clone(), target.clone());
        target
    }

    fn handler(&mut self, class: &Class<'d>) -> Option<Target> {
        let handler = DraftHandler {
            send_spec: self.text(class, "send_spec"),
            send_ident: self.text(class, "send_ident"),
            recv_spec: self.text(class, "recv_spec"),
            recv_ident: self.text(class, "recv_ident"),
            raw_payload: self.whole_or(class, "raw_payload", 0),
            protocol: self.text_or(class, "protocol", "json"),
            slots: class
                .params
                .get("slots")
                .and_then(|expr| self.number(expr, "slots")),
            queue: class
                .params
                .get("queue")
                .and_then(|expr| self.number(expr, "queue")),
            retry: class
                .params
                .get("retry")
                .and_then(|expr| self.string(expr, "retry")),
            wait: class
                .params
                .get("wait")
                .and_then(|expr| self.number(expr, "wait")),
            workers: class
                .params
                .get("workers")
                .and_then(|expr| self.string(expr, "workers")),
            sticky: class
                .params
                .get("sticky")
                .and_then(|expr| self.string(expr, "sticky")),
        };
        draft::handler(handler, self.findings)
    }

    fn dir(&mut self, class: &Class<'d>) -> Option<Target> {
        let base = self.text(class, "base").filter(|base| {
            let closed = base.value.ends_with('/');
            if !closed {
                // m2sh logs this and leaves every route to the directory out of the database.
                let message = format!(
                    "the base of a directory must end with `/`: {:?}",
                    format!("{}/", base.value)
                );
                self.findings.error(&base.place, message);
            }
            closed
        });
        let dir = DraftDir {
            base,
            index_file: self.text(class, "index_file"),
            default_ctype: self.text(class, "default_ctype"),
            cache_ttl: self.whole_or(class, "cache_ttl", 0),
        };
        draft::dir(dir, &self.settings, self.findings)
    }

    fn plugins(&mut self, server: &Class<'d>, param: &str, class: &str) -> Vec<Option<Plugin>> {
        let Some(&expr) = server.params.get(param) else {
            return Vec::new();
        };
        let Some(plugins) = self.list(&format!("the {param}"), expr) else {
            return vec![None];
        };
        plugins
            .iter()
            .map(|plugin| self.plugin(plugin, class))
            .collect()
    }

    fn plugin(&mut self, expr: &'d Expr, class: &str) -> Option<Plugin> {
        let class = self.class(class, expr)?;
        let name = self.text(&class, "name");
        let settings = self.needed(&class, "settings", "a hash, perhaps an empty one")?;
        self.hash("the settings of a plug-in", settings)?;
        Some(Plugin {
            settings: self.value(settings, DEPTH_MAX)?,
            name: name?.value,
        })
    }

    fn value(&mut self, expr: &'d Expr, depth: usize) -> Option<plugin::Value> {
        let Some(depth) = depth.checked_sub(1) else {
            self.findings
                .error(&expr.place, "the settings of a plug-in are nested too deep");
            return None;
        };
        let value = self.resolve(expr)?;
        Some(match &value.kind {
            Kind::Text(text) => plugin::Value::Text(text.clone()),
            Kind::Number(digits) => plugin::Value::Number(digits.clone()),
            Kind::List(items) => plugin::Value::List(
                items
                    .iter()
                    .map(|item| self.value(item, depth))
                    .collect::<Option<_>>()?,
            ),
            Kind::Hash(pairs) => {
                let mut read = Vec::new();
                for (key, value) in pairs {
                    read.push((key.value.clone(), self.value(value, depth)?));
                }
                plugin::Value::Hash(plugin::Hash(read))
            }
            Kind::Class { .. } | Kind::Reference(_) | Kind::Wrong => {
                self.expected("a string, a number, a list or a hash", expr, value);
                return None;
            }
        })
    }

    /// Warns about variables that mean nothing: a misspelt `settings` would be lost without a word.
    fn unused(&mut self, document: &Document) {
        // What stands behind a mistake was not looked at, and what it uses would be told as unused.
        let all_was_read = !self.findings.has_errors();
        for (name, _) in &document.variables {
            let text = name.value.as_str();
            if !self.used.contains(text) && !TOP_LEVEL.contains(&text) {
                let near = near(text, TOP_LEVEL);
                if all_was_read || !near.is_empty() {
                    let message = format!("variable `{text}` is never used{near}");
                    self.findings.warning(&name.place, message);
                }
            }
        }
    }
}

fn parameters(class: &str) -> &'static [&'static str] {
    match class {
        "Server" => &[
            "uuid",
            "name",
            "access_log",
            "error_log",
            "error_log_level",
            "chroot",
            "pid_file",
            "control_port",
            "default_host",
            "bind_addr",
            "port",
            "use_ssl",
            "hosts",
            "filters",
            "xrequests",
        ],
        "Host" => &["name", "matching", "routes"],
        "Handler" => &[
            "send_spec",
            "send_ident",
            "recv_spec",
            "recv_ident",
            "raw_payload",
            "protocol",
            "slots",
            "queue",
            "retry",
            "wait",
            "workers",
            "sticky",
        ],
        "Dir" => &["base", "index_file", "default_ctype", "cache_ttl"],
        "Proxy" => &["addr", "port"],
        _ => &["name", "settings"],
    }
}

/// A hint at the nearest known name, if one is near.
fn near<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = known
        .into_iter()
        .map(|other| (distance(other, name), other))
        .min();
    match nearest {
        Some((distance, other)) if distance <= 2 && distance < name.len() && other != name => {
            format!("; did you mean `{other}`?")
        }
        _ => String::new(),
    }
}

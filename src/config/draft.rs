//! What was read but not yet believed, and the rules that make a model of it. Both readers end here, so that a
//! database and a `.conf` are held to the same rules and told of the same mistakes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::routing;
use crate::sticky;
use crate::wire::Protocol;

use super::diagnostic::{Diagnostic, Place, Severity};
use super::{
    Config, Dir, Handler, Host, Mimetypes, Plugin, Proxy, Retry, Route, Server, Settings, Spec,
    Target,
};

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// A value that may be missing because what stood there was wrong; that has been told already.
pub(super) type Told<T> = Option<Located<T>>;

/// Collects findings about one file.
#[derive(Debug)]
pub(super) struct Findings {
    path: PathBuf,
    list: Vec<Diagnostic>,
    /// How many of each severity.
    told: [usize; 3],
}

impl Findings {
    pub(super) fn new(path: &Path) -> Findings {
        Findings {
            path: path.to_owned(),
            list: Vec::new(),
            told: [0; 3],
        }
    }

    pub(super) fn error(&mut self, place: &Place, message: impl Into<String>) {
        self.push(Severity::Error, place, message.into());
    }

    pub(super) fn warning(&mut self, place: &Place, message: impl Into<String>) {
        self.push(Severity::Warning, place, message.into());
    }

    pub(super) fn has_errors(&self) -> bool {
        self.list
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    pub(super) fn into_list(self) -> Vec<Diagnostic> {
        self.list
    }

    fn push(&mut self, severity: Severity, place: &Place, message: String) {
        // Nobody mends more at once, and a file that is no configuration could fill the memory.
        const EACH_MAX: usize = 500;
        let told = &mut self.told[severity as usize];
        *told += 1;
        if *told > EACH_MAX {
            return;
        }
        self.list.push(Diagnostic {
            severity,
            path: self.path.clone(),
            place: place.clone(),
            message,
        });
    }
}

/// Everything one file holds, with what was found about it.
#[derive(Debug)]
pub struct Reading {
    /// The servers, sound or not.
    pub candidates: Vec<Candidate>,
    /// The settings, typed.
    pub settings: Settings,
    /// The settings as they were written.
    pub setting_rows: Vec<(String, String)>,
    /// Types of files.
    pub mimetypes: Mimetypes,
    /// All findings, in the order of the file or of the tables.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether an error stands that no server can live with.
    pub fatal: bool,
}

/// A server that may be asked for.
#[derive(Debug)]
pub struct Candidate {
    /// Its uuid; empty if that could not be read.
    pub uuid: String,
    /// Its name; empty if that could not be read.
    pub name: String,
    /// The server, if it has no errors.
    pub server: Option<Server>,
}

impl Reading {
    /// Whether any finding is an error.
    pub fn has_errors(&self) -> bool {
        self.diagnostics
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    /// The model of everything that is sound.
    pub fn into_config(self) -> Config {
        Config {
            servers: self
                .candidates
                .into_iter()
                .filter_map(|candidate| candidate.server)
                .collect(),
            settings: self.settings,
            setting_rows: self.setting_rows,
            mimetypes: self.mimetypes,
        }
    }
}

/// A setting as read.
#[derive(Debug)]
pub(super) struct SettingRow {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) place: Place,
}

/// Makes settings of their rows.
pub(super) fn settings(rows: &[SettingRow], findings: &mut Findings) -> Settings {
    let mut seen = HashSet::new();
    for row in rows {
        if !seen.insert(row.key.as_str()) {
            findings.warning(
                &row.place,
                format!(
                    "setting `{}` is given again; the last one counts",
                    row.key.escape_debug()
                ),
            );
        }
    }
    let (settings, odd) = Settings::read(
        rows.iter()
            .map(|row| (row.key.as_str(), row.value.as_str())),
    );
    for (index, message) in odd {
        findings.warning(&rows[index].place, message);
    }
    settings
}

/// A pair of extension and type as read.
#[derive(Debug)]
pub(super) struct MimetypeRow {
    pub(super) extension: String,
    pub(super) mimetype: String,
    pub(super) place: Place,
}

/// Adds rows to `types`. An empty type is Mongrel2's broken `mimetypes` block: the extension has no type then.
pub(super) fn mimetypes(
    rows: &[MimetypeRow],
    types: &mut Mimetypes,
    settings: &Settings,
    findings: &mut Findings,
) {
    let mut seen = HashSet::new();
    for MimetypeRow {
        extension,
        mimetype,
        place,
    } in rows
    {
        if !extension.starts_with('.') {
            findings.error(
                place,
                format!("mime type extension {extension:?} must begin with a dot"),
            );
        } else if extension.len() >= settings.mime_ext_len {
            let max = settings.mime_ext_len;
            findings.error(
                place,
                format!("mime type extension {extension:?} must be shorter than {max} bytes"),
            );
        } else if !seen.insert(extension) {
            findings.error(
                place,
                format!("mime type extension {extension:?} is given twice"),
            );
        } else {
            types.insert(extension, mimetype);
        }
    }
}

/// A server as read. Fields whose content was wrong are `None`.
#[derive(Debug)]
pub(super) struct DraftServer {
    pub(super) uuid: Told<String>,
    pub(super) name: Told<String>,
    pub(super) access_log: Told<String>,
    pub(super) error_log: Told<String>,
    pub(super) error_log_level: Told<i64>,
    pub(super) chroot: Told<String>,
    pub(super) pid_file: Told<String>,
    pub(super) control_port: Told<String>,
    pub(super) default_host: Told<String>,
    pub(super) bind_addr: Told<String>,
    pub(super) port: Told<i64>,
    pub(super) use_ssl: Told<i64>,
    pub(super) hosts: Vec<DraftHost>,
    pub(super) filters: Vec<Option<Plugin>>,
    pub(super) xrequests: Vec<Option<Plugin>>,
}

/// A host as read.
#[derive(Debug)]
pub(super) struct DraftHost {
    pub(super) place: Place,
    pub(super) name: Told<String>,
    pub(super) matching: Told<String>,
    pub(super) routes: Vec<DraftRoute>,
}

/// A route as read; the target has been through [`handler`], [`dir`] or [`proxy`].
#[derive(Debug)]
pub(super) struct DraftRoute {
    pub(super) path: Told<String>,
    pub(super) target: Option<Target>,
}

/// Holds a server to the rules. `None` if anything about it is wrong, all of which has then been told.
pub(super) fn server(
    draft: DraftServer,
    settings: &Settings,
    findings: &mut Findings,
) -> Candidate {
    let plain = |told: &Told<String>| {
        told.as_ref()
            .map(|text| text.value.clone())
            .unwrap_or_default()
    };
    let (uuid, name) = (plain(&draft.uuid), plain(&draft.name));
    Candidate {
        server: checked(draft, settings, findings),
        uuid,
        name,
    }
}

fn checked(draft: DraftServer, settings: &Settings, findings: &mut Findings) -> Option<Server> {
    let default_host = draft.default_host.as_ref().and_then(|wanted| {
        let named = |host: &DraftHost| {
            host.name
                .as_ref()
                .is_none_or(|name| name.value == wanted.value)
        };
        let index = draft.hosts.iter().position(named);
        if index.is_none() {
            let names: Vec<_> = draft
                .hosts
                .iter()
                .filter_map(|host| Some(host.name.as_ref()?.value.as_str()))
                .collect();
            let names = if names.is_empty() {
                "the server has none".into()
            } else {
                format!("there are {}", names.join(", "))
            };
            findings.error(
                &wanted.place,
                format!(
                    "default_host {:?} is the name of no host; {names}",
                    wanted.value
                ),
            );
        }
        index
    });
    let bind_addr = draft.bind_addr.and_then(|text| {
        let address = text.value.parse().ok();
        if address.is_none() {
            findings.error(
                &text.place,
                format!(
                    "bind_addr {:?} is no IPv4 or IPv6 address; names are not looked up",
                    text.value
                ),
            );
        }
        address
    });
    let port = draft.port.and_then(|number| port(&number, findings));

    // Everything is looked at before anything gives up, so that all mistakes are told at once.
    let hosts: Vec<Option<Host>> = draft
        .hosts
        .into_iter()
        .map(|draft| host(draft, settings, findings))
        .collect();
    let hosts: Option<Vec<Host>> = hosts.into_iter().collect();
    let filters: Option<Vec<Plugin>> = draft.filters.into_iter().collect();
    let xrequests: Option<Vec<Plugin>> = draft.xrequests.into_iter().collect();
    Some(Server {
        uuid: draft.uuid?.value,
        name: draft.name?.value,
        access_log: draft.access_log?.value,
        error_log: draft.error_log?.value,
        error_log_level: draft.error_log_level?.value,
        chroot: draft.chroot?.value,
        pid_file: draft.pid_file?.value,
        control_port: draft.control_port?.value,
        default_host: default_host?,
        bind_addr: bind_addr?,
        port: port?,
        use_ssl: draft.use_ssl?.value == 1,
        hosts: hosts?,
        filters: filters?,
        xrequests: xrequests?,
    })
}

fn host(draft: DraftHost, settings: &Settings, findings: &mut Findings) -> Option<Host> {
    for (what, text) in [("name", &draft.name), ("matching", &draft.matching)] {
        if let Some(text) = text
            && text.value.len() >= settings.host_name
        {
            let max = settings.host_name;
            findings.error(
                &text.place,
                format!("the {what} of a host must be shorter than {max} bytes (limits.host_name)"),
            );
        }
    }
    if draft.routes.is_empty() {
        findings.warning(&draft.place, "the host has no routes");
    }
    let routes: Vec<Option<Route>> = draft
        .routes
        .into_iter()
        .map(|draft| route(draft, settings, findings))
        .collect();
    Some(Host {
        name: draft.name?.value,
        matching: draft.matching?.value,
        routes: routes.into_iter().collect::<Option<_>>()?,
    })
}

fn route(draft: DraftRoute, settings: &Settings, findings: &mut Findings) -> Option<Route> {
    let (path, target) = (draft.path?, draft.target?);
    if matches!(target, Target::Dir(_)) {
        let (prefix, _) = routing::split(&path.value);
        let max = settings.dir_max_path;
        if !prefix.starts_with('/') {
            findings.error(
                &path.place,
                format!(
                    "route {:?} leads to a directory, so it must begin with `/`",
                    path.value
                ),
            );
            return None;
        }
        if prefix.len() >= max {
            findings.error(
                &path.place,
                format!(
                    "a directory's route must be shorter than {max} bytes (limits.dir_max_path)"
                ),
            );
            return None;
        }
    }
    Some(Route {
        path: path.value,
        target,
    })
}

fn port(number: &Located<i64>, findings: &mut Findings) -> Option<u16> {
    let port = number.value.try_into().ok();
    if port.is_none() {
        findings.error(
            &number.place,
            format!(
                "port {} is no port: 0 (any free one) to 65535",
                number.value
            ),
        );
    }
    port
}

/// A handler as read.
#[derive(Debug)]
pub(super) struct DraftHandler {
    pub(super) send_spec: Told<String>,
    pub(super) send_ident: Told<String>,
    pub(super) recv_spec: Told<String>,
    pub(super) recv_ident: Told<String>,
    pub(super) raw_payload: Told<i64>,
    pub(super) protocol: Told<String>,
    pub(super) slots: Option<Located<i64>>,
    pub(super) queue: Option<Located<i64>>,
    pub(super) retry: Option<Located<String>>,
    pub(super) wait: Option<Located<i64>>,
    pub(super) workers: Option<Located<String>>,
    pub(super) sticky: Option<Located<String>>,
}

/// Holds a handler to the rules.
pub(super) fn handler(draft: DraftHandler, findings: &mut Findings) -> Option<Target> {
    let send_spec = draft
        .send_spec
        .and_then(|text| spec("send_spec", text, findings));
    let recv_spec = draft
        .recv_spec
        .and_then(|text| spec("recv_spec", text, findings));
    let mut sound = true;
    let mut lurchers = |what: &str, number: Option<Located<i64>>, least: i64| {
        let number = number?;
        if number.value < least {
            findings.error(
                &number.place,
                format!("{what} must be at least {least}, and is {}", number.value),
            );
            sound = false;
        }
        Some(number.value)
    };
    let slots =
        lurchers("slots", draft.slots, 1).map(|slots| u32::try_from(slots).unwrap_or(u32::MAX));
    let queue =
        lurchers("queue", draft.queue, 0).map(|queue| usize::try_from(queue).unwrap_or(usize::MAX));
    let wait = lurchers("wait", draft.wait, 0)
        .map(|seconds| Duration::from_secs(seconds.try_into().unwrap_or_default()));
    let retry = match draft.retry {
        None => Retry::default(),
        Some(word) => Retry::from_word(&word.value).unwrap_or_else(|| {
            findings.error(
                &word.place,
                format!(
                    "retry must be \"no\", \"safe\" or \"always\", and is {:?}",
                    word.value
                ),
            );
            sound = false;
            Retry::default()
        }),
    };
    let workers = draft.workers.and_then(|text| {
        let spec = spec("workers", text, findings);
        sound &= spec.is_some();
        spec
    });
    let sticky = draft.sticky.and_then(|rule| {
        let key = rule.value.parse();
        let told = key.map_err(|why: sticky::KeyError| {
            findings.error(&rule.place, format!("sticky {:?}: {why}", rule.value));
            sound = false;
        });
        told.ok()
    });
    if let Some(protocol) = &draft.protocol
        && !matches!(protocol.value.as_str(), "json" | "tnetstring")
    {
        findings.warning(
            &protocol.place,
            format!(
                "protocol {:?} is neither \"json\" nor \"tnetstring\", so it is json",
                protocol.value
            ),
        );
    }
    let handler = Handler {
        send_spec: send_spec?,
        send_ident: draft.send_ident?.value,
        recv_spec: recv_spec?,
        recv_ident: draft.recv_ident?.value,
        raw_payload: draft.raw_payload?.value == 1,
        protocol: Protocol::from_config(&draft.protocol?.value),
        slots,
        queue,
        retry,
        wait,
        workers,
        sticky,
    };
    sound.then(|| Target::Handler(Arc::new(handler)))
}

fn spec(what: &str, text: Located<String>, findings: &mut Findings) -> Option<Spec> {
    match text.value.parse::<Endpoint>() {
        Ok(endpoint) => Some(Spec {
            text: text.value,
            endpoint,
        }),
        Err(error) => {
            findings.error(
                &text.place,
                format!("{what} {:?}: {}", text.value, error.reason),
            );
            None
        }
    }
}

/// A directory as read.
#[derive(Debug)]
pub(super) struct DraftDir {
    pub(super) base: Told<String>,
    pub(super) index_file: Told<String>,
    pub(super) default_ctype: Told<String>,
    pub(super) cache_ttl: Told<i64>,
}

/// Holds a directory to the rules.
pub(super) fn dir(draft: DraftDir, settings: &Settings, findings: &mut Findings) -> Option<Target> {
    let base = draft.base.and_then(|base| {
        if base.value.len() < settings.dir_max_path {
            return Some(base.value);
        }
        let max = settings.dir_max_path;
        findings.error(
            &base.place,
            format!(
                "the base of a directory must be shorter than {max} bytes (limits.dir_max_path)"
            ),
        );
        None
    });
    let cache_ttl = draft.cache_ttl.and_then(|seconds| {
        let value = u32::try_from(seconds.value).ok();
        if value.is_none() {
            findings.error(
                &seconds.place,
                format!(
                    "cache_ttl must be 0 or more seconds, and is {}",
                    seconds.value
                ),
            );
        }
        value
    });
    Some(Target::Dir(Arc::new(Dir {
        base: base?,
        index_file: draft.index_file?.value,
        default_ctype: draft.default_ctype?.value,
        cache_ttl: cache_ttl?,
    })))
}

/// Holds a proxy to the rules.
pub(super) fn proxy(
    addr: Told<String>,
    port: Told<i64>,
    findings: &mut Findings,
) -> Option<Target> {
    let port = port.and_then(|port| {
        let value = u16::try_from(port.value).ok().filter(|&port| port != 0);
        if value.is_none() {
            findings.error(
                &port.place,
                format!(
                    "the port of a proxy must be 1 to 65535, and is {}",
                    port.value
                ),
            );
        }
        value
    });
    Some(Target::Proxy(Arc::new(Proxy {
        addr: addr?.value,
        port: port?,
    })))
}

//! From what was said to a [`Plan`]: read again whenever workers are to be replaced, since files may have changed meanwhile.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::options::{COMMON, common};
use super::plan::{App, Feed, Plan, WORKERS_MAX};
use super::{BuiltIn, app, env_file};
use crate::endpoint::{Endpoint, EndpointError};
use crate::handler::{Options, Selector};
use crate::launcher::given::{Given, RUN, Said};
use crate::wire::worker::NAME_BYTES_MAX;

/// How long a worker may take to answer what it has, when asked to stop.
const GRACEFUL_TIMEOUT: Duration = Duration::from_secs(30);

/// Most threads of a worker, and the like: beyond it somebody mistyped.
pub(super) const COUNT_MAX: u32 = 10_000;

/// The largest share of a worker, as brokers take it.
const WEIGHT_MAX: u32 = 1_000;

/// What was typed, told apart.
#[derive(Debug, Clone, Default)]
pub(in crate::launcher) struct Typed {
    /// APP, SEND and RECV, as far as they were given.
    pub(super) words: Vec<String>,
    /// Options by name, in order; `true` for one without a value.
    pub(super) options: Vec<(String, String)>,
    /// What stands behind `--`.
    pub(super) arguments: Vec<OsString>,
}

/// The variable that tells a process that it is one group of several, and which.
pub(super) const PART_OF: &str = "LURCHER_RUN_PART_OF";

/// What one group of several is told by the process that has started it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Which it is; its pool has the same name.
    pub(super) group: String,
    /// Where its workers get their requests.
    pub(super) broker: Endpoint,
    /// Where it is asked for its status.
    pub(super) control: Option<String>,
    /// The options that it has of its own.
    pub(super) options: Vec<(String, String)>,
}

impl Part {
    /// As a text for the environment.
    pub(super) fn text(&self) -> String {
        let broker = self.broker.to_string();
        serde_json::json!([self.group, broker, self.control, self.options]).to_string()
    }

    fn read(text: &str) -> Option<Self> {
        let (group, broker, control, options): (String, String, _, _) =
            serde_json::from_str(text).ok()?;
        let broker = broker.strip_prefix("broker+").unwrap_or(&broker);
        Some(Self {
            group,
            broker: format!("broker+{broker}").parse().ok()?,
            control,
            options,
        })
    }

    /// Puts itself in the place of what is the whole's.
    fn apply(&self, plan: &mut Plan) -> Result<(), String> {
        let Self {
            group,
            broker,
            control,
            ..
        } = self;
        plan.servers = vec![(broker.clone(), broker.clone())];
        plan.name = format!("{}/{group}", plan.name);
        plan.pool = Some(group.clone());
        plan.feed = Feed::Direct;
        plan.pid_file = None;
        plan.stop_on_eof = true;
        let endpoint = control.as_deref().map(str::parse).transpose();
        plan.control = endpoint.map_err(|error: EndpointError| error.to_string())?;
        Ok(())
    }
}

/// Where plans come from.
#[derive(Debug, Clone)]
pub(in crate::launcher) struct Source {
    typed: Typed,
    built_in: &'static [BuiltIn],
    /// The environment's part, which does not change while the process lives.
    variables: fn(&str) -> Option<String>,
}

impl Source {
    /// `variables` looks into the environment.
    pub(super) fn new(
        typed: Typed,
        built_in: &'static [BuiltIn],
        variables: fn(&str) -> Option<String>,
    ) -> Self {
        Self {
            typed,
            built_in,
            variables,
        }
    }

    /// What is meant now; the error says what is wrong, in one line.
    pub(in crate::launcher) fn plan(&self) -> Result<Plan, String> {
        let Typed {
            words,
            options,
            arguments,
        } = &self.typed;
        let mut given = Given::default();
        for (name, value) in options {
            given.type_in(name, value.clone());
        }
        // A spec in the first place means that the file says which handler it is.
        let has_app = words
            .first()
            .is_some_and(|word| word.parse::<Endpoint>().is_err());
        let names = ["app", "send", "recv"];
        for (name, word) in names.iter().skip(usize::from(!has_app)).zip(words) {
            given.type_in(name, word.clone());
        }
        let common_names = COMMON.iter().map(|option| (option.name, option.repeat));
        let names = common_names.chain(names.map(|name| (name, false)));
        given.read_environment(RUN, names, self.variables);
        let file = given.last("options").map(|said| PathBuf::from(&said.value));
        let text = file.as_deref().map(read).transpose()?;
        let file = file.as_deref().zip(text.as_deref());
        let tables: Vec<&str> = self.built_in.iter().map(|handler| handler.name).collect();
        if let Some((path, text)) = file {
            // First only to learn which handler it is.
            let mut first = given.clone();
            first.read_file(path, text, &tables, None)?;
            if let Some(app) = first.last("app") {
                let handler = self.handler(&app.value)?.map(|handler| handler.name);
                given.read_file(path, text, &tables, handler)?;
            }
        }
        let app = given.last("app").map(|said| said.value.clone());
        let app = app
            .or_else(|| self.meant_by(&given))
            .ok_or("no handler named: say which, as `lurcher run echo SEND`")?;
        let handler = self.handler(&app)?;
        let part = (self.variables)(PART_OF);
        let part = part.as_deref().and_then(Part::read);
        for (name, value) in part.iter().flat_map(|part| &part.options) {
            given.overrule(name, value);
        }
        let own = handler.map(|handler| handler.options).unwrap_or_default();
        given.read_environment(
            RUN,
            own.iter().map(|option| (option.name, option.repeat)),
            self.variables,
        );
        let known = |name: &str| {
            ["app", "send", "recv", "arguments"].contains(&name)
                || common(name).is_some()
                || own.iter().any(|option| option.name == name)
        };
        if let Some(said) = given.unknown(known) {
            return Err(said.wrong(format_args!(
                "no option of `lurcher run {app}` is called so"
            )));
        }
        decide(&app, handler, &given, arguments, part.as_ref())
            .map_err(|why| format!("running `{}`: {why}", app.escape_debug()))
    }

    /// The handler whose options say all that APP would: one that can be called by its name alone, and has been given one of its
    /// assignments.
    fn meant_by(&self, given: &Given) -> Option<String> {
        let is_meant = |handler: &&BuiltIn| {
            let mut forms = handler.targets.iter().map(|target| target.form);
            forms.any(|form| form.split(' ').next() == Some(handler.name))
                && handler.options.iter().any(|option| {
                    let values = given.all(option.name);
                    option.repeat && values.iter().any(|said| said.value.contains('='))
                })
        };
        let found = self.built_in.iter().find(is_meant)?;
        Some(found.name.to_owned())
    }

    /// The handler that APP names; `None` for a program of the user's own.
    fn handler(&self, app: &str) -> Result<Option<&'static BuiltIn>, String> {
        if app.starts_with(app::EXEC) {
            return Ok(None);
        }
        if let Some(handler) = app::named(self.built_in, app) {
            return Ok(Some(handler));
        }
        Err(app::unknown(self.built_in, app))
    }
}

/// How long a worker has to stop.
pub(super) fn patience(given: &Given) -> Result<Duration, String> {
    Ok(said(given, "graceful-timeout", seconds)?.unwrap_or(GRACEFUL_TIMEOUT))
}

/// The whole plan for one handler; `None` is a program of the user's own.
fn decide(
    app: &str,
    handler: Option<&'static BuiltIn>,
    given: &Given,
    arguments: &[OsString],
    part: Option<&Part>,
) -> Result<Plan, String> {
    let path = |name: &str| given.last(name).map(|said| PathBuf::from(&said.value));
    let text = |name: &str| given.last(name).map(|said| said.value.clone());
    let concurrency = number(given, "concurrency", 1, COUNT_MAX)?;
    let (work, groups) = match handler {
        Some(_) if !arguments.is_empty() => {
            return Err("arguments behind `--` are for exec:PROGRAM".to_owned());
        }
        Some(handler) => app::built_in(app, handler, given, part)?,
        None => (app::exec(app, given, arguments)?, Vec::new()),
    };
    let name = text("name").unwrap_or_else(|| app.to_owned());
    if name.is_empty() || name.contains(char::is_control) {
        return Err("--name is empty or has control characters".to_owned());
    }
    let watch = watched(given, &work, !groups.is_empty())?;
    let connection = servers(given)?;
    let feed = feed(given)?;
    if feed == Feed::Supervisor && connection.send_specs.iter().any(Endpoint::is_broker) {
        return Err(
            "--feed supervisor is for servers: workers go to a broker by themselves".to_owned(),
        );
    }
    let pool = text("pool").filter(|pool| !pool.is_empty());
    if pool
        .as_ref()
        .is_some_and(|pool| pool.len() > NAME_BYTES_MAX)
    {
        return Err(format!("--pool is longer than {NAME_BYTES_MAX} bytes"));
    }
    let mut plan = Plan {
        name,
        app: work,
        servers: connection.pairs().map_err(|error| error.to_string())?,
        chroot: connection.chroot,
        upload_store: connection.upload_store,
        ident: text("ident").filter(|ident| !ident.is_empty()),
        feed,
        workers: number(given, "workers", 0, WORKERS_MAX)?.unwrap_or(1),
        threads: number(given, "threads", 1, COUNT_MAX)?.unwrap_or(1),
        concurrency,
        slots: number(given, "slots", 1, COUNT_MAX)?,
        pool,
        weight: number(given, "weight", 1, WEIGHT_MAX)?.unwrap_or(1),
        max_requests: max_requests(given)?,
        max_memory: said(given, "max-memory", size)?,
        graceful_timeout: patience(given)?,
        watch,
        pid_file: path("pid-file"),
        control: said(given, "control", |text| {
            text.parse()
                .map_err(|error: EndpointError| error.to_string())
        })?,
        user: text("user"),
        group: text("group"),
        umask: said(given, "umask", umask)?,
        env: environment(given)?,
        chdir: path("chdir"),
        access_log: path("access-log"),
        stop_on_eof: is_said(given, "stop-on-eof")?,
        reload: is_said(given, "reload")?,
        groups,
        check: is_said(given, "check")?,
    };
    if let Some(part) = part {
        part.apply(&mut plan)?;
    }
    Ok(plan)
}

pub(in crate::launcher) fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("reading {}: {error}", path.display()))
}

/// The servers as they were typed, or as a configuration has them, and what the connection to them has to know.
fn servers(given: &Given) -> Result<Options, String> {
    let specs = |name| -> Result<Vec<Endpoint>, String> {
        let mut specs = Vec::new();
        for said in given.all(name) {
            for text in said.value.split(',') {
                specs.push(text.trim().parse().map_err(|error| said.wrong(error))?);
            }
        }
        Ok(specs)
    };
    let (send, recv) = (specs("send")?, specs("recv")?);
    let mut brokers = Vec::new();
    for said in given.all("broker") {
        for text in said.value.split(',') {
            let text = text.trim();
            let spec = if text.starts_with("broker+") {
                text.parse()
            } else {
                format!("broker+{text}").parse()
            };
            brokers.push(spec.map_err(|error: EndpointError| said.wrong(error))?);
        }
    }
    let by = ["route", "host", "server", "handler"].map(|name| {
        let mut values = given.all(name);
        values.retain(|said| name != "host" || !said.value.contains('='));
        values.pop()
    });
    let mut options = match given.last("config") {
        Some(_) if !send.is_empty() => {
            return Err(
                "--config goes without SEND and RECV: the specs are in the configuration"
                    .to_owned(),
            );
        }
        Some(config) => from_config(config, by)?,
        None => {
            if let Some(said) = by.into_iter().flatten().next() {
                return Err(said.wrong("it goes with --config"));
            }
            if send.is_empty() && brokers.is_empty() {
                return Err(
                    "no server named: give its send_spec, or --config and --route, or --broker"
                        .to_owned(),
                );
            }
            let mut options = Options::new(send);
            options.recv_specs = recv;
            options
        }
    };
    options.send_specs.extend(brokers);
    for (name, place) in [
        ("chroot", &mut options.chroot),
        ("upload-store", &mut options.upload_store),
    ] {
        if let Some(said) = given.last(name) {
            *place = Some(PathBuf::from(&said.value));
        }
    }
    Ok(options)
}

/// The servers of a configuration: the handler that is selected by route, host, server and ident, as far as those are named.
fn from_config(config: &Said, by: [Option<&Said>; 4]) -> Result<Options, String> {
    let [route, host, server, ident] = by.map(|said| said.map(|said| said.value.as_str()));
    let mut selector = Selector::new();
    if let Some(path) = route {
        selector = selector.route(path);
    }
    if let Some(name) = host {
        selector = selector.host(name);
    }
    if let Some(name) = server {
        selector = selector.server(name);
    }
    if let Some(ident) = ident {
        selector = selector.ident(ident);
    }
    Options::from_config(&config.value, &selector).map_err(|error| error_chain(&error))
}

/// An error with its causes, on one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The value of an option, read by `read`, whose error is told with its place.
pub(in crate::launcher) fn said<T, E: Display>(
    given: &Given,
    name: &str,
    read: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, String> {
    given
        .last(name)
        .map(|said| read(&said.value).map_err(|why| said.wrong(why)))
        .transpose()
}

pub(in crate::launcher) fn number(
    given: &Given,
    name: &str,
    min: u32,
    max: u32,
) -> Result<Option<u32>, String> {
    said(given, name, |text| {
        let number = text
            .parse()
            .ok()
            .filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| format!("not a number from {min} to {max}"))
    })
}

pub(in crate::launcher) fn is_said(given: &Given, name: &str) -> Result<bool, String> {
    let value = said(given, name, |text| match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" | "" => Ok(false),
        _ => Err("neither true nor false"),
    });
    Ok(value?.unwrap_or(false))
}

fn feed(given: &Given) -> Result<Feed, String> {
    let feed = said(given, "feed", |text| match text {
        "auto" => Ok(Feed::Auto),
        "direct" => Ok(Feed::Direct),
        "supervisor" => Ok(Feed::Supervisor),
        _ => Err("neither auto, direct nor supervisor"),
    });
    Ok(feed?.unwrap_or(Feed::Auto))
}

fn max_requests(given: &Given) -> Result<Option<(u64, u64)>, String> {
    let count = |text: &str| text.parse::<u64>().map_err(|_| "not a number");
    let jitter = said(given, "max-requests-jitter", count)?;
    let most = said(given, "max-requests", |text| {
        let most = count(text)?;
        if most == 0 {
            Err("not a number above 0")
        } else {
            Ok(most)
        }
    })?;
    Ok(most.map(|most| (most, jitter.unwrap_or(most / 10))))
}

/// Bytes, with K, M or G behind them or not.
pub(in crate::launcher) fn size(text: &str) -> Result<u64, &'static str> {
    const WHY: &str =
        "not a size as 500M: digits, and K, M or G for 2 to the power of 10, 20 or 30";
    let (digits, shift) = match text.trim_end_matches(['B', 'b', 'i']) {
        rest if rest.ends_with(['K', 'k']) => (rest, 10),
        rest if rest.ends_with(['M', 'm']) => (rest, 20),
        rest if rest.ends_with(['G', 'g']) => (rest, 30),
        rest => (rest, 0),
    };
    let digits = digits.trim_end_matches(|letter: char| letter.is_ascii_alphabetic() && shift > 0);
    let number: u64 = digits.parse().map_err(|_| WHY)?;
    number
        .checked_mul(1 << shift)
        .filter(|size| *size > 0)
        .ok_or(WHY)
}

pub(in crate::launcher) fn seconds(text: &str) -> Result<Duration, &'static str> {
    const MAX: f64 = 86_400.0;
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if !(0.0..=MAX).contains(&seconds) {
        return Err("not a number of seconds from 0 to 86400");
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn umask(text: &str) -> Result<u32, &'static str> {
    let mask = u32::from_str_radix(text, 8)
        .ok()
        .filter(|mask| *mask <= 0o777);
    mask.ok_or("not an octal number from 0 to 777")
}

/// What workers find in their environment beside what is there.
pub(super) fn environment(given: &Given) -> Result<Vec<(OsString, OsString)>, String> {
    let mut variables = Vec::new();
    for said in given.all("env-file") {
        let text = read(Path::new(&said.value))?;
        let found = env_file::parse(&text)
            .map_err(|(line, why)| format!("{}:{line}: {why}", said.value))?;
        variables.extend(
            found
                .into_iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
    }
    for said in given.all("env") {
        let (name, value) = said
            .value
            .split_once('=')
            .ok_or_else(|| said.wrong("no `=`"))?;
        if !env_file::is_name(name) {
            return Err(said.wrong("no name of a variable before the `=`"));
        }
        variables.push((name.into(), value.into()));
    }
    Ok(variables)
}

/// What is watched for changes.
fn watched(given: &Given, app: &App, has_groups: bool) -> Result<Vec<PathBuf>, String> {
    let named = given
        .all("reload-path")
        .into_iter()
        .map(|said| PathBuf::from(&said.value));
    let mut paths: Vec<PathBuf> = named.collect();
    if !is_said(given, "reload")? {
        return match paths.first() {
            Some(_) => Err("--reload-path goes with --reload".to_owned()),
            None => Ok(paths),
        };
    }
    if let App::Exec { program, arguments } = app {
        // An interpreter's script is an argument; a program without a slash is the system's.
        let files = std::iter::once(program).chain(arguments).map(PathBuf::from);
        paths.extend(
            files
                .filter(|path| path.components().count() > 1 || path.extension().is_some())
                .filter(|path| path.exists()),
        );
    }
    for name in ["options", "env-file", "config"] {
        paths.extend(
            given
                .all(name)
                .into_iter()
                .map(|said| PathBuf::from(&said.value)),
        );
    }
    // What lives in another program tells what it has read, and groups see to themselves.
    if !has_groups
        && paths.is_empty()
        && !matches!(
            app,
            App::BuiltIn {
                program: Some(_),
                ..
            }
        )
    {
        return Err(
            "--reload finds nothing to watch: name files or folders with --reload-path".to_owned(),
        );
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launcher::{Handler, Opt, Target};

    const BUILT_IN: &[BuiltIn] = &[
        BuiltIn {
            name: "echo",
            about: "Echo",
            targets: &[],
            options: &[],
            run: |_| Ok(Handler::new(async |_| Ok(()))),
        },
        BuiltIn {
            name: "files",
            about: "Files",
            targets: &[Target {
                scheme: "files",
                form: "files:DIR",
            }],
            options: &[Opt {
                name: "index",
                value: "NAME",
                help: "The index",
                repeat: true,
            }],
            run: |values| match values.get("index") {
                Some("") => Err("--index is empty".to_owned()),
                _ => Ok(Handler::new(async |_| Ok(()))),
            },
        },
    ];
    const SEND: &str = "tcp://127.0.0.1:9999";

    fn plan(words: &[&str], options: &[(&str, &str)]) -> Result<Plan, String> {
        let typed = Typed {
            words: words.iter().map(ToString::to_string).collect(),
            options: options
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            arguments: Vec::new(),
        };
        Source::new(typed, BUILT_IN, |_| None).plan()
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let plan = plan(&["echo", SEND], &[]).unwrap();
        assert_eq!(
            (plan.name.as_str(), plan.workers, plan.threads),
            ("echo", 1, 1)
        );
        assert_eq!(plan.servers[0].1.to_string(), "tcp://127.0.0.1:9998");
        assert_eq!(
            (plan.feed, plan.graceful_timeout),
            (Feed::Auto, Duration::from_secs(30))
        );
        assert_eq!(
            (plan.max_requests, plan.max_memory, plan.umask),
            (None, None, None)
        );
    }

    #[test]
    fn a_broker_is_served_beside_servers_or_alone() {
        let plan_of = plan;
        let broker = ("broker", "tcp://127.0.0.1:9000,broker+ipc:///run/b");
        let plan = plan_of(&["echo"], &[broker, ("slots", "4"), ("pool", "shop")]).unwrap();
        let specs: Vec<_> = plan.servers.iter().map(|(send, _)| send.spec()).collect();
        assert_eq!(
            specs,
            ["broker+tcp://127.0.0.1:9000", "broker+ipc:///run/b"]
        );
        assert!(plan.has_broker());
        assert_eq!(
            (plan.slots, plan.pool.as_deref(), plan.weight),
            (Some(4), Some("shop"), 1)
        );
        let plan = plan_of(
            &["echo", "broker+tcp://a:1,ipc:///s", "ipc:///r"],
            &[("weight", "7")],
        )
        .unwrap();
        assert_eq!(plan.servers[1].1.to_string(), "ipc:///r");
        assert_eq!((plan.servers.len(), plan.weight), (2, 7));
        let wrong = |option| plan_of(&["echo"], &[broker, option]).map(drop).unwrap_err();
        assert_eq!(
            wrong(("broker", "tcp://a:1#bind")),
            "running `echo`: --broker `tcp://a:1#bind`: socket spec `broker+tcp://a:1#bind`: \
             a worker goes to its broker: `broker+` and `#bind` do not go together"
        );
        assert_eq!(
            wrong(("feed", "supervisor")),
            "running `echo`: --feed supervisor is for servers: workers go to a broker by themselves"
        );
        assert!(wrong(("slots", "0")).contains("not a number from 1"));
    }

    #[test]
    fn values_are_read_with_their_units() {
        let options = [
            ("max-memory", "512M"),
            ("umask", "027"),
            ("graceful-timeout", "1.5"),
            ("max-requests", "1000"),
        ];
        let plan = plan(&["files:/srv", SEND, "ipc:///r"], &options).unwrap();
        assert_eq!(plan.max_memory, Some(512 << 20));
        assert_eq!(plan.umask, Some(0o027));
        assert_eq!(plan.graceful_timeout, Duration::from_millis(1500));
        assert_eq!(plan.max_requests, Some((1000, 100)));
        let App::BuiltIn {
            handler, values, ..
        } = plan.app
        else {
            panic!("{:?}", plan.app)
        };
        assert_eq!((handler.name, values.target()), ("files", "files:/srv"));
        for (text, bytes) in [
            ("1", 1),
            ("2K", 2 << 10),
            ("3MiB", 3 << 20),
            ("1GB", 1 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "M", "-1M", "1T", "99999999999G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mistakes_are_told_in_one_line_with_what_was_meant() {
        let wrong =
            |words: &[&str], options: &[(&str, &str)]| plan(words, options).map(drop).unwrap_err();
        assert_eq!(
            wrong(&["nothing", SEND], &[]),
            "running `nothing`: no such handler: there are echo, files:DIR, exec:PROGRAM"
        );
        assert_eq!(
            wrong(&["files", SEND], &[]),
            "running `files`: it needs to know what it works on: files:DIR"
        );
        assert_eq!(
            wrong(&["files:/", SEND], &[("index", "")]),
            "running `files:/`: --index is empty"
        );
        assert_eq!(
            wrong(&["echo"], &[]),
            "running `echo`: no server named: give its send_spec, or --config and --route, or --broker"
        );
        assert_eq!(
            wrong(&["echo", SEND], &[("workers", "many")]),
            "running `echo`: --workers `many`: not a number from 0 to 1024"
        );
        assert_eq!(
            wrong(&[], &[]),
            "no handler named: say which, as `lurcher run echo SEND`"
        );
        assert_eq!(
            wrong(&["echo", SEND], &[("reload", "true")]),
            "running `echo`: --reload finds nothing to watch: name files or folders with --reload-path"
        );
    }

    #[test]
    fn a_file_may_say_everything_and_is_read_anew_for_each_plan() {
        let directory = tempfile::tempdir().unwrap();
        let [file, variables] = ["run.toml", "app.env"].map(|name| directory.path().join(name));
        fs::write(&variables, "A=file\nB=2\n").unwrap();
        let write = |workers: u32| {
            let text = format!(
                "app = 'files:/srv'\nworkers = {workers}\nsend = ['{SEND}']\nenv-file = '{}'\nenv = ['A=1']\n\
                 [files]\nindex = ['a', 'b']\n[echo]\n",
                variables.display()
            );
            fs::write(&file, text).unwrap();
        };
        write(2);
        let typed = Typed {
            options: vec![("options".to_owned(), file.display().to_string())],
            ..Typed::default()
        };
        let source = Source::new(typed, BUILT_IN, |_| None);
        let plan = source.plan().unwrap();
        assert_eq!((plan.workers, plan.name.as_str()), (2, "files:/srv"));
        let last = |name: &str| {
            plan.env
                .iter()
                .rfind(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        };
        assert_eq!((last("A"), last("B")), (Some("1".into()), Some("2".into())));
        let App::BuiltIn { values, .. } = &plan.app else {
            panic!("{:?}", plan.app)
        };
        assert_eq!(values.all("index").collect::<Vec<_>>(), ["a", "b"]);
        write(5);
        assert_eq!(source.plan().unwrap().workers, 5);
        fs::write(&file, "app = 'echo'\nwrkers = 3\n").unwrap();
        let why = source.plan().unwrap_err();
        assert_eq!(
            why,
            format!(
                "{}:2:1: wrkers `3`: no option of `lurcher run echo` is called so",
                file.display()
            )
        );
    }

    #[test]
    fn a_spec_in_the_first_place_leaves_the_handler_to_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("run.toml");
        fs::write(&file, "app = 'echo'\n").unwrap();
        let plan = plan(
            &[SEND, "ipc:///r"],
            &[("options", &file.display().to_string())],
        )
        .unwrap();
        assert_eq!(plan.servers[0].1.to_string(), "ipc:///r");
    }

    #[test]
    fn a_program_of_ones_own_is_watched_with_its_script() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("handler.py");
        fs::write(&script, "").unwrap();
        let typed = Typed {
            words: vec!["exec:python3".to_owned(), SEND.to_owned()],
            options: vec![("reload".to_owned(), "true".to_owned())],
            arguments: vec![script.clone().into(), "--verbose".into()],
        };
        let plan = Source::new(typed, BUILT_IN, |_| None).plan().unwrap();
        assert_eq!(plan.watch, [script]);
        let App::Exec { program, arguments } = plan.app else {
            panic!("{:?}", plan.app)
        };
        assert_eq!((program, arguments.len()), ("python3".into(), 2));
    }
}

//! From what was said to what will be done. Read again on a reload, when the file of options may have changed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::WORDS;
use super::options::{OPTIONS, option};
use crate::broker::{Again, PoolSpec, Route, Rules};
use crate::endpoint::{Endpoint, EndpointError, Mode, Transport};
use crate::handler::Options;
use crate::launcher::given::{BROKER, Given, Said};
use crate::launcher::run::source::{is_said, number, read, said, seconds, size};
use crate::pool::{Order, Outlier, Tie};
use crate::sticky::Key;
use crate::sys;

/// How long open requests may go on at the end.
const GRACEFUL_TIMEOUT: Duration = Duration::from_secs(30);

/// Most slots of a worker, and most requests that may wait: beyond it somebody mistyped.
const SLOTS_MAX: u32 = 1_000_000;
const QUEUE_MAX: u32 = 10_000_000;

/// Where memory is that files can be had of, and processes come and go without it.
const MEMORY: &str = "/dev/shm";

/// Shortest time between two questions whether a worker is there: beyond it they are work of their own.
const PING_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Longest name: it stands in the name of a file.
const NAME_BYTES_MAX: usize = 128;

/// What will be done.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) servers: Vec<(Endpoint, Endpoint)>,
    pub(super) pools: Vec<PoolSpec>,
    /// The addresses for pings in `pools` were not asked for: it goes without them.
    pub(super) pings_are_optional: bool,
    pub(super) rules: Rules,
    pub(super) ident: Option<String>,
    pub(super) state: Option<PathBuf>,
    pub(super) graceful_timeout: Duration,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) control: Option<Endpoint>,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) stop_on_eof: bool,
    /// What was said of options that a reload does not take up, to see that it has changed.
    pub(super) fixed: Vec<(String, String)>,
}

/// What is meant now; the error says what is wrong, in one line. `variables` looks into the environment.
pub(super) fn plan(
    typed: &[(String, String)],
    variables: impl Fn(&str) -> Option<String>,
) -> Result<Plan, String> {
    let mut given = Given::default();
    for (name, value) in typed {
        given.type_in(name, value.clone());
    }
    let words = WORDS.map(|(name, _)| (name.to_ascii_lowercase(), false));
    let words = words.iter().map(|(name, repeat)| (name.as_str(), *repeat));
    let names = OPTIONS.iter().map(|option| (option.name, option.repeat));
    given.read_environment(BROKER, names.chain(words), variables);
    if let Some(file) = given.last("options").map(|said| said.value.clone()) {
        let path = Path::new(&file);
        given.read_file(path, &read(path)?, &[], None)?;
    }
    let is_word = |name: &str| {
        WORDS
            .iter()
            .any(|(word, _)| word.eq_ignore_ascii_case(name))
    };
    let known = |name: &str| is_word(name) || option(name).is_some();
    if let Some(said) = given.unknown(known) {
        return Err(said.wrong("no option of `lurcher broker` is called so"));
    }
    decide(&given)
}

fn decide(given: &Given) -> Result<Plan, String> {
    let servers = servers(given)?;
    let (pools, pings_are_optional) = pools(given)?;
    told_apart(&servers, &pools)?;
    let text = |name: &str| given.last(name).map(|said| said.value.clone());
    let name = match given.last("name") {
        Some(said) => {
            let is_name = |name: &str| {
                (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control)
            };
            let why = "a name has from 1 to 128 bytes and no control characters";
            Some(&said.value)
                .filter(|name| is_name(name))
                .cloned()
                .ok_or_else(|| said.wrong(why))?
        }
        None => name_of(&servers),
    };
    let state = match text("state").as_deref() {
        Some("none") => None,
        Some(file) => Some(PathBuf::from(file)),
        None => usual_state(&name),
    };
    let endpoint = |text: &str| {
        text.parse()
            .map_err(|error: EndpointError| error.to_string())
    };
    let fixed = OPTIONS.iter().filter(|option| !option.reloads);
    let fixed = fixed.map(|option| option.name).chain(["send", "recv"]);
    let fixed = fixed.flat_map(|name| {
        let values = given.all(name).into_iter();
        values.map(|said| (said.name.clone(), said.value.clone()))
    });
    Ok(Plan {
        rules: rules(given)?,
        ident: text("ident").filter(|ident| !ident.is_empty()),
        graceful_timeout: said(given, "graceful-timeout", seconds)?.unwrap_or(GRACEFUL_TIMEOUT),
        pid_file: text("pid-file").map(PathBuf::from),
        control: said(given, "control", endpoint)?,
        metrics: said(given, "metrics", |text| {
            text.parse()
                .map_err(|_| "no address with a port, as 127.0.0.1:9127")
        })?,
        stop_on_eof: is_said(given, "stop-on-eof")?,
        fixed: fixed.collect(),
        name,
        servers,
        pools,
        pings_are_optional,
        state,
    })
}

fn servers(given: &Given) -> Result<Vec<(Endpoint, Endpoint)>, String> {
    let specs = |name| -> Result<Vec<Endpoint>, String> {
        let mut specs = Vec::new();
        for said in given.all(name) {
            for text in said.value.split(',') {
                let server = spec(said, text)?;
                if server.is_broker() {
                    return Err(said.wrong("that is where a broker takes workers, and no server"));
                }
                if server.mode == Some(Mode::Bind) {
                    return Err(said.wrong("a broker goes to its servers: it cannot be bound"));
                }
                specs.push(server);
            }
        }
        Ok(specs)
    };
    let send = specs("send")?;
    if send.is_empty() {
        return Err("no server named: give its send_spec".to_owned());
    }
    let mut options = Options::new(send);
    options.recv_specs = specs("recv")?;
    options.pairs().map_err(|error| error.to_string())
}

fn spec(said: &Said, text: &str) -> Result<Endpoint, String> {
    text.trim()
        .parse()
        .map_err(|error: EndpointError| said.wrong(error))
}

/// An address to which workers come.
fn place(said: &Said, text: &str) -> Result<Endpoint, String> {
    let place = spec(said, text)?;
    if place.mode == Some(Mode::Connect) {
        return Err(said.wrong("workers come to it: it cannot be connected"));
    }
    Ok(place)
}

/// Finds an address that two sockets are to have: one of them would wait for the other, or for itself.
fn told_apart(servers: &[(Endpoint, Endpoint)], pools: &[PoolSpec]) -> Result<(), String> {
    let servers = servers.iter().flat_map(|(send, recv)| [send, recv]);
    let pools = pools.iter().flat_map(|pool| {
        let plain = pool
            .plain
            .iter()
            .flat_map(|(pull, publish)| [pull, publish]);
        pool.workers.iter().chain(plain).chain(&pool.pings)
    });
    let is_any = |spec: &Endpoint| matches!(spec.transport, Transport::Tcp { port: None, .. });
    let mut seen: Vec<&Endpoint> = Vec::new();
    for spec in servers.chain(pools).filter(|spec| !is_any(spec)) {
        if seen.iter().any(|other| other.transport == spec.transport) {
            return Err(format!(
                "{spec} is named twice: every socket has an address of its own"
            ));
        }
        seen.push(spec);
    }
    Ok(())
}

/// The pools, those with a route first, and whether the pings of the last were not asked for.
fn pools(given: &Given) -> Result<(Vec<PoolSpec>, bool), String> {
    let mut pools = Vec::new();
    for said in given.all("pool") {
        pools.push(pool(said)?);
    }
    let one = |name: &str| {
        given
            .last(name)
            .map(|said| place(said, &said.value))
            .transpose()
    };
    let workers = one("workers")?;
    if workers.is_none()
        && let Some(place) = pools
            .iter()
            .position(|pool: &PoolSpec| pool.workers.is_none() && pool.plain.is_none())
        && let Some(said) = given.all("pool").get(place)
    {
        return Err(said.wrong(
            "it has no address for workers: add ,workers=SPEC or ,plain=PULL;PUB, or give --workers",
        ));
    }
    let plain = match given.last("plain") {
        Some(said) => Some(pair(said, &said.value, ',')?),
        None => None,
    };
    let mut optional = false;
    let pings = match given.last("pings") {
        Some(said) if said.value == "none" => None,
        Some(said) => Some(place(said, &said.value)?),
        None => {
            optional = true;
            let others = pools.iter().flat_map(|pool: &PoolSpec| {
                let plain = pool
                    .plain
                    .iter()
                    .flat_map(|(pull, publish)| [pull, publish]);
                pool.workers.iter().chain(plain).chain(&pool.pings)
            });
            let own = plain.iter().flat_map(|(pull, publish)| [pull, publish]);
            let named: Vec<_> = own.chain(others).map(|named| &named.transport).collect();
            let is_named = |up: &Endpoint| named.contains(&&up.transport);
            workers
                .as_ref()
                .and_then(one_port_up)
                .filter(|up| !is_named(up))
        }
    };
    if workers.is_some() || plain.is_some() {
        pools.push(PoolSpec {
            name: "default".to_owned(),
            route: None,
            workers,
            plain,
            pings,
        });
    }
    if pools.is_empty() {
        return Err("no address for workers: give --workers, --plain or --pool".to_owned());
    }
    let mut names: Vec<_> = pools.iter().map(|pool| &pool.name).collect();
    names.sort_unstable();
    if let Some([twice, _]) = names.array_windows().find(|[a, b]| a == b) {
        return Err(format!("--pool: two are called `{twice}`"));
    }
    Ok((pools, optional))
}

/// `NAME=ROUTE[,workers=SPEC][,plain=PULL;PUB][,pings=SPEC]`; a route may have commas of its own.
fn pool(said: &Said) -> Result<PoolSpec, String> {
    let (name, mut rest) = said
        .value
        .split_once('=')
        .filter(|(name, _)| !name.is_empty() && name.len() <= NAME_BYTES_MAX)
        .ok_or_else(|| said.wrong("it begins with a name, as NAME=ROUTE"))?;
    let (mut workers, mut plain, mut pings) = (None, None, None);
    while let Some((before, last)) = rest.rsplit_once(',') {
        match last.split_once('=') {
            Some(("workers", text)) => workers = Some(place(said, text)?),
            Some(("plain", text)) => plain = Some(pair(said, text, ';')?),
            Some(("pings", text)) => pings = Some(place(said, text)?),
            Some((part, text)) if text.contains("://") => {
                return Err(said.wrong(format_args!(
                    "behind the route may stand workers=, plain= and pings=, not {part}="
                )));
            }
            _ => break,
        }
        rest = before;
    }
    if !rest.starts_with(['/', '@', '<', '(']) {
        return Err(said.wrong("no path is like its route, which begins with /, @ or <"));
    }
    Ok(PoolSpec {
        name: name.to_owned(),
        route: Some(Route::parse(rest).map_err(|why| said.wrong(why))?),
        workers,
        plain,
        pings,
    })
}

fn pair(said: &Said, text: &str, between: char) -> Result<(Endpoint, Endpoint), String> {
    match text.split_once(between) {
        Some((send, recv)) => Ok((place(said, send)?, place(said, recv)?)),
        None => Err(said.wrong(format_args!("it takes two addresses, as PULL{between}PUB"))),
    }
}

fn one_port_up(endpoint: &Endpoint) -> Option<Endpoint> {
    let mut up = endpoint.clone();
    match &mut up.transport {
        Transport::Tcp {
            port: Some(port), ..
        } => {
            *port = port.checked_add(1)?;
            Some(up)
        }
        _ => None,
    }
}

fn rules(given: &Given) -> Result<Rules, String> {
    let mut rules = Rules::default();
    let slots = |text: &str| match text {
        "none" => Ok(None),
        _ => text
            .parse()
            .ok()
            .filter(|count| (1..=SLOTS_MAX).contains(count))
            .map(Some)
            .ok_or("neither none nor a number from 1 to 1000000"),
    };
    if let Some(slots) = said(given, "slots", slots)? {
        rules.slots = slots;
    }
    if let Some(count) = number(given, "prefetch", 0, SLOTS_MAX)? {
        rules.prefetch_max = count;
    }
    if let Some(queue) = number(given, "queue", 1, QUEUE_MAX)? {
        rules.waiting_max = queue as usize;
    }
    if let Some(bytes) = said(given, "queue-bytes", size)? {
        rules.waiting_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
    }
    if let Some(wait) = said(given, "wait", seconds)? {
        rules.wait_max = wait;
    }
    if let Some(count) = number(given, "queue-per-slot", 1, QUEUE_MAX)? {
        rules.waiting_per_slot_max = Some(count);
    }
    if let Some(grace) = said(given, "start-grace", seconds)? {
        rules.start_grace = grace;
    }
    let budget = |text: &str| match text {
        "none" => Ok(None),
        _ => text
            .parse()
            .ok()
            .filter(|share| (0.0..=1.0).contains(share))
            .map(Some)
            .ok_or("neither none nor a share from 0 to 1"),
    };
    if let Some(budget) = said(given, "retry-budget", budget)? {
        rules.retry_budget = budget;
    }
    let outlier = |text: &str| match text {
        "off" => Ok(None),
        _ => text
            .parse()
            .ok()
            .filter(|factor| (1.5..=1000.0).contains(factor))
            .map(|factor| {
                Some(Outlier {
                    factor,
                    ..Outlier::default()
                })
            })
            .ok_or("neither off nor a factor from 1.5 to 1000"),
    };
    if let Some(outlier) = said(given, "outlier", outlier)? {
        rules.outlier = outlier;
    }
    rules.deadline = said(given, "deadline", seconds)?.filter(|time| !time.is_zero());
    let again = |text: &str| match text {
        "no" => Ok(Again::No),
        "safe" => Ok(Again::Safe),
        "always" => Ok(Again::Always),
        _ => Err("neither no, safe nor always"),
    };
    choose(given, &mut rules)?;
    rules.again = said(given, "retry", again)?.unwrap_or_default();
    rules.sticky = said(given, "sticky", Key::parse)?;
    Ok(rules)
}

/// Which worker is next, which request, and what a worker's silence means.
fn choose(given: &Given, rules: &mut Rules) -> Result<(), String> {
    let interval = |text: &str| match seconds(text) {
        Ok(time) if time < PING_INTERVAL_MIN => Err("less than 0.1 seconds"),
        time => time,
    };
    if let Some(interval) = said(given, "ping-interval", interval)? {
        rules.heartbeats.interval = interval;
    }
    let after = |text: &str| match text {
        "never" => Ok(None),
        _ => seconds(text)
            .ok()
            .filter(|time| !time.is_zero())
            .map(Some)
            .ok_or("neither never nor a number of seconds above 0"),
    };
    if let Some(stuck) = said(given, "stuck-after", after)? {
        rules.heartbeats.stuck_after = stuck;
    }
    if let Some(Some(target)) = said(given, "lifo-after", after)? {
        rules.order = Order::AdaptiveLifo { target };
    }
    if let Some(grace) = said(given, "suspect-grace", seconds)? {
        rules.suspect_grace = grace;
    }
    if let Some(time) = said(given, "slow-start", seconds)? {
        rules.slow_start = time;
    }
    let tie = |text: &str| match text {
        "idle" => Ok(Tie::LongestIdle),
        "busy" => Ok(Tie::MostRecent),
        _ => Err("neither idle nor busy"),
    };
    if let Some(tie) = said(given, "tie", tie)? {
        rules.tie = tie;
    }
    Ok(())
}

/// The same for the same servers.
fn name_of(servers: &[(Endpoint, Endpoint)]) -> String {
    let specs: Vec<_> = servers.iter().map(|(send, _)| send.to_string()).collect();
    let mut name = specs.join(",");
    // The name of a file has to be found again, not to be read.
    if name.len() > NAME_BYTES_MAX {
        let sum = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        name = format!("{} servers {sum:016x}", servers.len());
    }
    name
}

/// The file of a broker by that name; none where there is no memory for it.
fn usual_state(name: &str) -> Option<PathBuf> {
    let letter = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' {
            c
        } else {
            '-'
        }
    };
    let name: String = name.chars().map(letter).collect();
    let file = format!("lurcher-broker-{}-{name}", sys::effective_user());
    let memory = Path::new(MEMORY);
    if sys::may_use(memory, true).is_ok() {
        return Some(memory.join(file));
    }
    let folder = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty())?;
    Some(Path::new(&folder).join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Plan, String> {
        let mut typed = Vec::new();
        let mut words = line.split(' ');
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                Some(name) => typed.push((name.to_owned(), words.next().unwrap().to_owned())),
                None => typed.push(("send".to_owned(), word.to_owned())),
            }
        }
        plan(&typed, |_| None)
    }

    #[test]
    fn pools_with_routes_come_first_and_the_rest_goes_to_the_default() {
        let plan = read(
            "tcp://a:2 --workers tcp://127.0.0.1:7 --plain tcp://b:8,tcp://b:9 \
             --pool api=/api/(x{1,2}),workers=tcp://c:5,plain=tcp://c:6;tcp://c:7 --name x",
        )
        .unwrap();
        assert_eq!(plan.servers[0].1.to_string(), "tcp://a:1");
        let [api, default] = plan.pools.as_slice() else {
            panic!("{:?}", plan.pools)
        };
        assert_eq!((&*api.name, &*default.name), ("api", "default"));
        assert!(api.route.is_some() && api.pings.is_none());
        assert_eq!(api.plain.as_ref().unwrap().1.to_string(), "tcp://c:7");
        assert_eq!(
            default.pings.as_ref().unwrap().to_string(),
            "tcp://127.0.0.1:8"
        );
        assert!(plan.pings_are_optional);
        assert!(plan.state.unwrap().to_str().unwrap().ends_with("-x"));
    }

    #[test]
    fn rules_are_read_and_mistakes_are_told_with_their_place() {
        let base = "tcp://a:2 --workers tcp://b:1";
        let rules = read(&format!(
            "{base} --slots 4 --prefetch 0 --queue 10 --queue-bytes 2K --wait 1.5 --deadline 60 --retry always --queue-per-slot 4 --start-grace 2 --retry-budget none --outlier 5 \
             --ping-interval 2 --stuck-after 9 --suspect-grace 4 --slow-start 6 --tie busy --lifo-after 0.5"
        ))
        .unwrap()
        .rules;
        assert_eq!((rules.slots, rules.waiting_max), (Some(4), 10));
        assert_eq!(rules.prefetch_max, 0);
        assert_eq!(rules.waiting_bytes_max, 2048);
        assert_eq!(rules.wait_max, Duration::from_millis(1500));
        assert_eq!(rules.deadline, Some(Duration::from_mins(1)));
        assert_eq!(rules.again, Again::Always);
        assert_eq!(rules.waiting_per_slot_max, Some(4));
        assert_eq!(rules.start_grace, Duration::from_secs(2));
        assert_eq!(rules.retry_budget, None);
        assert!(rules.outlier.is_some());
        let life = rules.heartbeats;
        assert_eq!(life.interval, Duration::from_secs(2));
        assert_eq!(life.stuck_after, Some(Duration::from_secs(9)));
        assert_eq!(rules.suspect_grace, Duration::from_secs(4));
        assert_eq!(rules.slow_start, Duration::from_secs(6));
        assert_eq!(rules.tie, Tie::MostRecent);
        let target = Duration::from_millis(500);
        assert_eq!(rules.order, Order::AdaptiveLifo { target });
        assert_eq!(
            read(&format!("{base} --slots none")).unwrap().rules.slots,
            None
        );
        for (wrong, why) in [
            ("--slots 0", "--slots `0`: neither none nor"),
            ("--retry-budget 1.1", "--retry-budget `1.1`: neither none"),
            ("--outlier 1", "--outlier `1`: neither off"),
            ("--ping-interval 0", "--ping-interval `0`: less than 0.1"),
            ("--lifo-after x", "--lifo-after `x`: neither never"),
            ("--tie none", "--tie `none`: neither idle"),
            ("--stuck-after 0", "--stuck-after `0`: neither never"),
            ("--retry maybe", "--retry `maybe`: neither no"),
            ("--pool api", "--pool `api`: it begins with a name"),
            ("--plain tcp://a:1", "--plain `tcp://a:1`: it takes two"),
            (
                "--pool api=api",
                "--pool `api=api`: no path is like its route",
            ),
            (
                "--pool api=/x,worker=tcp://a:4",
                "--pool `api=/x,worker=tcp://a:4`: behind the route may",
            ),
            (
                "--workers tcp://b:1#connect",
                "--workers `tcp://b:1#connect`: workers come",
            ),
            ("--plain tcp://b:2,tcp://b:2", "tcp://b:2 is named twice"),
            ("--workers tcp://a:2", "tcp://a:2 is named twice"),
            ("tcp://a:2", "tcp://a:2 is named twice"),
            ("tcp://c:2#bind", "SEND `tcp://c:2#bind`: a broker goes to"),
            ("broker+tcp://c:2", "SEND `broker+tcp://c:2`: that is where"),
            (
                "--pool default=/x,workers=tcp://a:1",
                "--pool: two are called `default`",
            ),
        ] {
            let error = read(&format!("{base} {wrong}")).unwrap_err();
            assert!(error.starts_with(why), "{wrong}: {error}");
        }
        let error = read("tcp://a:2 --pool api=/x --plain tcp://a:3,tcp://a:4").unwrap_err();
        assert!(
            error.starts_with("--pool `api=/x`: it has no address"),
            "{error}"
        );
        assert!(
            read("tcp://a:2")
                .unwrap_err()
                .starts_with("no address for workers")
        );
        assert!(
            read("--workers tcp://a:2")
                .unwrap_err()
                .starts_with("no server")
        );
    }
}

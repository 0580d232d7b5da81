//! The options of `lurcher broker`: one table for the command line, the file of options, the environment and the help.

/// An option.
#[derive(Debug)]
pub(super) struct Opt {
    /// The name, without dashes; also the key in a file.
    pub(super) name: &'static str,
    /// What its value is called in the help; `None` for one that is said or not.
    pub(super) value: Option<&'static str>,
    /// Whether it may be given several times.
    pub(super) repeat: bool,
    /// Whether a reload takes it up.
    pub(super) reloads: bool,
    /// What it does.
    pub(super) help: &'static str,
    /// Under which heading of the help it stands.
    pub(super) heading: &'static str,
}

const SERVERS: &str = "Servers";
const WORKERS: &str = "Workers";
const REQUESTS: &str = "Requests";
const WATCHING: &str = "Watching and governing";

const fn fixed(
    name: &'static str,
    value: &'static str,
    heading: &'static str,
    help: &'static str,
) -> Opt {
    Opt {
        name,
        value: Some(value),
        repeat: false,
        reloads: false,
        help,
        heading,
    }
}

const fn rule(
    name: &'static str,
    value: &'static str,
    heading: &'static str,
    help: &'static str,
) -> Opt {
    Opt {
        reloads: true,
        ..fixed(name, value, heading, help)
    }
}

/// All of them, in the order of the help.
pub(super) const OPTIONS: &[Opt] = &[
    fixed(
        "ident",
        "IDENT",
        SERVERS,
        "The ZeroMQ identity of the sockets towards servers; servers do not look at it",
    ),
    fixed(
        "workers",
        "SPEC",
        WORKERS,
        "Where workers connect that speak the broker's dialect or m2wsgi's, as tcp://127.0.0.1:9990",
    ),
    fixed(
        "plain",
        "PULL,PUB",
        WORKERS,
        "Where handlers connect that know nothing of brokers: their PULL, and their PUB",
    ),
    fixed(
        "pings",
        "SPEC|none",
        WORKERS,
        "Where m2wsgi's workers hear that the broker is there [default: one port up from --workers, if that is free]",
    ),
    Opt {
        repeat: true,
        ..fixed(
            "pool",
            "NAME=ROUTE[,workers=SPEC][,plain=PULL;PUB][,pings=SPEC]",
            WORKERS,
            "Workers of their own for the requests that a Mongrel2 route takes, as api=/api/; the first that takes one has it, and the rest goes to those who name no pool. Workers of our dialect come to --workers and say which pool is theirs, others to addresses of its own; may be repeated",
        )
    },
    rule(
        "slots",
        "COUNT|none",
        WORKERS,
        "Open requests of a worker that does not say itself how many it takes: plain handlers, and m2wsgi's [default: 1]",
    ),
    rule(
        "prefetch",
        "COUNT",
        WORKERS,
        "Most requests that a worker is given beyond its slots where its answers take about as long as the way to it; they wait behind what it does [default: 2]",
    ),
    rule(
        "queue",
        "COUNT",
        REQUESTS,
        "Requests of a pool that wait for a worker; one more gets a 503 [default: 4096]",
    ),
    rule(
        "queue-bytes",
        "BYTES",
        REQUESTS,
        "Bytes of those; K, M and G are understood [default: 64M]",
    ),
    rule(
        "queue-per-slot",
        "COUNT",
        REQUESTS,
        "So many at most for each slot of the workers that are there, if all say how many they have; 4 is a good number then [default: no such bound]",
    ),
    rule(
        "wait",
        "SECONDS",
        REQUESTS,
        "How long one waits for a worker before it gets a 503 [default: 5]",
    ),
    rule(
        "start-grace",
        "SECONDS",
        REQUESTS,
        "The same while no worker is there at all, as in the middle of a deploy [default: 5]",
    ),
    rule(
        "lifo-after",
        "SECONDS|never",
        REQUESTS,
        "While the oldest has waited longer than this for some time, the youngest goes first: then some are answered in time and not all too late [default: never]",
    ),
    rule(
        "deadline",
        "SECONDS",
        REQUESTS,
        "How long a request may take from its arrival until its answer begins; then it gets a 504 [default: for ever]",
    ),
    rule(
        "retry",
        "no|safe|always",
        REQUESTS,
        "Whether another worker gets what a lost one may have begun, before a byte of its answer: never, if the method is GET, HEAD, OPTIONS or TRACE, or whatever it is [default: safe]",
    ),
    rule(
        "retry-budget",
        "SHARE|none",
        REQUESTS,
        "Share of the last ten seconds' requests that may be given to a second worker, beside a few that always may [default: 0.2]",
    ),
    fixed(
        "ping-interval",
        "SECONDS",
        WORKERS,
        "How often workers are asked whether they are there; one that leaves three in a row unanswered gets nothing more [default: 1]",
    ),
    rule(
        "stuck-after",
        "SECONDS|never",
        WORKERS,
        "A worker that says how far its program is, and has something, and has come no further for so long, gets nothing more [default: never]",
    ),
    rule(
        "suspect-grace",
        "SECONDS",
        WORKERS,
        "How long a worker that gives no sign of life is waited for before it counts as dead [default: 3]",
    ),
    rule(
        "tie",
        "idle|busy",
        WORKERS,
        "Which of several workers with equally many open requests gets the next: the one that was idle for longest, or the one that was busy last, which has warm caches [default: idle]",
    ),
    rule(
        "slow-start",
        "SECONDS",
        WORKERS,
        "Time in which a worker that has just come is brought up to its full share [default: 0]",
    ),
    rule(
        "outlier",
        "FACTOR|off",
        WORKERS,
        "A worker whose slowest answers take so many times longer than the median worker's gets nothing for 30 s and more, but never more than three in ten of them at once [default: off]",
    ),
    rule(
        "sticky",
        "KEY",
        REQUESTS,
        "What requests stick to a worker by: conn, cookie:NAME, header:NAME, path:N or regex:EXPR on `SENDER ID PATH HEADERS BODY`; with ,strict=SECONDS they wait for it so long [default: nothing]",
    ),
    fixed(
        "name",
        "NAME",
        WATCHING,
        "What logs, servers and status call it; a broker that is started again by the same name takes up what it had open [default: made of SEND]",
    ),
    fixed(
        "state",
        "FILE|none",
        WATCHING,
        "Where a broker that is started again finds what was open; memory, no disk [default: /dev/shm/lurcher-broker-UID-NAME]",
    ),
    rule(
        "graceful-timeout",
        "SECONDS",
        WATCHING,
        "How long requests that are open may go on when it is told to stop [default: 30]",
    ),
    fixed(
        "pid-file",
        "FILE",
        WATCHING,
        "Where the process id is written",
    ),
    fixed(
        "control",
        "ADDRESS",
        WATCHING,
        "Where it is asked for its status, stopped and reloaded, as ipc:///run/broker.control [default: beside the pid file, else in $XDG_RUNTIME_DIR]",
    ),
    fixed(
        "metrics",
        "ADDRESS:PORT",
        WATCHING,
        "Where a Prometheus fetches figures, by HTTP at /metrics, as 127.0.0.1:9127 [default: nowhere]",
    ),
    fixed(
        "options",
        "FILE",
        WATCHING,
        "A TOML file with any of these options, send and recv among them; read again on a reload",
    ),
    Opt {
        value: None,
        ..fixed(
            "stop-on-eof",
            "",
            WATCHING,
            "Stop when standard input ends: on a pipe it does not outlive the program that started it",
        )
    },
];

/// The option by that name.
pub(super) fn option(name: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|option| option.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_option() {
        let document = include_str!("../../../docs/BROKER.md");
        for option in OPTIONS {
            let value = option
                .value
                .map(|value| format!(" {}", value.replace('|', "\\|")));
            let cell = format!("| `--{}{}` |", option.name, value.unwrap_or_default());
            assert!(document.contains(&cell), "docs/BROKER.md has no row {cell}");
        }
    }
}

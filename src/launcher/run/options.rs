//! The options that all handlers have in common: one table for the command line, the file of options, the environment and the help.

/// An option of `lurcher run` itself.
#[derive(Debug)]
pub(super) struct Common {
    /// The name, without dashes; also the key in a file.
    pub(super) name: &'static str,
    /// What its value is called in the help; `None` for one that is said or not.
    pub(super) value: Option<&'static str>,
    /// Whether it may be given several times.
    pub(super) repeat: bool,
    /// What it does.
    pub(super) help: &'static str,
    /// Under which heading of the help it stands.
    pub(super) heading: &'static str,
}

const SERVERS: &str = "Servers";
const PROCESSES: &str = "Worker processes";
const RIGHTS: &str = "Surroundings and rights of workers";
const WATCHING: &str = "Watching and governing";

const fn one(
    name: &'static str,
    value: &'static str,
    heading: &'static str,
    help: &'static str,
) -> Common {
    Common {
        name,
        value: Some(value),
        repeat: false,
        help,
        heading,
    }
}

const fn flag(name: &'static str, heading: &'static str, help: &'static str) -> Common {
    Common {
        name,
        value: None,
        repeat: false,
        help,
        heading,
    }
}

const fn many(
    name: &'static str,
    value: &'static str,
    heading: &'static str,
    help: &'static str,
) -> Common {
    Common {
        name,
        value: Some(value),
        repeat: true,
        help,
        heading,
    }
}

/// All of them, in the order of the help.
pub(super) const COMMON: &[Common] = &[
    one(
        "config",
        "DB",
        SERVERS,
        "Take the specs from this Mongrel2 database or .conf, by --route, --host, --server or --handler",
    ),
    one(
        "route",
        "PATH",
        SERVERS,
        "The handler that requests for this path go to, with --config",
    ),
    many(
        "host",
        "NAME",
        SERVERS,
        "The host that --route is looked up in [default: the server's default host]; of a handler that has several applications, NAME=APP is where one is",
    ),
    one(
        "server",
        "NAME|UUID",
        SERVERS,
        "The server of the configuration; needed when it has several that differ",
    ),
    one(
        "handler",
        "IDENT",
        SERVERS,
        "The handler with this send_ident, with --config",
    ),
    one(
        "chroot",
        "DIR",
        SERVERS,
        "What the servers are locked into: names of stored uploads are below it [default: the configuration's, else none]",
    ),
    one(
        "upload-store",
        "PATH",
        SERVERS,
        "The servers' upload.temp_store, as /var/up/body.XXXXXX: only such names of uploads are believed, also where another handler heard of the beginning [default: the configuration's]",
    ),
    one(
        "ident",
        "IDENT",
        SERVERS,
        "The ZeroMQ identity of the handler's sockets; servers do not look at it",
    ),
    one(
        "feed",
        "auto|direct|supervisor",
        SERVERS,
        "Who takes requests from the servers: each worker by itself, or the supervisor for all [default: direct when all servers are Lurchers and APP is built in, else supervisor]",
    ),
    many(
        "broker",
        "SPEC[,SPEC...]",
        SERVERS,
        "Work for the broker that takes workers there, as tcp://HOST:PORT; beside SEND or alone; may be repeated",
    ),
    one(
        "slots",
        "COUNT",
        SERVERS,
        "Requests that a broker gives a worker at once [default: --concurrency, the handler's own, else as the broker sees fit]",
    ),
    one(
        "pool",
        "NAME",
        SERVERS,
        "The broker's pool to work for [default: the one whose address it is]",
    ),
    one(
        "weight",
        "NUMBER",
        SERVERS,
        "A worker's share of a broker's sticky clients beside others of weight 1, up to 1000 [default: 1]",
    ),
    one(
        "workers",
        "COUNT",
        PROCESSES,
        "Worker processes; 0 serves in this process, unsupervised [default: 1]",
    ),
    one(
        "threads",
        "COUNT",
        PROCESSES,
        "Threads of each worker [default: 1]",
    ),
    one(
        "concurrency",
        "COUNT",
        PROCESSES,
        "Requests that a worker has open at once, for handlers that bound them",
    ),
    one(
        "max-requests",
        "COUNT",
        PROCESSES,
        "Replace a worker after so many requests [default: never]",
    ),
    one(
        "max-requests-jitter",
        "COUNT",
        PROCESSES,
        "At most so many more, by chance, so that workers are not replaced together [default: a tenth]",
    ),
    one(
        "max-memory",
        "BYTES",
        PROCESSES,
        "Replace a worker with more resident memory than this; K, M and G are understood [default: never]",
    ),
    one(
        "graceful-timeout",
        "SECONDS",
        PROCESSES,
        "How long a worker may finish what it has before it is killed [default: 30]",
    ),
    flag(
        "reload",
        PROCESSES,
        "Replace the workers when a watched file changes, for development: exec's program and arguments, the modules of a Python application, --reload-path, and the file of options",
    ),
    many(
        "reload-path",
        "PATH",
        PROCESSES,
        "Watch this file or folder too; may be repeated",
    ),
    one("user", "NAME|UID", RIGHTS, "Run workers as this user"),
    one(
        "group",
        "NAME|GID",
        RIGHTS,
        "Run workers with this group [default: the user's]",
    ),
    one(
        "umask",
        "OCTAL",
        RIGHTS,
        "The file mode creation mask of workers, as 027",
    ),
    many(
        "env",
        "NAME=VALUE",
        RIGHTS,
        "Set a variable in the environment of workers; may be repeated",
    ),
    many(
        "env-file",
        "FILE",
        RIGHTS,
        "Variables for workers, a NAME=VALUE per line; --env wins; may be repeated",
    ),
    one("chdir", "DIR", RIGHTS, "The working directory of workers"),
    one(
        "name",
        "NAME",
        WATCHING,
        "What logs and status call it [default: APP]",
    ),
    one(
        "access-log",
        "FILE",
        WATCHING,
        "A line for each request, as web servers write it; - is standard output",
    ),
    one(
        "pid-file",
        "FILE",
        WATCHING,
        "Where the supervisor's process id is written",
    ),
    one(
        "control",
        "ADDRESS",
        WATCHING,
        "Where it is asked for its status, stopped and reloaded, as ipc:///run/app.control [default: beside the pid file, else in $XDG_RUNTIME_DIR]",
    ),
    one(
        "options",
        "FILE",
        WATCHING,
        "A TOML file with any of these options, app, send and recv among them",
    ),
    flag(
        "check",
        WATCHING,
        "Serve nothing: load APP, say what is wrong with it or with what was typed, and exit with 0 or 1",
    ),
    flag(
        "stop-on-eof",
        WATCHING,
        "Stop when standard input ends: on a pipe it does not outlive the program that started it",
    ),
];

/// The option by that name.
pub(super) fn common(name: &str) -> Option<&'static Common> {
    COMMON.iter().find(|option| option.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_option() {
        let document = include_str!("../../../docs/RUNNING.md");
        for option in COMMON {
            let value = option
                .value
                .map(|value| format!(" {}", value.replace('|', "\\|")));
            let cell = format!("| `--{}{}` |", option.name, value.unwrap_or_default());
            assert!(
                document.contains(&cell),
                "docs/RUNNING.md has no row {cell}"
            );
        }
    }
}

//! `m2sh start`, `stop`, `reload` and `running`: servers of a database, one of them or several, each by its pid file.
//!
//! A server is started as `mongrel2` would be: this program by that name. Nothing is waited for but a start.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::args::Options;
use super::{Called, Done, Failed, database_name, error, failure, say};
use crate::config::{self, Selector, sqlite};
use crate::front;
use crate::launcher::process::{self, Running, Wish};

/// What a server is called by where it has to be told what to do.
const MONGREL2: &str = "mongrel2";

/// The options that choose servers, exactly one of which is given.
const CHOICES: [&str; 4] = ["every", "name", "host", "uuid"];

/// A server as its row has it.
struct Row {
    name: String,
    uuid: String,
    chroot: String,
    pid_file: Option<String>,
}

/// Servers that are meant, at least one, and their database.
pub(super) struct Chosen<'a> {
    pub(super) db: &'a str,
    rows: Vec<Row>,
}

/// The servers that the options choose.
pub(super) fn choose(options: &Options) -> Result<Chosen<'_>, Failed> {
    let mut given = CHOICES.iter().filter(|choice| options.has(choice));
    let (Some(&choice), None) = (given.next(), given.next()) else {
        return Err(error("Just one please, not all of the options."));
    };
    let wanted = options.get(choice).unwrap_or_default();
    let db = database_name(options)?;
    let columns = ["name", "default_host", "uuid", "chroot", "pid_file"];
    let rows = sqlite::texts(Path::new(db), "server", columns)
        .map_err(|why| error(format!("Query failed: {db}: {why}.")))?;
    let rows: Vec<_> = rows
        .into_iter()
        .filter(|[name, host, uuid, ..]| {
            let value = match choice {
                "name" => name,
                "host" => host,
                "uuid" => uuid,
                _ => return true,
            };
            value.as_deref() == Some(wanted)
        })
        .map(|[name, _, uuid, chroot, pid_file]| Row {
            name: name.unwrap_or_default(),
            uuid: uuid.unwrap_or_default(),
            chroot: chroot.unwrap_or_default(),
            pid_file,
        })
        .collect();
    if rows.is_empty() {
        return Err(error("No servers matched the description."));
    }
    Ok(Chosen { db, rows })
}

impl Chosen<'_> {
    /// The uuid of the one server that is meant.
    pub(super) fn only(&self) -> Result<&str, Failed> {
        match self.rows.as_slice() {
            [row] => Ok(&row.uuid),
            rows => Err(error(format!(
                "Ambiguous server select, expected 1 but got {}.",
                rows.len()
            ))),
        }
    }
}

impl Row {
    /// The process in the server's pid file, whether it runs or not.
    fn process(&self) -> Result<Running, Failed> {
        let Some(pid_file) = &self.pid_file else {
            return Err(error(
                "Wrong result for server pid_file, should be a string.",
            ));
        };
        // As Mongrel2 puts them together, and says it, with a slash where there is none.
        let needs_slash =
            !self.chroot.is_empty() && !self.chroot.ends_with('/') && !pid_file.starts_with('/');
        let slash = if needs_slash { "/" } else { "" };
        let path = format!("{}{slash}{pid_file}", self.chroot);
        match Running::in_file(Path::new(&path)) {
            Ok(running) => Ok(running),
            Err(why) => {
                // A server that is not root leaves its chroot out of account: its file is in the working directory. Root starts
                // no such server, and takes no pid from wherever it happens to be.
                let beside = front::inside_chroot(".", pid_file);
                if !process::is_root()
                    && !self.chroot.is_empty()
                    && why.kind() == io::ErrorKind::NotFound
                    && let Ok(running) = Running::in_file(&beside)
                {
                    return Ok(running);
                }
                Err(failure(&why, format!("Couldn't read the PID from {path}")))
            }
        }
    }
}

/// Starts servers. One that stays in the foreground takes this process's place.
pub(super) fn start(options: &Options, called: Called<'_>) -> Done {
    let chosen = choose(options)?;
    if options.has("url") || options.has("style") {
        return Err(error(
            "Configuration modules are C plug-ins and cannot be loaded: use --db.",
        ));
    }
    let own = env::current_exe().map_err(|why| failure(&why, "Can't find this program."))?;
    let sudo = options
        .get("sudo")
        .map(|words| if words.is_empty() { "sudo" } else { words });
    let command = |row: &Row| match sudo {
        None => {
            let mut command = Command::new(&own);
            command.arg0(MONGREL2).args([chosen.db, &row.uuid]);
            command
        }
        Some(words) => {
            let mut command = Command::new("/bin/sh");
            let server = server_command(&own, called.program, chosen.db, row);
            command.args([OsStr::new("-c"), OsStr::new(&format!("{words} {server}"))]);
            command
        }
    };
    if let ([row], None, false) = (chosen.rows.as_slice(), sudo, called.in_shell) {
        let why = command(row).exec();
        return Err(failure(&why, format!("Can't start {}", own.display())));
    }
    let mut done = Ok(());
    let mut running = Vec::new();
    for row in &chosen.rows {
        match command(row).spawn() {
            // The next one is started when this one serves, unless it never lets go.
            Ok(child) if stays(chosen.db, &row.uuid) => running.push((row, child)),
            Ok(child) => done = done.and(ended_well(row, child)),
            Err(why) => done = Err(failure(&why, format!("Can't start {}", row.uuid))),
        }
    }
    for (row, child) in running {
        done = ended_well(row, child).and(done);
    }
    done
}

fn ended_well(row: &Row, mut child: Child) -> Done {
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(error(format!("Server {} ended: {status}.", row.uuid))),
        Err(why) => Err(failure(&why, format!("Can't wait for {}", row.uuid))),
    }
}

/// Whether a server stays in the foreground; one that cannot start does not.
fn stays(db: &str, uuid: &str) -> bool {
    let selector = Selector::Uuid(uuid.to_owned());
    config::load(Some(Path::new(db)), &selector)
        .is_ok_and(|loaded| process::stays_in_foreground(&loaded))
}

/// What another user's shell shall run: `mongrel2`, if this program has that name too, where it was called from.
fn server_command(own: &Path, program: &OsStr, db: &str, row: &Row) -> String {
    let mongrel2 = beside(program)
        .map(|directory| directory.join(MONGREL2))
        .filter(|path| {
            path.canonicalize()
                .is_ok_and(|path| own.canonicalize().is_ok_and(|own| own == path))
        });
    let words = if let Some(path) = mongrel2 {
        vec![path.into_os_string(), db.into(), row.uuid.clone().into()]
    } else {
        let selector = Selector::Uuid(row.uuid.clone());
        let daemonize = config::load(Some(Path::new(db)), &selector)
            .is_ok_and(|loaded| loaded.config.settings.daemonize);
        let ground = if daemonize {
            "--daemon"
        } else {
            "--foreground"
        };
        let words = ["serve", db, "--server", &row.uuid, ground];
        std::iter::once(own.as_os_str().to_owned())
            .chain(words.map(OsString::from))
            .collect()
    };
    let quoted: Vec<_> = words
        .iter()
        .map(|word| quoted(&word.to_string_lossy()))
        .collect();
    quoted.join(" ")
}

/// Where the program by the name it was called is.
fn beside(program: &OsStr) -> Option<PathBuf> {
    let program = Path::new(program);
    if let Some(directory) = program
        .parent()
        .filter(|directory| *directory != Path::new(""))
    {
        return Some(directory.to_owned());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).find(|directory| directory.join(program).exists())
}

/// A word as a shell takes it for one.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:@%+=,-".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Has servers end: what is open they finish. It does not wait for them.
pub(super) fn stop(options: &Options) -> Done {
    let wish = if options.has("murder") {
        Wish::Murder
    } else {
        Wish::Stop
    };
    ask(options, wish)
}

/// Has servers open their logs again, and read a configuration that has changed.
pub(super) fn reload(options: &Options) -> Done {
    ask(options, Wish::Reload)
}

fn ask(options: &Options, wish: Wish) -> Done {
    let chosen = choose(options)?;
    let mut done = Ok(());
    for row in &chosen.rows {
        let asked = match row.process() {
            Ok(running) => running.ask(wish).map_err(|why| {
                let pid = running.pid();
                failure(&why, format!("Failed to stop server with PID: {pid}"))
            }),
            Err(Failed) => Err(error("Failed to read the pid_file.")),
        };
        done = asked.and(done);
    }
    done.map_err(|Failed| error("Failed to run internal operation."))
}

/// Says which servers run. That one does not is no failure, as with m2sh.
pub(super) fn running(options: &Options) -> Done {
    let chosen = choose(options)?;
    for row in &chosen.rows {
        // m2sh never told of more than one.
        let who = match chosen.rows.as_slice() {
            [_] => String::new(),
            _ if row.name.is_empty() => format!("{}: ", row.uuid),
            _ => format!("{}: ", row.name),
        };
        match row.process() {
            Ok(running) => {
                let word = if running.is_alive() { "" } else { "is NOT " };
                let pid = running.pid();
                say(format!("{who}mongrel2 at PID {pid} {word}running.\n"))?;
            }
            Err(Failed) => say(format!(
                "{who}mongrel2 is not running because pid_file isn't there.\n"
            ))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_in_a_shell() {
        assert_eq!(quoted("/usr/bin/mongrel2"), "/usr/bin/mongrel2");
        assert_eq!(quoted("my site.sqlite"), "'my site.sqlite'");
        assert_eq!(quoted("a'; rm b"), r"'a'\''; rm b'");
        assert_eq!(quoted(""), "''");
    }
}

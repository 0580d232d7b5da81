//! `m2sh load`, `servers`, `hosts`, `routes`, `commit` and `log`: what a database holds. Lists show rows as they are, also
//! of servers that could not run; what NULL is called there is m2sh's word.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use super::args::Options;
use super::{
    DATABASE, Done, Failed, accessible, database_name, error, say, tell, warn, with_default,
};
use crate::config::sqlite::{self, DatabaseError};
use crate::config::{self, Diagnostic, Severity};
use crate::launcher::config::{host_name, login_name};

/// What a list shows for NULL.
const NULL: &str = "(null)";

/// Writes a `.conf` into a database, which is left alone if anything is wrong.
pub(super) fn load(options: &Options) -> Done {
    let db = with_default(options, "db", DATABASE);
    let conf = with_default(options, "config", "mongrel2.conf");
    accessible(conf, "file")?;
    let reading = config::read(Path::new(conf)).map_err(|found| tell_all(&found.diagnostics))?;
    if reading.has_errors() {
        let _told = tell_all(&reading.diagnostics);
        return Err(error(format!("Error parsing config file: {conf}.")));
    }
    // What is odd, and stands against nothing.
    let _told = tell_all(&reading.diagnostics);
    let entry = sqlite::Entry {
        happened_at: String::new(),
        who: login_name(),
        location: host_name(),
        how: conf.to_owned(),
        what: "load".to_owned(),
        why: Some("command".to_owned()),
    };
    sqlite::write(Path::new(db), &reading.into_config(), &entry)
        .map_err(|why| error(format!("Failed to configure config db: {db}: {why}")))
}

fn tell_all(found: &[Diagnostic]) -> Failed {
    for diagnostic in found {
        let level = match diagnostic.severity {
            Severity::Error => "ERROR",
            Severity::Warning => "WARN",
            Severity::Note => "INFO",
        };
        tell(level, None, &format!("{diagnostic:#}"));
    }
    Failed
}

/// `SERVERS:`: name, default host and uuid of each.
pub(super) fn servers(options: &Options) -> Done {
    let db = database_name(options)?;
    let rows = sqlite::texts(Path::new(db), "server", ["name", "default_host", "uuid"]);
    list(db, "SERVERS:\n------\n", rows)
}

/// `HOSTS in NAME:`: id and name of each host of the first server of that name.
pub(super) fn hosts(options: &Options) -> Done {
    let db = database_name(options)?;
    let Some(server) = options.get("server") else {
        // As m2sh, which ends well here.
        let _told = error("You need to give a -server of the server to list hosts from.");
        return Ok(());
    };
    let rows = || {
        let servers = sqlite::texts(Path::new(db), "server", ["name", "id"])?;
        let chosen = servers
            .into_iter()
            .find(|[name, _]| name.as_deref() == Some(server));
        let hosts = sqlite::texts(Path::new(db), "host", ["server_id", "id", "name"])?;
        let hosts = hosts.into_iter().filter_map(|[of, id, name]| {
            let [_, server] = chosen.as_ref()?;
            (of == *server).then_some([id, name])
        });
        Ok(hosts.collect())
    };
    list(db, &format!("HOSTS in {server}:\n-----\n"), rows())
}

/// The paths of the routes in a host, by its id or by the names of it and its server.
pub(super) fn routes(options: &Options) -> Done {
    let db = database_name(options)?;
    if let Some(id) = options.get("id") {
        let heading = format!("ROUTES in host id {id}\n-----\n");
        if id.parse::<i64>().is_err() {
            let failed = error(format!("Query failed: {db}: {id:?} is no number."));
            say(heading)?;
            return Err(failed);
        }
        return list(db, &heading, paths(db, |host| host == id));
    }
    let missing = match (options.get("server"), options.get("host")) {
        (Some(server), Some(host)) => {
            let heading = format!("ROUTES in host {host}, server {server}\n-----\n");
            let rows = || {
                let servers: HashSet<_> = named(db, "server", "id", server)?
                    .into_iter()
                    .map(|[id, _]| id)
                    .collect();
                let hosts: HashSet<_> = named(db, "host", "server_id", host)?
                    .into_iter()
                    .filter(|[_, of]| servers.contains(of))
                    .filter_map(|[id, _]| id)
                    .collect();
                paths(db, |host| hosts.contains(host))
            };
            return list(db, &heading, rows());
        }
        (Some(_), None) => "Must set the -host in that server you want or use -id.",
        (None, _) => "Must set the -server name you want or use -id.",
    };
    // As m2sh, which ends well here.
    let _told = error(missing);
    Ok(())
}

/// The ids of the rows with this name, and what else they say.
fn named(
    db: &str,
    table: &'static str,
    column: &'static str,
    name: &str,
) -> Result<Vec<[Option<String>; 2]>, DatabaseError> {
    let rows = sqlite::texts(Path::new(db), table, ["name", "id", column])?;
    let rows = rows
        .into_iter()
        .filter(|[called, ..]| called.as_deref() == Some(name));
    Ok(rows.map(|[_, id, other]| [id, other]).collect())
}

/// The paths of the routes of these hosts.
fn paths(
    db: &str,
    is_meant: impl Fn(&str) -> bool,
) -> Result<Vec<[Option<String>; 1]>, DatabaseError> {
    let routes = sqlite::texts(Path::new(db), "route", ["host_id", "path"])?;
    let routes = routes
        .into_iter()
        .filter(|[host, _]| host.as_deref().is_some_and(&is_meant));
    Ok(routes.map(|[_, path]| [path]).collect())
}

/// Adds a row to the journal.
pub(super) fn commit(options: &Options) -> Done {
    let db = with_default(options, "db", DATABASE);
    let what = with_default(options, "what", "");
    let how = with_default(options, "how", "m2sh");
    accessible(db, "database")?;
    let entry = sqlite::Entry {
        happened_at: String::new(),
        who: login_name(),
        location: options.get("where").map_or_else(host_name, str::to_owned),
        how: how.to_owned(),
        what: what.to_owned(),
        why: options.get("why").map(str::to_owned),
    };
    sqlite::commit(Path::new(db), &entry).map_err(|why| {
        error(format!(
            "Failed to add log message, you're flying blind: {db}: {why}"
        ))
    })
}

/// `LOG MESSAGES:`: the journal.
pub(super) fn log(options: &Options) -> Done {
    let db = database_name(options)?;
    let columns = ["happened_at", "who", "location", "how", "what", "why"];
    let rows = sqlite::texts(Path::new(db), "log", columns);
    list(db, "LOG MESSAGES:\n------\n", rows)
}

/// Prints rows, each cell with a blank behind it. That there are none, or that they cannot be read, is told.
fn list<const N: usize>(
    db: &str,
    heading: &str,
    rows: Result<Vec<[Option<String>; N]>, DatabaseError>,
) -> Done {
    let (rows, done) = match rows {
        Ok(rows) => (rows, Ok(())),
        Err(why) => (
            Vec::new(),
            Err(error(format!("Query failed: {db}: {why}."))),
        ),
    };
    if rows.is_empty() && done.is_ok() {
        warn("No results to display.");
    }
    let mut out = heading.to_owned();
    for row in rows {
        for cell in row {
            // Writing to a String does not fail.
            let _ok = write!(out, "{} ", cell.as_deref().unwrap_or(NULL));
        }
        out.push('\n');
    }
    say(out)?;
    done
}

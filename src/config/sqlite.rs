//! Mongrel2's database: read with every mistake told by table, row and column, and written so that Mongrel2 runs it.
//!
//! The only file that names the `SQLite` crate. Reading never writes, not even a journal beside the database. The
//! schema is Mongrel2's own (its `config.sql` as m2sh 1.12 runs it); what Lurcher adds are columns at the end of a
//! table, written only when a configuration uses them, since Mongrel2 names the columns it reads and so never sees more.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, params};
use thiserror::Error;

use super::diagnostic::Place;
use super::draft::{
    self, DraftDir, DraftHandler, DraftHost, DraftRoute, DraftServer, Findings, Located,
    MimetypeRow, SettingRow, Told,
};
use super::{Config, Mimetypes, Plugin, Reading, Retry, Settings, Target, plugin};
use crate::wire::Protocol;

/// How long a database that another program is writing is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a database could not be read or written as a whole.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// `SQLite` said no.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// It is a database, but of something else.
    #[error("is a SQLite database, but not one of Mongrel2's: it has no table `{0}`")]
    Foreign(&'static str),
    /// A table lacks a column that every version of Mongrel2 has.
    #[error("table `{table}` has no column `{column}`")]
    NoColumn {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
    },
}

/// Reads a whole database.
pub(super) fn read(path: &Path) -> Result<Reading, DatabaseError> {
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    database.busy_timeout(BUSY_TIMEOUT)?;
    for table in ["server", "host", "route"] {
        if columns(&database, table)?.is_empty() {
            return Err(DatabaseError::Foreign(table));
        }
    }
    // One transaction, so that a load in the middle of it does not give half of each.
    let database = database.unchecked_transaction()?;
    let mut findings = Findings::new(path);

    let mut setting_rows = Vec::new();
    for row in rows(&database, "setting", &["key", "value"])? {
        if let (Some(key), Some(value)) = (
            row.text("key", &mut findings),
            row.text("value", &mut findings),
        ) {
            setting_rows.push(SettingRow {
                key: key.value,
                value: value.value,
                place: value.place,
            });
        }
    }
    let mut mimetype_rows = Vec::new();
    for row in rows(&database, "mimetype", &["extension", "mimetype"])? {
        let (extension, mimetype) = (
            row.text("extension", &mut findings),
            row.text("mimetype", &mut findings),
        );
        if let (Some(extension), Some(mimetype)) = (extension, mimetype) {
            let (extension, place) = (extension.value, extension.place);
            mimetype_rows.push(MimetypeRow {
                extension,
                mimetype: mimetype.value,
                place,
            });
        }
    }
    let settings = draft::settings(&setting_rows, &mut findings);
    let mut mimetypes = Mimetypes::none();
    draft::mimetypes(&mimetype_rows, &mut mimetypes, &settings, &mut findings);
    let fatal = findings.has_errors();

    let mut reader = Reader {
        targets: Targets::read(&database)?,
        settings,
        findings,
    };
    let servers = reader.servers(&database)?;
    let Reader {
        settings,
        mut findings,
        ..
    } = reader;
    let candidates = servers
        .into_iter()
        .map(|server| draft::server(server, &settings, &mut findings))
        .collect();
    let setting_rows = setting_rows
        .into_iter()
        .map(|row| (row.key, row.value))
        .collect();
    Ok(Reading {
        candidates,
        settings,
        setting_rows,
        mimetypes,
        diagnostics: findings.into_list(),
        fatal,
    })
}

/// The columns of a table; none if there is no such table.
fn columns(database: &Connection, table: &str) -> Result<Vec<String>, rusqlite::Error> {
    let mut statement = database.prepare("SELECT name FROM pragma_table_info(?1)")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

/// A cell of a row, as `SQLite` stores it.
#[derive(Debug, Clone)]
enum Cell {
    Null,
    Number(i64),
    Real(f64),
    Text(String),
    /// Text that is not UTF-8.
    Garbled,
    Blob,
    /// The table has no such column.
    Absent,
}

#[derive(Debug, Clone)]
struct Row {
    table: &'static str,
    id: i64,
    cells: HashMap<&'static str, Cell>,
}

/// Columns that some version of Mongrel2 does without, or that are Lurcher's own. Without them the default counts.
const OPTIONAL: [&str; 10] = [
    "control_port",
    "error_log_level",
    "use_ssl",
    "bind_addr",
    "raw_payload",
    "protocol",
    "cache_ttl",
    "slots",
    "queue",
    "retry",
];

/// All rows of a table by rowid; none if there is no such table. Names are from this file, never from outside.
fn rows(
    database: &Connection,
    table: &'static str,
    wanted: &[&'static str],
) -> Result<Vec<Row>, DatabaseError> {
    let there = columns(database, table)?;
    if there.is_empty() {
        return Ok(Vec::new());
    }
    let has = |column: &str| there.iter().any(|name| name.eq_ignore_ascii_case(column));
    if let Some(&column) = wanted
        .iter()
        .find(|column| !has(column) && !OPTIONAL.contains(column))
    {
        return Err(DatabaseError::NoColumn { table, column });
    }
    let (present, absent): (Vec<_>, Vec<_>) =
        wanted.iter().copied().partition(|column| has(column));
    let sql = format!(
        "SELECT rowid, {} FROM {table} ORDER BY rowid",
        present.join(", ")
    );
    let mut statement = database.prepare(&sql)?;
    let mut found = statement.query([])?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let mut cells: HashMap<_, _> = absent
            .iter()
            .map(|&column| (column, Cell::Absent))
            .collect();
        for (index, &column) in present.iter().enumerate() {
            let cell = match row.get_ref(index + 1)? {
                ValueRef::Null => Cell::Null,
                ValueRef::Integer(number) => Cell::Number(number),
                ValueRef::Real(number) => Cell::Real(number),
                ValueRef::Text(text) => {
                    String::from_utf8(text.to_vec()).map_or(Cell::Garbled, Cell::Text)
                }
                ValueRef::Blob(_) => Cell::Blob,
            };
            cells.insert(column, cell);
        }
        rows.push(Row {
            table,
            id: row.get(0)?,
            cells,
        });
    }
    Ok(rows)
}

impl Row {
    fn place(&self, column: &'static str) -> Place {
        Place::Row {
            table: self.table,
            row: self.id,
            column: Some(column),
        }
    }

    fn located<T>(&self, column: &'static str, value: T) -> Located<T> {
        Located {
            value,
            place: self.place(column),
        }
    }

    fn text(&self, column: &'static str, findings: &mut Findings) -> Told<String> {
        match self.cells.get(column) {
            Some(Cell::Text(text)) => Some(self.located(column, text.clone())),
            other => self.wrong(column, "text", other, findings),
        }
    }

    fn number(&self, column: &'static str, findings: &mut Findings) -> Told<i64> {
        match self.cells.get(column) {
            Some(Cell::Number(number)) => Some(self.located(column, *number)),
            other => self.wrong(column, "a whole number", other, findings),
        }
    }

    fn text_or(
        &self,
        column: &'static str,
        default: &str,
        findings: &mut Findings,
    ) -> Told<String> {
        match self.cells.get(column) {
            Some(Cell::Absent) => Some(self.located(column, default.to_owned())),
            _ => self.text(column, findings),
        }
    }

    fn number_or(&self, column: &'static str, default: i64, findings: &mut Findings) -> Told<i64> {
        match self.cells.get(column) {
            Some(Cell::Absent) => Some(self.located(column, default)),
            _ => self.number(column, findings),
        }
    }

    /// One of Lurcher's columns, which NULL leaves at its default.
    fn set(&self, column: &str) -> bool {
        !matches!(
            self.cells.get(column),
            None | Some(Cell::Absent | Cell::Null)
        )
    }

    fn wrong<T>(
        &self,
        column: &'static str,
        needs: &str,
        cell: Option<&Cell>,
        findings: &mut Findings,
    ) -> Told<T> {
        let is = match cell {
            None | Some(Cell::Null | Cell::Absent) => "NULL".to_owned(),
            Some(Cell::Number(number)) => format!("the number {number}"),
            Some(Cell::Real(number)) => format!("the number {number}"),
            Some(Cell::Text(text)) => format!("the text {text:?}"),
            Some(Cell::Garbled) => "text that is not UTF-8".to_owned(),
            Some(Cell::Blob) => "a blob".to_owned(),
        };
        findings.error(&self.place(column), format!("is {is}, and must be {needs}"));
        None
    }
}

/// The rows that routes point at, and what has been made of them: one model object per row.
struct Targets {
    handlers: HashMap<i64, Row>,
    dirs: HashMap<i64, Row>,
    proxies: HashMap<i64, Row>,
    made: HashMap<(&'static str, i64), Option<Target>>,
}

impl Targets {
    fn read(database: &Connection) -> Result<Targets, DatabaseError> {
        let by_id = |table, columns: &[&'static str]| -> Result<HashMap<i64, Row>, DatabaseError> {
            Ok(rows(database, table, columns)?
                .into_iter()
                .map(|row| (row.id, row))
                .collect())
        };
        Ok(Targets {
            handlers: by_id(
                "handler",
                &[
                    "send_spec",
                    "send_ident",
                    "recv_spec",
                    "recv_ident",
                    "raw_payload",
                    "protocol",
                    "slots",
                    "queue",
                    "retry",
                ],
            )?,
            dirs: by_id(
                "directory",
                &["base", "index_file", "default_ctype", "cache_ttl"],
            )?,
            proxies: by_id("proxy", &["addr", "port"])?,
            made: HashMap::new(),
        })
    }
}

struct Reader {
    targets: Targets,
    settings: Settings,
    findings: Findings,
}

impl Reader {
    fn servers(&mut self, database: &Connection) -> Result<Vec<DraftServer>, DatabaseError> {
        const SERVER: [&str; 12] = [
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
        ];
        let host_rows = rows(database, "host", &["server_id", "name", "matching"])?;
        let route_rows = rows(
            database,
            "route",
            &["path", "host_id", "target_id", "target_type"],
        )?;
        let filters = rows(database, "filter", &["server_id", "name", "settings"])?;
        let xrequests = rows(database, "xrequest", &["server_id", "name", "settings"])?;
        let mut servers = Vec::new();
        for row in rows(database, "server", &SERVER)? {
            let hosts = host_rows
                .iter()
                .filter(|host| host.points_at("server_id", row.id));
            let hosts = hosts.map(|host| self.host(host, &route_rows)).collect();
            let mut plugins = |rows: &[Row]| -> Vec<Option<Plugin>> {
                let rows = rows
                    .iter()
                    .filter(|plugin| plugin.points_at("server_id", row.id));
                rows.map(|plugin| self.plugin(plugin)).collect()
            };
            let (filters, xrequests) = (plugins(&filters), plugins(&xrequests));
            let findings = &mut self.findings;
            servers.push(DraftServer {
                uuid: row.text("uuid", findings),
                // A label for people only: not worth stopping for.
                name: if row.set("name") {
                    row.text("name", findings)
                } else {
                    Some(row.located("name", String::new()))
                },
                access_log: row.text("access_log", findings),
                error_log: row.text("error_log", findings),
                error_log_level: row.number_or("error_log_level", 2, findings),
                chroot: row.text("chroot", findings),
                pid_file: row.text("pid_file", findings),
                control_port: row.text_or("control_port", "", findings),
                default_host: row.text("default_host", findings),
                bind_addr: row.text_or("bind_addr", "0.0.0.0", findings),
                port: row.number("port", findings),
                use_ssl: row.number_or("use_ssl", 0, findings),
                hosts,
                filters,
                xrequests,
            });
        }
        Ok(servers)
    }

    fn host(&mut self, row: &Row, routes: &[Row]) -> DraftHost {
        DraftHost {
            place: Place::Row {
                table: "host",
                row: row.id,
                column: None,
            },
            name: row.text("name", &mut self.findings),
            matching: row.text("matching", &mut self.findings),
            routes: routes
                .iter()
                .filter(|route| route.points_at("host_id", row.id))
                .map(|route| DraftRoute {
                    path: route.text("path", &mut self.findings),
                    target: self.target(route),
                })
                .collect(),
        }
    }

    fn target(&mut self, route: &Row) -> Option<Target> {
        let kind = route.text("target_type", &mut self.findings)?;
        let id = route.number("target_id", &mut self.findings)?;
        let (table, rows) = match kind.value.as_str() {
            "handler" => ("handler", &self.targets.handlers),
            "dir" => ("directory", &self.targets.dirs),
            "proxy" => ("proxy", &self.targets.proxies),
            other => {
                let message =
                    format!("is {other:?}, and must be \"handler\", \"dir\" or \"proxy\"");
                self.findings.error(&kind.place, message);
                return None;
            }
        };
        if let Some(made) = self.targets.made.get(&(table, id.value)) {
            return made.clone();
        }
        let Some(row) = rows.get(&id.value) else {
            self.findings.error(
                &id.place,
                format!(
                    "points at row {} of table `{table}`, which is not there",
                    id.value
                ),
            );
            return None;
        };
        let findings = &mut self.findings;
        let target = match table {
            "handler" => {
                let handler = DraftHandler {
                    send_spec: row.text("send_spec", findings),
                    send_ident: row.text("send_ident", findings),
                    recv_spec: row.text("recv_spec", findings),
                    recv_ident: row.text("recv_ident", findings),
                    raw_payload: row.number_or("raw_payload", 0, findings),
                    protocol: row.text_or("protocol", "json", findings),
                    slots: row
                        .set("slots")
                        .then(|| row.number("slots", findings))
                        .flatten(),
                    queue: row
                        .set("queue")
                        .then(|| row.number("queue", findings))
                        .flatten(),
                    retry: row
                        .set("retry")
                        .then(|| row.text("retry", findings))
                        .flatten(),
                };
                draft::handler(handler, findings)
            }
            "directory" => {
                let dir = DraftDir {
                    base: row.text("base", findings),
                    index_file: row.text("index_file", findings),
                    default_ctype: row.text("default_ctype", findings),
                    cache_ttl: row.number_or("cache_ttl", 0, findings),
                };
                draft::dir(dir, &self.settings, findings)
            }
            _ => {
                let (addr, port) = (row.text("addr", findings), row.number("port", findings));
                draft::proxy(addr, port, findings)
            }
        };
        self.targets.made.insert((table, id.value), target.clone());
        target
    }

    fn plugin(&mut self, row: &Row) -> Option<Plugin> {
        let name = row.text("name", &mut self.findings);
        let settings = row.text("settings", &mut self.findings)?;
        let Some(value @ plugin::Value::Hash(_)) = plugin::Value::from_tnetstring(&settings.value)
        else {
            self.findings
                .error(&settings.place, "is no tnetstring dictionary");
            return None;
        };
        Some(Plugin {
            name: name?.value,
            settings: value,
        })
    }
}

impl Row {
    fn points_at(&self, column: &str, id: i64) -> bool {
        matches!(self.cells.get(column), Some(Cell::Number(number)) if *number == id)
    }
}

/// The tables that a load drops and makes again, in Mongrel2's own words.
const SCHEMA: &str = r"
DROP TABLE IF EXISTS server; DROP TABLE IF EXISTS host; DROP TABLE IF EXISTS handler; DROP TABLE IF EXISTS proxy;
DROP TABLE IF EXISTS route; DROP TABLE IF EXISTS statistic; DROP TABLE IF EXISTS mimetype;
DROP TABLE IF EXISTS setting; DROP TABLE IF EXISTS directory; DROP TABLE IF EXISTS filter;
DROP TABLE IF EXISTS xrequest;
CREATE TABLE server (id INTEGER PRIMARY KEY, uuid TEXT, access_log TEXT, error_log TEXT,
    chroot TEXT DEFAULT '/var/www', pid_file TEXT, control_port TEXT DEFAULT '', default_host TEXT,
    name TEXT DEFAULT '', bind_addr TEXT DEFAULT '0.0.0.0', port INTEGER, use_ssl INTEGER DEFAULT 0);
CREATE TABLE host (id INTEGER PRIMARY KEY, server_id INTEGER, maintenance BOOLEAN DEFAULT 0, name TEXT, matching TEXT);
CREATE TABLE handler (id INTEGER PRIMARY KEY, send_spec TEXT, send_ident TEXT, recv_spec TEXT, recv_ident TEXT,
    raw_payload INTEGER DEFAULT 0, protocol TEXT DEFAULT 'json');
CREATE TABLE proxy (id INTEGER PRIMARY KEY, addr TEXT, port INTEGER);
CREATE TABLE directory (id INTEGER PRIMARY KEY, base TEXT, index_file TEXT, default_ctype TEXT,
    cache_ttl INTEGER DEFAULT 0);
CREATE TABLE route (id INTEGER PRIMARY KEY, path TEXT, reversed BOOLEAN DEFAULT 0, host_id INTEGER,
    target_id INTEGER, target_type TEXT);
CREATE TABLE setting (id INTEGER PRIMARY KEY, key TEXT, value TEXT);
CREATE TABLE statistic (id SERIAL, other_type TEXT, other_id INTEGER, name TEXT, sum REAL, sumsq REAL, n INTEGER,
    min REAL, max REAL, mean REAL, sd REAL, primary key (other_type, other_id, name));
CREATE TABLE mimetype (id INTEGER PRIMARY KEY, mimetype TEXT, extension TEXT);
CREATE TABLE filter (id INTEGER PRIMARY KEY, server_id INTEGER, name TEXT, settings TEXT);
CREATE TABLE xrequest (id INTEGER PRIMARY KEY, server_id INTEGER, name TEXT, settings TEXT);
CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, who TEXT, what TEXT, location TEXT,
    happened_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, how TEXT, why TEXT);
";

/// A row of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When, in UTC, as `SQLite` writes it; empty in a row to be added.
    pub happened_at: String,
    /// Who did it.
    pub who: String,
    /// On which machine.
    pub location: String,
    /// By what means.
    pub how: String,
    /// What was done.
    pub what: String,
    /// What for.
    pub why: String,
}

/// Writes `config` in one transaction: every table but the journal is dropped and made again, the journal gets `entry`.
/// A file that is not there is made. A database of something else is refused.
pub fn write(path: &Path, config: &Config, entry: &Entry) -> Result<(), DatabaseError> {
    let mut database = Connection::open(path)?;
    database.busy_timeout(BUSY_TIMEOUT)?;
    let database = database.transaction()?;
    let tables: i64 =
        database.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0))?;
    if tables > 0 && columns(&database, "server")?.is_empty() {
        return Err(DatabaseError::Foreign("server"));
    }
    database.execute_batch(SCHEMA)?;
    write_servers(&database, config)?;
    for (key, value) in &config.setting_rows {
        database.execute(
            "INSERT INTO setting (key, value) VALUES (?1, ?2)",
            params![key, value],
        )?;
    }
    for (extension, mimetype) in config.mimetypes.iter() {
        database.execute(
            "INSERT INTO mimetype (mimetype, extension) VALUES (?1, ?2)",
            params![mimetype, extension],
        )?;
    }
    add(&database, entry)?;
    database.commit()?;
    Ok(())
}

fn write_servers(database: &Connection, config: &Config) -> Result<(), rusqlite::Error> {
    // 1.13 has this column and takes a missing one as 2; 1.12 does not have it.
    if config
        .servers
        .iter()
        .any(|server| server.error_log_level != 2)
    {
        database
            .execute_batch("ALTER TABLE server ADD COLUMN error_log_level INTEGER DEFAULT 2")?;
    }
    let mut written = Written {
        targets: Vec::new(),
        own_columns: false,
    };
    for server in &config.servers {
        database.execute(
            "INSERT INTO server (uuid, access_log, error_log, chroot, pid_file, control_port, default_host, name, \
             bind_addr, port, use_ssl) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                server.uuid, server.access_log, server.error_log, server.chroot, server.pid_file, server.control_port,
                server.default_host().name, server.name, server.bind_addr.to_string(), server.port, server.use_ssl
            ],
        )?;
        let server_id = database.last_insert_rowid();
        if server.error_log_level != 2 {
            let level = params![server.error_log_level, server_id];
            database.execute(
                "UPDATE server SET error_log_level = ?1 WHERE id = ?2",
                level,
            )?;
        }
        for host in &server.hosts {
            let values = params![server_id, host.name, host.matching];
            database.execute(
                "INSERT INTO host (server_id, name, matching) VALUES (?1, ?2, ?3)",
                values,
            )?;
            let host_id = database.last_insert_rowid();
            for route in &host.routes {
                let (kind, target_id) = written.target(database, &route.target)?;
                database.execute(
                    "INSERT INTO route (path, host_id, target_id, target_type) VALUES (?1, ?2, ?3, ?4)",
                    params![route.path, host_id, target_id, kind],
                )?;
            }
        }
        for (table, plugins) in [("filter", &server.filters), ("xrequest", &server.xrequests)] {
            for plugin in plugins {
                database.execute(
                    &format!("INSERT INTO {table} (server_id, name, settings) VALUES (?1, ?2, ?3)"),
                    params![server_id, plugin.name, plugin.settings.to_tnetstring()],
                )?;
            }
        }
    }
    Ok(())
}

/// Targets that have their rows already.
struct Written {
    targets: Vec<(Target, i64)>,
    own_columns: bool,
}

impl Written {
    fn target(
        &mut self,
        database: &Connection,
        target: &Target,
    ) -> Result<(&'static str, i64), rusqlite::Error> {
        let kind = match target {
            Target::Handler(_) => "handler",
            Target::Dir(_) => "dir",
            Target::Proxy(_) => "proxy",
        };
        if let Some((_, id)) = self.targets.iter().find(|(known, _)| known.is(target)) {
            return Ok((kind, *id));
        }
        match target {
            Target::Handler(handler) => {
                let protocol = match handler.protocol {
                    Protocol::Json => "json",
                    Protocol::Tnetstring => "tnetstring",
                };
                database.execute(
                    "INSERT INTO handler (send_spec, send_ident, recv_spec, recv_ident, raw_payload, protocol) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        handler.send_spec.text, handler.send_ident, handler.recv_spec.text, handler.recv_ident,
                        handler.raw_payload, protocol
                    ],
                )?;
            }
            Target::Dir(dir) => {
                let values = params![dir.base, dir.index_file, dir.default_ctype, dir.cache_ttl];
                database.execute(
                    "INSERT INTO directory (base, index_file, default_ctype, cache_ttl) VALUES (?1, ?2, ?3, ?4)",
                    values,
                )?;
            }
            Target::Proxy(proxy) => {
                database.execute(
                    "INSERT INTO proxy (addr, port) VALUES (?1, ?2)",
                    params![proxy.addr, proxy.port],
                )?;
            }
        }
        let id = database.last_insert_rowid();
        self.targets.push((target.clone(), id));
        self.own(database, target, id)?;
        Ok((kind, id))
    }

    /// Writes what only Lurcher knows, if there is anything.
    fn own(
        &mut self,
        database: &Connection,
        target: &Target,
        id: i64,
    ) -> Result<(), rusqlite::Error> {
        let Target::Handler(handler) = target else {
            return Ok(());
        };
        if handler.slots.is_none() && handler.queue.is_none() && handler.retry == Retry::default() {
            return Ok(());
        }
        if !self.own_columns {
            self.own_columns = true;
            database.execute_batch(
                "ALTER TABLE handler ADD COLUMN slots INTEGER; ALTER TABLE handler ADD COLUMN queue INTEGER; \
                 ALTER TABLE handler ADD COLUMN retry TEXT",
            )?;
        }
        let queue = handler
            .queue
            .map(|queue| i64::try_from(queue).unwrap_or(i64::MAX));
        let retry = (handler.retry != Retry::default()).then(|| handler.retry.word());
        database.execute(
            "UPDATE handler SET slots = ?1, queue = ?2, retry = ?3 WHERE id = ?4",
            params![handler.slots, queue, retry, id],
        )?;
        Ok(())
    }
}

/// The journal, oldest first.
pub fn journal(path: &Path) -> Result<Vec<Entry>, DatabaseError> {
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    database.busy_timeout(BUSY_TIMEOUT)?;
    if columns(&database, "log")?.is_empty() {
        return Err(DatabaseError::Foreign("log"));
    }
    let mut statement = database
        .prepare("SELECT happened_at, who, location, how, what, why FROM log ORDER BY rowid")?;
    let entries = statement.query_map([], |row| {
        // m2sh leaves NULLs where an option was not given.
        let text = |index| {
            row.get::<_, Option<String>>(index)
                .map(Option::unwrap_or_default)
        };
        Ok(Entry {
            happened_at: text(0)?,
            who: text(1)?,
            location: text(2)?,
            how: text(3)?,
            what: text(4)?,
            why: text(5)?,
        })
    })?;
    Ok(entries.collect::<Result<_, _>>()?)
}

/// Adds a row to the journal of a database.
pub fn commit(path: &Path, entry: &Entry) -> Result<(), DatabaseError> {
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    database.busy_timeout(BUSY_TIMEOUT)?;
    if columns(&database, "log")?.is_empty() {
        return Err(DatabaseError::Foreign("log"));
    }
    Ok(add(&database, entry)?)
}

fn add(database: &Connection, entry: &Entry) -> Result<(), rusqlite::Error> {
    let Entry {
        who,
        what,
        location,
        how,
        why,
        ..
    } = entry;
    database.execute(
        "INSERT INTO log (who, what, location, how, why) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![who, what, location, how, why],
    )?;
    Ok(())
}

//! From the model to rows, in one transaction.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use super::super::{Config, Handler, Retry, Target};
use super::{DatabaseError, Entry, add, columns, open};
use crate::wire::Protocol;

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

/// Writes `config` in one transaction: every table but the journal is dropped and made again, the journal gets `entry`.
/// A file that is not there is made. A database of something else is refused.
pub fn write(path: &Path, config: &Config, entry: &Entry) -> Result<(), DatabaseError> {
    let mut database = open(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
    )?;
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
        let Handler {
            slots,
            queue,
            retry,
            wait,
            workers,
            sticky,
            ..
        } = &**handler;
        let is_plain = slots.is_none()
            && queue.is_none()
            && *retry == Retry::default()
            && wait.is_none()
            && workers.is_none()
            && sticky.is_none();
        if is_plain {
            return Ok(());
        }
        if !self.own_columns {
            self.own_columns = true;
            database.execute_batch(
                "ALTER TABLE handler ADD COLUMN slots INTEGER; ALTER TABLE handler ADD COLUMN queue INTEGER; \
                 ALTER TABLE handler ADD COLUMN retry TEXT; ALTER TABLE handler ADD COLUMN wait INTEGER; \
                 ALTER TABLE handler ADD COLUMN workers TEXT; ALTER TABLE handler ADD COLUMN sticky TEXT",
            )?;
        }
        let queue = queue.map(|queue| i64::try_from(queue).unwrap_or(i64::MAX));
        let retry = (*retry != Retry::default()).then(|| retry.word());
        let wait = wait.map(|wait| i64::try_from(wait.as_secs()).unwrap_or(i64::MAX));
        let workers = workers.as_ref().map(|spec| &spec.text);
        let sticky = sticky.as_ref().map(ToString::to_string);
        database.execute(
            "UPDATE handler SET slots = ?1, queue = ?2, retry = ?3, wait = ?4, workers = ?5, sticky = ?6 WHERE id = ?7",
            params![slots, queue, retry, wait, workers, sticky, id],
        )?;
        Ok(())
    }
}

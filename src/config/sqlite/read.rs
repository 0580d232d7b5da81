//! From rows to servers: what points at what, and the columns each table must have.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::super::diagnostic::Place;
use super::super::draft::{
    self, DraftDir, DraftHandler, DraftHost, DraftRoute, DraftServer, Findings, MimetypeRow,
    SettingRow,
};
use super::super::{Mimetypes, Plugin, Reading, Settings, Target, plugin};
use super::cells::{Row, rows};
use super::{DatabaseError, columns, open};

/// Reads a whole database.
pub(in super::super) fn read(path: &Path) -> Result<Reading, DatabaseError> {
    let database = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
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
                    "wait",
                    "workers",
                    "sticky",
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
                name: if row.is_set("name") {
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
                    slots: row.own_number("slots", findings),
                    queue: row.own_number("queue", findings),
                    retry: row.own_text("retry", findings),
                    wait: row.own_number("wait", findings),
                    workers: row.own_text("workers", findings),
                    sticky: row.own_text("sticky", findings),
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

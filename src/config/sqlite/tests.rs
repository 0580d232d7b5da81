//! Databases that are whole, old, foreign or wrong, each told as it is.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::super::{Config, Target, conf};
use super::{DatabaseError, Entry, columns, commit, journal, read, texts, write};

const CONF: &str = r#"
    h = Handler(send_spec='tcp://127.0.0.1:1' send_ident='a' recv_spec='tcp://127.0.0.1:2' recv_ident='' EXTRA)
    s = Server(uuid="u" access_log="/a" error_log="/e" pid_file="/p" default_host="d" name="n" port=80
        filters=[Filter(name='f' settings={'a': [1 'b']})]
        hosts=[Host(name="d" routes={'/': h '/2': h '/d/': Dir(base='x/' index_file='' default_ctype='')
            '/p': Proxy(addr='localhost' port=81)})])
    settings = {"limits.content_length": 100}
    servers = [s]"#;

struct Fixture {
    _directory: tempfile::TempDir,
    path: PathBuf,
    config: Config,
}

fn fixture(extra: &str) -> Fixture {
    let reading = conf::read(Path::new("t.conf"), CONF.replace("EXTRA", extra).as_bytes());
    assert!(!reading.has_errors(), "{:?}", reading.diagnostics);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.sqlite");
    let config = reading.into_config();
    write(&path, &config, &entry("load")).unwrap();
    Fixture {
        _directory: directory,
        path,
        config,
    }
}

fn entry(what: &str) -> Entry {
    let text = String::from;
    let (who, location, how) = (text("me"), text("here"), text("t.conf"));
    Entry {
        happened_at: String::new(),
        who,
        location,
        how,
        what: text(what),
        why: Some(text("test")),
    }
}

impl Fixture {
    fn run(&self, sql: &str) {
        Connection::open(&self.path)
            .unwrap()
            .execute_batch(sql)
            .unwrap();
    }

    fn findings(&self) -> Vec<String> {
        let diagnostics = read(&self.path).unwrap().diagnostics;
        diagnostics
            .iter()
            .map(|found| found.to_string().split_once(": ").unwrap().1.to_owned())
            .collect()
    }
}

#[test]
fn what_is_written_reads_back_as_the_same_model() {
    for extra in [
        "",
        "slots=3",
        "queue=0 retry='always'",
        "wait=0",
        "workers='ipc://workers' sticky='path:1'",
        "raw_payload=1 protocol='tnetstring'",
    ] {
        let fixture = fixture(extra);
        assert_eq!(
            read(&fixture.path).unwrap().into_config(),
            fixture.config,
            "{extra}"
        );
    }
}

#[test]
fn own_columns_stand_only_where_they_are_used() {
    let has = |fixture: &Fixture| {
        columns(&Connection::open(&fixture.path).unwrap(), "handler")
            .unwrap()
            .contains(&"slots".to_owned())
    };
    assert!(!has(&fixture("")));
    assert!(has(&fixture("slots=3")));
}

#[test]
fn a_database_of_a_time_with_fewer_own_columns_is_read() {
    let fixture = fixture("slots=3 workers='ipc://workers' sticky='conn' wait=4");
    for column in ["wait", "workers", "sticky"] {
        fixture.run(&format!("ALTER TABLE handler DROP COLUMN {column}"));
    }
    let config = read(&fixture.path).unwrap().into_config();
    let Target::Handler(handler) = &config.servers[0].hosts[0].routes[0].target else {
        panic!("a handler")
    };
    assert_eq!((handler.slots, handler.wait), (Some(3), None));
    assert_eq!((&handler.workers, &handler.sticky), (&None, &None));
}

#[test]
fn one_target_of_many_routes_is_one_row() {
    let fixture = fixture("");
    let count = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        Connection::open(&fixture.path)
            .unwrap()
            .query_row(&sql, [], |row| row.get(0))
            .unwrap()
    };
    assert_eq!(
        (count("route"), count("handler"), count("mimetype")),
        (4, 1, 857)
    );
    let reading = read(&fixture.path).unwrap().into_config();
    assert!(
        reading.servers[0].hosts[0].routes[0]
            .target
            .is(&reading.servers[0].hosts[0].routes[1].target)
    );
}

#[test]
fn a_load_keeps_the_journal_and_nothing_else() {
    let fixture = fixture("");
    commit(&fixture.path, &entry("by hand")).unwrap();
    fixture.run("INSERT INTO host (server_id, name, matching) VALUES (1, 'stray', 'stray')");
    fixture.run("INSERT INTO log (what) VALUES ('with NULLs, as m2sh leaves them')");
    write(&fixture.path, &fixture.config, &entry("load")).unwrap();
    assert_eq!(read(&fixture.path).unwrap().into_config(), fixture.config);
    let whats: Vec<_> = journal(&fixture.path)
        .unwrap()
        .into_iter()
        .map(|entry| entry.what)
        .collect();
    assert_eq!(
        whats,
        ["load", "by hand", "with NULLs, as m2sh leaves them", "load"]
    );
}

#[test]
fn older_databases_lack_tables_and_columns() {
    let fixture = fixture("");
    fixture.run(
        "DROP TABLE filter; DROP TABLE xrequest; DROP TABLE log; ALTER TABLE server DROP COLUMN control_port;
         ALTER TABLE handler DROP COLUMN raw_payload; ALTER TABLE handler DROP COLUMN protocol;
         ALTER TABLE directory DROP COLUMN cache_ttl; ALTER TABLE server DROP COLUMN use_ssl",
    );
    assert_eq!(fixture.findings(), Vec::<String>::new());
    assert!(
        read(&fixture.path).unwrap().into_config().servers[0]
            .filters
            .is_empty()
    );
}

#[test]
fn wrong_cells_are_told_by_table_row_and_column() {
    let fixture = fixture("");
    fixture.run(
        "UPDATE server SET error_log = NULL, port = 'http';
         UPDATE handler SET recv_spec = x'00', protocol = NULL;
         UPDATE route SET target_type = 'dirt' WHERE id = 2; UPDATE route SET target_id = 9 WHERE path = '/p';
         UPDATE filter SET settings = 'x'; UPDATE host SET name = CAST(x'ff' AS TEXT)",
    );
    assert_eq!(
        fixture.findings(),
        [
            "table host, row 1, column name: is text that is not UTF-8, and must be text",
            "table handler, row 1, column recv_spec: is a blob, and must be text",
            "table handler, row 1, column protocol: is NULL, and must be text",
            "table route, row 2, column target_type: is \"dirt\", and must be \"handler\", \"dir\" or \"proxy\"",
            "table route, row 4, column target_id: points at row 9 of table `proxy`, which is not there",
            "table filter, row 1, column settings: is no tnetstring dictionary",
            "table server, row 1, column error_log: is NULL, and must be text",
            "table server, row 1, column port: is the text \"http\", and must be a whole number",
        ]
    );
}

#[test]
fn the_settings_and_types_of_a_database_are_held_to_the_rules() {
    let fixture = fixture("");
    fixture.run(
        "UPDATE mimetype SET extension = 'html' WHERE extension = '.html';
         INSERT INTO setting (key, value) VALUES ('limits.content_length', '10k'), ('x', NULL)",
    );
    assert_eq!(
        fixture.findings(),
        [
            "table setting, row 3, column value: is NULL, and must be text",
            "table setting, row 2, column value: warning: setting `limits.content_length` is given again; the last one counts",
            "table setting, row 2, column value: warning: setting `limits.content_length`: \"10k\" is no number; read as 10",
            "table mimetype, row 274, column extension: mime type extension \"html\" must begin with a dot",
        ]
    );
    assert!(read(&fixture.path).unwrap().fatal);
}

#[test]
fn a_database_of_something_else_is_refused_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.sqlite");
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE host (a)")
        .unwrap();
    assert!(matches!(read(&path), Err(DatabaseError::Foreign("server"))));
    let config = fixture("").config;
    assert!(matches!(
        write(&path, &config, &entry("load")),
        Err(DatabaseError::Foreign("server"))
    ));
    assert!(matches!(journal(&path), Err(DatabaseError::Foreign("log"))));
}

#[test]
fn a_database_of_another_mongrel2_says_which_column_it_lacks() {
    let fixture = fixture("");
    fixture.run("ALTER TABLE route DROP COLUMN target_type");
    let error = read(&fixture.path).unwrap_err();
    assert_eq!(
        error.to_string(),
        "table `route` has no column `target_type`"
    );
}

#[test]
fn rows_can_be_looked_at_right_or_wrong() {
    let fixture = fixture("");
    fixture.run(
        "UPDATE server SET name = NULL, port = 'http'; ALTER TABLE server DROP COLUMN bind_addr",
    );
    let rows = texts(&fixture.path, "server", ["id", "name", "port", "bind_addr"]).unwrap();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(rows, [[text("1"), None, text("http"), None]]);
    assert!(matches!(
        texts(&fixture.path, "nothing", ["id"]),
        Err(DatabaseError::Foreign("nothing"))
    ));
}

//! The recorded Mongrel2 databases, made startable here: free ports instead of the recorded ones, a directory of the
//! test's own instead of `/var/m2run`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::Connection;

use super::client::Client;
use super::free_port;
use super::tls::Recorded;

/// The directory the recordings were made in.
const RECORDED_DIRECTORY: &str = "/var/m2run";

/// A startable copy of one recorded database.
pub(crate) struct Golden {
    pub(crate) database: PathBuf,
    pub(crate) uuid: String,
    pub(crate) address: SocketAddr,
    /// Send and receive specs of the handlers, in the order of their recorded ports: the recordings call them J, T and R.
    pub(crate) handlers: Vec<(String, String)>,
    /// What clients need when the server speaks TLS.
    pub(crate) tls: Option<Recorded>,
    /// Ports of the proxied servers, all on this machine, in the order of their recorded ones.
    pub(crate) backends: Vec<u16>,
}

impl Golden {
    /// A client of the server.
    pub(crate) fn connect(&self) -> Client {
        self.secure(Client::connect(self.address))
            .expect("a handshake")
    }

    /// Goes on in TLS if the server speaks it.
    pub(crate) fn secure(&self, client: Client) -> io::Result<Client> {
        match &self.tls {
            None => Ok(client),
            Some(tls) => client.secure(&tls.client, "localhost"),
        }
    }
}

/// The folder of test data.
pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// Copies `tests/data/configs/NAME.sqlite` into `directory` and makes it startable there, with what it needs beside it.
pub(crate) fn prepare(name: &str, directory: &Path) -> Golden {
    furnish(directory);
    let database = directory.join(format!("{name}.sqlite"));
    fs::copy(data().join(format!("configs/{name}.sqlite")), &database).expect("copy a database");
    let mut golden = adopt(&database, directory);
    if name == "tls" {
        golden.tls = Some(Recorded::furnish(&directory.join("tls"), &golden.uuid));
    }
    golden
}

/// Rewrites a database in place: ports, specs and paths.
pub(crate) fn adopt(database: &Path, directory: &Path) -> Golden {
    let db = Connection::open(database).expect("open a database");
    let here = directory.to_str().expect("a UTF-8 path");
    for (table, columns) in [
        (
            "server",
            &[
                "access_log",
                "error_log",
                "chroot",
                "pid_file",
                "control_port",
            ][..],
        ),
        ("setting", &["value"]),
        ("handler", &["send_spec", "recv_spec"]),
        ("directory", &["base"]),
    ] {
        for column in columns {
            let sql = format!("UPDATE {table} SET {column} = replace({column}, ?1, ?2)");
            db.execute(&sql, [RECORDED_DIRECTORY, here])
                .expect("rewrite paths");
        }
    }
    // Logs and pid files at the root of the file system come here too.
    for column in ["access_log", "error_log", "pid_file"] {
        let sql = format!(
            "UPDATE server SET {column} = ?1 || {column} WHERE {column} NOT LIKE ?1 || '%'"
        );
        db.execute(&sql, [here]).expect("rewrite paths");
    }
    // The same recorded port becomes the same free one, wherever it stands: clashes on purpose stay clashes.
    let mut ports = BTreeMap::new();
    let mut fresh = |port: i64| i64::from(*ports.entry(port).or_insert_with(free_port));
    let rows = |sql: &str| -> Vec<(i64, String, String)> {
        let mut query = db.prepare(sql).expect("a query");
        let rows = query
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .expect("rows");
        rows.map(|row| row.expect("a row")).collect()
    };
    let mut handlers = Vec::new();
    for (id, send, recv) in
        rows("SELECT id, send_spec, recv_spec FROM handler ORDER BY send_spec, id")
    {
        let mut moved = |spec: String| match spec.rsplit_once(':') {
            Some((head, port)) if spec.starts_with("tcp://") => {
                format!("{head}:{}", fresh(port.parse().expect("a port")))
            }
            _ => spec,
        };
        let (send, recv) = (moved(send), moved(recv));
        db.execute(
            "UPDATE handler SET send_spec = ?1, recv_spec = ?2 WHERE id = ?3",
            (&send, &recv, id),
        )
        .expect("rewrite specs");
        handlers.push((send, recv));
    }
    let mut backends = Vec::new();
    for table in ["server", "proxy"] {
        let sql = format!("SELECT id, CAST(port AS TEXT), '' FROM {table} ORDER BY port");
        for (id, port, _) in rows(&sql) {
            let port = fresh(port.parse().expect("a port"));
            if table == "proxy" {
                backends.push(u16::try_from(port).expect("a port"));
            }
            db.execute(
                &format!("UPDATE {table} SET port = ?1 WHERE id = ?2"),
                (port, id),
            )
            .expect("rewrite ports");
        }
    }
    let (uuid, ip, port): (String, String, u16) = db
        .query_row(
            "SELECT uuid, bind_addr, port FROM server ORDER BY id LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .expect("a server");
    let ip: IpAddr = ip.parse().expect("a numeric address");
    let reachable = if ip.is_unspecified() {
        IpAddr::from([127, 0, 0, 1])
    } else {
        ip
    };
    Golden {
        database: database.to_owned(),
        uuid,
        address: SocketAddr::new(reachable, port),
        handlers,
        tls: None,
        backends,
    }
}

/// What `www/big.bin` holds: as many bytes as the recorded one had, of which only the first were kept.
pub(crate) fn big_file() -> Vec<u8> {
    let lines = (0..).flat_map(|number: u32| format!("{number:09}\n").into_bytes());
    lines.take(100_000).collect()
}

/// The directories and files that the recorded configurations expect in their working directory.
fn furnish(directory: &Path) {
    for folder in [
        "logs",
        "run",
        "up",
        "www/sub",
        "www/empty",
        "www-secret",
        "jail/logs",
        "jail/run",
    ] {
        fs::create_dir_all(directory.join(folder)).expect("create a folder");
    }
    let files = [
        ("index.html", "<html>index</html>\n"),
        ("hello.txt", "hello text\n"),
        ("noext", "noext\n"),
        ("a.xyz", "xyz\n"),
        ("sub/index.html", "sub idx\n"),
        ("UPPER.HTML", "UP\n"),
        ("x.tar.gz", "tgz"),
        ("a b.txt", "sp\n"),
        ("../secret.txt", "secret\n"),
        ("../www-secret/x", "secret\n"),
    ];
    for (name, text) in files {
        fs::write(directory.join("www").join(name), text).expect("write a file");
    }
    fs::write(directory.join("www/big.bin"), big_file()).expect("write a file");
    std::os::unix::fs::symlink("../secret.txt", directory.join("www/link.txt"))
        .expect("make a link");
    // 2020-01-02 03:04:05 UTC, as recorded.
    let when = SystemTime::UNIX_EPOCH + Duration::from_secs(1_577_934_245);
    let hello = fs::File::options()
        .append(true)
        .open(directory.join("www/hello.txt"))
        .expect("open a file");
    hello.set_modified(when).expect("set a time");
}

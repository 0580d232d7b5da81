//! The real php-fpm, where it is installed, with small pages from `tests/data/php`.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{ask, handler, header, text};
use crate::support::client::{Asked, Client};
use crate::support::program::Program;
use crate::support::servers::{self, Kind};
use crate::support::{PATIENCE, free_port, scratch};

/// A running php-fpm on a socket or a port, with its pages.
struct Php {
    program: Program,
    /// As APP.
    app: String,
    directory: tempfile::TempDir,
}

/// Asked to end, since its children outlive a master that is killed.
impl Drop for Php {
    fn drop(&mut self) {
        self.program.terminate();
    }
}

impl Php {
    /// Starts it; `None`, with a printed line, where it is not installed.
    fn start(transport: &str) -> Option<Self> {
        let Some(binary) = installed() else {
            println!("skipped: php-fpm is not installed (Debian: php-fpm)");
            return None;
        };
        let directory = scratch();
        let pages = directory.path().join("www");
        fs::create_dir_all(pages.join("sub")).unwrap();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/php");
        for entry in fs::read_dir(data).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, pages.join(path.file_name().unwrap())).unwrap();
        }
        fs::copy(pages.join("index.php"), pages.join("sub/index.php")).unwrap();
        let socket = directory.path().join("fpm.sock");
        let port = free_port();
        let (listen, app) = match transport {
            "unix" => (
                socket.display().to_string(),
                format!("fastcgi:{}", socket.display()),
            ),
            _ => (
                format!("127.0.0.1:{port}"),
                format!("fastcgi://127.0.0.1:{port}"),
            ),
        };
        let config = directory.path().join("fpm.conf");
        let text = format!(
            "[global]\ndaemonize = no\nerror_log = /dev/stderr\n\
             [www]\nlisten = {listen}\nuser = root\nsecurity.limit_extensions =\npm = static\npm.max_children = 3\ncatch_workers_output = yes\n\
             php_admin_value[post_max_size] = 64M\nphp_admin_value[upload_max_filesize] = 64M\nphp_admin_value[html_errors] = 0\n\
             php_admin_value[display_errors] = 0\nphp_admin_value[log_errors] = 1\nphp_admin_value[max_execution_time] = 60\n"
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(binary);
        command
            .args(["--nodaemonize", "--allow-to-run-as-root", "-n", "-y"])
            .arg(&config);
        let mut program = Program::start(&mut command);
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(&socket).is_err()
            && TcpStream::connect(("127.0.0.1", port)).is_err()
        {
            assert!(program.alive() && Instant::now() < end, "{program}");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self {
            program,
            app,
            directory,
        })
    }

    fn pages(&self) -> PathBuf {
        self.directory.path().join("www")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The handler on it, with its pages as the root.
    fn handler(&self, server: &servers::Server, options: &[&str]) -> Program {
        let pages = self.pages();
        let root = ["--root", pages.to_str().unwrap()];
        handler(
            &self.app,
            [&server.send, &server.recv],
            &[&root, options].concat(),
            server.directory(),
        )
    }
}

/// The newest php-fpm there is.
fn installed() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = ["/usr/sbin", "/usr/local/sbin"]
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("php-fpm"))
        })
        .collect();
    found.sort();
    found.pop()
}

fn content(size: usize) -> Vec<u8> {
    let lines = (0_usize..)
        .step_by(16)
        .flat_map(|at| format!("{at:015}\n").into_bytes());
    lines.take(size).collect()
}

#[test]
fn a_page_is_told_what_was_asked() {
    let Some(php) = Php::start("unix") else {
        return;
    };
    let root = fs::canonicalize(php.pages()).unwrap();
    let root = root.display();
    servers::each("", |server| {
        let mut program = php.handler(&server, &["--param", "APP_ENV=test"]);
        let fields = "X-A: 1\r\nX-A: 2\r\nProxy: evil\r\nAuthorization: Basic dTpw\r\n";
        let answer = ask(server.address, "GET /index.php/in/fo?a=1&b", fields, b"");
        assert_eq!(answer.status, 200);
        assert!(header(&answer, "content-type").starts_with("text/plain"));
        let cookies = answer
            .headers
            .iter()
            .filter(|(name, _)| name == "set-cookie");
        let cookies: Vec<&[u8]> = cookies.map(|(_, value)| &value[..]).collect();
        assert_eq!(cookies, [b"a=1", b"b=2"]);
        assert!(answer.header("date").is_some());
        let address = server.address;
        let expect = format!(
            "GATEWAY_INTERFACE=CGI/1.1\nREQUEST_METHOD=GET\nREQUEST_URI=/index.php/in/fo?a=1&b\nQUERY_STRING=a=1&b\n\
             SCRIPT_NAME=/index.php\nSCRIPT_FILENAME={root}/index.php\nDOCUMENT_ROOT={root}\nPATH_INFO=/in/fo\n\
             PHP_SELF=/index.php/in/fo\nSERVER_NAME=localhost\nSERVER_PORT=80\nSERVER_PROTOCOL=HTTP/1.1\nREMOTE_ADDR=127.0.0.1\n\
             HTTPS=-\nHTTP_HOST=localhost\nHTTP_X_A=1, 2\nHTTP_PROXY=-\nCONTENT_TYPE=\nCONTENT_LENGTH=\nAPP_ENV=test\nPHP_AUTH_USER=u\n"
        );
        assert_eq!(
            text(&answer),
            expect.replace(
                "CONTENT_TYPE=\nCONTENT_LENGTH=\n",
                "CONTENT_TYPE=-\nCONTENT_LENGTH=-\n"
            )
        );
        // The directory's script, the same with its slash missing, and answers without a body, on one connection.
        let mut client = Client::connect(address);
        let mut on = |line: &str, asked: Asked| {
            let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client.send(request.as_bytes()).unwrap();
            client.try_answer(asked, PATIENCE).expect("an answer")
        };
        assert!(text(&on("GET /sub/", Asked::Other)).contains("SCRIPT_NAME=/sub/index.php\n"));
        let answer = on("GET /sub?q", Asked::Other);
        assert_eq!(
            (answer.status, header(&answer, "location")),
            (301, "/sub/?q")
        );
        assert_eq!(on("HEAD /index.php", Asked::Head).status, 200);
        assert_eq!(on("GET /status.php?do=none", Asked::Other).status, 204);
        let answer = on("GET /status.php?do=gone", Asked::Other);
        assert_eq!((answer.status, text(&answer)), (410, "no more".to_owned()));
        let answer = on("GET /status.php?do=away", Asked::Other);
        assert_eq!(
            (answer.status, header(&answer, "location")),
            (302, "/index.php")
        );
        assert_eq!(text(&on("GET /status.php?do=exit", Asked::Other)), "partly");
        assert_eq!(text(&on("GET /status.php?do=error", Asked::Other)), "said");
        program.said("/status.php: PHP message: a complaint of the script", 1);
        assert_eq!(on("GET /status.php?do=fatal", Asked::Other).status, 500);
        program.said("Call to undefined function undefined_function()", 1);
        assert!(program.terminate().success());
    });
}

#[test]
fn forms_and_files_arrive() {
    let Some(php) = Php::start("tcp") else { return };
    let stored = format!(
        ", 'upload.temp_store': '{}/up.XXXXXX'",
        php.directory.path().display()
    );
    for settings in [stored.as_str(), ", 'upload.stream': 1"] {
        servers::each(settings, |server| {
            let mut program = php.handler(&server, &[]);
            let kind = "Content-Type: application/x-www-form-urlencoded\r\n";
            let fields = format!("{kind}Content-Length: 10\r\n");
            let answer = ask(server.address, "POST /form.php", &fields, b"name=a%20b");
            assert_eq!(text(&answer), "name=a b\n");
            let file = content(300_001);
            let before = "--b\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nme\r\n\
                --b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.bin\"\r\nContent-Type: application/octet-stream\r\n\r\n";
            let body = [before.as_bytes(), &file, b"\r\n--b--\r\n"].concat();
            let fields = format!(
                "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n",
                body.len()
            );
            let answer = ask(server.address, "POST /form.php", &fields, &body);
            let sum = md5(&php.path("sum"), &file);
            assert_eq!(text(&answer), format!("name=me\nf.bin 0 300001 {sum}\n"));
            // What is not streamed may be chunked, and is told its length.
            let mut chunked = Vec::new();
            for chunk in file.chunks(7_000) {
                chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                chunked.extend_from_slice(&[chunk, b"\r\n"].concat());
            }
            chunked.extend_from_slice(b"0\r\n\r\n");
            let answer = ask(
                server.address,
                "POST /raw.php",
                "Transfer-Encoding: chunked\r\n",
                &chunked,
            );
            if settings == stored {
                assert_eq!(text(&answer), format!("300001 {sum}"));
            } else {
                assert_eq!(answer.status, 411);
            }
            assert!(program.terminate().success());
            let left = fs::read_dir(php.directory.path()).unwrap();
            let left = left.filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_str().unwrap().starts_with("up.")
            });
            assert_eq!(left.count(), 0, "uploads are removed");
        });
    }
}

/// As `md5sum` has it.
fn md5(scratch: &Path, bytes: &[u8]) -> String {
    fs::write(scratch, bytes).unwrap();
    let output = Command::new("md5sum").arg(scratch).output().unwrap();
    String::from_utf8_lossy(&output.stdout)
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn long_responses_arrive_whole() {
    let Some(php) = Php::start("unix") else {
        return;
    };
    let content = content(50_000_000);
    servers::each("", |server| {
        let mut program = php.handler(&server, &["--keep", "2"]);
        for (size, query) in [
            (0, ""),
            (0, "&length"),
            (1, ""),
            (1, "&length"),
            (100_000, ""),
            (100_000, "&length"),
            (50_000_000, "&length"),
        ] {
            let line = format!("GET /large.php?size={size}{query}");
            let answer = ask(server.address, &line, "", b"");
            assert_eq!(answer.status, 200);
            let content = content.get(..size).unwrap();
            assert!(answer.body == content, "{size} {query}");
        }
        let mut client = Client::connect(server.address);
        client
            .send(b"GET /large.php?size=20000000 HTTP/1.0\r\n\r\n")
            .unwrap();
        let rest = client.rest();
        assert!(rest.ends_with(&content[..20_000_000]));
        assert!(program.terminate().success());
    });
}

#[test]
fn only_scripts_below_the_root_are_run() {
    let Some(php) = Php::start("unix") else {
        return;
    };
    fs::write(php.path("secret.php"), "<?php echo 'secret';").unwrap();
    fs::write(php.pages().join("picture.jpg"), "<?php echo 'secret';").unwrap();
    symlink(php.path("secret.php"), php.pages().join("out.php")).unwrap();
    servers::each("", |server| {
        let mut program = php.handler(&server, &[]);
        for path in [
            "/picture.jpg",
            "/picture.jpg/x.php",
            "/picture.jpg%2fx.php",
            "/picture.jpg/index.php/x.php",
            "/picture.jpg%00.php",
            "/../secret.php",
            "/%2e%2e/secret.php",
            "/out.php",
            "/none.php",
            "/none",
            "/index.php.jpg",
            "/",
        ] {
            let answer = ask(server.address, &format!("GET {path}"), "", b"");
            let expect = if path == "/" { 200 } else { 404 };
            assert_eq!(
                (answer.status, text(&answer).contains("secret")),
                (expect, false),
                "{path}"
            );
        }
        assert!(program.terminate().success());
    });
}

#[test]
fn a_front_controller_gets_what_has_no_script() {
    let Some(php) = Php::start("unix") else {
        return;
    };
    servers::each("", |server| {
        let get = |path: &str| ask(server.address, &format!("GET {path}"), "", b"");
        let mut program = php.handler(&server, &["--fallback", "front.php"]);
        assert_eq!(
            text(&get("/2026/hello-world/?p=1")),
            "front /2026/hello-world/ of /front.php"
        );
        assert_eq!(get("/missing").status, 404);
        assert!(text(&get("/sub/")).contains("SCRIPT_NAME=/sub/index.php"));
        assert!(program.terminate().success());
        let mut program = php.handler(&server, &["--script", "front.php"]);
        assert_eq!(text(&get("/index.php")), "front /index.php of /front.php");
        assert_eq!(text(&get("/")), "front / of /front.php");
        assert!(program.terminate().success());
    });
}

#[test]
fn a_script_ends_when_its_client_has_left() {
    let Some(php) = Php::start("unix") else {
        return;
    };
    servers::each("", |server| {
        let mut program = php.handler(&server, &[]);
        let file = php.path("left");
        let mut client = Client::connect(server.address);
        let line = format!("GET /drip.php?file={}", file.display());
        client
            .send(format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
            .unwrap();
        // Lines come as they are written, not when the script has ended.
        client.upto(b"line 3\n");
        drop(client);
        let end = Instant::now() + PATIENCE;
        while !file.exists() || fs::read(&file).unwrap().is_empty() {
            assert!(Instant::now() < end, "the script goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "aborted");
        fs::remove_file(&file).unwrap();
        assert!(program.terminate().success());
    });
}

#[test]
fn a_script_that_is_silent_is_given_up() {
    let Some(php) = Php::start("unix") else {
        return;
    };
    servers::each("", |server| {
        if server.kind == Kind::Mongrel2 {
            // It makes no difference who asks.
            return;
        }
        let mut program = php.handler(&server, &["--timeout", "1"]);
        let answer = ask(server.address, "GET /status.php?do=silent", "", b"");
        assert_eq!(answer.status, 504);
        assert_eq!(
            text(&answer),
            "Gateway Timeout: the script did not answer in time"
        );
        assert!(program.terminate().success());
    });
}

//! What has to come into a jail from outside while the server runs: new certificates, whatever has become of the configuration.
//! And what is asked of a jail from outside: its control port, its proxies.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;

use super::{Site, asks, is_root, local, until};
use crate::support::client::{Client, fetch};
use crate::support::free_port;
use crate::support::program::Program;
use crate::support::tls::Authority;

/// A server in a jail that speaks TLS and has a directory to show; its certificates are root's own.
fn secure(name: &str, port: u16, settings: &str) -> Site {
    let site = Site::new()
        .jailed(name, port)
        .settings(&format!("'certdir': '/certs/'{settings}"));
    fs::create_dir(site.in_jail("certs")).expect("a folder");
    fs::set_permissions(site.in_jail("certs"), fs::Permissions::from_mode(0o700)).expect("chmod");
    fs::create_dir(site.in_jail("www")).expect("a folder");
    fs::write(site.in_jail("www/hello"), "hello").expect("write");
    site
}

const FILES: &str = "{'/': Dir(base='/www/', index_file='index.html', default_ctype='text/plain')}";

fn with_files(server: &str) -> String {
    server
        .replace("hosts=[", "use_ssl=1, hosts=[")
        .replace("{'/no/such/path': app}", FILES)
}

fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Client {
    Client::connect(address)
        .secure(config, "localhost")
        .expect("a handshake")
}

fn shown(address: SocketAddr, config: &Arc<ClientConfig>) -> CertificateDer<'static> {
    let client = connect(address, config);
    let chain = client.tls().peer_certificates().expect("a certificate");
    chain[0].clone().into_owned()
}

fn is_served(client: &mut Client) {
    client
        .send(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("send");
    assert_eq!(client.answer().body, b"hello");
}

#[test]
fn new_certificates_come_into_a_jail_whatever_has_become_of_the_configuration() {
    if !is_root() {
        return;
    }
    let authority = Authority::new();
    // Fresh handshakes only: a resumed one shows no certificate.
    let trusted = || Arc::new(authority.trusted(None, rustls::ALL_VERSIONS));
    for settings in ["", ", 'reload.on_hangup': 0"] {
        let mut site = secure("main", 0, settings);
        site.servers = site.servers.iter().map(|s| with_files(s)).collect();
        let [first, second, third] = std::array::from_fn(|_| authority.issue(&["localhost"]));
        let certdir = site.in_jail("certs");
        first.write(&certdir, "main-uuid");
        let path = site.write();
        let mut program = Program::start(&mut site.command(&["serve", "main.conf"]));
        let address = program.listening();
        let mut open = connect(address, &trusted());
        is_served(&mut open);
        assert_eq!(shown(address, &trusted()), first.certificate);

        // The configuration as it was.
        second.write(&certdir, "main-uuid");
        program.signal("HUP");
        program.said("configuration reloaded", 1);
        assert_eq!(shown(address, &trusted()), second.certificate);
        is_served(&mut open);

        // A configuration that cannot be read.
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, text.replace("hosts=[", "hosts=[[")).expect("write");
        third.write(&certdir, "main-uuid");
        program.signal("HUP");
        program.said("configuration reloaded", 2);
        assert_eq!(shown(address, &trusted()), third.certificate);
        is_served(&mut open);
        let mistakes = program
            .lines()
            .iter()
            .any(|line| line.contains("main.conf:4:"));
        assert_eq!(mistakes, settings.is_empty(), "{program}");

        // A certificate that is none.
        fs::write(certdir.join("main-uuid.crt"), "half a certificate").expect("write");
        program.signal("HUP");
        program.line("what is wrong", |line| {
            line.contains("main-uuid.crt").then_some(())
        });
        assert_eq!(shown(address, &trusted()), third.certificate);
        is_served(&mut open);
        assert!(program.terminate().success());
    }
}

#[test]
fn certificates_are_renewed_when_the_new_configuration_cannot_be_had() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let other = taken.local_addr().expect("an address").port();
    let port = free_port();
    let authority = Authority::new();
    let trusted = || Arc::new(authority.trusted(None, rustls::ALL_VERSIONS));
    let [first, second, third] = std::array::from_fn(|_| authority.issue(&["localhost"]));
    if !is_root() {
        return;
    }
    let mut site = secure("main", port, "");
    site.servers = site.servers.iter().map(|s| with_files(s)).collect();
    let certdir = site.in_jail("certs");
    first.write(&certdir, "main-uuid");
    let path = site.write();
    let text = fs::read_to_string(&path).expect("read");
    let mut program = Program::start(&mut site.command(&["serve", "main.conf"]));
    let address = program.listening();
    // It is right, and its port is another's.
    let elsewhere = text.replace(&format!("port={port}"), &format!("port={other}"));
    fs::write(&path, &elsewhere).expect("write");
    second.write(&certdir, "main-uuid");
    program.signal("HUP");
    program.said("refused, the old configuration goes on", 1);
    until("the certificate is the new one", || {
        shown(address, &trusted()) == second.certificate
    });
    // The port is free, and nobody has asked for that configuration again: it is wrong by now.
    drop(taken);
    fs::write(&path, elsewhere.replace("hosts=[", "hosts=[[")).expect("write");
    third.write(&certdir, "main-uuid");
    program.signal("HUP");
    program.said("refused, the old configuration goes on", 2);
    until("the certificate is the new one", || {
        shown(address, &trusted()) == third.certificate
    });
    assert!(TcpListener::bind(local(other)).is_ok(), "{program}");
    assert!(program.terminate().success());
}

/// Runs the program to its end, and gives what it printed.
#[track_caller]
fn said(site: &Site, arguments: &[&str]) -> String {
    let output = site
        .command(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("run");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_server_of_a_jail_has_its_certificate_and_its_control_port() {
    if !is_root() {
        return;
    }
    let ports = [free_port(), free_port()];
    let site = secure("one", ports[0], "").jailed("two", ports[1]);
    let site = Site {
        servers: site.servers.iter().map(|s| with_files(s)).collect(),
        ..site
    };
    let authority = Authority::new();
    let trusted = || Arc::new(authority.trusted(None, rustls::ALL_VERSIONS));
    let mut pairs: Vec<_> = (0..2).map(|_| authority.issue(&["localhost"])).collect();
    let certdir = site.in_jail("certs");
    let write = |pairs: &[crate::support::tls::Pair]| {
        for (pair, uuid) in pairs.iter().zip(["one-uuid", "two-uuid"]) {
            pair.write(&certdir, uuid);
        }
    };
    write(&pairs);
    site.write();
    let mut program = Program::start(&mut site.command(&["serve", "main.conf", "--every"]));
    program.line("that all run", |line| {
        line.contains("2 servers run").then_some(())
    });
    for (name, (port, pair)) in ["one", "two"].iter().zip(ports.iter().zip(&pairs)) {
        assert_eq!(shown(local(*port), &trusted()), pair.certificate, "{name}");
        let server = format!("--server={name}");
        let uuid = said(&site, &["control", "main.conf", "uuid", &server]);
        assert_eq!(uuid, format!("{name}-uuid\n"));
        let info = said(&site, &["control", "main.conf", "info", &server, "--json"]);
        let jail = site.in_jail("").display().to_string();
        assert!(info.contains(jail.trim_end_matches('/')), "{info}");
        assert!(info.contains(&format!("\"port\": {port}")), "{info}");
        let mut open = connect(local(*port), &trusted());
        is_served(&mut open);
        let net = said(
            &site,
            &[
                "control",
                "main.conf",
                "status",
                "what=net",
                &server,
                "--json",
            ],
        );
        assert!(
            net.contains("\"fd\": ") && !net.contains("\"fd\": -1"),
            "{net}"
        );
    }
    // By the control port of the one, for it alone.
    pairs = (0..2).map(|_| authority.issue(&["localhost"])).collect();
    let old = shown(local(ports[1]), &trusted());
    write(&pairs);
    said(&site, &["reload", "main.conf", "--server=one"]);
    program.line("the reload", |line| {
        (line.starts_with("one: ") && line.contains("configuration reloaded")).then_some(())
    });
    assert_eq!(shown(local(ports[0]), &trusted()), pairs[0].certificate);
    assert_eq!(shown(local(ports[1]), &trusted()), old);
    // By a signal for all.
    program.signal("HUP");
    program.line("the reload", |line| {
        (line.starts_with("two: ") && line.contains("configuration reloaded")).then_some(())
    });
    assert_eq!(shown(local(ports[1]), &trusted()), pairs[1].certificate);
    // The one ends, and the other goes on.
    said(&site, &["stop", "main.conf", "--server=one"]);
    until("the one has ended", || {
        !site.in_jail("run/one.pid").exists()
    });
    is_served(&mut connect(local(ports[1]), &trusted()));
    said(&site, &["stop", "main.conf", "--server=two"]);
    assert!(program.ended().success(), "{program}");
}

#[test]
fn a_jail_has_its_own_names_for_the_servers_behind_it() {
    if !is_root() {
        return;
    }
    let backend = TcpListener::bind("127.0.0.1:0").expect("a port");
    let behind = backend.local_addr().expect("an address").port();
    let mut site = Site::new().jailed("main", 0);
    fs::create_dir(site.in_jail("etc")).expect("a folder");
    fs::write(site.in_jail("etc/hosts"), "127.0.0.1 backend.example\n").expect("write");
    let routes = format!(
        "{{'/number': Proxy(addr='127.0.0.1', port={behind}), '/name': Proxy(addr='backend.example', port={behind}), \
          '/none': Proxy(addr='no.such.name.invalid', port={behind})}}"
    );
    site.servers = site
        .servers
        .iter()
        .map(|server| server.replace("{'/no/such/path': app}", &routes))
        .collect();
    site.write();
    let mut program = Program::start(&mut site.command(&["serve", "main.conf"]));
    let address = program.listening();
    std::thread::spawn(move || {
        for stream in backend.incoming() {
            let mut stream = stream.expect("a connection");
            let mut head = [0; 4096];
            let _read = stream.read(&mut head).expect("a request");
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                .expect("write");
        }
    });
    let get = |path: &str| {
        fetch(
            address,
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        )
    };
    assert_eq!(get("/number").status, 200);
    assert_eq!(get("/name").status, 200);
    assert_eq!(get("/none").status, 502);
    assert_eq!(asks(address, "/x"), 404);
    assert!(program.terminate().success());
}

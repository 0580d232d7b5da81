//! What a service manager says and hears: `NOTIFY_SOCKET` and `LISTEN_FDS`, with and without a jail.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use super::{Site, asks, is_root};
use crate::support::PATIENCE;
use crate::support::program::Program;

/// A server on its own, and one in a jail where that can be.
fn sites(port: u16) -> Vec<Site> {
    let mut sites = vec![Site::new().server("main", "", "127.0.0.1", port)];
    if is_root() {
        sites.push(Site::new().jailed("main", port));
    }
    for site in &sites {
        site.write();
    }
    sites
}

fn heard(socket: &UnixDatagram) -> String {
    let mut text = [0; 500];
    let length = socket.recv(&mut text).expect("a notice");
    String::from_utf8_lossy(&text[..length]).into_owned()
}

#[test]
fn a_service_manager_is_told_when_it_is_ready_reloads_and_stops() {
    for site in sites(0) {
        let socket = UnixDatagram::bind(site.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut program = Program::start(
            site.command(&["serve", "main.conf"])
                .env("NOTIFY_SOCKET", site.path().join("notify")),
        );
        let ready = format!("READY=1\nMAINPID={}", program.id());
        assert_eq!(heard(&socket), ready);
        let address = program.listening();
        assert_eq!(asks(address, "/x"), 404);
        program.signal("HUP");
        let reloading = heard(&socket);
        assert!(
            reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
            "{reloading}"
        );
        assert_eq!(heard(&socket), ready);
        program.signal("TERM");
        assert_eq!(heard(&socket), "STOPPING=1");
        assert!(program.ended().success());
    }
}

/// Starts the server as a service manager does: listening sockets as descriptors from 3 on.
fn activated(site: &Site, listener: TcpListener, arguments: &str) -> Program {
    // The shell becomes the program, and so has its pid.
    let script =
        format!("export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" {arguments} 3<&0 0</dev/null");
    Program::start_with_stdin(
        Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_lurcher")])
            .current_dir(site.path()),
        OwnedFd::from(listener),
    )
}

#[test]
fn a_socket_that_was_passed_is_used_and_not_bound_again() {
    for jailed in [false, true] {
        if jailed && !is_root() {
            continue;
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        // A client that came before the server.
        let mut early = crate::support::client::Client::connect(address);
        early
            .send(b"GET /early HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("send");
        let site = Site::new();
        let site = if jailed {
            site.jailed("main", address.port())
        } else {
            site.server("main", "", "127.0.0.1", address.port())
        };
        site.write();
        let mut program = activated(&site, listener, "serve main.conf");
        assert_eq!(early.answer().status, 404);
        assert_eq!(program.listening(), address);
        assert_eq!(asks(address, "/x"), 404);
        assert!(program.terminate().success());
        assert!(TcpListener::bind(address).is_ok(), "nobody keeps it");
    }
}

#[test]
fn a_socket_for_another_address_is_left_alone() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let passed = listener.local_addr().expect("an address");
    let site = Site::new().server("main", "", "127.0.0.1", 0);
    site.write();
    let mut program = activated(&site, listener, "serve main.conf");
    program.line("a warning", |line| {
        line.contains("other addresses").then_some(())
    });
    let address = program.listening();
    assert_ne!(address, passed);
    assert_eq!(asks(address, "/x"), 404);
    assert!(program.terminate().success());
}

#[test]
fn sockets_reach_the_servers_behind_the_one_that_was_started() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let site = Site::new().server("main", "", "127.0.0.1", address.port());
    site.write();
    let mut program = activated(&site, listener, "serve main.conf --every");
    program.line("that it runs", |line| {
        line.contains("1 servers run").then_some(())
    });
    assert_eq!(asks(address, "/x"), 404);
    assert!(program.terminate().success());
}

#[test]
fn sockets_that_were_passed_to_another_process_are_nobodys() {
    // The variables of a shell that a service manager has started, and none of its sockets.
    for arguments in [
        &["serve", "main.conf", "--every"][..],
        &["serve", "main.conf"],
    ] {
        let site = Site::new().server("main", "", "127.0.0.1", 0);
        site.write();
        let mut program = Program::start(
            site.command(arguments)
                .env("LISTEN_FDS", "2")
                .env("LISTEN_PID", "1"),
        );
        let address = program.line("listening", |line| {
            line.split_once("listening on http://")?.1.parse().ok()
        });
        assert_eq!(asks(address, "/x"), 404);
        if arguments.len() == 3 {
            program.line("that it runs", |line| {
                line.contains("1 servers run").then_some(())
            });
        }
        assert!(program.terminate().success(), "{program}");
    }
}

#[test]
fn a_service_manager_is_told_of_several_servers_as_of_one() {
    let site = Site::new().server("main", "", "127.0.0.1", 0);
    site.write();
    let socket = UnixDatagram::bind(site.path().join("notify")).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut program = Program::start(
        site.command(&["serve", "main.conf", "--every"])
            .env("NOTIFY_SOCKET", site.path().join("notify")),
    );
    let ready = format!("READY=1\nMAINPID={}", program.id());
    assert_eq!(heard(&socket), ready);
    program.signal("HUP");
    assert!(heard(&socket).starts_with("RELOADING=1\n"));
    assert_eq!(heard(&socket), ready);
    program.line("the reload", |line| {
        line.contains("logs reopened").then_some(())
    });
    program.signal("TERM");
    assert_eq!(heard(&socket), "STOPPING=1");
    assert!(program.ended().success());
}

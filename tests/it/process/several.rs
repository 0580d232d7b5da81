//! Several servers of one configuration, and IPv6.

use std::net::SocketAddr;

use super::{Site, asks, child_of, refused, runs, signal, until};
use crate::support::free_port;
use crate::support::program::Program;

/// Two servers that share nothing but the file: handlers are bound under different names.
pub(super) fn two(first: u16, second: u16) -> Site {
    let mut site =
        Site::new()
            .server("one", "", "127.0.0.1", first)
            .server("two", "", "127.0.0.1", second);
    let other = "other = Handler(send_spec='ipc://run/send2', send_ident='other', recv_spec='ipc://run/recv2', recv_ident='')\n";
    let server = site
        .servers
        .pop()
        .expect("a server")
        .replace(": app}", ": other}");
    site.servers.push(server);
    let path = site.write();
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(&path, other.to_owned() + &text).expect("write");
    site
}

fn pid(site: &Site, name: &str) -> u32 {
    site.read(&format!("run/{name}.pid"))
        .parse()
        .expect("a pid")
}

#[test]
fn every_server_runs_in_a_process_of_its_own() {
    let ports = [free_port(), free_port()];
    let site = two(ports[0], ports[1]);
    let mut program = Program::start(&mut site.command(&["serve", "main.conf", "--every"]));
    for name in ["one", "two"] {
        let prefix = format!("{name}: ");
        program.line("its log by its name", |line| {
            (line.starts_with(&prefix) && line.contains("listening on")).then_some(())
        });
    }
    program.line("that all run", |line| {
        line.contains("2 servers run").then_some(())
    });
    let addresses = ports.map(super::local);
    for address in addresses {
        assert_eq!(asks(address, "/x"), 404);
    }
    // Signals reach both.
    program.signal("HUP");
    for name in ["one", "two"] {
        until("logs are reopened", || {
            site.read(&format!("logs/{name}.error"))
                .contains("logs reopened")
        });
    }
    // What happens to one does not happen to the other.
    let (first, second) = (pid(&site, "one"), pid(&site, "two"));
    assert!(first != second && first != program.id());
    signal(first, "KILL");
    program.line("that it has ended", |line| {
        (line.contains("server one ended") && line.contains("go on")).then_some(())
    });
    assert_eq!(asks(addresses[1], "/y"), 404);
    program.signal("TERM");
    assert_eq!(program.ended().code(), Some(1), "one of them has failed");
    assert!(!runs(second));
    // Without a mishap it is a success, and none outlives the process that holds them.
    let mut program = Program::start(&mut site.command(&["serve", "main.conf", "--every"]));
    program.line("that all run", |line| {
        line.contains("2 servers run").then_some(())
    });
    assert!(program.terminate().success());
    let mut program = Program::start(&mut site.command(&["serve", "main.conf", "--every"]));
    program.line("that all run", |line| {
        line.contains("2 servers run").then_some(())
    });
    let pids = [pid(&site, "one"), pid(&site, "two")];
    program.kill();
    until("all end", || !pids.iter().any(|pid| runs(*pid)));
}

#[test]
fn when_one_server_does_not_start_none_runs() {
    let port = free_port();
    let site = two(port, port);
    let mut program = Program::start(&mut site.command(&["serve", "main.conf", "--every"]));
    program.line("why", |line| line.contains("in use").then_some(()));
    program.line("what follows", |line| {
        line.contains("all are ended").then_some(())
    });
    assert_eq!(program.ended().code(), Some(1));
    assert!(std::net::TcpListener::bind(super::local(port)).is_ok());
    // Handlers' sockets are bound by one server only, as Mongrel2's are.
    let site = Site::new()
        .server("one", "", "127.0.0.1", 0)
        .server("two", "", "127.0.0.1", 0);
    site.write();
    let mut program = Program::start(&mut site.command(&["serve", "main.conf", "--every"]));
    program.line("why", |line| line.contains("handler app").then_some(()));
    assert_eq!(program.ended().code(), Some(1));
    // Which one is meant has to be said.
    let error = refused(&mut site.command(&["serve", "main.conf"]));
    assert!(error.contains("one (one-uuid), two (two-uuid)"), "{error}");
}

#[test]
fn every_server_may_go_into_the_background() {
    let ports = [free_port(), free_port()];
    let site = two(ports[0], ports[1]);
    let output = site
        .command(&["serve", "main.conf", "--every", "--daemon"])
        .output()
        .expect("run");
    assert!(output.status.success(), "{output:?}");
    let servers = ["one", "two"].map(|name| super::Background(pid(&site, name)));
    for port in ports {
        assert_eq!(asks(super::local(port), "/x"), 404);
    }
    // The process that holds them is their parent.
    let parent = |pid: u32| -> u32 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
        let rest = stat.rsplit_once(')').expect("a name").1.to_owned();
        rest.split_whitespace()
            .nth(1)
            .and_then(|pid| pid.parse().ok())
            .expect("a parent")
    };
    let holder = super::Background(parent(servers[0].0));
    assert_eq!(parent(servers[1].0), holder.0);
    assert!(runs(child_of(holder.0)));
    holder.signal("TERM");
    until("all end", || {
        !runs(holder.0) && !servers.iter().any(|server| runs(server.0))
    });
}

#[test]
fn ipv6_is_listened_on() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: there is no IPv6 here");
        return;
    }
    for (bind, reached) in [("::1", "[::1]"), ("::", "[::1]"), ("::", "127.0.0.1")] {
        let site = Site::new().server("main", "", bind, 0);
        site.write();
        let mut program = Program::start(&mut site.command(&["serve", "main.conf"]));
        let port = program.listening().port();
        let address: SocketAddr = format!("{reached}:{port}").parse().expect("an address");
        assert_eq!(asks(address, "/x"), 404, "{bind} {reached}");
        assert!(program.terminate().success());
    }
}

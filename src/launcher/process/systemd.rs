//! What a service manager passes to a program, and wants to hear from it: `LISTEN_FDS` and `NOTIFY_SOCKET` (`sd_listen_fds(3)`,
//! `sd_notify(3)`).
//!
//! Without these variables nothing here does anything. A manager that cannot be told is no reason to stop serving.

use std::env;
use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};

use nix::sys::socket::{getsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};
use tracing::warn;

use crate::sys;

/// More sockets than this are not looked at: no server listens on so many.
const LISTENERS_MAX: u16 = 64;

/// Whether somebody waits to be told that the program is ready, and so holds it: it must not go into the background.
pub(super) fn is_held() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty())
}

/// The variable that says how many sockets were passed.
pub(super) const LISTENERS: &str = "LISTEN_FDS";

fn number(name: &str) -> Option<u32> {
    env::var(name).ok()?.parse().ok()
}

/// Whether sockets were passed to this process, and not to one before it.
pub(super) fn has_listeners() -> bool {
    number("LISTEN_PID") == Some(std::process::id())
}

/// The listening TCP sockets that a service manager has bound for this process, or for the one that has started it
/// (`inherited`). To be called before anything is opened.
pub(super) fn listeners(inherited: bool) -> Vec<TcpListener> {
    if !inherited && !has_listeners() {
        return Vec::new();
    }
    let count = number(LISTENERS).unwrap_or(0);
    let count = u16::try_from(count).map_or(LISTENERS_MAX, |count| count.min(LISTENERS_MAX));
    sys::take_passed_descriptors(count)
        .into_iter()
        .filter(|fd| matches!(getsockopt(fd, sockopt::AcceptConn), Ok(true)))
        .map(TcpListener::from)
        .filter(|listener| {
            let tcp = listener.local_addr();
            if let Err(error) = &tcp {
                warn!("a passed socket is left alone: {error}");
            }
            tcp.is_ok()
        })
        .collect()
}

/// Takes the socket for this address out of those that were passed: the same port, and the same address or, on one side,
/// any address. Of port 0 nothing is known, and nothing found.
pub(super) fn matching(
    listeners: &mut Vec<TcpListener>,
    wanted: SocketAddr,
) -> Option<TcpListener> {
    let bound = |listener: &TcpListener| listener.local_addr().ok();
    let exact = listeners.iter().position(|l| bound(l) == Some(wanted));
    let wider = || {
        listeners.iter().position(|listener| {
            bound(listener)
                .is_some_and(|addr| addr.port() == wanted.port() && covers(addr.ip(), wanted.ip()))
        })
    };
    let index = exact.or_else(wider)?;
    Some(listeners.swap_remove(index))
}

/// Whether a socket on one address takes what was meant for the other. `[::]` takes IPv4 as well unless the manager was told
/// otherwise.
fn covers(bound: IpAddr, wanted: IpAddr) -> bool {
    bound.is_unspecified() && (bound.is_ipv6() || wanted.is_ipv4())
}

/// A service manager that wants to hear how the program is.
#[derive(Debug)]
pub(in crate::launcher) struct Manager(Option<(UnixDatagram, UnixAddr)>);

impl Manager {
    /// The one that the environment names.
    pub(in crate::launcher) fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Manager(None);
        };
        Manager::at(&name)
    }

    fn at(name: &OsStr) -> Self {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => UnixAddr::from_abstract_name(name),
            None => UnixAddr::from_pathname(name),
        };
        let socket = address.and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            Ok((socket, address))
        });
        match socket {
            Ok(socket) => Manager(Some(socket)),
            Err(error) => {
                warn!("NOTIFY_SOCKET {}: {error}", name.display());
                Manager(None)
            }
        }
    }

    /// The program serves.
    pub(in crate::launcher) fn ready(&self) {
        self.tell(&format!("READY=1\nMAINPID={}", std::process::id()));
    }

    /// The program reads its configuration again; [`Manager::ready`] ends that.
    pub(in crate::launcher) fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
            time.tv_sec().saturating_mul(1_000_000) + time.tv_nsec() / 1_000
        });
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    }

    /// The program ends.
    pub(in crate::launcher) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, text: &str) {
        let Some((socket, address)) = &self.0 else {
            return;
        };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            warn!("tell the service manager {text:?}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_socket_is_found_by_its_address() {
        let mut passed = vec![
            TcpListener::bind("127.0.0.1:0").unwrap(),
            TcpListener::bind("0.0.0.0:0").unwrap(),
        ];
        let [one, any] = [0, 1].map(|at: usize| passed[at].local_addr().unwrap().port());
        let at = |text: &str, port| SocketAddr::new(text.parse().unwrap(), port);
        assert!(matching(&mut passed, at("127.0.0.2", one)).is_none());
        assert!(matching(&mut passed, at("::1", any)).is_none());
        assert!(matching(&mut passed, at("127.0.0.1", 0)).is_none());
        let found = matching(&mut passed, at("127.0.0.1", one)).unwrap();
        assert_eq!(found.local_addr().unwrap().port(), one);
        let found = matching(&mut passed, at("127.0.0.2", any)).unwrap();
        assert_eq!(found.local_addr().unwrap().port(), any);
        assert!(passed.is_empty());
    }

    #[test]
    fn a_manager_is_told_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let heard = UnixDatagram::bind(&path).unwrap();
        let told = |heard: &UnixDatagram| {
            let mut text = [0; 200];
            let length = heard.recv(&mut text).unwrap();
            String::from_utf8_lossy(&text[..length]).into_owned()
        };
        let manager = Manager::at(path.as_os_str());
        manager.ready();
        assert_eq!(
            told(&heard),
            format!("READY=1\nMAINPID={}", std::process::id())
        );
        manager.reloading();
        let text = told(&heard);
        let (first, second) = text.split_once('\n').unwrap();
        assert_eq!(first, "RELOADING=1");
        let time = second.strip_prefix("MONOTONIC_USEC=").unwrap();
        assert!(time.parse::<u64>().unwrap() > 0);
        let name = format!("lurcher-test-{}", std::process::id());
        let heard = UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap()).unwrap();
        Manager::at(OsStr::new(&format!("@{name}"))).stopping();
        assert_eq!(told(&heard), "STOPPING=1");
        // Nobody there: no harm.
        drop(heard);
        Manager::at(OsStr::new(&format!("@{name}"))).stopping();
    }
}

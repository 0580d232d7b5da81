//! The few system calls that need unsafe; nothing else in the program does, but one option in `bus::client`.
//!
//! Each function is a thin, safe wrapper around one call: no policy here.
#![expect(
    unsafe_code,
    reason = "these calls have no safe wrapper among our dependencies"
)]

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that were written to a socket and that the peer's kernel has not acknowledged (`SIOCOUTQ`; on a unix socket: that
/// the peer has not read).
pub fn unacknowledged_bytes(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) stores one int at the address given, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Flags of open(2) for a file that is not trusted to be one: never waits for the other end of a pipe, follows no symbolic link at
/// the end of its path, becomes nobody's terminal.
pub const OPEN_AS_IT_IS: i32 = libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY;

/// Lets a write beyond the limit on the size of files (`RLIMIT_FSIZE`) fail with `EFBIG`, where the signal of that limit would end the
/// program.
pub fn ignore_file_size_signal() -> io::Result<()> {
    // SAFETY: to ignore a signal installs no code that could run in it.
    let before = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    if before == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Turns keepalive probes on, with the system's own times (`SO_KEEPALIVE`).
pub fn set_keepalive(socket: BorrowedFd<'_>) -> io::Result<()> {
    socket2::SockRef::from(&socket).set_keepalive(true)
}

/// Whether a call failed because descriptors or memory have run out: the same call may succeed later.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// The soft and the hard limit on open file descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// What holds now.
    pub soft: u64,
    /// What it may be raised to.
    pub hard: u64,
}

/// Reads the limits on open file descriptors (`RLIMIT_NOFILE`).
pub fn open_files() -> io::Result<OpenFiles> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure outlives the call, which fills it.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(OpenFiles {
        soft: limit.rlim_cur,
        hard: limit.rlim_max,
    })
}

/// Raises the soft limit on open file descriptors to `wanted`, at most to the hard limit; never lowers it. Gives what
/// holds afterwards.
pub fn raise_open_files(wanted: u64) -> io::Result<OpenFiles> {
    let now = open_files()?;
    if wanted <= now.soft || now.soft == now.hard {
        return Ok(now);
    }
    let soft = wanted.min(now.hard);
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: now.hard,
    };
    // SAFETY: the structure outlives the call, which only reads it.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(OpenFiles {
        soft,
        hard: now.hard,
    })
}

/// The addresses of the network interface called `name`, IPv4 first; empty when there is no such interface.
pub fn interface_addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs stores a list of its own at the address given, or fails.
    if unsafe { libc::getifaddrs(&raw mut first) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut at = first;
    while !at.is_null() {
        // SAFETY: the list is well formed until freeifaddrs: names are C strings, addresses null or of the family they tell,
        // and copied out unaligned.
        unsafe {
            let entry = &*at;
            if !entry.ifa_addr.is_null()
                && CStr::from_ptr(entry.ifa_name).to_bytes() == name.as_bytes()
            {
                match i32::from((*entry.ifa_addr).sa_family) {
                    libc::AF_INET => {
                        let address = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                        found.push(IpAddr::V4(Ipv4Addr::from(u32::from_be(
                            address.sin_addr.s_addr,
                        ))));
                    }
                    libc::AF_INET6 => {
                        let address = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                        found.push(IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr)));
                    }
                    _ => {}
                }
            }
            at = entry.ifa_next;
        }
    }
    // SAFETY: `first` came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(first) };
    found.sort_by_key(IpAddr::is_ipv6);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn bytes_that_nobody_has_read_are_counted() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(unacknowledged_bytes(one.as_fd()).unwrap(), 0);
        io::Write::write_all(&mut &one, b"hello").unwrap();
        assert!(unacknowledged_bytes(one.as_fd()).unwrap() > 0);
        let mut got = [0; 5];
        io::Read::read_exact(&mut &other, &mut got).unwrap();
        assert_eq!(unacknowledged_bytes(one.as_fd()).unwrap(), 0);
    }

    #[test]
    fn the_limit_on_files_is_never_lowered() {
        let before = open_files().unwrap();
        assert_eq!(raise_open_files(1).unwrap(), before);
    }

    #[test]
    fn the_loopback_interface_has_its_address() {
        assert!(
            interface_addresses("lo")
                .unwrap()
                .contains(&IpAddr::V4(Ipv4Addr::LOCALHOST))
        );
        assert!(interface_addresses("no such interface").unwrap().is_empty());
    }
}

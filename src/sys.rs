//! The few system calls that need unsafe; nothing else in the program does.
//!
//! Each function is a thin, safe wrapper around one call: no policy here.
#![expect(
    unsafe_code,
    reason = "these calls have no safe wrapper among our dependencies"
)]

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
#[cfg(feature = "gateway")]
use std::os::fd::RawFd;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};
#[cfg(feature = "gateway")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{Interest, unix::AsyncFd};

/// What this machine is called; `worker` where that is not known.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "worker".to_owned(),
        name => name.to_owned(),
    }
}

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

/// Whether this process may look files up in a directory, and make some there if it is to write; the reason when not (access(2)).
#[cfg(feature = "gateway")]
pub fn may_use(directory: &Path, write: bool) -> io::Result<()> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let mode = libc::X_OK | if write { libc::W_OK } else { 0 };
    // SAFETY: access(2) reads the string, which ends with a NUL and outlives the call.
    if unsafe { libc::access(path.as_ptr(), mode) } < 0 {
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

/// Whether a call failed because what a path names is not there, or is not for us to open.
pub fn is_absence(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(
            error.raw_os_error(),
            Some(
                libc::ENOTDIR
                    | libc::EACCES
                    | libc::EPERM
                    | libc::ELOOP
                    | libc::ENAMETOOLONG
                    | libc::ENXIO
                    | libc::EISDIR
            )
        )
}

/// Opens a file for reading, by its path below a directory, name by name, none of which may be a symbolic link. Never waits
/// for the other end of a pipe, and makes no terminal ours. An empty path, `.` and `..` are refused.
pub fn open_beneath(directory: &Path, relative: &Path) -> io::Result<File> {
    const STEP: libc::c_int = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    const LAST: libc::c_int =
        libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    let mut at = File::from(open_at(None, directory.as_os_str(), STEP)?);
    let mut names = relative.components().peekable();
    while let Some(component) = names.next() {
        let Component::Normal(name) = component else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if names.peek().is_none() {
            return open_at(Some(at.as_fd()), name, LAST).map(File::from);
        }
        at = open_at(Some(at.as_fd()), name, STEP | libc::O_NOFOLLOW)?.into();
    }
    Err(io::ErrorKind::InvalidInput.into())
}

/// `openat`; from the working directory without one.
fn open_at(at: Option<BorrowedFd<'_>>, path: &OsStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_bytes())?;
    let at = at.map_or(libc::AT_FDCWD, |at| at.as_raw_fd());
    loop {
        // SAFETY: the path is a C string that outlives the call, which only reads it; no mode is needed without O_CREAT.
        let opened = unsafe { libc::openat(at, path.as_ptr(), flags) };
        if opened >= 0 {
            // SAFETY: the descriptor was opened just now and is nobody else's.
            return Ok(unsafe { OwnedFd::from_raw_fd(opened) });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
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

/// Raises the soft limit on open file descriptors to `wanted`: with the privilege to, beyond the hard limit, which is
/// raised with it; else at most to the hard limit. Never lowers either. Gives what holds afterwards.
pub fn raise_open_files(wanted: u64) -> io::Result<OpenFiles> {
    let now = open_files()?;
    if wanted <= now.soft {
        return Ok(now);
    }
    let both = OpenFiles {
        soft: wanted,
        hard: wanted.max(now.hard),
    };
    if wanted > now.hard && set_open_files(both).is_ok() {
        return Ok(both);
    }
    let most = OpenFiles {
        soft: wanted.min(now.hard),
        hard: now.hard,
    };
    set_open_files(most)?;
    Ok(most)
}

fn set_open_files(limits: OpenFiles) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: limits.soft,
        rlim_max: limits.hard,
    };
    // SAFETY: the structure outlives the call, which only reads it.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Where a service manager's descriptors begin (`sd_listen_fds(3)`).
#[cfg(feature = "gateway")]
const FIRST_PASSED: libc::c_int = 3;

/// Takes over the `count` descriptors that a service manager has left open for this process, from number 3 on; those that
/// are not open are left out. They are no longer passed on to programs that this one starts.
///
/// To be called before the program has opened anything, so that nothing else can own these numbers; a second call takes
/// nothing.
#[cfg(feature = "gateway")]
pub fn take_passed_descriptors(count: u16) -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let numbers = FIRST_PASSED..FIRST_PASSED.saturating_add(count.into());
    let open = numbers.filter(|&number| {
        // SAFETY: sets a flag of a descriptor, and fails for a number that is none.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) == 0 }
    });
    // SAFETY: the number is open, as was just seen, and nobody's: the program has opened nothing yet, and this runs once.
    open.map(|number| unsafe { OwnedFd::from_raw_fd(number) })
        .collect()
}

/// Lets a program that this process becomes find a descriptor open, under the same number.
///
/// # Errors
///
/// Never for a descriptor that is open.
pub fn inherit(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: it changes a flag of a descriptor that is open for as long as it is borrowed.
    let changed = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) };
    if changed < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A descriptor that was open when this program began, by its number: another one for the same file, which programs that this
/// one starts do not get.
///
/// # Errors
///
/// Where nothing is open under that number.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: the number is only looked up; the result is new, and nobody else's.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was made just now.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Lets no program that this one starts inherit a descriptor from number 3 on, whoever has opened it. On a kernel that
/// cannot do that at once (before 5.11) it changes nothing.
#[cfg(feature = "gateway")]
pub fn keep_descriptors() -> io::Result<()> {
    // SAFETY: sets a flag of descriptors that are open, and closes none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST_PASSED,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => Ok(()),
        error => Err(error),
    }
}

/// Tells when a file was written to, or lost its name (inotify(7)). Not what another machine does on a network file system.
#[derive(Debug)]
pub struct FileWatch(AsyncFd<File>);

impl FileWatch {
    /// Watches an open file, whatever its name. Needs a runtime with I/O.
    ///
    /// # Errors
    ///
    /// When the user has as many watches as one may have (`fs.inotify.max_user_instances`), or there is no `/proc`.
    pub fn new(file: BorrowedFd<'_>) -> io::Result<Self> {
        const EVENTS: u32 = libc::IN_MODIFY | libc::IN_ATTRIB;
        // SAFETY: makes a descriptor of flags alone.
        let opened = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if opened < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was opened just now and is nobody else's.
        let events = unsafe { OwnedFd::from_raw_fd(opened) };
        let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        // SAFETY: the path is a C string that outlives the call, which only reads it.
        let watched = unsafe { libc::inotify_add_watch(events.as_raw_fd(), path.as_ptr(), EVENTS) };
        if watched < 0 {
            return Err(io::Error::last_os_error());
        }
        let events = File::from(events);
        // SAFETY: it stays open and the same for as long as it is owned, and it is owned by what comes back.
        Ok(Self(unsafe {
            AsyncFd::register_with_interest(events, Interest::READABLE)
        }?))
    }

    /// Waits until something has happened since this was last asked, or since the beginning.
    pub fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Several events at a time. The same one again is not told twice before it is read.
        let mut events = [0; 512];
        let mut changed = false;
        loop {
            let mut ready = match self.0.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending if changed => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            };
            match ready.try_io(|file| file.get_ref().read(&mut events)) {
                Ok(Ok(_)) => changed = true,
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) if changed => return Poll::Ready(Ok(())),
                Err(_) => {}
            }
        }
    }
}

/// A descriptor whose readiness to be read can be awaited. Needs a runtime with I/O.
#[cfg(feature = "gateway")]
pub fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it stays open and the same for as long as it is owned, and it is owned by what comes back.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// Sends one byte over a stream socket, and copies of these descriptors with it (`SCM_RIGHTS`, unix(7)).
#[cfg(feature = "gateway")]
pub fn send_descriptors(socket: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[io::IoSlice::new(&[0])],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// Receives what [`send_descriptors`] has sent: the byte, and its descriptors, which programs that this one starts do not
/// get. More than four at once are refused.
///
/// # Errors
///
/// `UnexpectedEof` when the other side has closed, else what the system says.
#[cfg(feature = "gateway")]
pub fn receive_descriptors(socket: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0];
    let mut buffers = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows of them.
            descriptors.extend(
                raw.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::other("more descriptors than expected"));
    }
    Ok(descriptors)
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

/// Words in memory that a file shares with whoever maps it later: what is written there outlives the process, however it ends.
#[derive(Debug)]
pub struct SharedWords {
    at: std::ptr::NonNull<std::sync::atomic::AtomicU64>,
    count: usize,
}

impl SharedWords {
    /// Maps so many words at the beginning of a file, which must be that long and stay so: the caller holds a lock on it.
    ///
    /// # Errors
    ///
    /// When the file is shorter, or cannot be mapped.
    pub fn map(file: &File, count: usize) -> io::Result<Self> {
        let size = count
            .checked_mul(size_of::<u64>())
            .filter(|size| *size > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if file.metadata()?.len() < size as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (access, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, at a place of the system's choice; the descriptor is open.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), size, access, how, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = std::ptr::NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { at, count })
    }

    /// The words.
    pub fn get(&self) -> &[std::sync::atomic::AtomicU64] {
        // SAFETY: the mapping is that long, aligned to a page, lives as long as `self`, and any bits are such words.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: it was mapped with that size, and nobody has borrowed it any more.
        let code = unsafe { libc::munmap(self.at.as_ptr().cast(), self.count * size_of::<u64>()) };
        debug_assert_eq!(code, 0, "a mapping of our own");
    }
}

/// Has all threads of this process wait for their turns whenever they are woken (`SCHED_BATCH` of sched(7)), or no longer. Threads of a
/// policy that is neither that nor the usual one keep it.
#[cfg(feature = "gateway")]
pub fn set_batch(batch: bool) -> io::Result<()> {
    let (from, to) = if batch {
        (libc::SCHED_OTHER, libc::SCHED_BATCH)
    } else {
        (libc::SCHED_BATCH, libc::SCHED_OTHER)
    };
    let is_gone = |error: &io::Error| error.raw_os_error() == Some(libc::ESRCH);
    for entry in std::fs::read_dir("/proc/self/task")? {
        let name = entry?.file_name();
        let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        match set_policy(thread, from, to) {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether the main thread of this process has the usual policy (`SCHED_OTHER`), and not one that somebody has chosen.
#[cfg(feature = "gateway")]
pub fn is_scheduled_as_usual() -> bool {
    let main = libc::pid_t::try_from(std::process::id());
    main.is_ok_and(|main| {
        policy(main).is_ok_and(|policy| policy == libc::c_long::from(libc::SCHED_OTHER))
    })
}

#[cfg(feature = "gateway")]
fn policy(thread: libc::pid_t) -> io::Result<libc::c_long> {
    // By number, as below: musl's functions of these names only say that there are none.
    // SAFETY: it takes a number, and fails where no thread has it.
    match unsafe { libc::syscall(libc::SYS_sched_getscheduler, thread) } {
        policy if policy < 0 => Err(io::Error::last_os_error()),
        policy => Ok(policy),
    }
}

#[cfg(feature = "gateway")]
fn set_policy(thread: libc::pid_t, from: libc::c_int, to: libc::c_int) -> io::Result<()> {
    if policy(thread)? != libc::c_long::from(from) {
        return Ok(());
    }
    // Both policies have the one priority 0.
    let priority: libc::c_int = 0;
    // SAFETY: a `struct sched_param` is for the system the one int that it is given, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            thread,
            to,
            &raw const priority,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The user in whose name this process opens files.
pub fn effective_user() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::geteuid() }
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

    #[cfg(feature = "gateway")]
    #[test]
    fn a_descriptor_arrives_as_another_one_of_the_same_file() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        send_descriptors(one.as_fd(), &[far.as_fd()]).unwrap();
        send_descriptors(one.as_fd(), &[]).unwrap();
        let mut got = receive_descriptors(other.as_fd()).unwrap();
        assert!(receive_descriptors(other.as_fd()).unwrap().is_empty());
        drop((far, one));
        let copy = std::os::unix::net::UnixStream::from(got.pop().expect("the descriptor"));
        io::Write::write_all(&mut &copy, b"x").unwrap();
        let mut byte = [0];
        io::Read::read_exact(&mut &near, &mut byte).unwrap();
        assert!(got.is_empty() && byte == *b"x");
        let end = receive_descriptors(other.as_fd()).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("real")).unwrap();
        std::fs::write(folder.path().join("real/file"), "x").unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        std::os::unix::fs::symlink("file", folder.path().join("real/alias")).unwrap();
        let open = |path: &str| open_beneath(folder.path(), Path::new(path));
        assert!(open("real/file").is_ok());
        for path in [
            "link/file",
            "real/alias",
            "../x",
            "",
            "/etc/passwd",
            "real/../real/file",
        ] {
            assert!(open(path).is_err(), "{path}");
        }
        assert!(is_absence(&open("real/alias").unwrap_err()));
        assert!(is_absence(&open("real/none").unwrap_err()));
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

//! Where a server will run: in a jail, in Mongrel2's test mode, or as it is; in the foreground or not.
//!
//! Decided from facts that are given; nothing is done here.

use std::path::PathBuf;

use crate::config::Server;
use crate::front;

/// What was typed about the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::launcher) enum Background {
    /// As the setting `server.daemonize` says: started by the name `mongrel2`.
    AsConfigured,
    /// `--daemon`.
    Yes,
    /// `--foreground`, or `lurcher serve` alone.
    No,
}

/// Where the server's files are, and who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It has no chroot: paths as they are given.
    Free,
    /// It has a chroot, and this is not root: paths lie under that directory, and nobody is locked in.
    Test,
    /// It has a chroot, and this is root.
    Jail,
}

/// All of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) place: Place,
    pub(super) daemon: bool,
}

/// The facts that decide.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) is_root: bool,
    /// A service manager waits for this process.
    pub(super) is_held: bool,
    /// The setting `server.daemonize`.
    pub(super) daemonize: bool,
    pub(super) background: Background,
}

impl Plan {
    pub(super) fn new(server: &Server, facts: Facts) -> Plan {
        let place = match (server.chroot.is_empty(), facts.is_root) {
            (true, _) => Place::Free,
            (false, true) => Place::Jail,
            (false, false) => Place::Test,
        };
        let daemon = match facts.background {
            _ if place == Place::Test => false,
            Background::AsConfigured => facts.daemonize && !facts.is_held,
            Background::Yes => true,
            Background::No => false,
        };
        Plan { place, daemon }
    }
}

impl Place {
    /// What stands before the server's paths in the process that serves.
    pub(super) fn prefix(self, server: &Server) -> String {
        match self {
            Place::Test => server.chroot.clone(),
            Place::Free | Place::Jail => String::new(),
        }
    }

    /// The pid file as the process that writes it sees it, if one is wanted; of a jail, inside.
    pub(super) fn pid_file(self, server: &Server) -> Option<PathBuf> {
        let path = &server.pid_file;
        if path.is_empty() {
            return None;
        }
        Some(match self {
            Place::Free => PathBuf::from(path),
            // In the working directory, whatever the chroot: so has Mongrel2 it.
            Place::Test => front::inside_chroot(".", path),
            Place::Jail => front::inside_chroot("/", path.trim_start_matches('/')),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn server(chroot: &str) -> Server {
        let text = format!(
            "h = Dir(base='w/', index_file='i', default_ctype='t')
             s = Server(uuid='u', name='n', access_log='/a', error_log='/e', chroot='{chroot}', pid_file='/run/pid', control_port='',
                default_host='h', bind_addr='127.0.0.1', port=1, hosts=[Host(name='h', routes={{'/': h}})])
             servers = [s]"
        );
        let mut config = config::conf::read(Path::new("x"), text.as_bytes()).into_config();
        config.servers.remove(0)
    }

    #[test]
    fn root_goes_into_the_jail_and_others_only_pretend() {
        let facts = Facts {
            is_root: true,
            is_held: false,
            daemonize: true,
            background: Background::AsConfigured,
        };
        let user = Facts {
            is_root: false,
            ..facts
        };
        let (free, jail) = (server(""), server("/srv"));
        let plan = |server, facts| {
            let Plan { place, daemon } = Plan::new(server, facts);
            (place, daemon)
        };
        assert_eq!(plan(&free, facts), (Place::Free, true));
        assert_eq!(plan(&free, user), (Place::Free, true));
        assert_eq!(plan(&jail, facts), (Place::Jail, true));
        // Test mode stays in the foreground, whoever wants otherwise.
        for background in [Background::AsConfigured, Background::Yes] {
            assert_eq!(
                plan(&jail, Facts { background, ..user }),
                (Place::Test, false)
            );
        }
        let held = Facts {
            is_held: true,
            ..facts
        };
        assert_eq!(plan(&free, held), (Place::Free, false));
        let typed = Facts {
            background: Background::No,
            ..facts
        };
        assert_eq!(plan(&free, typed), (Place::Free, false));
        let asked = Facts {
            background: Background::Yes,
            daemonize: false,
            ..facts
        };
        assert_eq!(plan(&free, asked), (Place::Free, true));
    }

    #[test]
    fn the_pid_file_is_where_mongrel2_has_it() {
        let server = server("/srv");
        let paths = [Place::Free, Place::Test, Place::Jail].map(|place| place.pid_file(&server));
        assert_eq!(
            paths.map(|path| path.unwrap_or_default().display().to_string()),
            ["/run/pid", "./run/pid", "/run/pid"]
        );
        assert_eq!(Place::Test.prefix(&server), "/srv");
        assert_eq!(Place::Jail.prefix(&server), "");
    }
}

//! The configuration at one moment with everything that belongs to it, and where it comes from.
//!
//! A server without a jail reads its files itself; one in a jail asks its parent outside. Both get the same [`Snapshot`].
//! What to do with a new one is not decided here.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::keys::{self, Below};
use super::plan::Place;
use crate::config::{self, Config, Diagnostic, Loaded, Selector, Server, Settings, Severity};
use crate::front::Plan;
use crate::front::tls::Keys;

/// One server of a configuration, read and checked, and the files that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::launcher) struct Snapshot {
    /// The file it was read from, as seen from outside of a jail.
    pub(in crate::launcher) path: PathBuf,
    /// The configuration; in a jail without other servers.
    pub(in crate::launcher) config: Config,
    /// Index of the server in it.
    pub(in crate::launcher) server: usize,
    /// What stands before the server's paths in this process: its chroot, or nothing when the process is inside.
    pub(in crate::launcher) prefix: String,
    /// Certificates and keys, when the server speaks TLS.
    pub(in crate::launcher) keys: Keys,
    /// What is odd about the configuration.
    pub(in crate::launcher) remarks: Vec<Remark>,
    /// Whether the configuration differs from that of the snapshot before. The key files may differ in any case.
    pub(in crate::launcher) changed: bool,
    /// What is wrong with the configuration as it is now, a line each: this is then the one before.
    pub(in crate::launcher) mistakes: Option<String>,
}

/// Something odd about a configuration, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::launcher) struct Remark {
    /// A note, or a warning.
    pub(in crate::launcher) severity: Severity,
    /// Place and message.
    pub(in crate::launcher) text: String,
}

impl From<&Diagnostic> for Remark {
    fn from(diagnostic: &Diagnostic) -> Self {
        Remark {
            severity: diagnostic.severity.min(Severity::Warning),
            text: format!("{diagnostic:#}"),
        }
    }
}

impl Snapshot {
    /// The server as it is configured.
    pub(in crate::launcher) fn server(&self) -> &Server {
        // The index comes from the loader.
        &self.config.servers[self.server]
    }

    /// What the front is to serve: the server's chroot is what stands before its paths in this process, and so empty
    /// inside of the jail.
    pub(in crate::launcher) fn plan(&self) -> Plan {
        let mut config = self.config.clone();
        if let Some(server) = config.servers.get_mut(self.server) {
            server.chroot.clone_from(&self.prefix);
        }
        Plan {
            keys: (self.server().use_ssl && self.settings().certdir.is_some())
                .then(|| Arc::new(self.keys.clone())),
            config: Arc::new(config),
            server: self.server,
        }
    }

    /// The settings.
    pub(in crate::launcher) fn settings(&self) -> &Settings {
        &self.config.settings
    }

    /// Tells the log what is odd.
    pub(in crate::launcher) fn log_remarks(&self) {
        for remark in &self.remarks {
            match remark.severity {
                Severity::Note => tracing::info!("{}", remark.text),
                Severity::Warning | Severity::Error => tracing::warn!("{}", remark.text),
            }
        }
    }
}

/// Reads a configuration from the files of this process.
#[derive(Debug)]
pub(in crate::launcher) struct Files {
    path: PathBuf,
    uuid: String,
    prefix: String,
    /// Where the certificates are looked for: in the jail that it is, whatever a changed configuration says.
    below: Below,
    stamp: Option<Stamp>,
    last: Loaded,
}

impl Files {
    /// Takes a configuration that was just read, and the place where its server will run.
    pub(super) fn new(loaded: Loaded, place: Place) -> Self {
        let server = &loaded.config.servers[loaded.server];
        let prefix = place.prefix(server);
        let below = match place {
            Place::Jail => Below::Jail(PathBuf::from(&server.chroot)),
            Place::Free | Place::Test => Below::Anywhere(prefix.clone()),
        };
        Files {
            below,
            // It was read a moment ago.
            stamp: Stamp::of(&loaded.path).filter(Stamp::is_settled),
            path: loaded.path.clone(),
            uuid: loaded.config.servers[loaded.server].uuid.clone(),
            prefix,
            last: loaded,
        }
    }

    /// The configuration as it was read last, with the key files as they are now.
    ///
    /// # Errors
    ///
    /// When the key files cannot be read.
    pub(super) fn first(&self) -> anyhow::Result<Snapshot> {
        self.snapshot(false)
    }

    /// The configuration as it is now. It is read again only when its file has changed; the key files in any case. With
    /// mistakes in it the one before still counts, and the next call tries again.
    ///
    /// # Errors
    ///
    /// When the key files cannot be read.
    pub(super) fn read(&mut self) -> anyhow::Result<Snapshot> {
        // Before it is read: a change while reading is then seen the next time.
        let stamp = Stamp::of(&self.path);
        let mut changed = false;
        if stamp.is_none() || stamp != self.stamp {
            let selector = Selector::Uuid(self.uuid.clone());
            let loaded = match config::load(Some(&self.path), &selector) {
                Ok(loaded) => loaded,
                Err(mistakes) => {
                    let mut snapshot = self.snapshot(false)?;
                    snapshot.mistakes = Some(mistakes.errors_only().to_string());
                    return Ok(snapshot);
                }
            };
            changed = loaded.config != self.last.config || loaded.server != self.last.server;
            self.last = loaded;
            self.stamp = stamp.filter(Stamp::is_settled);
        }
        self.snapshot(changed)
    }

    fn snapshot(&self, changed: bool) -> anyhow::Result<Snapshot> {
        let Loaded {
            config,
            server,
            warnings,
            ..
        } = &self.last;
        let settings = &config.settings;
        let running = &config.servers[*server];
        let keys = match &settings.certdir {
            Some(certdir) if running.use_ssl => {
                // The certificates are in the jail, the chain is not: so has Mongrel2 it.
                let ca_chain = settings.ssl_ca_chain.as_deref().map(Path::new);
                keys::read_all(&self.below, Path::new(certdir), ca_chain)
                    .context("read certificates and keys")?
            }
            _ => Keys::default(),
        };
        Ok(Snapshot {
            path: self.path.clone(),
            config: config.clone(),
            server: *server,
            prefix: self.prefix.clone(),
            keys,
            remarks: warnings.iter().map(Remark::from).collect(),
            changed,
            mistakes: None,
        })
    }
}

/// How old a change is when the next one has another time for certain, on any file system (FAT counts two seconds).
const SETTLED_SECONDS: i64 = 2;

/// What tells a changed file from an unchanged one, without reading it: for a database also its write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp(Vec<(u64, u64, u64, i64, i64)>);

impl Stamp {
    /// `None`: the file cannot be looked at, and counts as changed.
    fn of(path: &Path) -> Option<Stamp> {
        let stamp = |path: &Path| {
            let file = fs::metadata(path).ok()?;
            let (dev, ino, size) = (file.dev(), file.ino(), file.size());
            Some((dev, ino, size, file.mtime(), file.mtime_nsec()))
        };
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let mut stamps = vec![stamp(path)?];
        stamps.extend(stamp(Path::new(&wal)));
        Some(Stamp(stamps))
    }

    /// Whether any later change shows. One right after the last, which the file's clock may not tell from it, does not: such
    /// a file is read again the next time.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        self.0
            .iter()
            .all(|(.., seconds, _)| now.saturating_sub(*seconds) > SETTLED_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = "
        app = Handler(send_spec='tcp://127.0.0.1:9999', send_ident='a', recv_spec='tcp://127.0.0.1:9998', recv_ident='')
        main = Server(uuid='u', name='n', access_log='/a.log', error_log='/e.log', chroot='', pid_file='/pid', control_port='',
            default_host='localhost', bind_addr='127.0.0.1', port=6767, hosts=[Host(name='localhost', routes={'/': app})])
        servers = [main]\n";

    #[test]
    fn a_configuration_is_read_again_when_its_file_has_changed_and_survives_mistakes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.conf");
        fs::write(&path, CONF).unwrap();
        let loaded = config::load(Some(&path), &Selector::Only).unwrap();
        let mut files = Files::new(loaded, Place::Free);
        assert!(!files.first().unwrap().changed);
        assert!(!files.read().unwrap().changed);
        // Written again, and the same: nothing has changed that counts.
        fs::write(&path, format!("# a comment\n{CONF}")).unwrap();
        assert!(!files.read().unwrap().changed);
        fs::write(&path, CONF.replace("6767", "6768")).unwrap();
        let snapshot = files.read().unwrap();
        assert!(snapshot.changed && snapshot.server().port == 6768);
        let odd_and_wrong = CONF.replace("hosts=[", "hosts=[[") + "settings = {'no.such': 1}";
        fs::write(&path, odd_and_wrong).unwrap();
        for _ in 0..2 {
            let snapshot = files.read().unwrap();
            let mistakes = snapshot.mistakes.clone().unwrap();
            assert!(
                mistakes.contains("x.conf:") && !mistakes.contains("warning"),
                "{mistakes}"
            );
            assert!(snapshot.server().port == 6768 && !snapshot.changed);
        }
        fs::remove_file(&path).unwrap();
        assert!(files.read().unwrap().mistakes.is_some());
        fs::write(&path, CONF.replace("6767", "6768")).unwrap();
        assert!(!files.read().unwrap().changed);
    }

    #[test]
    fn a_change_in_the_same_moment_as_the_last_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.conf");
        fs::write(&path, CONF).unwrap();
        let now = SystemTime::now();
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(now).unwrap();
        };
        write(CONF);
        let mut files = Files::new(
            config::load(Some(&path), &Selector::Only).unwrap(),
            Place::Free,
        );
        write(&CONF.replace("6767", "6768"));
        assert!(files.read().unwrap().changed);
        write(&CONF.replace("6767", "6769"));
        assert!(files.read().unwrap().changed);
        assert!(!files.read().unwrap().changed);
    }
}

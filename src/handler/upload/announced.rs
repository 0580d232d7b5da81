//! Which uploads are believed: what a server has announced is remembered until it is complete, and what only claims to be an upload is
//! refused. No file is touched here.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{Early, Found, PLACES, Place, Stored, UploadFault};
use crate::handler::publisher::Publisher;
use crate::wire::request::{HeaderValues, Headers, Kind};
use crate::wire::{self, ConnId};

/// Announced uploads that are remembered. The oldest is forgotten then: of a server that deals its notices to several handlers
/// not every end of a connection is heard of.
const STARTED_MAX: usize = 65_536;

/// The longest body of a request, in bytes, that a Mongrel2 knows: it reads longer lengths as none at all, which lets a client
/// send upload headers of its own along with one.
const MONGREL2_LENGTH_MAX: u64 = i32::MAX as u64;

/// A connection of a server that replies go to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    server: usize,
    sender: Bytes,
    conn_id: ConnId,
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy)]
struct Sender {
    /// Tells one server from another.
    server: usize,
    /// A Lurcher, which passes no client's upload headers on. One that feeds its workers does so with what a Mongrel2 has sent.
    honest: bool,
    /// A broker, who may give what was announced to another worker.
    is_broker: bool,
}

/// The uploads that were announced and are not complete. It looks at every message; nothing is done with most.
#[derive(Debug, Default)]
pub(in crate::handler) struct Announced {
    chroot: Option<Arc<Path>>,
    /// The beginning of every name, from `upload.temp_store`.
    store: Option<Vec<u8>>,
    started: HashMap<Key, (Arc<Stored>, u64)>,
    /// By age.
    order: BTreeMap<u64, Key>,
    next: u64,
}

impl Announced {
    pub(in crate::handler) fn new(chroot: Option<&Path>, store: Option<&Path>) -> Self {
        let store = store.map(|store| {
            let store = store.as_os_str().as_bytes();
            store
                .strip_suffix(PLACES.as_bytes())
                .unwrap_or(store)
                .to_vec()
        });
        Self {
            chroot: chroot.map(Arc::from),
            store,
            ..Self::default()
        }
    }

    /// What a message says of an upload; `None` when nothing.
    pub(in crate::handler) fn look(
        &mut self,
        message: &wire::request::Request,
        kind: Kind<'_>,
        server: &Arc<Publisher>,
    ) -> Option<Result<Found, UploadFault>> {
        if kind == Kind::Http {
            return None;
        }
        let from = Sender {
            server: Arc::as_ptr(server) as usize,
            honest: server.is_lurcher() && !server.is_feed(),
            is_broker: server.link().is_some(),
        };
        self.look_at(message, from)
    }

    fn look_at(
        &mut self,
        message: &wire::request::Request,
        from: Sender,
    ) -> Option<Result<Found, UploadFault>> {
        let kind = message.kind();
        let is_marked = matches!(
            kind,
            Kind::UploadStart { .. } | Kind::UploadDone { .. } | Kind::UploadForged
        );
        if !is_marked && (self.started.is_empty() || kind != Kind::Disconnect) {
            return None;
        }
        let key = Key {
            server: from.server,
            // A copy, so that the message is not kept.
            sender: Bytes::copy_from_slice(&message.sender),
            conn_id: message.conn_id,
        };
        match kind {
            Kind::UploadStart { file } => Some(self.begun(key, file, message, from)),
            Kind::UploadDone { file } => Some(self.done(&key, file, message, from)),
            Kind::UploadForged => Some(Err(UploadFault::Headers)),
            Kind::Disconnect => {
                self.forget(&key);
                None
            }
            _ => None,
        }
    }

    fn begun(
        &mut self,
        key: Key,
        file: &[u8],
        message: &wire::request::Request,
        from: Sender,
    ) -> Result<Found, UploadFault> {
        let stored = Stored::new(self.place(file, message, from.honest)?);
        self.forget(&key);
        if self.started.len() >= STARTED_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.started.remove(&oldest);
        }
        self.next += 1;
        self.order.insert(self.next, key.clone());
        self.started.insert(key, (Arc::clone(&stored), self.next));
        let early = if from.is_broker {
            Early::Never
        } else if from.honest {
            Early::Always
        } else if self.store.is_some() {
            Early::IfAlone
        } else {
            Early::Never
        };
        Ok(Found {
            stored,
            done: false,
            early,
        })
    }

    fn done(
        &mut self,
        key: &Key,
        file: &[u8],
        message: &wire::request::Request,
        from: Sender,
    ) -> Result<Found, UploadFault> {
        let place = self.place(file, message, from.honest)?;
        let started = self.forget(key).filter(|stored| stored.place == place);
        let stored = match started {
            Some(stored) => stored,
            // With the place for uploads known, the name alone says that the server has made it up.
            None if from.honest || self.store.is_some() => Stored::new(place),
            None => return Err(UploadFault::NotStarted),
        };
        Ok(Found {
            stored,
            done: true,
            early: Early::Never,
        })
    }

    fn place(
        &self,
        file: &[u8],
        message: &wire::request::Request,
        honest: bool,
    ) -> Result<Place, UploadFault> {
        if !honest && !has_large_body(&message.headers) {
            return Err(UploadFault::NoBody);
        }
        if let Some(store) = &self.store {
            let made = file.strip_prefix(store.as_slice()).is_some_and(|random| {
                random.len() == PLACES.len() && random.iter().all(u8::is_ascii_alphanumeric)
            });
            if !made {
                return Err(UploadFault::Place);
            }
        }
        Place::new(self.chroot.clone(), file)
    }

    fn forget(&mut self, key: &Key) -> Option<Arc<Stored>> {
        let (stored, at) = self.started.remove(key)?;
        self.order.remove(&at);
        Some(stored)
    }
}

/// Whether the head announces a body so that every server has seen it. It did not come with the message, so the server has put it
/// elsewhere, and then the upload headers are its own: a Mongrel2 passes a client's on only with a small body, or with none.
fn has_large_body(headers: &Headers) -> bool {
    if headers.contains("content-length") {
        return length(headers).is_some_and(|length| (1..=MONGREL2_LENGTH_MAX).contains(&length));
    }
    headers
        .get("transfer-encoding")
        .and_then(HeaderValues::single)
        == Some(b"chunked")
}

/// `Content-Length`, where it is there once and nothing but digits.
pub(in crate::handler) fn length(headers: &Headers) -> Option<u64> {
    let text = headers.get("content-length")?.single()?;
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::handler::upload::*;

    const FILE: &str = "/up/body.abc123";

    const MONGREL2: Sender = Sender {
        server: 1,
        honest: false,
        is_broker: false,
    };
    const OTHER: Sender = Sender {
        server: 2,
        honest: false,
        is_broker: false,
    };

    fn message(id: u32, headers: &[(&str, &str)], body: &str) -> wire::request::Request {
        let headers: serde_json::Map<_, _> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()))
            .collect();
        let headers = serde_json::to_string(&headers).unwrap();
        let path = if headers.contains("VERSION") {
            "/a"
        } else {
            "@*"
        };
        let text = format!(
            "main {id} {path} {}:{headers},{}:{body},",
            headers.len(),
            body.len()
        );
        wire::request::Request::decode(text.into_bytes().into()).unwrap()
    }

    /// A request with a body of this length that went elsewhere, and with these upload headers.
    fn upload(id: u32, length: &str, start: &str, done: Option<&str>) -> wire::request::Request {
        let mut headers = vec![
            ("METHOD", "POST"),
            ("VERSION", "HTTP/1.1"),
            ("content-length", length),
            ("x-mongrel2-upload-start", start),
        ];
        headers.extend(done.map(|done| ("x-mongrel2-upload-done", done)));
        message(id, &headers, "")
    }

    fn disconnect(id: u32) -> wire::request::Request {
        message(id, &[("METHOD", "JSON")], r#"{"type":"disconnect"}"#)
    }

    /// Where what a message says is, if it says anything.
    fn look(
        announced: &mut Announced,
        message: &wire::request::Request,
        from: Sender,
    ) -> Option<Result<PathBuf, UploadFault>> {
        let looked = announced.look_at(message, from)?;
        Some(looked.map(|found| found.stored.place.path()))
    }

    fn done(announced: &mut Announced, id: u32) -> Result<PathBuf, UploadFault> {
        let done = upload(id, "500", FILE, Some(FILE));
        look(announced, &done, MONGREL2).expect("an upload")
    }

    fn early(announced: &mut Announced, from: Sender) -> Early {
        let looked = announced.look_at(&upload(7, "500", FILE, None), from);
        looked.expect("an upload").unwrap().early
    }

    #[test]
    fn an_upload_is_believed_once_where_it_was_announced() {
        let mut announced = Announced::new(None, None);
        let start = upload(7, "500", FILE, None);
        let found = announced
            .look_at(&start, MONGREL2)
            .expect("an upload")
            .unwrap();
        assert!(!found.is_done());
        assert_eq!(
            done(&mut announced, 8),
            Err(UploadFault::NotStarted),
            "another connection"
        );
        assert_eq!(
            look(&mut announced, &upload(7, "500", FILE, Some(FILE)), OTHER),
            Some(Err(UploadFault::NotStarted)),
            "another server"
        );
        assert_eq!(done(&mut announced, 7), Ok(PathBuf::from(FILE)));
        assert_eq!(
            done(&mut announced, 7),
            Err(UploadFault::NotStarted),
            "a second time"
        );
    }

    #[test]
    fn another_name_than_the_announced_one_is_not_believed() {
        let mut announced = Announced::new(None, None);
        look(
            &mut announced,
            &upload(7, "500", "/up/body.other1", None),
            MONGREL2,
        );
        assert_eq!(done(&mut announced, 7), Err(UploadFault::NotStarted));
    }

    #[test]
    fn what_was_announced_is_forgotten_when_the_client_goes() {
        let mut announced = Announced::new(None, None);
        look(&mut announced, &upload(7, "500", FILE, None), MONGREL2);
        assert_eq!(look(&mut announced, &disconnect(7), MONGREL2), None);
        assert!(announced.started.is_empty() && announced.order.is_empty());
        assert_eq!(done(&mut announced, 7), Err(UploadFault::NotStarted));
    }

    /// A client of a Mongrel2 can announce a file of its choice with one request and complete it with the next.
    #[test]
    fn headers_without_a_body_that_the_server_must_have_seen_prove_nothing() {
        let mut announced = Announced::new(None, Some(Path::new("/up/body.XXXXXX")));
        for length in ["0", "", "-1", "+5", "5x", "99999999999", "2147483648"] {
            for done in [None, Some(FILE)] {
                let looked = look(&mut announced, &upload(7, length, FILE, done), MONGREL2);
                assert_eq!(looked, Some(Err(UploadFault::NoBody)), "{length:?}");
            }
        }
        for encoding in ["Chunked", "gzip, chunked", "identity"] {
            let headers = [
                ("METHOD", "POST"),
                ("VERSION", "HTTP/1.1"),
                ("transfer-encoding", encoding),
                ("x-mongrel2-upload-start", FILE),
            ];
            let looked = look(&mut announced, &message(7, &headers, ""), MONGREL2);
            assert_eq!(looked, Some(Err(UploadFault::NoBody)), "{encoding}");
        }
        let small = [
            ("METHOD", "POST"),
            ("VERSION", "HTTP/1.1"),
            ("content-length", "3"),
            ("x-mongrel2-upload-start", FILE),
        ];
        let looked = look(&mut announced, &message(7, &small, "abc"), MONGREL2);
        assert_eq!(looked, Some(Err(UploadFault::Headers)));
    }

    #[test]
    fn the_place_for_uploads_stands_in_for_the_announcement_and_bounds_every_name() {
        let mut announced = Announced::new(None, Some(Path::new("/up/body.XXXXXX")));
        assert_eq!(done(&mut announced, 7), Ok(PathBuf::from(FILE)));
        for name in [
            "/etc/passwd",
            "/up/body.abc12",
            "/up/body.abc1234",
            "/up/body.abc/12",
            "/up/body.../.x",
        ] {
            for end in [None, Some(name)] {
                let looked = look(&mut announced, &upload(7, "500", name, end), MONGREL2);
                assert_eq!(looked, Some(Err(UploadFault::Place)), "{name}");
            }
        }
    }

    #[test]
    fn a_name_is_below_the_chroot_and_never_leaves_it() {
        let chroot: Arc<Path> = Path::new("/jail").into();
        let path = |name: &str| {
            Place::new(Some(Arc::clone(&chroot)), name.as_bytes()).map(|place| place.path())
        };
        assert_eq!(path("/up/x"), Ok(PathBuf::from("/jail/up/x")));
        assert_eq!(path("./up/x"), Ok(PathBuf::from("/jail/up/x")));
        for name in [
            "", "/", ".", "..", "/..", "/up/../x", "../x", "/up/..", "/up\0/x",
        ] {
            assert_eq!(path(name), Err(UploadFault::Name), "{name:?}");
            let bare = Place::new(None, name.as_bytes());
            assert_eq!(bare, Err(UploadFault::Name), "{name:?}");
        }
    }

    #[test]
    fn a_server_that_drops_what_clients_make_up_is_believed() {
        let mut announced = Announced::new(None, None);
        let lurcher = Sender {
            honest: true,
            ..MONGREL2
        };
        let large = upload(7, "5000000000", FILE, Some(FILE));
        assert!(look(&mut announced, &large, lurcher).is_some_and(|place| place.is_ok()));
        let outside = upload(7, "500", "/up/../x", Some("/up/../x"));
        assert_eq!(
            look(&mut announced, &outside, lurcher),
            Some(Err(UploadFault::Name))
        );
    }

    #[test]
    fn the_oldest_announcement_goes_first() {
        let mut announced = Announced::new(None, None);
        for id in 0..=u32::try_from(STARTED_MAX).unwrap() {
            look(&mut announced, &upload(id, "500", FILE, None), MONGREL2);
        }
        assert_eq!(announced.started.len(), STARTED_MAX);
        assert_eq!(announced.order.len(), STARTED_MAX);
        assert_eq!(done(&mut announced, 0), Err(UploadFault::NotStarted));
        assert!(done(&mut announced, 1).is_ok());
    }

    #[test]
    fn links_lead_nowhere_and_only_plain_files_are_opened_and_removed() {
        let jail = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        fs::write(jail.path().join("x"), "abc").unwrap();
        fs::create_dir(jail.path().join("folder")).unwrap();
        std::os::unix::fs::symlink(&secret, jail.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), jail.path().join("way")).unwrap();
        let place = |name: &str| Place::new(Some(jail.path().into()), name.as_bytes()).unwrap();
        assert_eq!(place("/x").open().unwrap().1, 3);
        for name in ["/link", "/way/secret", "/folder"] {
            let opened = place(name).open();
            assert!(
                matches!(opened, Err(UploadError::NoFile { .. })),
                "{name}: {opened:?}"
            );
            assert!(place(name).remove().is_err(), "{name}");
        }
        let bare = Place::new(None, jail.path().join("link").as_os_str().as_bytes()).unwrap();
        assert!(matches!(bare.open(), Err(UploadError::NoFile { .. })));
        let gone = place("/y").open();
        assert!(matches!(gone, Err(UploadError::Gone { .. })), "{gone:?}");
        assert!(secret.exists());
        place("/x").remove().unwrap();
        assert!(!jail.path().join("x").exists());
    }

    /// Whoever reads an upload that is only announced acts on it.
    #[test]
    fn an_announcement_is_acted_on_where_it_is_sure_and_nobody_else_would() {
        let lurcher = Sender {
            honest: true,
            ..MONGREL2
        };
        let broker = Sender {
            is_broker: true,
            ..MONGREL2
        };
        let mut unknown = Announced::new(None, None);
        assert_eq!(early(&mut unknown, MONGREL2), Early::Never);
        assert_eq!(early(&mut unknown, lurcher), Early::Always);
        let mut known = Announced::new(None, Some(Path::new("/up/body.XXXXXX")));
        assert_eq!(early(&mut known, MONGREL2), Early::IfAlone);
        assert_eq!(early(&mut known, broker), Early::Never);
    }

    #[test]
    fn the_end_is_that_of_the_file_that_was_announced() {
        let mut announced = Announced::new(None, None);
        let mut found = |done| {
            let message = upload(7, "500", FILE, done);
            announced.look_at(&message, MONGREL2).unwrap().unwrap()
        };
        let (start, end) = (found(None), found(Some(FILE)));
        assert!(Arc::ptr_eq(&start.stored, &end.stored) && end.is_done());
    }
}

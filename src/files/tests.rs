//! Files as they are asked for, on a disk of the test's own: the parts together, without a connection.

use std::collections::BTreeMap;
use std::fs;

use super::*;

struct Kinds(BTreeMap<&'static str, &'static str>);

impl Types for Kinds {
    fn of_path(&self, path: &str) -> Option<&str> {
        let (_, extension) = path.rsplit_once('.')?;
        self.0.get(extension).copied()
    }
}

struct Site {
    files: Files,
    directory: Rc<Directory>,
    folder: tempfile::TempDir,
}

const CACHE: usize = 1 << 20;

impl Site {
    fn new(cache: usize, ttl: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new("test", cache, 0);
        let types = Rc::new(Kinds([("html", "text/html")].into()));
        let directory = files.directory(
            folder.path().into(),
            "index.html",
            "x/default\r\nX: y",
            types,
            ttl,
        );
        Self {
            files,
            directory,
            folder,
        }
    }

    /// Writes a file whose last change is long ago, as that of most files is.
    fn write(&self, name: &str, text: &[u8], seconds: u64) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let file = File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
            .unwrap();
    }

    fn outcome(&self, path: &str, fields: &[(&str, &str)]) -> Outcome {
        let mut wish = Wish::new(false);
        for (name, value) in fields {
            wish.note(name.as_bytes(), value.as_bytes());
        }
        let (path, query) = path
            .split_once('?')
            .map_or((path, None), |(path, query)| (path, Some(query)));
        let place = Place {
            path: path.as_bytes(),
            query: query.map(str::as_bytes),
            prefix: b"/f/",
        };
        self.files.ask(&self.directory, place, wish)
    }

    async fn get(&self, path: &str, fields: &[(&str, &str)]) -> Seen {
        let reply = match self.outcome(path, fields) {
            Outcome::Ready(reply) => reply,
            Outcome::Seek(quest) => self.files.seek(*quest).await,
        };
        let body = match reply.body {
            Body::Whole(bytes) => bytes.to_vec(),
            Body::Stream(mut reader) => {
                let mut body = Vec::new();
                while let Some(block) = reader.next().await.unwrap() {
                    body.extend_from_slice(&block);
                }
                body
            }
        };
        if let Some(length) = reply.length {
            assert_eq!(length, body.len() as u64, "what is promised is sent");
        }
        Seen {
            status: reply.status,
            lines: String::from_utf8(reply.lines).unwrap(),
            body: String::from_utf8(body).unwrap(),
        }
    }

    fn is_ready(&self, path: &str, fields: &[(&str, &str)]) -> bool {
        matches!(self.outcome(path, fields), Outcome::Ready(reply) if reply.status < 400)
    }
}

struct Seen {
    status: u16,
    lines: String,
    body: String,
}

impl Seen {
    fn field(&self, name: &str) -> Option<&str> {
        let lines = self
            .lines
            .split("\r\n")
            .filter_map(|line| line.split_once(": "));
        lines
            .filter(|(n, _)| *n == name)
            .map(|(_, value)| value)
            .next()
    }
}

/// Numbers of so many digits, one behind the other.
fn numbers(count: usize, digits: usize) -> String {
    let numbers: Vec<String> = (0..count).map(|n| format!("{n:0digits$}")).collect();
    numbers.concat()
}

const LONG: Duration = Duration::from_secs(1000);

#[tokio::test]
async fn a_file_is_sent_with_what_is_known_of_it() {
    let site = Site::new(CACHE, LONG);
    site.write("index.html", b"<p>", 1_577_934_245);
    site.write("plain", b"plain", 0);
    // From the disk, and then from memory.
    for _ in 0..2 {
        let seen = site.get("/f/", &[]).await;
        assert_eq!((seen.status, seen.body.as_str()), (200, "<p>"));
        assert_eq!(seen.field("Content-Type"), Some("text/html"));
        assert_eq!(seen.field("ETag"), Some("\"5e0d5da5-3\""));
        assert_eq!(
            seen.field("Last-Modified"),
            Some("Thu, 02 Jan 2020 03:04:05 GMT")
        );
        assert_eq!(seen.field("Accept-Ranges"), Some("bytes"));
        assert_eq!(seen.field("Server"), Some("test"));
        assert_eq!(seen.field("Vary"), None);
        assert!(httpdate::parse_http_date(seen.field("Date").unwrap()).is_ok());
    }
    let seen = site.get("/f/plain", &[]).await;
    assert_eq!(
        seen.field("Content-Type"),
        Some("x/defaultX: y"),
        "no line of its own"
    );
}

#[tokio::test]
async fn what_is_in_memory_is_trusted_for_its_time_and_no_longer() {
    let site = Site::new(CACHE, LONG);
    site.write("a", b"one", 1000);
    assert!(!site.is_ready("/f/a", &[]));
    site.get("/f/a", &[]).await;
    assert!(site.is_ready("/f/a", &[]));
    site.write("a", b"two", 2000);
    assert_eq!(site.get("/f/a", &[]).await.body, "one");

    let site = Site::new(CACHE, Duration::ZERO);
    site.write("a", b"one", 1000);
    site.get("/f/a", &[]).await;
    assert!(site.is_ready("/f/a", &[]), "0 is a second, as in Mongrel2");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert!(!site.is_ready("/f/a", &[]));
    // As large and as old as before: the time of the change itself tells.
    site.write("a", b"two", 1000);
    assert_eq!(site.get("/f/a", &[]).await.body, "two");
    fs::remove_file(site.folder.path().join("a")).unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(site.get("/f/a", &[]).await.status, 404);
}

#[tokio::test]
async fn large_files_are_read_as_they_are_sent() {
    let site = Site::new(CACHE, LONG);
    let text: String = numbers(40_000, 5);
    site.write("large", text.as_bytes(), 1000);
    for _ in 0..2 {
        assert!(!site.is_ready("/f/large", &[]));
        let seen = site.get("/f/large", &[]).await;
        assert!(seen.body == text, "all of it");
        // What is known of it is in memory.
        let tag = seen.field("ETag").unwrap();
        assert!(site.is_ready("/f/large", &[("If-None-Match", tag)]));
    }
    let seen = site
        .get("/f/large", &[("Range", "bytes=99990-100009")])
        .await;
    assert_eq!(
        (seen.status, seen.body.as_str()),
        (206, "19998199992000020001")
    );
    assert_eq!(
        seen.field("Content-Range"),
        Some("bytes 99990-100009/200000")
    );
}

#[tokio::test]
async fn several_ranges_are_parts_with_heads_of_their_own() {
    for (cache, name) in [(CACHE, "memory"), (0, "disk")] {
        let site = Site::new(cache, LONG);
        let text: String = numbers(1000, 3);
        site.write("a.html", text.as_bytes(), 1000);
        for _ in 0..2 {
            let seen = site
                .get("/f/a.html", &[("Range", "bytes=1500-1505,0-2,-3")])
                .await;
            assert_eq!(seen.status, 206, "{name}");
            let boundary = seen
                .field("Content-Type")
                .and_then(|kind| kind.strip_prefix("multipart/byteranges; boundary="))
                .unwrap();
            let part = |range: &str, text: &str| {
                format!(
                    "--{boundary}\r\nContent-Type: text/html\r\nContent-Range: bytes {range}/3000\r\n\r\n{text}\r\n"
                )
            };
            let expect = [
                part("1500-1505", "500501"),
                part("0-2", "000"),
                part("2997-2999", "999"),
                format!("--{boundary}--\r\n"),
            ];
            assert_eq!(seen.body, expect.concat(), "{name}");
            assert_eq!(seen.field("Content-Range"), None);
        }
    }
}

#[tokio::test]
async fn several_ranges_of_a_compressed_form_are_all_of_it() {
    let site = Site::new(CACHE, LONG);
    site.write("a.html", b"<p>", 1000);
    let gzip = numbers(1000, 3);
    site.write("a.html.gz", gzip.as_bytes(), 1000);
    for (range, status, body) in [
        ("bytes=0-2,1500-1502", 200, gzip.as_str()),
        ("bytes=1500-1502", 206, "500"),
    ] {
        let fields = [("Accept-Encoding", "gzip"), ("Range", range)];
        let seen = site.get("/f/a.html", &fields).await;
        assert_eq!((seen.status, seen.body.as_str()), (status, body));
        assert_eq!(seen.field("Content-Encoding"), Some("gzip"));
    }
}

#[tokio::test]
async fn answers_without_the_file() {
    let site = Site::new(CACHE, LONG);
    site.write("sub/index.html", b"<p>", 1000);
    let seen = site.get("/f/sub?a=1", &[]).await;
    assert_eq!(
        (seen.status, seen.field("Location")),
        (301, Some("/f/sub/?a=1"))
    );
    assert_eq!(site.get("/f", &[]).await.field("Location"), Some("/f/"));
    for path in [
        "/f/none",
        "/f/../x",
        "/f/a%00",
        "/f/sub/none/",
        "/",
        "/f/sub/index.html/",
    ] {
        let seen = site.get(path, &[]).await;
        assert_eq!(
            (seen.status, seen.body.as_str()),
            (404, "Not Found"),
            "{path}"
        );
    }
    for _ in 0..2 {
        let seen = site.get("/f/sub/", &[("If-Match", "\"x\"")]).await;
        assert_eq!(
            (seen.status, seen.body.as_str()),
            (412, "Precondition Failed")
        );
        let seen = site.get("/f/sub/", &[("Range", "bytes=3-")]).await;
        assert_eq!(
            (seen.status, seen.field("Content-Range")),
            (416, Some("bytes */3"))
        );
        let seen = site.get("/f/sub/", &[("If-None-Match", "*")]).await;
        assert_eq!((seen.status, seen.body.as_str()), (304, ""));
        assert_eq!(seen.field("ETag"), Some("\"3e8-3\""));
        assert_eq!(seen.field("Content-Type"), None);
    }
}

#[tokio::test]
async fn a_compressed_neighbour_is_a_form_with_a_tag_of_its_own() {
    let site = Site::new(CACHE, LONG);
    site.write("a.html", b"plain", 1000);
    site.write("a.html.gz", b"gzip!", 1000);
    for accept in ["gzip", "identity", "br, gzip;q=0.2", ""] {
        let seen = site.get("/f/a.html", &[("Accept-Encoding", accept)]).await;
        let gzip = accept.contains("gzip");
        assert_eq!(seen.body, if gzip { "gzip!" } else { "plain" });
        assert_eq!(seen.field("Content-Encoding"), gzip.then_some("gzip"));
        assert_eq!(seen.field("Content-Type"), Some("text/html"));
        assert_eq!(seen.field("Vary"), Some("Accept-Encoding"));
        let tag = if gzip { "\"3e8-5-gz\"" } else { "\"3e8-5\"" };
        assert_eq!(seen.field("ETag"), Some(tag));
        let fields = [("Accept-Encoding", accept), ("If-None-Match", tag)];
        let seen = site.get("/f/a.html", &fields).await;
        assert_eq!(
            (seen.status, seen.field("Vary")),
            (304, Some("Accept-Encoding"))
        );
    }
    // Both are in memory once they are old enough to be trusted.
    let gzip = [("Accept-Encoding", "gzip")];
    let end = Instant::now() + Duration::from_secs(20);
    while !site.is_ready("/f/a.html", &gzip) || !site.is_ready("/f/a.html", &[]) {
        assert!(Instant::now() < end, "one drives out the other");
        site.get("/f/a.html", &gzip).await;
        site.get("/f/a.html", &[]).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_time_that_http_cannot_name_is_the_nearest_it_can() {
    let site = Site::new(CACHE, LONG);
    site.write("a", b"x", 1000);
    let path = site.folder.path().join("a");
    let file = File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH - Duration::from_secs(1000))
        .unwrap();
    let seen = site.get("/f/a", &[]).await;
    assert_eq!(
        seen.field("Last-Modified"),
        Some("Thu, 01 Jan 1970 00:00:00 GMT")
    );
    // Never later than the answer.
    site.write("b", b"x", 4_000_000_000);
    let seen = site.get("/f/b", &[]).await;
    assert_eq!(seen.field("Last-Modified"), seen.field("Date"));
}

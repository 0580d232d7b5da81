//! Serves the files of a directory, as a `Dir` of the server would: for servers that are on another machine than the files, or
//! that should not read them. What a path means and what is said about a file is the library's ([`lurcher::files`]); here
//! requests are read and responses written.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use lurcher::config::Mimetypes;
use lurcher::files::{self, Directory, Files, Outcome, Place, Reply, Types, Wish};
use lurcher::handler::{Connection, ReplyError, Request};
use lurcher::launcher::{BuiltIn, Handler, Opt, Target, Values};

use super::exchanges;

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: "files",
    about: "Serve the files of a directory

GET and HEAD, with conditional requests (ETag, Last-Modified), ranges, and types by extension (those of m2sh). A \
path is looked for below DIR without the fixed part of its route: its pattern up to the first `(`. A directory \
gives its index file, without its slash a redirect; there are no listings. `page.html.br`, `.zst` and `.gz` beside \
`page.html`, when they are not older, go to clients that accept them. Symbolic links may be used, and never lead out \
of DIR. Large files are read as the client takes them. One thread serves; the reading has threads of its own.

A site, and an application in one page:
  lurcher run files:/srv/www tcp://127.0.0.1:9999
  lurcher run files:dist tcp://127.0.0.1:9999 --fallback index.html --cache-control max-age=60",
    targets: &[Target { scheme: "files", form: "files:DIR" }],
    options: &[
        Opt { name: "index", value: "FILE", help: "The file of a directory [default: index.html]", repeat: false },
        Opt { name: "fallback", value: "FILE", help: "A file below DIR, given where nothing is found: for applications in one page", repeat: false },
        Opt { name: "default-type", value: "TYPE", help: "The type of files whose extension is not known [default: application/octet-stream]", repeat: false },
        Opt { name: "cache-control", value: "TEXT", help: "Sent as Cache-Control with files [default: none]", repeat: false },
    ],
    run: |values| {
        let settings = Settings::new(values)?;
        Ok(Handler::draining(|connection| serve(connection, settings)))
    },
};

/// Requests answered at once, unless `--concurrency` says otherwise: each may hold two blocks of a file.
const OPEN_MAX: usize = 256;

/// Small files kept in memory, all together, and bytes of a large one that are read at once.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
const BLOCK: usize = 128 * 1024;

/// How long what is known of a file is trusted.
const TTL: Duration = Duration::from_secs(1);

/// What was typed.
struct Settings {
    base: PathBuf,
    index: String,
    fallback: Option<Vec<u8>>,
    default_type: String,
    cache_control: Option<String>,
    open_max: usize,
}

impl Settings {
    fn new(values: &Values) -> Result<Self, String> {
        let base = values
            .target()
            .strip_prefix("files:")
            .filter(|base| !base.is_empty())
            .ok_or("name the directory: files:DIR")?;
        let index = values.get("index").unwrap_or("index.html");
        if index.is_empty() || index.contains('/') {
            return Err(format!("--index `{index}` is no name of a file"));
        }
        let cache_control = values.get("cache-control").map(str::to_owned);
        if let Some(text) = &cache_control
            && text.chars().any(|letter| letter.is_ascii_control())
        {
            return Err("--cache-control has a control character in it".to_owned());
        }
        Ok(Self {
            base: base.into(),
            index: index.to_owned(),
            fallback: values.get("fallback").map(as_path),
            default_type: values
                .get("default-type")
                .unwrap_or("application/octet-stream")
                .to_owned(),
            cache_control,
            open_max: values
                .concurrency()
                .map_or(OPEN_MAX, |number| number as usize),
        })
    }
}

/// The path of a request for this file.
fn as_path(file: &str) -> Vec<u8> {
    let file = file.trim_start_matches('/').replace('%', "%25");
    format!("/{file}").into_bytes()
}

/// The types that m2sh knows.
struct KnownTypes(Mimetypes);

impl Types for KnownTypes {
    fn of_path(&self, path: &str) -> Option<&str> {
        self.0.of_path(path)
    }
}

/// What is served.
struct Site {
    files: Files,
    directory: Rc<Directory>,
    fallback: Option<Vec<u8>>,
    cache_control: Option<String>,
}

async fn serve(connection: Connection, settings: Settings) -> Result<(), ReplyError> {
    if !settings.base.is_dir() {
        // It may be there later.
        tracing::warn!(
            "will answer 404: {} is no directory",
            settings.base.display()
        );
    }
    let files = Files::new(
        concat!("lurcher/", env!("CARGO_PKG_VERSION")),
        CACHE_BYTES,
        BLOCK,
    );
    let directory = files.directory(
        settings.base,
        &settings.index,
        &settings.default_type,
        Rc::new(KnownTypes(Mimetypes::default())),
        TTL,
    );
    let site = Rc::new(Site {
        files,
        directory,
        fallback: settings.fallback,
        cache_control: settings.cache_control,
    });
    exchanges::each(connection, settings.open_max, move |request, _| {
        answer(Rc::clone(&site), request)
    })
    .await
}

async fn answer(site: Rc<Site>, request: Request) -> Result<(), ReplyError> {
    let head = match request.method() {
        Some(b"GET") => false,
        Some(b"HEAD") => true,
        _ => {
            let respond = request.respond(405).header("Allow", "GET, HEAD");
            let respond = respond.header("Content-Type", "text/plain");
            return respond.send("Method Not Allowed").await;
        }
    };
    let mut wish = Wish::new(head);
    for (name, values) in request.headers.iter() {
        for value in values.iter() {
            wish.note(name, value);
        }
    }
    let pattern = request.headers.first("PATTERN").unwrap_or_default();
    let place = Place {
        path: &request.path,
        query: request.headers.first("QUERY"),
        prefix: pattern
            .split(|&byte| byte == b'(')
            .next()
            .unwrap_or_default(),
    };
    let mut reply = site.look(place, wish.clone()).await;
    if let (404, Some(path)) = (reply.status, &site.fallback) {
        let prefix = b"/";
        reply = site
            .look(
                Place {
                    path,
                    query: None,
                    prefix,
                },
                wish,
            )
            .await;
    }
    let mut respond = request.respond(reply.status);
    for (name, value) in reply.fields() {
        respond = respond.header(name, value);
    }
    if let (200 | 206 | 304, Some(value)) = (reply.status, &site.cache_control) {
        respond = respond.header("Cache-Control", value);
    }
    if let Some(length) = reply.length {
        respond = respond.length(length);
    }
    let (mut reader, mut writer) = match reply.body {
        files::Body::Whole(body) => return respond.send(body).await,
        files::Body::Stream(reader) => (reader, respond.stream()?),
    };
    loop {
        match reader.next().await {
            Ok(Some(block)) => writer.write(block).await?,
            Ok(None) => return writer.finish().await,
            Err(error) => {
                // Without its end the client sees that something is missing.
                let path = request.path.escape_ascii();
                tracing::warn!("{path}: cut short: {error}");
                return Ok(());
            }
        }
    }
}

impl Site {
    async fn look(&self, place: Place<'_>, wish: Wish<'_>) -> Reply {
        match self.files.ask(&self.directory, place, wish) {
            Outcome::Ready(reply) => reply,
            Outcome::Seek(quest) => self.files.seek(*quest).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_be_are_refused() {
        let refuse = |name: &'static str, value: &str| {
            let values: Values = [(name, value.to_owned())].into_iter().collect();
            Settings::new(&values).map(drop).expect_err(value)
        };
        assert_eq!(refuse("index", "a"), "name the directory: files:DIR");
    }

    #[test]
    fn a_fallback_is_a_path_of_its_own() {
        assert_eq!(as_path("index.html"), b"/index.html");
        assert_eq!(as_path("//a%20b"), b"/a%2520b");
    }
}

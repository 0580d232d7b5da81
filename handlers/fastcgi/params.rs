//! Which script a request means, and what it is told: the variables of CGI/1.1 (RFC 3875 4.1) as php-fpm wants them. It looks
//! for scripts on the disk, where it has been told which; the rest is pure.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use lurcher::wire::request::Request;

/// Where scripts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scripts {
    /// As this process finds them, to be looked up before they are run. `None`: they are on another machine.
    pub(super) root: Option<PathBuf>,
    /// As the backend finds them, where that is somewhere else.
    pub(super) remote_root: Option<String>,
    /// What of a path is no part of a file's name.
    pub(super) prefix: String,
    /// The script of a directory.
    pub(super) index: String,
    /// The end of a script's name, with its dot.
    pub(super) extension: String,
    /// The script for everything.
    pub(super) script: Option<String>,
    /// The script for what has none.
    pub(super) fallback: Option<String>,
}

/// A script that is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Script {
    /// The document root as the backend finds it.
    root: Vec<u8>,
    /// The name below it, beginning with a slash.
    name: Vec<u8>,
    /// The path that a client would ask for to get it.
    url: Vec<u8>,
    /// What follows it in the path of the request.
    path_info: Vec<u8>,
}

/// What comes of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Script(Script),
    /// A directory without its slash.
    Directory,
    Nothing,
}

impl Scripts {
    /// Finds the script for a path as it was received. Blocks where there is a root to look into.
    ///
    /// # Errors
    ///
    /// When the disk is in trouble; what is not there is [`Found::Nothing`].
    pub(super) fn find(&self, path: &[u8]) -> io::Result<Found> {
        if let Some(script) = &self.script {
            return self.own(script);
        }
        let found = match self.asked(path) {
            None => return Ok(Found::Nothing),
            Some(Asked::Script(name, path_info)) => self.check(&name, path_info),
            Some(Asked::Other(name)) => Ok(self.directory(&name)),
        };
        match (found, &self.fallback) {
            (Ok(Found::Nothing), Some(fallback)) => self.own(fallback),
            (Err(error), _) if is_absence(&error) => Ok(Found::Nothing),
            (found, _) => found,
        }
    }

    /// What the path says, by its words alone.
    fn asked(&self, path: &[u8]) -> Option<Asked> {
        let decoded = decode(path)?;
        let rest = decoded.strip_prefix(self.prefix.as_bytes())?;
        if !rest.is_empty() && !rest.starts_with(b"/") {
            return None;
        }
        let mut name = Vec::with_capacity(rest.len() + self.index.len() + 1);
        let mut left = rest;
        // Name by name, until one is a script's: `/x.jpg/y.php` is a script y.php in a directory x.jpg, and if there is none it
        // is nothing.
        while let Some(after) = left.strip_prefix(b"/") {
            let end = after.iter().position(|&byte| byte == b'/');
            let (word, after) = after.split_at_checked(end.unwrap_or(after.len()))?;
            left = after;
            if word.is_empty() || word == b"." {
                continue;
            }
            if word == b".." {
                return None;
            }
            name.push(b'/');
            name.extend_from_slice(word);
            if self.is_script(word) {
                let climbs = left.split(|&byte| byte == b'/').any(|word| word == b"..");
                return (!climbs).then(|| Asked::Script(name, left.to_vec()));
            }
        }
        if rest.ends_with(b"/") {
            name.push(b'/');
            name.extend_from_slice(self.index.as_bytes());
            return Some(Asked::Script(name, Vec::new()));
        }
        Some(Asked::Other(name))
    }

    fn is_script(&self, word: &[u8]) -> bool {
        word.len() > self.extension.len() && word.ends_with(self.extension.as_bytes())
    }

    /// The script of an option.
    fn own(&self, script: &str) -> io::Result<Found> {
        let name = [b"/", script.trim_start_matches('/').as_bytes()].concat();
        self.check(&name, Vec::new()).or_else(|error| {
            if is_absence(&error) {
                Ok(Found::Nothing)
            } else {
                Err(error)
            }
        })
    }

    /// That it is there, and below the root wherever links lead; or no more than that it has a name, where there is nothing to look into.
    fn check(&self, name: &[u8], path_info: Vec<u8>) -> io::Result<Found> {
        let mut root = Vec::new();
        if let Some(base) = &self.root {
            let base = fs::canonicalize(base)?;
            root = base.as_os_str().as_bytes().to_vec();
            let Ok(real) = fs::canonicalize(Path::new(OsStr::from_bytes(&[&root, name].concat())))
            else {
                return Ok(Found::Nothing);
            };
            // By whole names, not by bytes. What it is called in the end must be a script as well.
            let is_script = real
                .file_name()
                .is_some_and(|word| self.is_script(word.as_bytes()));
            if !is_script || !real.starts_with(&base) || !fs::metadata(&real)?.is_file() {
                return Ok(Found::Nothing);
            }
        }
        if let Some(remote) = &self.remote_root {
            root = remote.trim_end_matches('/').as_bytes().to_vec();
        }
        Ok(Found::Script(Script {
            root,
            url: [self.prefix.as_bytes(), name].concat(),
            name: name.to_vec(),
            path_info,
        }))
    }

    fn directory(&self, name: &[u8]) -> Found {
        let base = self
            .root
            .as_ref()
            .and_then(|base| fs::canonicalize(base).ok());
        let real = base.as_ref().and_then(|base| {
            let path = [base.as_os_str().as_bytes(), name].concat();
            fs::canonicalize(Path::new(OsStr::from_bytes(&path))).ok()
        });
        match (base, real) {
            (Some(base), Some(real)) if real.starts_with(&base) && real.is_dir() => {
                Found::Directory
            }
            _ => Found::Nothing,
        }
    }
}

enum Asked {
    /// A script by its name, and what follows it.
    Script(Vec<u8>, Vec<u8>),
    /// A file or a directory.
    Other(Vec<u8>),
}

fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied};
    [
        InvalidFilename,
        InvalidInput,
        NotADirectory,
        NotFound,
        PermissionDenied,
    ]
    .contains(&error.kind())
}

/// Resolves percent-escapes; a `%` without two digits is itself. `None` when a NUL comes out, which is in no name.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let mut value = byte;
        if byte == b'%'
            && let [high, low, after @ ..] = after
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            value = high * 16 + low;
            rest = after;
        }
        if value == 0 {
            return None;
        }
        decoded.push(value);
    }
    Some(decoded)
}

/// The variables of a request, later ones of the same name win: `extra` at the end.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<(Vec<u8>, Vec<u8>)>);

/// Headers that are no `HTTP_` variable: they have one of their own, were about the message as the server received it, or would be taken
/// for a setting of the program (`HTTP_PROXY`).
const NOT_PASSED: &[&[u8]] = &[
    b"content-length",
    b"content-type",
    b"proxy",
    b"transfer-encoding",
    b"x-mongrel2-upload-done",
    b"x-mongrel2-upload-start",
];

impl Params {
    /// Says all that CGI says; `length` is that of the body, where there is one.
    pub(super) fn new(
        request: &Request,
        script: &Script,
        length: Option<u64>,
        extra: &[(String, String)],
    ) -> Self {
        let own = |name: &str| request.headers.first(name).unwrap_or_default();
        let host = request.headers.first("host").unwrap_or_default();
        let scheme = own("URL_SCHEME");
        let https = scheme == b"https";
        let (name, port) = split_host(host);
        let default_port: &[u8] = if https { b"443" } else { b"80" };
        let mut params = Self(Vec::with_capacity(32));
        params.set("GATEWAY_INTERFACE", b"CGI/1.1");
        params.set(
            "SERVER_SOFTWARE",
            concat!("lurcher/", env!("CARGO_PKG_VERSION")).as_bytes(),
        );
        params.set(
            "SERVER_NAME",
            if name.is_empty() { b"localhost" } else { name },
        );
        params.set("SERVER_PORT", port.unwrap_or(default_port));
        params.set("SERVER_PROTOCOL", own("VERSION"));
        params.set("REQUEST_METHOD", request.method().unwrap_or_default());
        params.set("REQUEST_SCHEME", scheme);
        params.set("REQUEST_URI", own("URI"));
        params.set("QUERY_STRING", own("QUERY"));
        params.set("REMOTE_ADDR", own("REMOTE_ADDR"));
        params.set("DOCUMENT_ROOT", &script.root);
        params.set(
            "SCRIPT_FILENAME",
            &[&script.root[..], &script.name].concat(),
        );
        params.set("SCRIPT_NAME", &script.url);
        params.set(
            "DOCUMENT_URI",
            &[&script.url[..], &script.path_info].concat(),
        );
        if !script.path_info.is_empty() {
            params.set("PATH_INFO", &script.path_info);
        }
        if https {
            params.set("HTTPS", b"on");
        }
        // PHP runs nothing that seems to be called past the web server.
        params.set("REDIRECT_STATUS", b"200");
        if let Some(length) = length {
            params.set("CONTENT_LENGTH", length.to_string().as_bytes());
        }
        if let Some(kind) = request.headers.first("content-type") {
            params.set("CONTENT_TYPE", kind);
        }
        for (name, values) in request.headers.iter() {
            if let Some(variable) = variable(name) {
                let between: &[u8] = if name == b"cookie" { b"; " } else { b", " };
                params.0.push((variable, values.join(between)));
            }
        }
        for (name, value) in extra {
            params.0.retain(|(known, _)| known != name.as_bytes());
            params.set(name, value.as_bytes());
        }
        params
    }

    fn set(&mut self, name: &str, value: &[u8]) {
        self.0.push((name.as_bytes().to_vec(), value.to_vec()));
    }

    /// Names and values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&name[..], &value[..]))
    }
}

/// `HTTP_X_A` for `x-a`. Only for names that a client has sent (the server's own are upper case), and that no other name is
/// written as: `x_a` is left out, as in other servers.
fn variable(name: &[u8]) -> Option<Vec<u8>> {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    if name.is_empty() || !name.iter().all(plain) || NOT_PASSED.contains(&name) {
        return None;
    }
    let upper = name.iter().map(|byte| match byte {
        b'-' => b'_',
        byte => byte.to_ascii_uppercase(),
    });
    Some(b"HTTP_".iter().copied().chain(upper).collect())
}

/// Name and port of a `Host`, whose brackets stay.
fn split_host(host: &[u8]) -> (&[u8], Option<&[u8]>) {
    let colon = host.iter().rposition(|&byte| byte == b':');
    let split = colon.and_then(|at| host.split_at_checked(at));
    match split {
        Some((name, port)) if !port.contains(&b']') => {
            let port = port.get(1..).unwrap_or_default();
            let is_port = !port.is_empty() && port.iter().all(u8::is_ascii_digit);
            (name, is_port.then_some(port))
        }
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn scripts(root: Option<&Path>) -> Scripts {
        Scripts {
            root: root.map(Path::to_owned),
            remote_root: Some("/app/".to_owned()),
            prefix: String::new(),
            index: "index.php".to_owned(),
            extension: ".php".to_owned(),
            script: None,
            fallback: None,
        }
    }

    /// The script and what follows it; a word for the rest.
    fn find(scripts: &Scripts, path: &str) -> String {
        match scripts.find(path.as_bytes()).unwrap() {
            Found::Script(script) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                format!(
                    "{}|{}|{}",
                    text(&script.root),
                    text(&script.name),
                    text(&script.path_info)
                )
            }
            Found::Directory => "directory".to_owned(),
            Found::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn a_path_is_split_behind_the_script() {
        let scripts = scripts(None);
        for (path, expect) in [
            ("/a.php", "/app|/a.php|"),
            ("/a.php/b/c", "/app|/a.php|/b/c"),
            ("/a.php/b.php", "/app|/a.php|/b.php"),
            ("/a.php/", "/app|/a.php|/"),
            ("/", "/app|/index.php|"),
            ("/s/", "/app|/s/index.php|"),
            ("//s//./a%2ephp", "/app|/s/a.php|"),
            ("/a.phps", "nothing"),
            ("/a.php5/x", "nothing"),
            ("/.php", "nothing"),
            ("/about", "nothing"),
            ("/a.php%00.jpg", "nothing"),
            ("/../a.php", "nothing"),
            ("/s/%2e%2e/a.php", "nothing"),
            ("/a.php/../../b", "nothing"),
            ("*", "nothing"),
        ] {
            assert_eq!(find(&scripts, path), expect, "{path}");
        }
    }

    #[test]
    fn only_what_is_there_and_below_the_root_is_run() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("www");
        fs::create_dir_all(root.join("dir.php")).unwrap();
        fs::create_dir_all(root.join("sub")).unwrap();
        for name in [
            "www/a.php",
            "www/sub/index.php",
            "www/x.jpg",
            "www/t.inc",
            "secret.php",
        ] {
            fs::write(folder.path().join(name), "<?php").unwrap();
        }
        let link = |to: &str, name: &str| {
            std::os::unix::fs::symlink(folder.path().join(to), root.join(name)).unwrap();
        };
        link("secret.php", "out.php");
        link("www/a.php", "in.php");
        link("www/x.jpg", "picture.php");
        let mut scripts = scripts(Some(&root));
        for (path, expect) in [
            ("/a.php", "/app|/a.php|"),
            ("/a.php/info", "/app|/a.php|/info"),
            ("/in.php", "/app|/in.php|"),
            ("/sub/", "/app|/sub/index.php|"),
            ("/sub", "directory"),
            ("/", "nothing"),
            ("/x.jpg/y.php", "nothing"),
            ("/x.jpg", "nothing"),
            ("/b.php", "nothing"),
            ("/dir.php", "nothing"),
            ("/out.php", "nothing"),
            ("/picture.php", "nothing"),
        ] {
            assert_eq!(find(&scripts, path), expect, "{path}");
        }
        scripts.fallback = Some("a.php".to_owned());
        assert_eq!(find(&scripts, "/about/us"), "/app|/a.php|");
        assert_eq!(find(&scripts, "/b.php/x"), "/app|/a.php|");
        assert_eq!(find(&scripts, "/sub/index.php"), "/app|/sub/index.php|");
        assert_eq!(find(&scripts, "/../x"), "nothing");
        scripts.script = Some("/sub/index.php".to_owned());
        assert_eq!(find(&scripts, "/a.php"), "/app|/sub/index.php|");
        scripts.remote_root = None;
        let real = fs::canonicalize(&root).unwrap();
        assert_eq!(
            find(&scripts, "/a.php"),
            format!("{}|/sub/index.php|", real.display())
        );
        scripts.root = Some(folder.path().join("gone"));
        assert_eq!(find(&scripts, "/a.php"), "nothing");
    }

    #[test]
    fn a_prefix_is_no_part_of_the_name() {
        let mut scripts = scripts(None);
        scripts.prefix = "/blog".to_owned();
        assert_eq!(find(&scripts, "/blog/a.php"), "/app|/a.php|");
        assert_eq!(find(&scripts, "/blogs/a.php"), "nothing");
        assert_eq!(find(&scripts, "/a.php"), "nothing");
        let Found::Script(script) = scripts.find(b"/blog/").unwrap() else {
            panic!("a script");
        };
        assert_eq!(script.url, b"/blog/index.php");
    }

    fn params(headers: &str, extra: &[(String, String)]) -> Vec<String> {
        let message = format!("app 1 /a.php/x {}:{headers},0:,", headers.len());
        let request = Request::decode(Bytes::from(message)).unwrap();
        let Found::Script(script) = scripts(None).find(b"/a.php/x").unwrap() else {
            panic!("a script");
        };
        let params = Params::new(&request, &script, Some(5), extra);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        params
            .iter()
            .map(|(name, value)| format!("{}={}", text(name), text(value)))
            .collect()
    }

    const HEADERS: &str = r#"{"METHOD":"POST","VERSION":"HTTP/1.1","URI":"/a.php/x?q=1","QUERY":"q=1","URL_SCHEME":"https","REMOTE_ADDR":"10.0.0.1",
        "PATH":"/a.php/x","PATTERN":"/","host":"example.org:8443","content-type":"text/x","content-length":"5","proxy":"evil","x_a":"evil","x-a":["1","2"],
        "cookie":["a=1","b=2"],"authorization":"Basic x","transfer-encoding":"chunked"}"#;

    #[test]
    fn a_script_is_told_what_cgi_says() {
        let seen = params(HEADERS, &[]);
        for expect in [
            "GATEWAY_INTERFACE=CGI/1.1",
            "SERVER_NAME=example.org",
            "SERVER_PORT=8443",
            "SERVER_PROTOCOL=HTTP/1.1",
            "REQUEST_METHOD=POST",
            "REQUEST_URI=/a.php/x?q=1",
            "QUERY_STRING=q=1",
            "REMOTE_ADDR=10.0.0.1",
            "DOCUMENT_ROOT=/app",
            "SCRIPT_FILENAME=/app/a.php",
            "SCRIPT_NAME=/a.php",
            "DOCUMENT_URI=/a.php/x",
            "PATH_INFO=/x",
            "HTTPS=on",
            "REDIRECT_STATUS=200",
            "CONTENT_LENGTH=5",
            "CONTENT_TYPE=text/x",
            "HTTP_HOST=example.org:8443",
            "HTTP_X_A=1, 2",
            "HTTP_COOKIE=a=1; b=2",
            "HTTP_AUTHORIZATION=Basic x",
        ] {
            assert!(
                seen.iter().any(|one| one == expect),
                "{expect} in {seen:#?}"
            );
        }
        for refused in [
            "HTTP_PROXY",
            "HTTP_METHOD",
            "HTTP_CONTENT",
            "HTTP_TRANSFER",
            "evil",
        ] {
            assert!(
                !seen.iter().any(|one| one.contains(refused)),
                "{refused} in {seen:#?}"
            );
        }
    }

    #[test]
    fn an_operator_has_the_last_word() {
        let extra = [
            ("APP_ENV".to_owned(), "test".to_owned()),
            ("SERVER_NAME".to_owned(), "mine".to_owned()),
        ];
        let seen = params(HEADERS, &extra);
        let names: Vec<&String> = seen
            .iter()
            .filter(|one| one.starts_with("SERVER_NAME="))
            .collect();
        assert_eq!(names, ["SERVER_NAME=mine"]);
        assert!(seen.contains(&"APP_ENV=test".to_owned()));
    }

    #[test]
    fn a_host_is_split_wherever_its_port_is() {
        for (host, name, port) in [
            ("a", "a", None),
            ("a:80", "a", Some("80")),
            ("[::1]", "[::1]", None),
            ("[::1]:8080", "[::1]", Some("8080")),
            ("a:", "a", None),
            ("a:x", "a", None),
            ("", "", None),
        ] {
            let (seen, seen_port) = split_host(host.as_bytes());
            assert_eq!(
                (seen, seen_port),
                (name.as_bytes(), port.map(str::as_bytes)),
                "{host}"
            );
        }
    }
}

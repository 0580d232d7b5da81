//! Hands requests to a FastCGI server, php-fpm above all, so that scripts answer as they do behind other web servers.
//!
//! `codec` and `head` are what goes over the wire, pure; `params` finds the script and what it is told; `backend` has the
//! connections, `exchange` one request on one of them. Files beside scripts are not served: a `Dir` of the server does that.

mod backend;
mod codec;
mod exchange;
mod head;
mod params;

use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use lurcher::handler::{Connection, ReplyError, Request};
use lurcher::launcher::{BuiltIn, Handler, Opt, Target, Values};

use self::backend::{Address, Backend};
use self::exchange::{Done, Fault};
use self::params::{Found, Params, Scripts};
use super::exchanges::{self, Body};

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: "fastcgi",
    about: "Hand requests to a FastCGI server such as php-fpm

A path names a script below the root: `/shop/cart.php/7` is DIR/shop/cart.php, told `/7` as PATH_INFO; a path that ends \
in a slash is the index script there. Scripts end in `.php`, are looked up before they are run, and are 404 where they \
are not there or lead out of DIR. Static files beside them are not served: give those routes a Dir, or `files:DIR`.

Bodies and responses are passed on as they come. The server is told when a client leaves. What scripts write to \
their standard error is logged. A server that cannot be reached, or breaks off, is a 502, one that is silent for too long a 504, \
one without room a 503.

Where php-fpm is on this machine, and where its files are elsewhere for it than for this program:
  lurcher run fastcgi:/run/php/php-fpm.sock tcp://127.0.0.1:9999 --root /srv/www
  lurcher run fastcgi://10.0.0.7:9000 tcp://127.0.0.1:9999 --root /srv/www \\
    --remote-root /var/www/html
WordPress, whose paths without a script are its own; Symfony and Laravel, which have one script:
  lurcher run fastcgi:/run/php/php-fpm.sock tcp://127.0.0.1:9999 \\
    --root /srv/blog --fallback index.php
  lurcher run fastcgi:/run/php/php-fpm.sock tcp://127.0.0.1:9999 \\
    --root /srv/app/public --script index.php",
    targets: &[
        Target { scheme: "fastcgi", form: "fastcgi://HOST:PORT" },
        Target { scheme: "fastcgi", form: "fastcgi:/PATH" },
    ],
    options: &[
        Opt { name: "root", value: "DIR", help: "The document root", repeat: false },
        Opt { name: "remote-root", value: "DIR", help: "The document root as the FastCGI server sees it [default: as --root]; without --root scripts are not looked up", repeat: false },
        Opt { name: "index", value: "FILE", help: "The script of a directory [default: index.php]", repeat: false },
        Opt { name: "script", value: "FILE", help: "The script that answers every request", repeat: false },
        Opt { name: "fallback", value: "FILE", help: "The script for paths that name none", repeat: false },
        Opt { name: "extension", value: "TEXT", help: "What scripts end in [default: .php]", repeat: false },
        Opt { name: "prefix", value: "PATH", help: "The part of paths that is no folder below the root: /blog [default: none]", repeat: false },
        Opt { name: "param", value: "NAME=VALUE", help: "A variable for scripts, in place of one of that name; may be repeated", repeat: true },
        Opt { name: "timeout", value: "SECONDS", help: "How long a script may be silent [default: 60]", repeat: false },
        Opt { name: "connect-timeout", value: "SECONDS", help: "How long connecting may take [default: 5]", repeat: false },
        Opt { name: "keep", value: "COUNT", help: "Unused connections that stay open for 10 s; each holds a process of php-fpm [default: 0]", repeat: false },
    ],
    run: |values| {
        let settings = Settings::new(values)?;
        Ok(Handler::draining(|connection| serve(connection, settings)))
    },
};

/// Requests open at once, unless `--concurrency` says otherwise: well below the 511 connections that php-fpm lets wait, above
/// which it refuses them.
const OPEN_MAX: usize = 128;

/// The most that may be typed for a time, in seconds: a day.
const SECONDS_MAX: u64 = 86_400;

/// What was typed.
#[derive(Debug)]
struct Settings {
    address: Address,
    scripts: Scripts,
    extra: Vec<(String, String)>,
    timeout: Duration,
    connect_timeout: Duration,
    keep: usize,
    open_max: usize,
}

impl Settings {
    fn new(values: &Values) -> Result<Self, String> {
        let text = |name: &str, default: &str| values.get(name).unwrap_or(default).to_owned();
        let number = |name: &str, default: u64, least: u64| match values.get(name) {
            None => Ok(default),
            Some(text) => {
                let number = text
                    .parse()
                    .ok()
                    .filter(|number| (least..=SECONDS_MAX).contains(number));
                number.ok_or_else(|| {
                    format!("--{name} is not a number from {least} to {SECONDS_MAX}")
                })
            }
        };
        let root = values.get("root").map(PathBuf::from);
        let root = root.map(|root| std::path::absolute(&root)).transpose();
        let scripts = Scripts {
            root: root.map_err(|error| format!("--root: {error}"))?,
            remote_root: values.get("remote-root").map(str::to_owned),
            prefix: text("prefix", "").trim_end_matches('/').to_owned(),
            index: text("index", "index.php"),
            extension: text("extension", ".php"),
            script: values.get("script").map(str::to_owned),
            fallback: values.get("fallback").map(str::to_owned),
        };
        if scripts.root.is_none() && scripts.remote_root.is_none() {
            return Err("name the document root: --root DIR".to_owned());
        }
        if scripts.extension.len() < 2 || !scripts.extension.starts_with('.') {
            return Err("--extension is not a dot and a word".to_owned());
        }
        if !scripts.prefix.is_empty() && !scripts.prefix.starts_with('/') {
            return Err("--prefix does not begin with a slash".to_owned());
        }
        let own = [
            Some(&scripts.index),
            scripts.script.as_ref(),
            scripts.fallback.as_ref(),
        ];
        if let Some(name) = own
            .into_iter()
            .flatten()
            .find(|name| !name.ends_with(&scripts.extension))
        {
            return Err(format!(
                "`{name}` does not end in {}, as scripts do",
                scripts.extension
            ));
        }
        let extra = values.all("param").map(|param| {
            let pair = param.split_once('=').filter(|(name, _)| !name.is_empty());
            let (name, value) =
                pair.ok_or_else(|| format!("--param `{param}` is not NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        });
        Ok(Self {
            address: address(values.target())?,
            scripts,
            extra: extra.collect::<Result<_, String>>()?,
            timeout: Duration::from_secs(number("timeout", 60, 1)?),
            connect_timeout: Duration::from_secs(number("connect-timeout", 5, 1)?),
            keep: usize::try_from(number("keep", 0, 0)?).unwrap_or(usize::MAX),
            open_max: values
                .concurrency()
                .map_or(OPEN_MAX, |number| number as usize),
        })
    }
}

/// `fastcgi://HOST:PORT` or `fastcgi:/PATH`.
fn address(target: &str) -> Result<Address, String> {
    let wrong = || "name the FastCGI server: fastcgi://HOST:PORT or fastcgi:/PATH".to_owned();
    let rest = target.strip_prefix("fastcgi:").ok_or_else(wrong)?;
    if let Some(address) = rest.strip_prefix("//") {
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        return if host.is_empty() || !is_port {
            Err(wrong())
        } else {
            Ok(Address::Tcp(address.to_owned()))
        };
    }
    if rest.len() > 1 && rest.starts_with('/') {
        return Ok(Address::Unix(rest.into()));
    }
    Err(wrong())
}

/// What all requests share.
struct Site {
    scripts: Scripts,
    backend: Backend,
    extra: Vec<(String, String)>,
    timeout: Duration,
    /// The server failed when it was asked last, and that was said.
    complained: Cell<bool>,
}

async fn serve(connection: Connection, settings: Settings) -> Result<(), ReplyError> {
    let Settings {
        address,
        scripts,
        extra,
        timeout,
        connect_timeout,
        keep,
        open_max,
    } = settings;
    if let Some(root) = &scripts.root
        && !root.is_dir()
    {
        // It may be there later.
        tracing::warn!("will answer 404: {} is no directory", root.display());
    }
    let backend = Backend::new(address, connect_timeout, keep);
    let site = Rc::new(Site {
        scripts,
        backend,
        extra,
        timeout,
        complained: Cell::new(false),
    });
    let requests = Rc::clone(&site);
    let answers = exchanges::each(connection, open_max, move |request, body| {
        answer(Rc::clone(&requests), request, body)
    });
    tokio::select! {
        result = answers => result,
        () = site.backend.sweep() => Ok(()),
    }
}

async fn answer(site: Rc<Site>, request: Request, mut body: Body) -> Result<(), ReplyError> {
    let length = match &body {
        Body::Whole(bytes) if bytes.is_empty() && !request.headers.contains("content-length") => {
            None
        }
        Body::Whole(bytes) => Some(bytes.len() as u64),
        Body::Pieces(reader) => match reader.remaining() {
            Some(length) => Some(length),
            None => {
                return words(
                    &request,
                    411,
                    "Length Required: a script is told the length of a body before it comes",
                )
                .await;
            }
        },
    };
    let script = match site.find(&request).await {
        Ok(Found::Script(script)) => script,
        Ok(Found::Directory) => return redirect(&request).await,
        Ok(Found::Nothing) => return words(&request, 404, "Not Found").await,
        Err(error) => {
            tracing::error!(
                "{}: looking for the script: {error}",
                request.path.escape_ascii()
            );
            return words(&request, 500, "Internal Server Error").await;
        }
    };
    let params = Params::new(&request, &script, length, &site.extra);
    let mut begin = Vec::with_capacity(2048);
    codec::begin(site.backend.keeps(), params.iter(), &mut begin);
    let done = site.exchange(&request, &begin, &mut body).await;
    let Err(fault) = done.result else {
        site.complained.set(false);
        return Ok(());
    };
    site.complain(&request, &fault);
    let (code, text) = match fault {
        Fault::Reply(error) => return Err(error),
        // Part of it is with the client, and the writer has cut that off.
        _ if done.begun => return Ok(()),
        Fault::Body(_) => return request.client().cancel().await,
        Fault::Overloaded => (503, "Service Unavailable: the FastCGI server has no room"),
        Fault::Connect(error) if error.kind() == io::ErrorKind::WouldBlock => {
            (503, "Service Unavailable: the FastCGI server has no room")
        }
        Fault::Connect(error) if error.kind() == io::ErrorKind::TimedOut => {
            (504, "Gateway Timeout: the FastCGI server cannot be reached")
        }
        Fault::Connect(_) => (502, "Bad Gateway: the FastCGI server cannot be reached"),
        Fault::Silent(_) => (504, "Gateway Timeout: the script did not answer in time"),
        Fault::Head(_) | Fault::Nothing(_) => {
            (502, "Bad Gateway: the script's answer is no response")
        }
        Fault::Unanswered | Fault::Gone | Fault::Unable | Fault::Protocol(_) => {
            (502, "Bad Gateway: the FastCGI server broke off")
        }
    };
    words(&request, code, text).await
}

impl Site {
    /// Looks for the script, where it may block.
    async fn find(&self, request: &Request) -> io::Result<Found> {
        if self.scripts.root.is_none() {
            return self.scripts.find(&request.path);
        }
        let (scripts, path) = (self.scripts.clone(), request.path.clone());
        let found = tokio::task::spawn_blocking(move || scripts.find(&path)).await;
        found.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// On a kept connection, and once more on a new one when that has just ended and nothing can have been done twice.
    async fn exchange(&self, request: &Request, begin: &[u8], body: &mut Body) -> Done {
        let safe = matches!(
            request.method(),
            Some(b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE")
        ) && matches!(body, Body::Whole(_));
        let mut kept = if safe { self.backend.kept() } else { None };
        loop {
            let again = kept.is_some();
            let connected = match kept.take() {
                Some(stream) => Ok(stream),
                None => self.backend.connect().await,
            };
            let stream = match connected {
                Ok(stream) => stream,
                Err(error) => {
                    return Done {
                        reusable: false,
                        begun: false,
                        result: Err(Fault::Connect(error)),
                    };
                }
            };
            let done = exchange::run(&stream, begin, body, request, self.timeout).await;
            if done.reusable {
                self.backend.put(stream);
            }
            match &done.result {
                Err(Fault::Unanswered) if again => {}
                _ => return done,
            }
        }
    }

    /// Says what is wrong with the server, once until it works.
    fn complain(&self, request: &Request, fault: &Fault) {
        let path = request.path.escape_ascii();
        match fault {
            Fault::Reply(_) | Fault::Body(_) => tracing::debug!("{path}: {fault}"),
            Fault::Head(_) | Fault::Nothing(_) => tracing::warn!("{path}: {fault}"),
            _ if self.complained.replace(true) => {
                tracing::debug!("{path}: FastCGI server: {fault}");
            }
            _ => tracing::error!("{path}: FastCGI server: {fault}"),
        }
    }
}

async fn words(request: &Request, code: u16, text: &str) -> Result<(), ReplyError> {
    let mut respond = request.respond(code).header("Content-Type", "text/plain");
    if code == 503 {
        respond = respond.header("Retry-After", "1");
    }
    respond.send(text).await
}

/// A directory without its slash is asked for again with it.
async fn redirect(request: &Request) -> Result<(), ReplyError> {
    let location = lurcher::files::path::location(&request.path, request.headers.first("QUERY"));
    request
        .respond(301)
        .header("Location", location)
        .send("")
        .await
}

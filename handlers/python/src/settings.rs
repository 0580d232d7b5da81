//! What the launcher has settled before the interpreter was started: one JSON text. What only `lurcher._load` needs it reads itself.

use std::time::Duration;

use serde_json::Value;

/// See the module. What is missing has the default of its option.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The applications' places, in order.
    pub(crate) places: Vec<Place>,
    /// `standard`, `gevent` or `eventlet`.
    pub(crate) io: String,
    /// `auto`, `asyncio` or `uvloop`.
    pub(crate) event_loop: String,
    /// `auto`, `on` or `off`.
    pub(crate) lifespan: String,
    /// After so long without progress a worker is stuck.
    pub(crate) timeout: Option<Duration>,
    /// Applications are loaded once, and workers forked.
    pub(crate) preload: bool,
    /// Nothing is served.
    pub(crate) check: bool,
    /// Worker processes at the start.
    pub(crate) workers: u32,
    /// Threads for WSGI.
    pub(crate) threads: u32,
    /// Requests that are open at once.
    pub(crate) concurrency: Option<u32>,
    /// All of it, for what is written in Python.
    pub(crate) text: String,
}

/// Where an application is.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// See there.
    pub(crate) place: lurcher::routing::Place,
    /// The application's name.
    pub(crate) app: String,
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// When it is no JSON.
    pub(crate) fn read(text: &str) -> Result<Self, serde_json::Error> {
        let all: Value = serde_json::from_str(text)?;
        let string = |value: &Value, name: &str| {
            let text = value.get(name).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let flag = |name: &str| all.get(name).and_then(Value::as_bool).unwrap_or(false);
        let number = |name: &str| {
            let number = all.get(name).and_then(Value::as_u64)?;
            u32::try_from(number).ok()
        };
        let places = all.get("places").and_then(Value::as_array);
        let places = places.into_iter().flatten().map(|place| Place {
            place: lurcher::routing::Place {
                host: string(place, "host"),
                path: string(place, "path"),
            },
            app: string(place, "app"),
        });
        Ok(Self {
            places: places.collect(),
            io: string(&all, "io"),
            event_loop: string(&all, "loop"),
            lifespan: string(&all, "lifespan"),
            timeout: all
                .get("timeout")
                .and_then(Value::as_f64)
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            preload: flag("preload"),
            check: flag("check"),
            workers: number("workers").unwrap_or(1),
            threads: number("threads").unwrap_or(1).max(1),
            concurrency: number("concurrency"),
            text: text.to_owned(),
        })
    }
}

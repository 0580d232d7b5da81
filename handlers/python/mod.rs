//! Python applications (WSGI, ASGI): finds the interpreter, which each worker becomes; the extension module in it does the rest.
//! Nothing of Python is loaded into this program.

mod interpreter;
mod options;
mod places;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lurcher::launcher::{BuiltIn, Group, Handler, Target, Values};
use lurcher::routing;
use serde_json::{Value, json};

use self::interpreter::Interpreter;
use self::places::Place;

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: options::NAME,
    about: "Run Python applications, WSGI or ASGI

MODULE:NAME is what `from MODULE import NAME` would give; NAME may have dots in it, and where it
is missing it is application or app. MODULE.NAME and FILE.py:NAME are understood too. With --mount
and --host there may be several, with or without the one that has the rest.",
    targets: &[
        Target {
            scheme: "",
            form: "MODULE:NAME",
        },
        Target {
            scheme: "python",
            form: "python:MODULE:NAME",
        },
        Target {
            scheme: "python",
            form: "python --mount PATH=MODULE:NAME",
        },
    ],
    options: options::OPTIONS,
    run,
};

/// What the interpreter begins with: it loads the module, by its path or as it is installed, and that serves.
const STUB: &str = include_str!("stub.py");

/// The group of what has none.
const REST: &str = "rest";

/// What `--timeout` may be, in seconds.
const TIMEOUT_MAX: f64 = 86_400.0;

fn run(values: &Values) -> Result<Handler, String> {
    let mut places = places(values)?;
    match values.group() {
        None if places.iter().any(|place| !place.group.is_empty()) => {
            return Ok(Handler::groups(groups(&places)?));
        }
        None => {}
        Some(group) => places.retain(|place| called(place) == group),
    }
    let app_dir = app_dir(values)?;
    let found = Interpreter::find(values, values.get("python"), &app_dir)?;
    let Interpreter {
        program,
        version,
        environment,
        because,
        ..
    } = &found;
    let kind = match environment {
        Some(folder) => format!("of the virtual environment {}", folder.display()),
        None => "of no virtual environment".to_owned(),
    };
    let program = program.display();
    tracing::info!("python: {program} ({because}), version {version}, {kind}");
    let settings = settings(values, &places, &app_dir)?;
    let extension = found.extension.map(PathBuf::into_os_string);
    let arguments: [OsString; 4] = [
        "-c".into(),
        STUB.into(),
        extension.unwrap_or_default(),
        settings.to_string().into(),
    ];
    if values.is_said("preload") && values.reload() {
        return Err(
            "--preload does not go with --reload, which loads everything anew for each worker"
                .to_owned(),
        );
    }
    let handler = Handler::becoming(found.program, arguments);
    Ok(if values.is_said("preload") {
        handler.forking()
    } else {
        handler
    })
}

/// All that the extension module is to know before it loads applications.
fn settings(values: &Values, places: &[Place], app_dir: &Path) -> Result<Value, String> {
    let places: Vec<_> = places.iter().map(Place::told).collect();
    let middleware: Vec<_> = values.all("middleware").collect();
    let app_dir = app_dir
        .to_str()
        .ok_or("--app-dir is not in UTF-8, and names of modules are")?;
    let log_config = values.get("log-config").map(std::path::absolute);
    let log_config = log_config
        .transpose()
        .map_err(|error| format!("--log-config: {error}"))?;
    Ok(json!({
        "places": places,
        "app_dir": app_dir,
        "factory": values.is_said("factory"),
        "interface": one_of(values, "interface", &["auto", "wsgi", "asgi"])?,
        "io": one_of(values, "io", &["standard", "gevent", "eventlet"])?,
        "loop": one_of(values, "loop", &["auto", "asyncio", "uvloop"])?,
        "lifespan": one_of(values, "lifespan", &["auto", "on", "off"])?,
        "middleware": middleware,
        "timeout": timeout(values)?,
        "log_config": log_config,
        "preload": values.is_said("preload"),
        "reload": values.reload(),
        "check": values.check(),
        "workers": values.workers(),
        "threads": values.threads().unwrap_or(1),
        "concurrency": values.concurrency(),
    }))
}

/// The applications and where they are.
fn places(values: &Values) -> Result<Vec<Place>, String> {
    let mut places = Vec::new();
    for (name, hosts) in [("mount", false), ("host", true)] {
        for text in values.all(name) {
            let place = Place::read(text, hosts);
            places.push(place.map_err(|why| format!("--{name} `{text}`: {why}"))?);
        }
    }
    let target = values.target();
    let target = target.strip_prefix("python:").unwrap_or(target);
    if target != options::NAME {
        places.push(Place::whole(target));
    } else if places.is_empty() {
        return Err("no application named: MODULE:NAME, or --mount PATH=MODULE:NAME".to_owned());
    }
    for (at, place) in places.iter().enumerate() {
        let is_same = |other: &Place| (&other.host, &other.path) == (&place.host, &place.path);
        if places.iter().skip(at + 1).any(is_same) {
            let (host, path) = (&place.host, &place.path);
            return Err(format!("two applications are at `{host}{path}/`"));
        }
    }
    Ok(places)
}

/// The group of a place; what has none is together in one.
fn called(place: &Place) -> &str {
    match place.group.as_str() {
        "" => REST,
        group => group,
    }
}

/// The groups that the places are in.
fn groups(places: &[Place]) -> Result<Vec<Group>, String> {
    let mut groups: Vec<Group> = Vec::new();
    for place in places {
        let name = called(place);
        let at = groups.iter().position(|group| group.name == name);
        let at = at.unwrap_or_else(|| {
            groups.push(Group {
                name: name.to_owned(),
                places: Vec::new(),
                options: Vec::new(),
            });
            groups.len() - 1
        });
        let Some(group) = groups.get_mut(at) else {
            continue;
        };
        group.places.push(routing::Place {
            host: place.host.clone(),
            path: place.path.clone(),
        });
        for (option, value) in &place.own {
            let own = &mut group.options;
            match own.iter().find(|(known, _)| known == option) {
                Some((_, other)) if other != value => {
                    return Err(format!(
                        "the group {name} has {option}={other}, and {option}={value} somewhere else"
                    ));
                }
                Some(_) => {}
                None => own.push((option.clone(), value.clone())),
            }
        }
    }
    Ok(groups)
}

/// Where modules are looked for first: whole, seen from the folder that workers are in.
fn app_dir(values: &Values) -> Result<PathBuf, String> {
    let mut folder = std::path::absolute(values.folder().unwrap_or(Path::new(".")));
    if let Some(named) = values.get("app-dir") {
        folder = folder.and_then(|folder| std::path::absolute(folder.join(named)));
    }
    folder.map_err(|error| format!("find the working directory: {error}"))
}

/// The value of an option that is one of these; the first is the default.
fn one_of<'a>(values: &'a Values, name: &str, known: &[&'a str]) -> Result<&'a str, String> {
    let (Some(first), said) = (known.first(), values.get(name)) else {
        return Ok("");
    };
    match said {
        None => Ok(first),
        Some(said) if known.contains(&said) => Ok(said),
        Some(said) => Err(format!(
            "--{name} `{said}`: it is none of {}",
            known.join(", ")
        )),
    }
}

fn timeout(values: &Values) -> Result<Option<f64>, String> {
    let Some(text) = values.get("timeout") else {
        return Ok(None);
    };
    match text.parse::<f64>() {
        Ok(0.0) => Ok(None),
        Ok(seconds) if (0.1..=TIMEOUT_MAX).contains(&seconds) => Ok(Some(seconds)),
        _ => Err(format!(
            "--timeout `{text}`: not a number of seconds from 0.1 to {TIMEOUT_MAX}, or 0 for none"
        )),
    }
}

//! What a worker does: the handler that APP names, or a program of the user's own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::options::common;
use super::plan::{App, WORKERS_MAX};
use super::rights::Surroundings;
use super::source::{COUNT_MAX, Part, environment, is_said, number, patience};
use super::{BuiltIn, Group, Target, Values, Work};
use crate::launcher::given::Given;

/// What stands before a program of the user's own.
pub(super) const EXEC: &str = "exec:";

/// What a built-in handler is told, and where it lives.
pub(super) fn built_in(
    app: &str,
    handler: &'static BuiltIn,
    given: &Given,
    part: Option<&Part>,
) -> Result<(App, Vec<Group>), String> {
    let text = |name: &str| given.last(name).map(|said| said.value.clone());
    // A form that begins with the name itself says that options may tell the rest.
    let is_whole = |target: &Target| target.form.split(' ').next() == Some(app);
    if handler.name == app && !handler.targets.is_empty() && !handler.targets.iter().any(is_whole) {
        let forms: Vec<_> = handler.targets.iter().map(|target| target.form).collect();
        return Err(format!(
            "it needs to know what it works on: {}",
            forms.join(" or ")
        ));
    }
    let typed = handler.options.iter().flat_map(|option| {
        let is_common = common(option.name).is_some();
        let values = given.all(option.name).into_iter();
        values
            // What has the name of an option in common is the handler's where it is an assignment.
            .filter(move |said| !is_common || said.value.contains('='))
            .map(|said| (option.name, said.value.clone()))
    });
    let mut values: Values = typed.collect();
    app.clone_into(&mut values.target);
    values.concurrency = number(given, "concurrency", 1, COUNT_MAX)?;
    values.threads = number(given, "threads", 1, COUNT_MAX)?;
    values.graceful_timeout = Some(patience(given)?);
    values.workers = number(given, "workers", 0, WORKERS_MAX)?.unwrap_or(1);
    values.reload = is_said(given, "reload")?;
    values.check = is_said(given, "check")?;
    values.group = part.map(|part| part.group.clone());
    values.surroundings = Surroundings {
        user: text("user"),
        group: text("group"),
        folder: text("chdir").map(PathBuf::from),
        env: environment(given)?,
    };
    // Its mistakes are told before anything is started.
    let (program, groups) = match (handler.run)(&values).map_err(|why| given.place(why))?.0 {
        Work::Become(program) => (Some(program), Vec::new()),
        Work::Several(groups) => (None, groups),
        Work::Serve(..) => (None, Vec::new()),
    };
    let app = App::BuiltIn {
        handler,
        values: Box::new(values),
        program,
    };
    Ok((app, groups))
}

/// A program of the user's own, with its arguments.
pub(super) fn exec(app: &str, given: &Given, arguments: &[OsString]) -> Result<App, String> {
    let program = app.strip_prefix(EXEC).unwrap_or_default();
    if program.is_empty() {
        return Err("no program named: exec:PROGRAM".to_owned());
    }
    let mut arguments = arguments.to_vec();
    if arguments.is_empty() {
        arguments = given
            .all("arguments")
            .into_iter()
            .map(|said| said.value.clone().into())
            .collect();
    }
    Ok(App::Exec {
        program: program.into(),
        arguments,
    })
}

/// The built-in handler that APP names, alone or with what it works on.
pub(super) fn named(built_in: &'static [BuiltIn], app: &str) -> Option<&'static BuiltIn> {
    let scheme = app.split_once(':').map(|(scheme, _)| scheme);
    let has = |handler: &BuiltIn, scheme| handler.targets.iter().any(|t| t.scheme == scheme);
    let mut all = built_in.iter();
    all.find(|handler| {
        handler.name == app
            || scheme.is_some_and(|scheme| !scheme.is_empty() && has(handler, scheme))
    })
    .or_else(|| {
        built_in
            .iter()
            .find(|handler| is_dotted(app) && has(handler, ""))
    })
}

/// Whether it is written as names in Python are, with a dot or a colon in it. What is behind the colon may be a call.
pub(super) fn is_dotted(app: &str) -> bool {
    let (module, attribute) = match app.split_once(':') {
        Some((module, attribute)) => (module, Some(attribute)),
        None => (app, None),
    };
    // A file.
    if Path::new(module).extension().is_some_and(|end| end == "py") {
        return true;
    }
    let is_name = |name: &str| {
        let mut letters = name.chars();
        letters
            .next()
            .is_some_and(|first| first == '_' || first.is_alphabetic())
            && letters.all(|letter| letter == '_' || letter.is_alphanumeric())
    };
    module.split('.').all(is_name)
        && match attribute {
            Some(attribute) => attribute.split(['.', '(']).next().is_some_and(is_name),
            None => module.contains('.'),
        }
}

/// What is told of an APP that names no handler. One that is named like a module may be meant to be one.
pub(super) fn unknown(built_in: &[BuiltIn], app: &str) -> String {
    let in_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_word = !app.is_empty() && app.bytes().all(in_word);
    let takes_names = |handler: &&BuiltIn| {
        let mut targets = handler.targets.iter();
        targets.any(|target| target.scheme.is_empty())
    };
    let hint = built_in.iter().find(takes_names).filter(|_| is_word);
    let hint = hint.map_or_else(String::new, |handler| {
        format!("; a module of that name is `{}:{app}`", handler.name)
    });
    let (app, known) = (app.escape_debug(), forms(built_in).join(", "));
    format!("running `{app}`: no such handler: there are {known}{hint}")
}

/// How all handlers are named.
pub(super) fn forms(built_in: &[BuiltIn]) -> Vec<&'static str> {
    let mut forms = Vec::new();
    for handler in built_in {
        if handler.targets.is_empty() {
            forms.push(handler.name);
        }
        forms.extend(handler.targets.iter().map(|target| target.form));
    }
    forms.push("exec:PROGRAM");
    forms
}

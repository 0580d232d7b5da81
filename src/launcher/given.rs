//! What was said, by whom: the command line before the environment, that before the file of options. Values are texts here; what
//! they mean is `source`'s matter.

use std::fmt;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What the variables of `lurcher run` begin with: `--max-memory` is `LURCHER_RUN_MAX_MEMORY`.
pub(super) const RUN: &str = "LURCHER_RUN_";

/// And those of `lurcher broker`.
pub(super) const BROKER: &str = "LURCHER_BROKER_";

/// What is typed without dashes.
const POSITIONAL: [&str; 3] = ["app", "send", "recv"];

/// A value and where it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// The option's name, without dashes.
    pub(super) name: String,
    /// The value; `true` for an option without one.
    pub(super) value: String,
    /// Where.
    pub(super) origin: Origin,
}

/// Where something was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// On the command line.
    Typed,
    /// In the environment.
    Environment {
        /// In this variable.
        variable: String,
    },
    /// In the file of options.
    File {
        /// The file as it was named.
        path: String,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
    },
}

impl Said {
    /// What is wrong with it, with its place.
    pub(super) fn wrong(&self, why: impl fmt::Display) -> String {
        let Self {
            name,
            value,
            origin,
        } = self;
        let value = value.escape_debug();
        match origin {
            Origin::Typed if POSITIONAL.contains(&name.as_str()) => {
                format!("{} `{value}`: {why}", name.to_ascii_uppercase())
            }
            Origin::Typed => format!("--{name} `{value}`: {why}"),
            Origin::Environment { variable } => format!("{variable} `{value}`: {why}"),
            Origin::File { path, line, column } => {
                format!("{path}:{line}:{column}: {name} `{value}`: {why}")
            }
        }
    }
}

/// The variable of an option.
pub(super) fn variable(prefix: &str, name: &str) -> String {
    format!("{prefix}{}", name.replace('-', "_").to_ascii_uppercase())
}

/// All that was said.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    /// The strongest first: whoever says anything of an option says all of it.
    layers: [Vec<Said>; 3],
}

impl Given {
    /// What was typed.
    pub(super) fn type_in(&mut self, name: &str, value: String) {
        let origin = Origin::Typed;
        self.layers[0].push(Said {
            name: name.to_owned(),
            value,
            origin,
        });
    }

    /// Says something instead of all that was said of an option.
    pub(super) fn overrule(&mut self, name: &str, value: &str) {
        self.layers[0].retain(|said| said.name != name);
        self.type_in(name, value.to_owned());
    }

    /// Takes what the environment says of these options; several values of one are on lines of their own.
    pub(super) fn read_environment<'a>(
        &mut self,
        prefix: &str,
        names: impl Iterator<Item = (&'a str, bool)>,
        variable_of: impl Fn(&str) -> Option<String>,
    ) {
        for (name, repeat) in names {
            let variable = variable(prefix, name);
            let Some(value) = variable_of(&variable) else {
                continue;
            };
            let values: Vec<&str> = if repeat {
                value.lines().collect()
            } else {
                vec![&value]
            };
            self.layers[1].extend(values.into_iter().map(|value| Said {
                name: name.to_owned(),
                value: value.to_owned(),
                origin: Origin::Environment {
                    variable: variable.clone(),
                },
            }));
        }
    }

    /// Takes what a file says. `tables` are the handlers, whose own options stand in tables by their names; those of others
    /// than `handler` are passed over.
    pub(super) fn read_file(
        &mut self,
        path: &Path,
        text: &str,
        tables: &[&str],
        handler: Option<&str>,
    ) -> Result<(), String> {
        let file = File {
            path: path.display().to_string(),
            text,
        };
        let document = DeTable::parse(text).map_err(|error| {
            file.wrong(error.span().map_or(0, |span| span.start), error.message())
        })?;
        for (key, value) in document.get_ref() {
            let name: &str = key.get_ref().as_ref();
            match value.get_ref() {
                DeValue::Table(table) if name == "env" => {
                    for (key, value) in table {
                        let Some(text) = scalar(value.get_ref()) else {
                            return Err(file
                                .wrong(value.span().start, "a variable is a string or a number"));
                        };
                        let value_of = format!("{}={text}", key.get_ref());
                        self.layers[2].push(file.said("env", value_of, key.span().start));
                    }
                }
                DeValue::Table(table) if tables.contains(&name) => {
                    if handler == Some(name) {
                        for (key, value) in table {
                            self.take(&file, key.get_ref().as_ref(), key.span().start, value)?;
                        }
                    }
                }
                _ => self.take(&file, name, key.span().start, value)?,
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        file: &File<'_>,
        name: &str,
        at: usize,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(), String> {
        let layer = &mut self.layers[2];
        match value.get_ref() {
            DeValue::Array(values) => {
                for value in values {
                    let Some(text) = scalar(value.get_ref()) else {
                        return Err(
                            file.wrong(value.span().start, "a list holds strings or numbers")
                        );
                    };
                    layer.push(file.said(name, text, value.span().start));
                }
            }
            // `false` is how an option without a value is not said.
            DeValue::Boolean(false) => {}
            value_of => {
                let Some(text) = scalar(value_of) else {
                    let kind = value_of.type_str();
                    return Err(file.wrong(
                        at,
                        &format!("`{name}` is no option and no handler that could be a {kind}"),
                    ));
                };
                layer.push(file.said(name, text, at));
            }
        }
        Ok(())
    }

    /// All values of an option, by whoever has the first word on it.
    pub(super) fn all(&self, name: &str) -> Vec<&Said> {
        self.layers
            .iter()
            .map(|layer| {
                layer
                    .iter()
                    .filter(|said| said.name == name)
                    .collect::<Vec<_>>()
            })
            .find(|values| !values.is_empty())
            .unwrap_or_default()
    }

    /// What a handler says is wrong with an option, which it knows as `--NAME`: with the place where that was said.
    pub(super) fn place(&self, why: String) -> String {
        let Some(rest) = why.strip_prefix("--") else {
            return why;
        };
        let name = rest.split([' ', ':']).next().unwrap_or_default();
        let values = self.all(name);
        // Of several, the one that is quoted, whole or the NAME of NAME=VALUE.
        let is_quoted = |said: &&&Said| {
            let key = said.value.split('=').next().unwrap_or_default();
            [said.value.as_str(), key]
                .iter()
                .any(|text| why.contains(&format!("`{text}`")))
        };
        let Some(said) = values.iter().find(is_quoted).or(values.last()) else {
            return why;
        };
        match &said.origin {
            Origin::Typed => why,
            Origin::Environment { variable } => why.replacen(&format!("--{name}"), variable, 1),
            Origin::File { path, line, column } => format!("{path}:{line}:{column}: {rest}"),
        }
    }

    /// The value of an option.
    pub(super) fn last(&self, name: &str) -> Option<&Said> {
        self.all(name).pop()
    }

    /// What the file says that is none of `known`.
    pub(super) fn unknown(&self, known: impl Fn(&str) -> bool) -> Option<&Said> {
        self.layers[2].iter().find(|said| !known(&said.name))
    }
}

/// A file that is being read.
struct File<'a> {
    path: String,
    text: &'a str,
}

impl File<'_> {
    fn said(&self, name: &str, value: String, at: usize) -> Said {
        let (line, column) = self.place(at);
        let origin = Origin::File {
            path: self.path.clone(),
            line,
            column,
        };
        Said {
            name: name.to_owned(),
            value,
            origin,
        }
    }

    fn wrong(&self, at: usize, why: &str) -> String {
        let (line, column) = self.place(at);
        format!(
            "{}:{line}:{column}: {}",
            self.path,
            why.lines().next().unwrap_or_default()
        )
    }

    fn place(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let last = before.rsplit('\n').next().unwrap_or_default();
        (line, last.chars().count() + 1)
    }
}

/// A value as it would be typed.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    Some(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().replace('_', ""),
        DeValue::Float(number) => number.as_str().replace('_', ""),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Given, String> {
        let mut given = Given::default();
        given.read_file(
            Path::new("run.toml"),
            text,
            &["respond", "files"],
            Some("respond"),
        )?;
        Ok(given)
    }

    fn values<'a>(given: &'a Given, name: &str) -> Vec<&'a str> {
        given
            .all(name)
            .into_iter()
            .map(|said| said.value.as_str())
            .collect()
    }

    #[test]
    fn a_file_has_options_lists_variables_and_tables_of_handlers() {
        let text = "workers = 4\nreload = true\nstop-on-eof = false\nsend = ['a', 'b']\nmax-memory = '1G'\n\
                    [env]\nA = '1'\nB = 2\n[respond]\ncode = 301\n[files]\nindex = 'x'\n";
        let given = file(text).unwrap();
        assert_eq!(values(&given, "workers"), ["4"]);
        assert_eq!(values(&given, "reload"), ["true"]);
        assert_eq!(values(&given, "stop-on-eof"), [""; 0]);
        assert_eq!(values(&given, "send"), ["a", "b"]);
        assert_eq!(values(&given, "env"), ["A=1", "B=2"]);
        assert_eq!(values(&given, "code"), ["301"]);
        assert_eq!(values(&given, "index"), [""; 0], "another handler's");
    }

    #[test]
    fn the_command_line_goes_before_the_environment_and_that_before_the_file() {
        let mut given =
            file("workers = 4\nthreads = 2\nname = 'file'\nenv = ['A=1', 'B=2']\n").unwrap();
        let names = [
            ("workers", false),
            ("threads", false),
            ("env", true),
            ("user", false),
        ];
        given.read_environment(RUN, names.into_iter(), |variable| match variable {
            "LURCHER_RUN_WORKERS" => Some("3".to_owned()),
            "LURCHER_RUN_THREADS" => Some("5".to_owned()),
            "LURCHER_RUN_ENV" => Some("C=3\nD=4".to_owned()),
            _ => None,
        });
        given.type_in("workers", "1".to_owned());
        assert_eq!(values(&given, "workers"), ["1"]);
        assert_eq!(values(&given, "threads"), ["5"]);
        assert_eq!(values(&given, "name"), ["file"]);
        assert_eq!(
            values(&given, "env"),
            ["C=3", "D=4"],
            "no layer adds to another"
        );
    }

    #[test]
    fn mistakes_in_a_file_have_a_place() {
        assert_eq!(
            file("a = 1\nworkers = = 2\n")
                .unwrap_err()
                .split(": ")
                .next(),
            Some("run.toml:2:11")
        );
        assert!(
            file("x = 1\n[nothing]\na = 1\n")
                .unwrap_err()
                .starts_with("run.toml:2:2: `nothing` is no option")
        );
        assert!(
            file("send = [['a']]")
                .unwrap_err()
                .starts_with("run.toml:1:9: a list holds")
        );
        let given = file("# ä\nworkers = 'ä'\n").unwrap();
        let said = given.last("workers").unwrap();
        assert_eq!(
            said.wrong("not a number"),
            "run.toml:2:1: workers `ä`: not a number"
        );
        assert_eq!(given.unknown(|name| name == "threads"), Some(said));
    }

    #[test]
    fn mistakes_elsewhere_name_the_option_as_it_was_said() {
        let mut given = Given::default();
        given.type_in("max-memory", "x".to_owned());
        assert_eq!(
            given.last("max-memory").unwrap().wrong("no size"),
            "--max-memory `x`: no size"
        );
        let mut given = Given::default();
        given.read_environment(RUN, [("max-memory", false)].into_iter(), |_| {
            Some("x".to_owned())
        });
        assert_eq!(
            given.last("max-memory").unwrap().wrong("no size"),
            "LURCHER_RUN_MAX_MEMORY `x`: no size"
        );
    }

    #[test]
    fn what_a_handler_says_of_an_option_gets_its_place() {
        let text = "app = 'respond'\n[respond]\nheader = ['c d=e', 'A=b']\ncode = 1\n";
        let given = file(text).unwrap();
        let place = |why: &str| given.place(why.to_owned());
        assert_eq!(
            place("--header `c d` is no header name"),
            "run.toml:3:11: header `c d` is no header name"
        );
        assert_eq!(
            place("--code is not a number"),
            "run.toml:4:1: code is not a number"
        );
        assert_eq!(place("--body is too long"), "--body is too long");
        assert_eq!(place("name the root: --code"), "name the root: --code");
        let mut given = Given::default();
        given.read_environment(RUN, [("code", false)].into_iter(), |_| Some("x".to_owned()));
        assert_eq!(
            given.place("--code is not a number".to_owned()),
            "LURCHER_RUN_CODE is not a number"
        );
    }
}

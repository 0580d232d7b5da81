//! The command lines of m2wsgi 0.5, and what they mean here: `m2wsgi [options] dotted.app.name send_spec [recv_spec]`, and its
//! device `response` (`dispatcher` is a broker, and not run here). Only reads; what cannot be run is said in one line.

use super::app::is_dotted;
use super::source::Typed;

const USAGE: &str = "usage:  m2wsgi [options] dotted.app.name send_spec [recv_spec]

    --io=IO                 the I/O module to use
    --num-threads=NUMBER    the number of threads to use
    --conn-type=TYPE        the type of connection to use
    --middleware=CLASS      any middleware to apply to the wsgi app
    -h, --help              show this help message and exit";

const RESPONSE_USAGE: &str = "usage:  m2wsgi.device.response [options] send_spec [recv_spec]

    --code=CODE     the status code to send
    --status=MSG    the status message to send
    --header-K=V    a key/value header pair to send
    --body=BODY     the response body to send";

/// Options of m2wsgi that take a value.
const OPTIONS: [&str; 4] = ["io", "num-threads", "conn-type", "middleware"];

/// The help that belongs to a name.
pub(super) fn usage(name: &str) -> &'static str {
    match name {
        "m2wsgi.device.response" => RESPONSE_USAGE,
        _ => USAGE,
    }
}

/// What `lurcher run` would be typed for it; `None` when help was asked for.
pub(super) fn read(name: &str, arguments: &[String]) -> Result<Option<Typed>, String> {
    match name {
        "m2wsgi.device.response" => response(arguments),
        _ => app(arguments),
    }
}

/// Options may stand anywhere, and be shortened as long as it is clear which is meant.
fn app(arguments: &[String]) -> Result<Option<Typed>, String> {
    let mut typed = Typed::default();
    let mut python = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if ["-h", "--help"].contains(&argument.as_str()) {
            return Ok(None);
        }
        if argument == "--" {
            typed.words.extend(rest.by_ref().cloned());
            break;
        }
        let Some(option) = argument.strip_prefix("--") else {
            if argument.starts_with('-') && argument.len() > 1 {
                return Err(format!("no such option: {argument}"));
            }
            typed.words.push(argument.clone());
            continue;
        };
        let (option, value) = match option.split_once('=') {
            Some((option, value)) => (option, Some(value.to_owned())),
            None => (option, None),
        };
        let meant: Vec<_> = OPTIONS
            .iter()
            .filter(|name| name.starts_with(option))
            .collect();
        let name = match meant.as_slice() {
            [name] => **name,
            [] => return Err(format!("no such option: --{option}")),
            _ => return Err(format!("ambiguous option: --{option}")),
        };
        let value = value
            .or_else(|| rest.next().cloned())
            .ok_or_else(|| format!("--{name} option requires an argument"))?;
        match name {
            "num-threads" => {
                let threads = value.parse::<u32>().map_err(|_| {
                    format!("option --num-threads: invalid integer value: '{value}'")
                })?;
                if threads == 0 {
                    return Err("--num-threads must be positive".to_owned());
                }
                typed.options.push(("threads".to_owned(), value));
            }
            "conn-type" if !value.is_empty() && !value.eq_ignore_ascii_case("standard") => {
                return Err(format!(
                    "--conn-type={value}: connections are direct; to work for a broker, give `broker+SPEC` for the send_spec"
                ));
            }
            "conn-type" => {}
            // A package of m2wsgi's own name for it, as `m2wsgi.io.gevent`, is meant by its last word.
            "io" => {
                let value = value.rsplit('.').next().unwrap_or_default().to_owned();
                if value != "standard" {
                    python = Some(name);
                }
                typed.options.push(("io".to_owned(), value));
            }
            _ => {
                python = Some(name);
                typed.options.push((name.to_owned(), value));
            }
        }
    }
    let Some(app) = typed.words.first() else {
        return Err("you must specify the WSGI application".to_owned());
    };
    if typed.words.len() > 3 {
        return Err(format!("too many arguments: {}", typed.words.join(" ")));
    }
    // A dotted name is Python's; handlers that are built in have none.
    if is_dotted(app) {
        return Ok(Some(typed));
    }
    if let Some(name) = python {
        return Err(format!("--{name} is for Python applications"));
    }
    typed.options.retain(|(name, _)| name != "io");
    Ok(Some(typed))
}

/// The canned response: its options stand first.
fn response(arguments: &[String]) -> Result<Option<Typed>, String> {
    let mut typed = Typed {
        words: vec!["respond".to_owned()],
        ..Typed::default()
    };
    let mut options = Vec::new();
    let mut rest = arguments.iter().peekable();
    while let Some(argument) = rest.next_if(|argument| argument.starts_with('-')) {
        if ["-h", "--help"].contains(&argument.as_str()) {
            return Ok(None);
        }
        let unknown = || format!("unknown argument: {argument}");
        let (option, value) = argument
            .strip_prefix("--")
            .and_then(|option| option.split_once('='))
            .ok_or_else(unknown)?;
        match option.strip_prefix("header-") {
            Some(header) => options.push(("header".to_owned(), format!("{header}={value}"))),
            None if ["code", "status", "body"].contains(&option) => {
                options.push((option.to_owned(), value.to_owned()));
            }
            None => return Err(unknown()),
        }
    }
    typed.options = options;
    typed.words.extend(rest.cloned());
    match typed.words.len() {
        1 => Err("response expects at least one argument".to_owned()),
        2 | 3 => Ok(Some(typed)),
        _ => Err("response expects at most two arguments".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, text: &str) -> Result<Option<Typed>, String> {
        let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        read(name, &arguments)
    }

    fn pairs(typed: &Typed) -> Vec<(&str, &str)> {
        typed
            .options
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect()
    }

    #[test]
    fn options_stand_anywhere_and_may_be_shortened() {
        let typed = line(
            "m2wsgi",
            "--num-threads=5 echo tcp://127.0.0.1:9999 --conn-type standard",
        )
        .unwrap()
        .unwrap();
        assert_eq!(typed.words, ["echo", "tcp://127.0.0.1:9999"]);
        assert_eq!(pairs(&typed), [("threads", "5")]);
        let typed = line(
            "m2wsgi",
            "echo --num 3 tcp://A@127.0.0.1:9999#connect ipc:///r",
        )
        .unwrap()
        .unwrap();
        assert_eq!(typed.words.len(), 3);
        assert_eq!(pairs(&typed), [("threads", "3")]);
        assert!(line("m2wsgi", "x --help").unwrap().is_none());
    }

    #[test]
    fn a_dotted_name_is_a_python_application_with_all_options() {
        let typed = line(
            "m2wsgi",
            "--io=eventlet --num-threads 2 --middleware=a.b.GZip --middleware a.c shop.wsgi.application tcp://127.0.0.1:9999",
        )
        .unwrap()
        .unwrap();
        assert_eq!(
            typed.words,
            ["shop.wsgi.application", "tcp://127.0.0.1:9999"]
        );
        assert_eq!(
            pairs(&typed),
            [
                ("io", "eventlet"),
                ("threads", "2"),
                ("middleware", "a.b.GZip"),
                ("middleware", "a.c")
            ]
        );
    }

    #[test]
    fn what_m2wsgi_refuses_is_refused_in_its_words() {
        let wrong = |text| line("m2wsgi", text).map(drop).unwrap_err();
        assert_eq!(wrong(""), "you must specify the WSGI application");
        assert_eq!(
            wrong("--num-threads=0 echo x"),
            "--num-threads must be positive"
        );
        assert_eq!(
            wrong("--num-threads=x echo"),
            "option --num-threads: invalid integer value: 'x'"
        );
        assert_eq!(wrong("--what echo"), "no such option: --what");
        assert_eq!(wrong("--io"), "--io option requires an argument");
        assert_eq!(wrong("-x"), "no such option: -x");
        assert_eq!(
            wrong("--io=eventlet echo tcp://a:1"),
            "--io is for Python applications"
        );
    }

    #[test]
    fn the_response_device_is_respond() {
        let name = "m2wsgi.device.response";
        let typed = line(
            name,
            "--code=301 --header-Location=/x=y --body=b tcp://a:2 tcp://a:1",
        )
        .unwrap()
        .unwrap();
        assert_eq!(typed.words, ["respond", "tcp://a:2", "tcp://a:1"]);
        assert_eq!(
            pairs(&typed),
            [("code", "301"), ("header", "Location=/x=y"), ("body", "b")]
        );
        assert_eq!(
            line(name, "--what=1 x").map(drop).unwrap_err(),
            "unknown argument: --what=1"
        );
        assert_eq!(
            line(name, "").map(drop).unwrap_err(),
            "response expects at least one argument"
        );
    }
}

//! The command line of m2wsgi 0.5's dispatcher, and what `lurcher broker` would be told for it. Only reads.
//!
//! Its ring of handlers is not kept: requests without a key go to the least busy one, and sticky ones by the broker's own rule.

use crate::endpoint::{Endpoint, EndpointError, Transport};

/// What the program is called.
pub(super) const NAME: &str = "m2wsgi.device.dispatcher";

pub(super) const USAGE: &str =
    "usage:  m2wsgi.device.dispatcher [options] send_spec [recv_spec] disp_spec [ping_spec]

    --ping-interval=SECONDS  interval between handler pings
    --sticky                 use sticky client <-> handler pairing
    --sticky-regex=REGEX     regex for extracting sticky connection key
    -h, --help               show this help message and exit";

/// Its options, and whether they take a value.
const OPTIONS: [(&str, bool); 4] = [
    ("ping-interval", true),
    ("sticky", false),
    ("sticky-regex", true),
    ("help", false),
];

/// Options of `lurcher broker` by name; `None` when help was asked for. Options may stand anywhere, and be shortened as long as it
/// is clear which is meant.
pub(super) fn read(arguments: &[String]) -> Result<Option<Vec<(String, String)>>, String> {
    let mut said = Vec::new();
    let (mut words, mut sticky, mut regex) = (Vec::new(), false, None);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            words.extend(rest.by_ref().map(String::as_str));
            break;
        }
        let Some(option) = argument.strip_prefix("--") else {
            match argument.as_str() {
                "-h" => return Ok(None),
                word if word.starts_with('-') && word.len() > 1 => {
                    return Err(format!("no such option: {word}"));
                }
                word => words.push(word),
            }
            continue;
        };
        let (option, value) = match option.split_once('=') {
            Some((option, value)) => (option, Some(value)),
            None => (option, None),
        };
        let (name, takes_value) = meant(option)?;
        let value = match (takes_value, value) {
            (false, None) => "",
            (false, Some(_)) => return Err(format!("--{name} option does not take a value")),
            (true, Some(value)) => value,
            (true, None) => rest
                .next()
                .ok_or_else(|| format!("--{name} option requires an argument"))?,
        };
        match name {
            "help" => return Ok(None),
            "sticky" => sticky = true,
            "sticky-regex" => regex = Some(value).filter(|regex| !regex.is_empty()),
            _ if value.parse::<u32>().is_ok_and(|interval| interval > 0) => {
                said.push((name.to_owned(), value.to_owned()));
            }
            _ => return Err(format!("option --{name}: invalid integer value: '{value}'")),
        }
    }
    let (send, recv, workers, pings) = match *words.as_slice() {
        [send, workers] => (send, None, workers, None),
        [send, recv, workers] => (send, Some(recv), workers, None),
        [send, recv, workers, pings] => (send, Some(recv), workers, Some(pings)),
        _ => {
            return Err(
                "give send_spec, perhaps recv_spec, disp_spec, and perhaps ping_spec".to_owned(),
            );
        }
    };
    let mut say = |name: &str, value: &str| said.push((name.to_owned(), value.to_owned()));
    say("send", send);
    if let Some(recv) = recv {
        say("recv", recv);
    }
    say("workers", workers);
    match pings {
        Some(pings) => say("pings", pings),
        // Its handlers look for pings there: without them it does not start, as the other.
        None => say("pings", &one_port_up(workers)?),
    }
    match regex {
        Some(regex) => say("sticky", &format!("regex:{regex}")),
        None if sticky => say("sticky", "conn"),
        None => {}
    }
    Ok(Some(said))
}

/// The option that is meant by a name or the beginning of one.
fn meant(option: &str) -> Result<(&'static str, bool), String> {
    let mut close = OPTIONS
        .into_iter()
        .filter(|(name, _)| name.starts_with(option));
    match (close.next(), close.next()) {
        (Some(exact), _) if exact.0 == option => Ok(exact),
        (Some(only), None) => Ok(only),
        (None, _) => Err(format!("no such option: --{option}")),
        _ => Err(format!("ambiguous option: --{option}")),
    }
}

fn one_port_up(spec: &str) -> Result<String, String> {
    let unknown = || {
        format!(
            "could not infer ping_spec from `{}`: name it",
            spec.escape_debug()
        )
    };
    let mut up: Endpoint = spec
        .parse()
        .map_err(|error: EndpointError| format!("disp_spec: {error}"))?;
    let Transport::Tcp {
        port: Some(port), ..
    } = &mut up.transport
    else {
        return Err(unknown());
    };
    *port = port.checked_add(1).ok_or_else(unknown)?;
    Ok(up.spec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Option<Vec<(String, String)>>, String> {
        let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        read(&arguments)
    }

    fn told(text: &str) -> String {
        let pairs = line(text).unwrap().unwrap();
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        pairs.join("; ")
    }

    #[test]
    fn two_to_four_specs_are_told_apart_by_their_number() {
        assert_eq!(
            told("tcp://127.0.0.1:9 tcp://A@127.0.0.1:5"),
            "send tcp://127.0.0.1:9; workers tcp://A@127.0.0.1:5; pings tcp://A@127.0.0.1:6"
        );
        assert_eq!(
            told("tcp://a:9 tcp://a:7 tcp://b:5#bind"),
            "send tcp://a:9; recv tcp://a:7; workers tcp://b:5#bind; pings tcp://b:6#bind"
        );
        assert_eq!(
            told("tcp://a:9 tcp://a:7 ipc:///w ipc:///p"),
            "send tcp://a:9; recv tcp://a:7; workers ipc:///w; pings ipc:///p"
        );
    }

    #[test]
    fn options_stand_anywhere_and_may_be_shortened() {
        let specs = "send ipc:///a; recv ipc:///b; workers ipc:///w; pings ipc:///p";
        let words = "ipc:///a ipc:///b ipc:///w ipc:///p";
        assert_eq!(
            told(&format!("--sticky {words}")),
            format!("{specs}; sticky conn")
        );
        assert_eq!(
            told(&format!("{words} --sticky-r SID=([a-z]+)")),
            format!("{specs}; sticky regex:SID=([a-z]+)")
        );
        assert_eq!(
            told(&format!("--ping=2 {words} --sticky-regex=")),
            format!("ping-interval 2; {specs}")
        );
        assert!(line("--sticky --help").unwrap().is_none());
    }

    #[test]
    fn what_it_refuses_is_refused_in_its_words() {
        let wrong = |text| line(text).map(drop).unwrap_err();
        let words = "give send_spec, perhaps recv_spec, disp_spec, and perhaps ping_spec";
        assert_eq!(wrong("tcp://a:1"), words);
        assert_eq!(wrong("a b c d e"), words);
        assert_eq!(wrong("--st a b"), "ambiguous option: --st");
        assert_eq!(wrong("--slots=2 a b"), "no such option: --slots");
        assert_eq!(
            wrong("--ping-interval"),
            "--ping-interval option requires an argument"
        );
        assert_eq!(
            wrong("--ping-interval=x a b"),
            "option --ping-interval: invalid integer value: 'x'"
        );
        assert_eq!(
            wrong("--sticky=1 a b"),
            "--sticky option does not take a value"
        );
        assert_eq!(
            wrong("tcp://a:2 ipc:///w"),
            "could not infer ping_spec from `ipc:///w`: name it"
        );
        assert!(wrong("tcp://a:2 x").starts_with("disp_spec: socket spec `x`"));
    }
}

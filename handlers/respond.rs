//! Answers every request with one canned response, into which facts of the request may be written: m2wsgi's response
//! device, good for redirects, maintenance pages and tests.

use std::borrow::Cow;

use lurcher::handler::{Connection, Event, ReplyError, Request};
use lurcher::launcher::{BuiltIn, Handler, Opt, Values};

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: "respond",
    about: "Answer every request with one canned response

In the status, the header values and the body, these are replaced:
  %(PATH)s    the path of the request
  %(PREFIX)s  the fixed part of the route: its pattern up to the first `(`
  %(MATCH)s   what of the path follows that
  %(NAME)s    any header of the request, or nothing where it has none
  %%          a percent sign

A redirect of a whole route, for example:
  lurcher run respond tcp://127.0.0.1:9999 --code 301 \\
    --header 'Location=https://example.org/%(MATCH)s'",
    targets: &[],
    options: &[
        Opt {
            name: "code",
            value: "CODE",
            help: "The status code [default: 200]",
            repeat: false,
        },
        Opt {
            name: "status",
            value: "TEXT",
            help: "The reason phrase [default: the usual one for the code]",
            repeat: false,
        },
        Opt {
            name: "header",
            value: "NAME=VALUE",
            help: "A header; may be repeated",
            repeat: true,
        },
        Opt {
            name: "body",
            value: "TEXT",
            help: "The body [default: empty]",
            repeat: false,
        },
    ],
    run: |values| {
        let canned = Canned::new(values)?;
        Ok(Handler::new(|connection| serve(connection, canned)))
    },
};

async fn serve(mut connection: Connection, canned: Canned) -> Result<(), ReplyError> {
    while let Some(request) = connection.recv().await {
        let Event::Request(request) = request.into_event() else {
            continue;
        };
        let status = canned.status.line(&request);
        let values: Vec<String> = canned
            .headers
            .iter()
            .map(|(_, value)| value.line(&request))
            .collect();
        let names = canned.headers.iter().map(|(name, _)| name.as_str());
        let headers: Vec<(&str, &str)> = names.zip(values.iter().map(String::as_str)).collect();
        connection
            .reply_http(
                &request,
                canned.body.fill(&request),
                canned.code,
                &status,
                &headers,
            )
            .await?;
    }
    connection.finish().await;
    Ok(())
}

/// The response.
struct Canned {
    code: u16,
    status: Template,
    headers: Vec<(String, Template)>,
    body: Template,
}

impl Canned {
    fn new(values: &Values) -> Result<Self, String> {
        let code = values.get("code").unwrap_or("200");
        let code = code.parse().ok().filter(|code| (200..=999).contains(code));
        let code = code.ok_or("--code is not a number from 200 to 999")?;
        let headers = values.all("header").map(|header| {
            let (name, value) = header
                .split_once('=')
                .ok_or_else(|| format!("--header `{header}` has no `=`"))?;
            let is_token =
                |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if name.is_empty() || !name.bytes().all(is_token) {
                return Err(format!("--header `{name}` is no header name"));
            }
            if name.eq_ignore_ascii_case("transfer-encoding")
                || name.eq_ignore_ascii_case("content-length")
            {
                return Err(format!(
                    "--header {name}: the length of the body is told without it"
                ));
            }
            Ok((name.to_owned(), Template::new("--header", value)?))
        });
        Ok(Self {
            code,
            status: Template::new("--status", values.get("status").unwrap_or_default())?,
            headers: headers.collect::<Result<_, _>>()?,
            body: Template::new("--body", values.get("body").unwrap_or_default())?,
        })
    }
}

/// A text with places to fill in.
#[derive(Debug, PartialEq)]
struct Template(Vec<Piece>);

#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Path,
    Prefix,
    Match,
    Header(String),
}

impl Template {
    fn new(option: &str, text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            pieces.push(Piece::Text(before.to_owned()));
            if let Some(after) = after.strip_prefix('%') {
                pieces.push(Piece::Text("%".to_owned()));
                rest = after;
                continue;
            }
            let Some((name, after)) = after
                .strip_prefix('(')
                .and_then(|after| after.split_once(")s"))
            else {
                return Err(format!(
                    "{option} has a `%` that is neither `%(NAME)s` nor `%%`"
                ));
            };
            pieces.push(match name {
                "PATH" => Piece::Path,
                "PREFIX" => Piece::Prefix,
                "MATCH" => Piece::Match,
                _ => Piece::Header(name.to_owned()),
            });
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        pieces.retain(|piece| *piece != Piece::Text(String::new()));
        Ok(Self(pieces))
    }

    fn fill(&self, request: &Request) -> Vec<u8> {
        let pattern = request.headers.first("PATTERN").unwrap_or_default();
        let prefix = pattern
            .split(|byte| *byte == b'(')
            .next()
            .unwrap_or_default();
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.as_bytes(),
            Piece::Path => &request.path[..],
            Piece::Prefix => prefix,
            Piece::Match => request.path.strip_prefix(prefix).unwrap_or_default(),
            Piece::Header(name) => {
                // As it is written (the server's own are upper case), else as a client's header.
                let own = request.headers.first(name);
                own.or_else(|| request.headers.first(name.to_ascii_lowercase()))
                    .unwrap_or_default()
            }
        });
        pieces.collect::<Vec<_>>().concat()
    }

    /// For the head of the response, where what a client sent must not end the line: control characters become spaces.
    fn line(&self, request: &Request) -> String {
        let filled = self.fill(request);
        let text: Cow<'_, str> = String::from_utf8_lossy(&filled);
        text.chars()
            .map(|letter| {
                if letter.is_ascii_control() {
                    ' '
                } else {
                    letter
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_percent_is_a_mistake_that_is_told() {
        for text in ["100%", "%(PATH)", "%s", "%(PATH)d", "%()", "%("] {
            let error = Template::new("--body", text).expect_err(text);
            assert!(error.starts_with("--body has a `%`"), "{error}");
        }
    }

    #[test]
    fn names_and_doubled_percents_are_found() {
        let template =
            Template::new("--body", "%(PATH)s%%(PATH)s %(x-a)s%(MATCH)s%(PREFIX)s").unwrap();
        let text = |text: &str| Piece::Text(text.to_owned());
        let header = Piece::Header("x-a".to_owned());
        let expect = [
            Piece::Path,
            text("%"),
            text("(PATH)s "),
            header,
            Piece::Match,
            Piece::Prefix,
        ];
        assert_eq!(template.0, expect);
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        let refuse = |name: &'static str, value: &str| {
            let values: Values = [(name, value.to_owned())].into_iter().collect();
            Canned::new(&values).map(drop).expect_err(value)
        };
        assert_eq!(
            refuse("code", "99"),
            "--code is not a number from 200 to 999"
        );
        assert_eq!(
            refuse("code", "abc"),
            "--code is not a number from 200 to 999"
        );
        assert_eq!(refuse("header", "abc"), "--header `abc` has no `=`");
        assert_eq!(
            refuse("header", "a b=c"),
            "--header `a b` is no header name"
        );
        assert_eq!(
            refuse("header", "content-length=5"),
            "--header content-length: the length of the body is told without it"
        );
    }
}

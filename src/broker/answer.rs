//! What is said in a worker's place: that there was none, that it was lost, that it was too late.

use crate::pool::{Failure, Refused};

/// What is said where nobody knows better: in how many seconds it may be worth asking again.
const RETRY_AFTER: u64 = 1;

/// In which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// That of a front's own answers: a line of text.
    Text,
    /// RFC 9457, with a code for programs.
    Problem,
}

/// The code of a failure, for programs.
pub(super) fn code(why: Failure) -> &'static str {
    match why {
        Failure::HandlerLost => "worker-lost",
        Failure::QueueFull => "queue-full",
        Failure::WaitOver => "wait-over",
        Failure::NoHandler => "no-worker",
        Failure::DeadlineOver => "deadline-over",
        Failure::Quarantined => "quarantined",
    }
}

/// The status and the whole answer; without its body for HEAD.
pub(super) fn answer(form: Form, refused: Refused, head_request: bool) -> (u16, String) {
    let why = refused.why;
    let (status, phrase) = match why {
        Failure::HandlerLost => (502, "Bad Gateway"),
        Failure::QueueFull | Failure::WaitOver | Failure::NoHandler => (503, "Service Unavailable"),
        Failure::DeadlineOver => (504, "Gateway Timeout"),
        Failure::Quarantined => (500, "Internal Server Error"),
    };
    let (kind, body) = match form {
        Form::Text => ("text/plain", format!("{phrase}: {why}")),
        Form::Problem => (
            "application/problem+json",
            format!(
                r#"{{"type":"about:blank","title":"{phrase}","status":{status},"detail":"{why}","code":"{}"}}"#,
                code(why)
            ),
        ),
    };
    let mut text = format!(
        "HTTP/1.1 {status} {phrase}\r\nContent-Type: {kind}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    if status == 503 {
        let after = refused.retry_after.map_or(RETRY_AFTER, |after| {
            after.as_secs() + u64::from(after.subsec_nanos() > 0)
        });
        text.extend(["Retry-After: ", &after.max(1).to_string(), "\r\n"]);
    }
    text.push_str("\r\n");
    if !head_request {
        text.push_str(&body);
    }
    (status, text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_says_why_and_to_head_only_how_long_that_is() {
        let lost = Refused::now(Failure::HandlerLost);
        let (status, text) = answer(Form::Text, lost, false);
        assert_eq!(status, 502);
        assert!(text.ends_with(
            "Content-Length: 58\r\n\r\nBad Gateway: the handler was lost while it had the request"
        ));
        let (_, text) = answer(Form::Text, lost, true);
        assert!(text.ends_with("Content-Length: 58\r\n\r\n"));
    }

    #[test]
    fn who_is_turned_away_is_told_when_to_come_again_and_programs_why() {
        let full = Refused {
            why: Failure::QueueFull,
            retry_after: Some(Duration::from_millis(2100)),
        };
        let (status, text) = answer(Form::Problem, full, false);
        assert_eq!(status, 503);
        assert!(text.contains("\r\nRetry-After: 3\r\n"), "{text}");
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (&body["code"], &body["status"]),
            (&"queue-full".into(), &503.into())
        );
        for (why, status) in [
            (Failure::NoHandler, 503),
            (Failure::WaitOver, 503),
            (Failure::DeadlineOver, 504),
            (Failure::Quarantined, 500),
        ] {
            let (said, text) = answer(Form::Problem, Refused::now(why), false);
            assert_eq!(said, status);
            assert_eq!(text.contains("Retry-After: 1\r\n"), status == 503);
        }
    }
}

//! What a feed says in a worker's place: that there was none, or that it was lost. In the form of a front's own answers.

use crate::pool::Failure;

/// The status and the whole answer; without its body for HEAD.
pub(super) fn answer(why: Failure, head_request: bool) -> (u16, String) {
    let (status, phrase, extra) = match why {
        Failure::HandlerLost => (502, "Bad Gateway", ""),
        Failure::QueueFull | Failure::WaitOver | Failure::NoHandler => {
            (503, "Service Unavailable", "Retry-After: 1\r\n")
        }
        Failure::DeadlineOver => (504, "Gateway Timeout", ""),
        Failure::Quarantined => (500, "Internal Server Error", ""),
    };
    let body = format!("{phrase}: {why}");
    let length = body.len();
    let shown = if head_request { "" } else { &body };
    let text = format!(
        "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: {length}\r\n{extra}\r\n{shown}"
    );
    (status, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_why_and_to_head_only_how_long_that_is() {
        let (status, text) = answer(Failure::HandlerLost, false);
        assert_eq!(status, 502);
        assert!(text.ends_with(
            "Content-Length: 58\r\n\r\nBad Gateway: the handler was lost while it had the request"
        ));
        let (_, text) = answer(Failure::HandlerLost, true);
        assert!(text.ends_with("Content-Length: 58\r\n\r\n"));
    }
}

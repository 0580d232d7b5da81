//! What any application sees, and what it may give.

use super::{ask, each, text};

#[test]
fn a_wsgi_application_answers() {
    each("hello:application", &[], |server, _| {
        let answer = ask(server.address, "GET /", "", b"");
        assert_eq!((answer.status, &*text(&answer)), (200, "hello\n"));
    });
}

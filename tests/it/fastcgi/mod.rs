//! `lurcher run fastcgi:`: php-fpm answers through it as behind any other web server, on both servers in both protocols; and what
//! becomes of requests when the other side does not do as it should, which takes a server written for that.

mod faults;
mod php;

use crate::support::client::{Answer, Client};
use crate::support::program::Program;
use std::net::SocketAddr;
use std::path::Path;

/// Starts the handler with these options, connected to a server.
fn handler(app: &str, [send, recv]: [&str; 2], options: &[&str], directory: &Path) -> Program {
    let arguments = [&["run", app, send, recv], options].concat();
    let mut program = Program::lurcher(&arguments, directory);
    program.said("connected to", 1);
    program
}

/// One request, written out but for its host, on a connection of its own.
fn ask(address: SocketAddr, line: &str, fields: &str, body: &[u8]) -> Answer {
    let mut client = Client::connect(address);
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    client.send(&[head.as_bytes(), body].concat()).unwrap();
    client.answer()
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    std::str::from_utf8(answer.header(name).unwrap_or_default()).unwrap()
}

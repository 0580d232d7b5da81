//! What a worker says on standard error: shown line by line with its name before it, and the last of it kept.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::time::timeout;

/// A longer line of a worker is shown in pieces, in bytes.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// So many lines are kept as the last words of a worker, as long as they are not larger than so many bytes together.
const LAST_LINES: usize = 20;
const LAST_BYTES: usize = 8 << 10;

/// How long what a dead worker has written is waited for: a child of its own may hold the pipe.
const LAST_WORDS_TIME: Duration = Duration::from_millis(200);

/// See the module.
pub(super) struct Words {
    who: String,
    /// None at its end.
    stderr: Option<BufReader<Box<dyn AsyncRead + Unpin>>>,
    line: Vec<u8>,
    last: Last,
}

impl Words {
    /// Of somebody by that name.
    pub(super) fn new(who: String, stderr: Option<impl AsyncRead + Unpin + 'static>) -> Self {
        let boxed = |stderr| Box::new(stderr) as Box<dyn AsyncRead + Unpin>;
        Self {
            who,
            stderr: stderr.map(|stderr| BufReader::new(boxed(stderr))),
            line: Vec::new(),
            last: Last::default(),
        }
    }

    /// Shows the next line; waits for ever where there is none any more.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was read of a line is kept.
    pub(super) async fn show_next(&mut self) {
        let read = self.read_line().await;
        self.show(read);
    }

    /// Shows what is left of one who has ended, and gives back what was said last.
    pub(super) async fn show_rest(mut self) -> Vec<String> {
        let rest = async {
            while self.stderr.is_some() {
                self.show_next().await;
            }
        };
        drop(timeout(LAST_WORDS_TIME, rest).await);
        self.last.lines.into()
    }

    /// Reads to the end of a line, or a piece of a long one; false at the end of all.
    async fn read_line(&mut self) -> bool {
        let Some(stderr) = &mut self.stderr else {
            return std::future::pending().await;
        };
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len() as u64);
        let read = stderr.take(room).read_until(b'\n', &mut self.line).await;
        read.is_ok_and(|read| read > 0)
    }

    /// Passes a line on to this process's own stderr.
    fn show(&mut self, read: bool) {
        if self.line.is_empty() {
            if !read {
                self.stderr = None;
            }
            return;
        }
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        let mut text = format!("{}: ", self.who).into_bytes();
        text.extend_from_slice(line);
        self.last.keep(line);
        text.push(b'\n');
        // Nobody may read it.
        drop(io::stderr().lock().write_all(&text));
        self.line.clear();
    }
}

/// What was said last.
#[derive(Default)]
struct Last {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Last {
    fn keep(&mut self, line: &[u8]) {
        let line = line.get(..line.len().min(LAST_BYTES)).unwrap_or_default();
        let line = String::from_utf8_lossy(line).into_owned();
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > LAST_LINES || (self.bytes > LAST_BYTES && self.lines.len() > 1) {
            let gone = self.lines.pop_front();
            self.bytes -= gone.map_or(0, |line| line.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_bounded() {
        let mut last = Last::default();
        for at in 0..1000 {
            last.keep(format!("line {at}").as_bytes());
        }
        assert_eq!(last.lines.len(), LAST_LINES);
        assert_eq!(last.lines.back().map(String::as_str), Some("line 999"));
        last.keep(&vec![b'x'; 1 << 20]);
        assert_eq!((last.lines.len(), last.bytes), (1, LAST_BYTES));
        last.keep(b"\xff");
        last.keep(b"end");
        assert_eq!(last.lines.back().map(String::as_str), Some("end"));
        assert!(last.bytes <= LAST_BYTES);
    }
}

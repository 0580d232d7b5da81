//! What a list of processes shows of this one, where its command line is of no use to people: a worker that has become an interpreter
//! has the program that it was given there. Nothing depends on it, and where it cannot be had the command line stays.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;

/// Where in `/proc/self/stat` the beginning and the end of the command line are, after the name (`proc_pid_stat(5)`: 48 and 49).
const ARG_START: usize = 45;

/// A command line longer than this is not touched. Linux has at most 6 MiB of them.
const LINE_MAX: u64 = 8 << 20;

/// Shows this in place of the command line, cut where that ends.
///
/// Programs look at their command line when they begin, so this is for later. What follows the title is cleared but for the last
/// byte, by which the kernel knows that there is a title and no arguments.
pub(in crate::launcher) fn show(title: &str) {
    if let Err(error) = write(title) {
        tracing::debug!("showing `{title}` in the list of processes: {error}");
    }
}

fn write(title: &str) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (start, end) = place(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let line = line(title, end - start);
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&line, start)
}

/// Where the command line is.
fn place(stat: &str) -> Option<(u64, u64)> {
    // The name may have anything in it.
    let (_, numbers) = stat.rsplit_once(") ")?;
    let mut numbers = numbers.split_ascii_whitespace().skip(ARG_START);
    let start: u64 = numbers.next()?.parse().ok()?;
    let end: u64 = numbers.next()?.parse().ok()?;
    let length = end.checked_sub(start)?;
    (start != 0 && (2..=LINE_MAX).contains(&length)).then_some((start, end))
}

/// So many bytes with the title in them.
fn line(title: &str, length: u64) -> Vec<u8> {
    let length = usize::try_from(length).unwrap_or_default();
    let room = length.saturating_sub(2);
    let mut line: Vec<u8> = title.bytes().filter(|byte| *byte != 0).take(room).collect();
    line.resize(length.saturating_sub(1), 0);
    line.push(b'.');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_found_behind_any_name() {
        let numbers: Vec<_> = (3..=52).map(|number| (number * 1000).to_string()).collect();
        let stat = format!("12 (a) b (c)) {}\n", numbers.join(" "));
        assert_eq!(place(&stat), Some((48_000, 49_000)));
        assert_eq!(place("12 (a) R 1 2"), None);
        let hidden = ["0"; 50].join(" ");
        assert_eq!(place(&format!("12 (a) {hidden}")), None);
    }

    #[test]
    fn a_title_is_cut_where_the_command_line_ends() {
        assert_eq!(line("ab", 6), b"ab\0\0\0.");
        assert_eq!(line("a\0bcdef", 6), b"abcd\0.");
        assert_eq!(line("ab", 2), b"\0.");
    }
}

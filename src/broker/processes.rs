//! Which process is a child of which, as `/proc` has it: a worker's sockets may be those of a process that it has started.

use std::fs;

/// Generations looked at: no worker is wrapped in more shells than that, and a loop in what is read must end.
const GENERATIONS_MAX: usize = 32;

/// Whether `pid` is `ancestor` or descends from it. A process that is gone descends from nobody.
pub(super) fn descends(pid: u32, ancestor: u32) -> bool {
    let mut at = pid;
    for _ in 0..GENERATIONS_MAX {
        if at == ancestor {
            return true;
        }
        match parent(at) {
            Some(next) if next > 1 => at = next,
            _ => return false,
        }
    }
    false
}

fn parent(pid: u32) -> Option<u32> {
    parent_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The parent in a line of `/proc/PID/stat`. The name in parentheses may have anything in it, parentheses too.
fn parent_in(stat: &str) -> Option<u32> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_hides_no_parent() {
        assert_eq!(parent_in("12 (a) R 1) (b)) S 77 12 12 0"), Some(77));
        assert_eq!(parent_in("12 (a"), None);
    }

    #[test]
    fn this_process_descends_from_itself_and_its_parent_and_not_from_its_child() {
        let (own, above) = (std::process::id(), std::os::unix::process::parent_id());
        assert!(descends(own, own));
        assert!(descends(own, above));
        assert!(!descends(above, own));
    }
}

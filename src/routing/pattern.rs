//! The pattern language of routes and hosts: Lua's patterns, reduced, with `\` in place of `%`. No captures, no I/O.
//!
//! A pattern is compiled once into a list of items, each over a set of bytes. As only "does it match" is asked, the
//! longest and the shortest repetition are the same question, and matching follows *all* positions an item can start
//! from at once instead of trying one after the other. That is why hostile paths cannot make it slow: the work is at
//! most items times bytes of the path, and needs no budget of steps that an honest path could exhaust.

use thiserror::Error;

/// What is wrong with the text of a pattern. Such a pattern never matches (Mongrel2 logs it, or crashes on it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PatternProblem {
    /// `[` without its `]`; a `]` directly after `[` or `[^` is a literal.
    #[error(
        "a set is opened by `[` and never closed (a `]` right after the `[` counts as a member)"
    )]
    UnclosedSet,
    /// A `\` at the very end.
    #[error("it ends with a lone `\\`")]
    LoneEscape,
    /// `\b` without two bytes after it.
    #[error("`\\b` needs the opening and the closing byte after it, as in `\\b[]`")]
    BalanceWithoutBytes,
    /// `\f` without a set after it.
    #[error("`\\f` needs a set after it, as in `\\f[a-z]`")]
    FrontierWithoutSet,
}

/// Whether upper and lower case letters (ASCII) differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// They do: paths.
    Exact,
    /// They do not: host names.
    Ignored,
}

/// A compiled pattern, anchored at the beginning of what it is matched against.
///
/// It is a prefix match: what follows the matched part is ignored unless the text ends with `$`.
#[derive(Debug, Clone)]
pub struct Pattern {
    items: Vec<Item>,
    /// From this item on everything may match nothing, so whoever gets here has matched.
    enough: usize,
    problem: Option<PatternProblem>,
}

impl Pattern {
    /// Compiles `text`, in which case counts. Total: a text with a problem gives a pattern that never matches.
    pub fn new(text: impl AsRef<[u8]>) -> Pattern {
        Pattern::with_case(text, Case::Exact)
    }

    /// Compiles `text`. With [`Case::Ignored`], a letter or a range stands for both cases.
    pub fn with_case(text: impl AsRef<[u8]>, case: Case) -> Pattern {
        let mut compiler = Compiler {
            rest: text.as_ref(),
            case,
            items: Vec::new(),
        };
        let problem = compiler.run().err();
        let items = compiler.items;
        let enough = items
            .iter()
            .rposition(|item| !item.may_be_nothing())
            .map_or(0, |last| last + 1);
        Pattern {
            items,
            enough,
            problem,
        }
    }

    /// What is wrong with the text, if anything is.
    pub fn problem(&self) -> Option<PatternProblem> {
        self.problem
    }

    /// Whether the pattern matches at the beginning of `subject`. Work: items times bytes, at most.
    pub fn matches(&self, subject: &[u8]) -> bool {
        if self.problem.is_some() {
            return false;
        }
        // Up to the first repetition there is one position only, and nothing to allocate.
        let mut position = 0;
        let mut items = self.items.iter().enumerate();
        for (index, item) in items.by_ref() {
            if index >= self.enough {
                return true;
            }
            let next = match item {
                Item::One(set) => one(set, subject, position),
                Item::Balanced(open, close) => balanced_from(*open, *close, subject, position),
                Item::Frontier(set) => frontier(set, subject, position).then_some(position),
                Item::End => (position == subject.len()).then_some(position),
                Item::Optional(_) | Item::Many(_) => {
                    let mut positions = item.advance(&[position], subject);
                    for (index, item) in items {
                        if positions.is_empty() || index >= self.enough {
                            break;
                        }
                        positions = item.advance(&positions, subject);
                    }
                    return !positions.is_empty();
                }
            };
            match next {
                Some(next) => position = next,
                None => return false,
            }
        }
        true
    }
}

/// One step of a pattern. `x+` is compiled as `x` and `x*`.
#[derive(Debug, Clone)]
enum Item {
    One(Set),
    Optional(Set),
    Many(Set),
    Balanced(u8, u8),
    Frontier(Set),
    End,
}

impl Item {
    fn may_be_nothing(&self) -> bool {
        matches!(self, Item::Optional(_) | Item::Many(_))
    }

    /// All positions reachable through this item from `positions`; both sorted and without repetition.
    fn advance(&self, positions: &[usize], subject: &[u8]) -> Vec<usize> {
        match self {
            Item::One(set) => positions
                .iter()
                .filter_map(|&at| one(set, subject, at))
                .collect(),
            Item::Optional(set) => {
                let mut reached = Vec::with_capacity(positions.len() + 1);
                for &at in positions {
                    if reached.last() != Some(&at) {
                        reached.push(at);
                    }
                    reached.extend(one(set, subject, at));
                }
                reached
            }
            Item::Many(set) => {
                let mut reached: Vec<usize> = Vec::new();
                for &start in positions {
                    // Everything up to the last reached position is swept already, this start included.
                    if reached.last().is_some_and(|&last| start <= last) {
                        continue;
                    }
                    reached.push(start);
                    let mut at = start;
                    while let Some(next) = one(set, subject, at) {
                        reached.push(next);
                        at = next;
                    }
                }
                reached
            }
            Item::Balanced(open, close) => {
                let ends = balanced_ends(*open, *close, subject);
                let mut reached: Vec<usize> = positions
                    .iter()
                    .filter_map(|&at| ends.get(at).copied().flatten())
                    .collect();
                // Nested pairs end in the reverse order of their beginnings.
                reached.sort_unstable();
                reached.dedup();
                reached
            }
            Item::Frontier(set) => positions
                .iter()
                .copied()
                .filter(|&at| frontier(set, subject, at))
                .collect(),
            Item::End => positions
                .iter()
                .copied()
                .filter(|&at| at == subject.len())
                .collect(),
        }
    }
}

fn one(set: &Set, subject: &[u8], at: usize) -> Option<usize> {
    subject
        .get(at)
        .is_some_and(|&byte| set.has(byte))
        .then(|| at + 1)
}

/// Lua's frontier: the byte before is outside the set and the byte after inside; beyond both ends is a NUL.
fn frontier(set: &Set, subject: &[u8], at: usize) -> bool {
    let before = at
        .checked_sub(1)
        .and_then(|before| subject.get(before))
        .copied()
        .unwrap_or(0);
    let after = subject.get(at).copied().unwrap_or(0);
    !set.has(before) && set.has(after)
}

/// The end of the balanced run that begins at `at`, if one does.
fn balanced_from(open: u8, close: u8, subject: &[u8], at: usize) -> Option<usize> {
    if subject.get(at) != Some(&open) {
        return None;
    }
    let mut depth = 1_usize;
    for (offset, &byte) in subject.iter().enumerate().skip(at + 1) {
        if byte == close {
            depth -= 1;
            if depth == 0 {
                return Some(offset + 1);
            }
        } else if byte == open {
            depth += 1;
        }
    }
    None
}

/// The same for every beginning at once, in one pass.
fn balanced_ends(open: u8, close: u8, subject: &[u8]) -> Vec<Option<usize>> {
    let mut ends = vec![None; subject.len()];
    let mut opened = Vec::new();
    for (at, &byte) in subject.iter().enumerate() {
        if byte == close
            && let Some(start) = opened.pop()
            && let Some(end) = ends.get_mut(start)
        {
            *end = Some(at + 1);
        }
        if byte == open {
            opened.push(at);
        }
    }
    ends
}

/// A set of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Set([u64; 4]);

impl Set {
    const NONE: Set = Set([0; 4]);
    const ALL: Set = Set([u64::MAX; 4]);

    fn of(case: Case, holds: impl Fn(u8) -> bool) -> Set {
        let mut set = Set::NONE;
        for byte in 0..=u8::MAX {
            let held = holds(byte)
                || case == Case::Ignored
                    && (holds(byte.to_ascii_lowercase()) || holds(byte.to_ascii_uppercase()));
            if held {
                set.add(byte);
            }
        }
        set
    }

    fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] & (1 << (byte & 63)) != 0
    }

    fn add(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    fn join(&mut self, other: Set) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine |= theirs;
        }
    }

    fn complement(self) -> Set {
        Set(self.0.map(|word| !word))
    }

    /// What `\x` stands for: a class, the complement of one for its upper case letter, or the byte itself.
    fn escaped(byte: u8, case: Case) -> Set {
        let class: fn(u8) -> bool = match byte.to_ascii_lowercase() {
            b'a' => |b| b.is_ascii_alphabetic(),
            b'c' => |b| b.is_ascii_control(),
            b'd' => |b| b.is_ascii_digit(),
            b'l' => |b| b.is_ascii_lowercase(),
            b'p' => |b| b.is_ascii_punctuation(),
            // C's isspace has the vertical tab, Rust's does not.
            b's' => |b| matches!(b, b' ' | b'\t'..=b'\r'),
            b'u' => |b| b.is_ascii_uppercase(),
            b'w' => |b| b.is_ascii_alphanumeric(),
            b'x' => |b| b.is_ascii_hexdigit(),
            b'z' => |b| b == 0,
            _ => return Set::of(case, |b| b == byte),
        };
        let set = Set::of(case, class);
        if byte.is_ascii_uppercase() {
            set.complement()
        } else {
            set
        }
    }
}

struct Compiler<'a> {
    rest: &'a [u8],
    case: Case,
    items: Vec<Item>,
}

impl Compiler<'_> {
    fn run(&mut self) -> Result<(), PatternProblem> {
        while let Some((&byte, rest)) = self.rest.split_first() {
            self.rest = rest;
            let set = match byte {
                // Parentheses group nothing; a quantifier after one is a literal, as it follows no single item.
                b'(' | b')' => continue,
                b'$' if rest.is_empty() => {
                    self.items.push(Item::End);
                    continue;
                }
                b'\\' if rest.first() == Some(&b'b') => {
                    let &[_, open, close, ref rest @ ..] = rest else {
                        return Err(PatternProblem::BalanceWithoutBytes);
                    };
                    self.rest = rest;
                    self.items.push(Item::Balanced(open, close));
                    continue;
                }
                b'\\' if rest.first() == Some(&b'f') => {
                    let Some(rest) = rest.strip_prefix(b"f[") else {
                        return Err(PatternProblem::FrontierWithoutSet);
                    };
                    self.rest = rest;
                    let set = self.set()?;
                    self.items.push(Item::Frontier(set));
                    continue;
                }
                b'\\' => {
                    let (&escaped, rest) = rest.split_first().ok_or(PatternProblem::LoneEscape)?;
                    self.rest = rest;
                    Set::escaped(escaped, self.case)
                }
                b'[' => self.set()?,
                b'.' => Set::ALL,
                literal => Set::of(self.case, |b| b == literal),
            };
            self.quantify(set);
        }
        Ok(())
    }

    fn quantify(&mut self, set: Set) {
        let (items, taken): (&[Item], usize) = match self.rest.first() {
            Some(b'*' | b'-') => (&[Item::Many(set)], 1),
            Some(b'+') => (&[Item::One(set), Item::Many(set)], 1),
            Some(b'?') => (&[Item::Optional(set)], 1),
            _ => (&[Item::One(set)], 0),
        };
        self.items.extend_from_slice(items);
        self.rest = self.rest.get(taken..).unwrap_or_default();
    }

    /// Reads a set after its `[`.
    fn set(&mut self) -> Result<Set, PatternProblem> {
        let (inverted, rest) = match self.rest.strip_prefix(b"^") {
            Some(rest) => (true, rest),
            None => (false, self.rest),
        };
        // The first byte is a member whatever it is; an escape hides the `]` after it.
        let mut end = 0;
        loop {
            let byte = *rest.get(end).ok_or(PatternProblem::UnclosedSet)?;
            end += 1;
            if byte == b'\\' && end < rest.len() {
                end += 1;
            }
            if rest.get(end) == Some(&b']') {
                break;
            }
        }
        let (mut members, after) = rest.split_at(end);
        self.rest = after.get(1..).unwrap_or_default();

        let mut set = Set::NONE;
        loop {
            match *members {
                [] => break,
                [b'\\', escaped, ref rest @ ..] => {
                    set.join(Set::escaped(escaped, self.case));
                    members = rest;
                }
                [from, b'-', to, ref rest @ ..] => {
                    set.join(Set::of(self.case, |b| (from..=to).contains(&b)));
                    members = rest;
                }
                [byte, ref rest @ ..] => {
                    set.join(Set::of(self.case, |b| b == byte));
                    members = rest;
                }
            }
        }
        Ok(if inverted { set.complement() } else { set })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, subject: &str, expect: bool) {
        assert_eq!(
            Pattern::new(pattern).matches(subject.as_bytes()),
            expect,
            "{pattern:?} on {subject:?}"
        );
    }

    #[test]
    fn an_empty_pattern_matches_everything() {
        check("", "", true);
        check("()", "abc", true);
        check("()$", "abc", false);
    }

    #[test]
    fn repetitions_give_back_what_a_later_item_needs() {
        check("(a*a)$", "aaa", true);
        check("(.*\\.jpg)$", "x.jpg.jpg", true);
        check("(.-)/x$", "a/x/x", true);
        check("(a?ab)$", "ab", true);
        check("([a-c]+c)$", "abcc", true);
        check("([a-c]+c)$", "ab", false);
    }

    #[test]
    fn a_quantifier_after_a_parenthesis_or_another_quantifier_is_a_literal() {
        check("(a)*b", "a*b", true);
        check("(a**)$", "aa*", true);
        check("(*a)", "*a", true);
        check("(a+-)", "aa-", true);
    }

    #[test]
    fn a_dollar_is_the_end_only_as_the_last_byte() {
        check("(a$)", "a$", true);
        check("(a$)", "a", false);
        check("(a)$x", "a$x", true);
    }

    #[test]
    fn sets_read_as_luas_do() {
        check("([]])$", "]", true);
        check("([^]a]+)$", "b", true);
        check("([[])$", "[", true);
        check("([a-]+)$", "a-", true);
        check("([\\a-z]+)$", "-", true);
        check("([a-\\d]+)$", "5", false);
        check("([\\]]+)$", "]]", true);
        check("([[:alpha:]])$", ":]", true);
    }

    #[test]
    fn balance_and_frontier_work_behind_a_repetition_too() {
        check("(x*\\b[])$", "xx[a[b]]", true);
        check("(x*\\b[])$", "xx[a[b]", false);
        check("(.*\\b[])$", "[][[]]", true);
        check("(\\bxx)$", "xax", true);
        check("(.-\\f[0-9]\\d+)$", "ab12", true);
        check("(b\\f[\\z])", "b", true);
    }

    #[test]
    fn a_malformed_pattern_says_so_and_never_matches() {
        for (text, problem) in [
            ("([a", PatternProblem::UnclosedSet),
            ("([])", PatternProblem::UnclosedSet),
            ("(\\", PatternProblem::LoneEscape),
            ("(\\bx", PatternProblem::BalanceWithoutBytes),
            ("(\\fa)", PatternProblem::FrontierWithoutSet),
        ] {
            let pattern = Pattern::new(text);
            assert_eq!(pattern.problem(), Some(problem), "{text}");
            assert!(!pattern.matches(b"") && !pattern.matches(b"aaxx"), "{text}");
        }
    }

    #[test]
    fn without_case_a_letter_and_a_range_stand_for_both() {
        let folded = |text: &str| Pattern::with_case(text, Case::Ignored);
        assert!(folded("([A-Z]+)$").matches(b"abc"));
        assert!(folded("(a.b)$").matches(b"AxB"));
        assert!(!folded("([^a-z]+)$").matches(b"ABC"));
        assert!(folded("(\\u+)$").matches(b"abc"));
    }

    #[test]
    fn a_nasty_pattern_on_a_hostile_path_is_done_in_items_times_bytes() {
        // Backtracking needs some 60,000^8 steps here; this test would not end.
        let pattern = Pattern::new("(a*a*a*a*a*a*a*a*\\b[].-.-.-b)$");
        assert!(!pattern.matches(&vec![b'a'; 60_000]));
        assert!(!pattern.matches(&vec![b'['; 60_000]));
    }
}

//! Which route of a host takes a path. Pure.

use super::Pattern;
use super::tree::{Found, Tree};

/// The routes of one host, in the order of their rows, each with what it leads to.
#[derive(Debug, Clone)]
pub struct RouteTable<T> {
    entries: Vec<Entry<T>>,
    tree: Tree,
}

#[derive(Debug, Clone)]
struct Entry<T> {
    text: String,
    pattern: Option<Pattern>,
    target: T,
}

/// How a path came to a route's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The path is the prefix.
    Equal,
    /// The prefix is the longest that begins the path.
    Begins,
    /// The path ended inside the prefix, and this is the longer route it is taken to mean: `/us` for `/users`.
    Backward,
}

/// Why a path goes where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteChoice<'a, T> {
    /// No prefix begins the path and none begins with it.
    NoPrefix,
    /// The routes of this prefix all failed on the rest of the path. There is no falling back to a shorter prefix.
    NoPattern {
        /// The part of the route texts before their first `(`.
        prefix: &'a str,
        /// How the path came to it.
        reach: Reach,
        /// The route texts, in the order in which they were tried.
        tried: Vec<&'a str>,
    },
    /// The route that takes the path.
    Taken {
        /// The text of the route, as configured.
        text: &'a str,
        /// What it leads to.
        target: &'a T,
        /// How the path came to its prefix.
        reach: Reach,
        /// Texts of routes with the same prefix whose patterns were tried before and failed.
        tried: Vec<&'a str>,
    },
}

/// Splits the text of a route at its first `(`: the prefix, and the pattern with its parenthesis.
pub fn split(text: &str) -> (&str, Option<&str>) {
    text.find('(')
        .and_then(|at| text.split_at_checked(at))
        .map_or((text, None), |(prefix, pattern)| (prefix, Some(pattern)))
}

impl<T> RouteTable<T> {
    /// A table without routes.
    pub fn new() -> RouteTable<T> {
        RouteTable {
            entries: Vec::new(),
            tree: Tree::new(),
        }
    }

    /// Adds a route. The order of insertion decides ties, so insert by rowid. A text without a prefix (empty, or
    /// beginning with `(`) is kept but never matches.
    pub fn insert(&mut self, text: impl Into<String>, target: T) {
        let text = text.into();
        let (prefix, pattern) = split(&text);
        if !prefix.is_empty() {
            self.tree.insert(prefix.bytes(), self.entries.len());
        }
        let pattern = pattern.map(Pattern::new);
        self.entries.push(Entry {
            text,
            pattern,
            target,
        });
    }

    /// The route that takes `path`: its text and what it leads to. `path` is as received: escapes not decoded, without
    /// query; or `@name` and `<name` of message sockets.
    pub fn find(&self, path: &[u8]) -> Option<(&str, &T)> {
        let (chain, prefix, _) = self.tree.find(path.iter().copied())?;
        self.chain(chain)
            .find(|(position, entry)| entry.takes(*position, path, prefix))
            .map(|(_, entry)| (entry.text.as_str(), &entry.target))
    }

    /// The same with the reasons.
    pub fn explain(&self, path: &[u8]) -> RouteChoice<'_, T> {
        let Some((chain, prefix, found)) = self.tree.find(path.iter().copied()) else {
            return RouteChoice::NoPrefix;
        };
        let reach = match found {
            Found::Equal => Reach::Equal,
            Found::Begins => Reach::Begins,
            Found::Longer => Reach::Backward,
        };
        let mut tried = Vec::new();
        for (position, entry) in self.chain(chain) {
            if entry.takes(position, path, prefix) {
                return RouteChoice::Taken {
                    text: &entry.text,
                    target: &entry.target,
                    reach,
                    tried,
                };
            }
            tried.push(entry.text.as_str());
        }
        let prefix = tried.first().map_or("", |text| split(text).0);
        RouteChoice::NoPattern {
            prefix,
            reach,
            tried,
        }
    }

    /// All routes in the order of insertion: text and target.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries
            .iter()
            .map(|entry| (entry.text.as_str(), &entry.target))
    }

    /// Whether both send every path to a route of the same text. The order of insertion may differ where it decides
    /// nothing.
    pub fn routes_like<U>(&self, other: &RouteTable<U>) -> bool {
        self.entries.len() == other.entries.len()
            && self.tree.alike(&other.tree, |mine, theirs| {
                let (mine, theirs) = (self.entries.get(mine), other.entries.get(theirs));
                mine.map(|entry| &entry.text) == theirs.map(|entry| &entry.text)
            })
    }

    fn chain<'a>(&'a self, chain: &'a [usize]) -> impl Iterator<Item = (usize, &'a Entry<T>)> {
        chain
            .iter()
            .enumerate()
            .filter_map(|(position, &index)| Some((position, self.entries.get(index)?)))
    }
}

impl<T> Entry<T> {
    fn takes(&self, position: usize, path: &[u8], prefix: usize) -> bool {
        match &self.pattern {
            Some(pattern) => path.get(prefix..).is_some_and(|rest| pattern.matches(rest)),
            // Without a pattern the first of its prefix takes everything, a path shorter than itself too. A later one
            // makes Mongrel2 read past the end of its text; here it is what it says, the whole prefix.
            None => position == 0 || path.len() >= prefix,
        }
    }
}

impl<T> Default for RouteTable<T> {
    fn default() -> RouteTable<T> {
        RouteTable::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(texts: &[&str]) -> RouteTable<usize> {
        let mut table = RouteTable::new();
        for (index, text) in texts.iter().enumerate() {
            table.insert(*text, index);
        }
        table
    }

    #[track_caller]
    fn check(texts: &[&str], path: &str, expect: Option<&str>) {
        assert_eq!(
            table(texts).find(path.as_bytes()).map(|(text, _)| text),
            expect,
            "{path}"
        );
    }

    #[test]
    fn the_longest_prefix_takes_the_path() {
        check(&["/", "/a", "/a/b"], "/a/bc", Some("/a/b"));
        check(&["/", "/a", "/a/b"], "/a/", Some("/a/b"));
        check(&["/", "/a", "/a/b"], "/a/c", Some("/a"));
        check(&["/a"], "/b", None);
        check(&["/a"], "", None);
    }

    #[test]
    fn a_short_path_reaches_a_longer_route() {
        check(&["/users"], "/us", Some("/users"));
        check(&["/only"], "/", Some("/only"));
        check(
            &["/alpha/bet", "/alpha/beta/gamma"],
            "/alpha",
            Some("/alpha/bet"),
        );
        check(
            &["/alpha/bet", "/alpha/beta/gamma"],
            "/alpha/beta",
            Some("/alpha/beta/gamma"),
        );
    }

    #[test]
    fn where_longer_routes_part_the_branch_made_first_is_followed() {
        check(&["/xb1", "/xa", "/xb"], "/x", Some("/xb"));
        check(&["/xa", "/xb"], "/x", Some("/xa"));
    }

    #[test]
    fn a_failed_pattern_does_not_fall_back() {
        check(&["/", "/pat/([0-9]+)$"], "/pat/12a", None);
        check(&["/", "/pat/([0-9]+)$"], "/pat/12", Some("/pat/([0-9]+)$"));
        // Shorter than the prefix, where a pattern has nothing to look at.
        check(&["/", "/pat/([0-9]+)$"], "/pa", None);
    }

    #[test]
    fn routes_of_one_prefix_are_tried_first_one_first_then_the_latest() {
        check(&["/(a)", "/(.)", "/(.)$"], "/a", Some("/(a)"));
        check(&["/(a)", "/(.)", "/(.)$"], "/b", Some("/(.)$"));
        check(&["/x", "/x(a)"], "/xa", Some("/x"));
        check(&["/x(a)", "/x"], "/xa", Some("/x(a)"));
        check(&["/x(a)", "/x"], "/xb", Some("/x"));
    }

    #[test]
    fn a_text_without_prefix_never_matches() {
        check(&["", "(/a)"], "/a", None);
    }

    #[test]
    fn the_reasons_agree_with_the_choice() {
        let table = table(&["/", "/users", "/p/([0-9]+)$", "/p/([a-z]+)$"]);
        assert_eq!(
            table.explain(b"/us"),
            RouteChoice::Taken {
                text: "/users",
                target: &1,
                reach: Reach::Backward,
                tried: vec![]
            }
        );
        assert_eq!(
            table.explain(b"/p/abc"),
            RouteChoice::Taken {
                text: "/p/([a-z]+)$",
                target: &3,
                reach: Reach::Begins,
                tried: vec!["/p/([0-9]+)$"]
            }
        );
        assert_eq!(
            table.explain(b"/p/A"),
            RouteChoice::NoPattern {
                prefix: "/p/",
                reach: Reach::Begins,
                tried: vec!["/p/([0-9]+)$", "/p/([a-z]+)$"]
            }
        );
        assert_eq!(table.explain(b"*"), RouteChoice::NoPrefix);
    }
}

//! Types of files by extension: the 857 that m2sh loads, and what a configuration adds.

use std::collections::BTreeMap;
use std::fmt;

/// What m2sh fills the table `mimetype` with: extension, tab, type.
const DEFAULTS: &str = include_str!("mimetypes.tsv");

/// Types by extension.
#[derive(Clone)]
pub struct Mimetypes {
    types: BTreeMap<String, String>,
    /// No extension is longer, in bytes.
    longest: usize,
}

// Some 857 lines would drown everything around them.
impl fmt::Debug for Mimetypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mimetypes({})", self.types.len())
    }
}

impl PartialEq for Mimetypes {
    fn eq(&self, other: &Mimetypes) -> bool {
        self.types == other.types
    }
}

impl Eq for Mimetypes {}

impl Mimetypes {
    /// No types at all.
    pub fn none() -> Mimetypes {
        Mimetypes {
            types: BTreeMap::new(),
            longest: 0,
        }
    }

    /// Sets the type of an extension, which begins with its dot. An empty type takes the extension out.
    pub fn insert(&mut self, extension: &str, mimetype: &str) {
        if mimetype.is_empty() {
            self.types.remove(extension);
        } else {
            self.longest = self.longest.max(extension.len());
            self.types.insert(extension.to_owned(), mimetype.to_owned());
        }
    }

    /// The type of exactly this extension.
    pub fn get(&self, extension: &str) -> Option<&str> {
        self.types.get(extension).map(String::as_str)
    }

    /// The type of a file by its path: of the longest extension the path ends with, in lower case. An extension that
    /// was configured with an upper-case letter never matches, as in Mongrel2.
    pub fn of_path(&self, path: &str) -> Option<&str> {
        let start = path.len().saturating_sub(self.longest);
        let end = path
            .as_bytes()
            .get(start..)
            .unwrap_or_default()
            .to_ascii_lowercase();
        let end = String::from_utf8_lossy(&end);
        end.match_indices('.')
            .find_map(|(at, _)| end.get(at..).and_then(|extension| self.get(extension)))
    }

    /// All pairs of extension and type, sorted by extension.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.types
            .iter()
            .map(|(extension, mimetype)| (extension.as_str(), mimetype.as_str()))
    }
}

impl Default for Mimetypes {
    fn default() -> Mimetypes {
        let mut types = Mimetypes::none();
        for (extension, mimetype) in DEFAULTS.lines().filter_map(|line| line.split_once('\t')) {
            types.insert(extension, mimetype);
        }
        types
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_m2shs() {
        let types = Mimetypes::default();
        assert_eq!(types.iter().count(), 857);
        assert_eq!(types.of_path("/a/index.html"), Some("text/html"));
    }

    #[test]
    fn the_longest_extension_wins_without_case() {
        let mut types = Mimetypes::none();
        types.insert(".gz", "application/gzip");
        types.insert(".tar.gz", "application/x-gtar");
        types.insert(".Z", "never/matches");
        assert_eq!(types.of_path("/x.TAR.gz"), Some("application/x-gtar"));
        assert_eq!(types.of_path("/x.y.gz"), Some("application/gzip"));
        assert_eq!(types.of_path("/x.Z"), None);
        assert_eq!(
            types.of_path("/\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}.gz"),
            Some("application/gzip")
        );
        assert_eq!(types.of_path(""), None);
    }
}

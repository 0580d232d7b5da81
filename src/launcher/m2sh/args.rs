//! m2sh's own way of writing commands: a word, then options as `-name value` or `--name value`, from a command line or
//! from a line of its shell. Nothing is looked up here.

use std::collections::HashMap;

/// A word that was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    text: String,
    /// Between quotes, in the shell: never an option.
    is_quoted: bool,
}

impl Word {
    /// A word of a command line; the user's shell has taken the quotes away.
    pub(super) fn bare(text: String) -> Self {
        Self {
            text,
            is_quoted: false,
        }
    }

    /// The name, if this is an option.
    fn option(&self) -> Option<&str> {
        if self.is_quoted {
            return None;
        }
        let name = self.text.strip_prefix('-')?;
        let name = name.strip_prefix('-').unwrap_or(name);
        let mut chars = name.chars();
        let begins = chars.next()?;
        // Whatever else begins with a dash, as a number, is a value.
        let is_name = (begins.is_ascii_alphabetic() || begins == '_')
            && chars.all(|char| char.is_ascii_alphanumeric() || matches!(char, '_' | '.'));
        is_name.then_some(name)
    }
}

/// The words of a line in m2sh's shell: what stands between quotes is one, and a backslash keeps a quote from ending it.
pub(super) fn words(line: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let quoted = matches!(first, '"' | '\'').then(|| quoted(rest, first));
        let (word, left) = quoted.flatten().unwrap_or_else(|| {
            let (text, left) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            (Word::bare(text.to_owned()), left)
        });
        words.push(word);
        rest = left.trim_start();
    }
    words
}

/// The text between quotes at the beginning of `line`, and what is left; `None` if they are not closed.
fn quoted(line: &str, quote: char) -> Option<(Word, &str)> {
    let inner = line.strip_prefix(quote)?;
    let mut is_kept = false;
    let (end, _) = inner.char_indices().find(|&(_, char)| {
        let ends = char == quote && !is_kept;
        is_kept = char == '\\' && !is_kept;
        ends
    })?;
    let (text, left) = inner.split_at_checked(end)?;
    let word = Word {
        text: text.to_owned(),
        is_quoted: true,
    };
    Some((word, left.strip_prefix(quote)?))
}

/// The options of a command; of one that is repeated the last counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options(HashMap<String, String>);

impl Options {
    /// The value of an option; one without a value has the empty one.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether an option was given, with whatever value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// A command with its options.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) command: String,
    pub(super) options: Options,
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mistake {
    /// There is no word at all.
    #[error("no command")]
    Empty,
    /// It begins with an option.
    #[error("No command name given.  Use m2sh help to figure out what's available.")]
    NoCommand,
    /// Words that belong to no option.
    #[error("Commands only take --option style arguments, you have {0} extra.")]
    Extra(usize),
}

/// Reads a line. Options that no command knows are left alone, as m2sh leaves them.
pub(super) fn read(words: &[Word]) -> Result<Line, Mistake> {
    let (command, mut rest) = words.split_first().ok_or(Mistake::Empty)?;
    if command.option().is_some() {
        return Err(Mistake::NoCommand);
    }
    let mut options = HashMap::new();
    let mut extra = 0;
    while let Some((word, left)) = rest.split_first() {
        rest = left;
        let Some(name) = word.option() else {
            extra += 1;
            continue;
        };
        let mut value = String::new();
        if let Some((next, left)) = rest.split_first()
            && next.option().is_none()
        {
            value.clone_from(&next.text);
            rest = left;
        }
        options.insert(name.to_owned(), value);
    }
    if extra > 0 {
        return Err(Mistake::Extra(extra));
    }
    Ok(Line {
        command: command.text.clone(),
        options: Options(options),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &str) -> Result<Line, Mistake> {
        read(&words(line))
    }

    fn value(line: &str, name: &str) -> Option<String> {
        typed(line).unwrap().options.get(name).map(str::to_owned)
    }

    #[test]
    fn options_have_one_dash_or_two_and_may_lack_a_value() {
        assert_eq!(typed("load -db a").unwrap().command, "load");
        for line in ["x -db a", "x --db a", "x -db b -db a", "x -o -db a -z"] {
            assert_eq!(value(line, "db").as_deref(), Some("a"), "{line}");
        }
        for line in ["x -db", "x -db --host y", "x -db -o.p", "x -db \"\""] {
            assert_eq!(value(line, "db").as_deref(), Some(""), "{line}");
        }
        // As a number may begin with a dash.
        assert_eq!(value("x -db -1", "db").as_deref(), Some("-1"));
        assert_eq!(value("x -on -a-b", "on").as_deref(), Some("-a-b"));
        assert_eq!(value("x -o", "db"), None);
    }

    #[test]
    fn words_that_belong_to_no_option_are_counted() {
        let extra = |line: &str| match typed(line) {
            Err(Mistake::Extra(count)) => count,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(extra("servers db full.sqlite"), 2);
        assert_eq!(extra("servers -- db full.sqlite"), 3);
        assert_eq!(extra("servers --- db"), 2);
        assert_eq!(extra("servers --db=full.sqlite"), 1);
        assert_eq!(extra("servers -db full.sqlite -5"), 1);
        assert_eq!(extra("servers -a-b 1"), 2);
        assert_eq!(typed("-name main"), Err(Mistake::NoCommand));
        assert_eq!(typed(" \t"), Err(Mistake::Empty));
    }

    #[test]
    fn quotes_hold_words_together_in_the_shell() {
        assert_eq!(value("x -p \"a b\" -m 'c d'", "p").as_deref(), Some("a b"));
        assert_eq!(value("x -p \"a b\" -m 'c d'", "m").as_deref(), Some("c d"));
        assert_eq!(value(r#"x -p "a\" b""#, "p").as_deref(), Some(r#"a\" b"#));
        assert_eq!(value("x -p '-m'", "p").as_deref(), Some("-m"));
        // Quotes that are not closed are nothing.
        assert_eq!(value("x -p 'load", "p").as_deref(), Some("'load"));
        assert_eq!(value("x -p\u{a0}ü' -m", "p").as_deref(), Some("ü'"));
    }
}

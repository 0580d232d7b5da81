//! Words of the `.conf` language with their places. Never fails: what is no word becomes one finding.

use super::super::diagnostic::Place;
use super::super::draft::Findings;

/// One word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// `"…"` or `'…'`, without its quotes. A backslash keeps the byte after it from ending the string, and both stay in
    /// the value, as in m2sh.
    Text(&'a str),
    /// Decimal digits.
    Number(&'a str),
    /// An upper-case letter and more letters.
    Class(&'a str),
    /// Any other name.
    Ident(&'a str),
    /// One of `= { } [ ] ( ) , :`.
    Mark(char),
    /// The end of the file.
    End,
}

/// A word and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Word<'a> {
    pub(super) token: Token<'a>,
    pub(super) line: usize,
    pub(super) column: usize,
}

impl Word<'_> {
    pub(super) fn place(&self) -> Place {
        Place::Text {
            line: self.line,
            column: self.column,
        }
    }
}

/// Cuts `text` into words. The last one is always [`Token::End`].
pub(super) fn words<'a>(text: &'a str, findings: &mut Findings) -> Vec<Word<'a>> {
    // Editors of another system put a byte order mark in front.
    let mut lexer = Lexer {
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        line: 1,
        column: 1,
    };
    let mut words = Vec::new();
    loop {
        lexer.skip_blanks();
        let (line, column) = (lexer.line, lexer.column);
        let place = Place::Text { line, column };
        let Some(first) = lexer.rest.chars().next() else {
            words.push(Word {
                token: Token::End,
                line,
                column,
            });
            return words;
        };
        let token = match first {
            '"' | '\'' => {
                let Some(text) = lexer.string(first) else {
                    findings.error(
                        &place,
                        format!("the string opened by {first} is never closed"),
                    );
                    continue;
                };
                // What the decoder put where bytes were no UTF-8. Nobody writes this character on purpose.
                if text.contains(char::REPLACEMENT_CHARACTER) {
                    findings.error(&place, "the string is not UTF-8");
                }
                Token::Text(text)
            }
            '0'..='9' => Token::Number(lexer.take(|c| c.is_ascii_digit())),
            'a'..='z' | 'A'..='Z' | '_' => {
                let name = lexer.take(|c| c.is_ascii_alphanumeric() || c == '_');
                if is_class(name) {
                    Token::Class(name)
                } else {
                    Token::Ident(name)
                }
            }
            '=' | '{' | '}' | '[' | ']' | '(' | ')' | ',' | ':' => {
                lexer.advance(1);
                Token::Mark(first)
            }
            _ => {
                // One finding for a run of them: a stray `https://…` needs no ten lines.
                let strange = lexer.take(is_strange);
                findings.error(
                    &place,
                    format!("{strange:?} means nothing here{}", hint(first)),
                );
                continue;
            }
        };
        words.push(Word {
            token,
            line,
            column,
        });
    }
}

fn is_class(name: &str) -> bool {
    name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(|byte| byte.is_ascii_alphabetic())
}

fn is_strange(c: char) -> bool {
    !(c.is_ascii_alphanumeric() || c.is_ascii_whitespace() || "_\"'={}[](),:#".contains(c))
}

fn hint(first: char) -> &'static str {
    match first {
        '-' | '+' => " (numbers have no sign)",
        '.' => " (numbers have no fraction)",
        ';' => " (a line needs nothing at its end)",
        '/' => " (a comment begins with `#`, and a text stands in quotes)",
        '`' | '\u{2018}'..='\u{201f}' => " (quotes are \" and ')",
        _ => "",
    }
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    column: usize,
}

impl<'a> Lexer<'a> {
    fn skip_blanks(&mut self) {
        loop {
            self.take(|c| c.is_ascii_whitespace() || c == '\x0b');
            if !self.rest.starts_with('#') {
                return;
            }
            self.take(|c| c != '\n');
        }
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let length = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        self.advance(length)
    }

    /// Reads a string from its opening quote on. `None`: it has no end, and everything was taken.
    fn string(&mut self, quote: char) -> Option<&'a str> {
        self.advance(1);
        let mut escaped = false;
        let end = self.rest.find(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let text = self.advance(end.unwrap_or(self.rest.len()));
        if end.is_some() {
            self.advance(1);
            return Some(text);
        }
        None
    }

    /// Moves on by `length` bytes, which end at a character's end.
    fn advance(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .unwrap_or((self.rest, ""));
        self.rest = rest;
        match taken.rsplit_once('\n') {
            Some((before, last)) => {
                self.line += before.matches('\n').count() + 1;
                self.column = last.chars().count() + 1;
            }
            None => self.column += taken.chars().count(),
        }
        taken
    }
}

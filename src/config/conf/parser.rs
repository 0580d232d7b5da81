//! The grammar of the `.conf` language. Parsing never fails: what is wrong becomes findings, the rest a document.

use super::super::diagnostic::Place;
use super::super::draft::{Findings, Located};
use super::lexer::{Token, Word, words};

/// Deeper nesting is refused, so that recursion is bounded. Real files need about six.
const DEPTH_MAX: usize = 64;

/// A whole file: its variables in their order.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) variables: Vec<(Located<String>, Expr)>,
    /// Whether brackets do not pair: things may then be in the wrong place, and what is said about their meaning would
    /// mislead.
    pub(super) torn: bool,
}

/// An expression.
#[derive(Debug)]
pub(super) struct Expr {
    pub(super) place: Place,
    pub(super) kind: Kind,
}

/// The kinds of expressions.
#[derive(Debug)]
pub(super) enum Kind {
    Text(String),
    Number(String),
    Class {
        name: String,
        params: Vec<(Located<String>, Expr)>,
    },
    List(Vec<Expr>),
    Hash(Vec<(Located<String>, Expr)>),
    Reference(String),
    /// Told already.
    Wrong,
}

impl Kind {
    /// What a reader calls it.
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Kind::Text(_) => "a string",
            Kind::Number(_) => "a number",
            Kind::Class { .. } => "a class",
            Kind::List(_) => "a list",
            Kind::Hash(_) => "a hash",
            Kind::Reference(_) => "a variable",
            Kind::Wrong => "nothing",
        }
    }
}

/// Parses a file.
pub(super) fn parse(text: &str, findings: &mut Findings) -> Document {
    let words = words(text, findings);
    let mut parser = Parser {
        words: &words,
        at: 0,
        closers: Vec::new(),
        torn: false,
        findings,
    };
    let variables = parser.file();
    Document {
        variables,
        torn: parser.torn,
    }
}

struct Parser<'w, 'a, 'f> {
    words: &'w [Word<'a>],
    at: usize,
    /// The brackets that are open here must be closed by these, outermost first.
    closers: Vec<char>,
    torn: bool,
    findings: &'f mut Findings,
}

impl<'a> Parser<'_, 'a, '_> {
    fn peek(&self) -> Token<'a> {
        self.token(self.at)
    }

    fn token(&self, at: usize) -> Token<'a> {
        self.words.get(at).map_or(Token::End, |word| word.token)
    }

    fn place(&self) -> Place {
        self.words
            .get(self.at)
            .or(self.words.last())
            .map(Word::place)
            .unwrap_or_default()
    }

    fn take(&mut self) -> Token<'a> {
        let token = self.peek();
        if token != Token::End {
            self.at += 1;
        }
        token
    }

    fn expected(&mut self, what: &str) {
        let message = format!("expected {what}, found {}", describe(self.peek()));
        let place = self.place();
        self.findings.error(&place, message);
    }

    fn file(&mut self) -> Vec<(Located<String>, Expr)> {
        let mut variables = Vec::new();
        if self.peek() == Token::End {
            self.expected("at least `servers = [ … ]`");
        }
        while self.peek() != Token::End {
            let place = self.place();
            match (self.peek(), self.token(self.at + 1)) {
                (Token::Ident(name), Token::Mark('=')) => {
                    variables.extend(self.assigned(name, '=', "`=`"));
                    continue;
                }
                (Token::Class(name), Token::Mark('=')) => {
                    let message = format!(
                        "{name} is the name of a class: a variable of letters only begins with a small one, as `{}`",
                        name.to_ascii_lowercase()
                    );
                    self.findings.error(&place, message);
                    // Known under its name all the same, so that every use of it is not told too.
                    variables.extend(self.assigned(name, '=', "`=`"));
                    continue;
                }
                (Token::Ident(_), _) => {
                    self.at += 1;
                    self.expected("`=` after the name of a variable");
                }
                (Token::Mark(','), _) => {
                    self.findings.error(
                        &place,
                        "expected `name = value`, found `,`: variables are not separated",
                    );
                    self.at += 1;
                    continue;
                }
                _ => self.expected("`name = value`"),
            }
            // To the next `name =`.
            loop {
                match (self.peek(), self.token(self.at + 1)) {
                    (Token::End, _) | (Token::Ident(_) | Token::Class(_), Token::Mark('=')) => {
                        break;
                    }
                    _ => self.at += 1,
                }
            }
        }
        variables
    }

    fn expr(&mut self) -> Expr {
        let place = self.place();
        let kind = match self.peek() {
            Token::Text(text) => {
                self.at += 1;
                Kind::Text(text.to_owned())
            }
            Token::Number(digits) => {
                self.at += 1;
                Kind::Number(digits.to_owned())
            }
            // `a = b = …`: the value of `a` was forgotten.
            Token::Ident(name) if self.token(self.at + 1) != Token::Mark('=') => {
                self.at += 1;
                Kind::Reference(name.to_owned())
            }
            Token::Class(name) if self.token(self.at + 1) == Token::Mark('(') => {
                self.at += 1;
                let params = self.items('(', ')', Parser::param);
                Kind::Class {
                    name: name.to_owned(),
                    params,
                }
            }
            Token::Class(name) => {
                self.at += 1;
                self.expected(&format!("`(` after {name}"));
                Kind::Wrong
            }
            Token::Mark('[') => Kind::List(self.items('[', ']', |parser| Some(parser.expr()))),
            Token::Mark('{') => Kind::Hash(self.items('{', '}', Parser::pair)),
            Token::Mark(_) | Token::Ident(_) | Token::End => {
                self.expected("a value (string, number, Class(…), [list], {hash} or variable)");
                Kind::Wrong
            }
        };
        Expr { place, kind }
    }

    /// `name = value`, in the parentheses of a class.
    fn param(&mut self) -> Option<(Located<String>, Expr)> {
        let Token::Ident(name) = self.peek() else {
            self.expected("`name = value` or `)`");
            return None;
        };
        self.assigned(name, '=', &format!("`=` after `{name}`"))
    }

    /// `"key": value`, in a hash.
    fn pair(&mut self) -> Option<(Located<String>, Expr)> {
        let Token::Text(key) = self.peek() else {
            self.expected("`\"key\": value` or `}`");
            return None;
        };
        self.assigned(key, ':', &format!("`:` after {key:?}"))
    }

    /// What stands behind a name: the mark, and the value; `wanted` says what is missing without the mark.
    fn assigned(
        &mut self,
        name: &str,
        mark: char,
        wanted: &str,
    ) -> Option<(Located<String>, Expr)> {
        let place = self.place();
        self.at += 1;
        if self.peek() != Token::Mark(mark) {
            self.expected(wanted);
            return None;
        }
        self.at += 1;
        let value = name.to_owned();
        Some((Located { value, place }, self.expr()))
    }

    /// Everything between two brackets, separated by commas or by nothing. An item that is wrong is skipped up to the
    /// next comma or closing bracket of this level.
    fn items<T>(
        &mut self,
        open: char,
        close: char,
        mut item: impl FnMut(&mut Self) -> Option<T>,
    ) -> Vec<T> {
        let opened = self.place();
        self.at += 1;
        let mut items = Vec::new();
        if self.closers.len() >= DEPTH_MAX {
            self.findings
                .error(&opened, format!("nested deeper than {DEPTH_MAX} levels"));
            self.skip();
            self.close(close);
            return items;
        }
        self.closers.push(close);
        loop {
            let before = self.at;
            match self.peek() {
                Token::Mark(mark) if mark == close => {
                    self.at += 1;
                    break;
                }
                Token::End => {
                    // Only the innermost is told: the others are open because it is.
                    if !self.torn {
                        self.torn = true;
                        self.findings
                            .error(&opened, format!("`{open}` is never closed by a `{close}`"));
                    }
                    break;
                }
                Token::Mark(mark @ (')' | ']' | '}')) => {
                    let place = self.place();
                    let message = format!(
                        "expected `{close}` for the `{open}` opened {}, found `{mark}`",
                        at(&opened)
                    );
                    self.findings.error(&place, message);
                    self.torn = true;
                    if self.closers.contains(&mark) {
                        // An outer bracket's: this one was forgotten, and everything is in its place again.
                        break;
                    }
                    self.at += 1;
                    continue;
                }
                _ => {}
            }
            match item(self) {
                Some(item) => items.push(item),
                None => self.skip(),
            }
            if self.peek() == Token::Mark(',') {
                let comma = self.place();
                self.at += 1;
                match self.peek() {
                    Token::Mark(mark) if mark == close => {
                        self.findings.error(
                            &comma,
                            format!("expected another item after `,`, found `{close}`"),
                        );
                    }
                    Token::Mark(',') => {
                        self.findings
                            .error(&comma, "expected another item after `,`, found `,`");
                        while self.peek() == Token::Mark(',') {
                            self.at += 1;
                        }
                    }
                    _ => {}
                }
            } else if self.at == before {
                // Whatever it is, it was told and belongs nowhere.
                self.take();
            }
        }
        self.closers.pop();
        items
    }

    /// Skips to the next comma or closing bracket of this level, or to the end.
    fn skip(&mut self) {
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                Token::End => return,
                Token::Mark('(' | '[' | '{') => depth += 1,
                Token::Mark(')' | ']' | '}') => match depth.checked_sub(1) {
                    Some(less) => depth = less,
                    None => return,
                },
                Token::Mark(',') if depth == 0 => return,
                _ => {}
            }
            self.at += 1;
        }
    }

    fn close(&mut self, close: char) {
        while !matches!(self.peek(), Token::End | Token::Mark(')' | ']' | '}')) {
            self.at += 1;
            self.skip();
        }
        if self.peek() == Token::Mark(close) {
            self.at += 1;
        }
    }
}

fn at(place: &Place) -> String {
    match place {
        Place::Text { line, column } => format!("at {line}:{column}"),
        _ => String::new(),
    }
}

fn describe(token: Token<'_>) -> String {
    match token {
        Token::Text(text) => format!("the string {}", shortened(text)),
        Token::Number(digits) => format!("the number {}", shortened(digits)),
        Token::Class(name) | Token::Ident(name) => format!("`{}`", shortened(name)),
        Token::Mark(mark) => format!("`{mark}`"),
        Token::End => "the end of the file".to_owned(),
    }
}

/// Keeps a message on one line of a bearable length.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 40;
    let short: String = text
        .chars()
        .take(LONGEST)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().count() > LONGEST {
        format!("{short}…")
    } else {
        short
    }
}

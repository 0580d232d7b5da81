//! The m2sh `.conf` language: every mistake at once, each as `file:line:col: message` with what was expected.
//!
//! Lexer, parser and meaning are apart: the first two never fail and know no class, the last knows what a Server is. What
//! m2sh loses without a word (a missing string, a directory without its final slash) is an error here, and what it
//! ignores (an unknown parameter, a variable nobody uses) is a warning.

mod lexer;
mod meaning;
mod order;
mod parser;
mod print;

use std::path::Path;

use super::draft::Findings;
use super::{Mimetypes, Reading, Settings};

pub use print::print;

/// Reads a whole `.conf`. Any error stands against the whole file, as m2sh stops at it.
pub fn read(path: &Path, text: &[u8]) -> Reading {
    let mut findings = Findings::new(path);
    // Comments may be in any encoding; a string may not, and the lexer says so.
    let document = parser::parse(&String::from_utf8_lossy(text), &mut findings);
    let mut reading = if document.torn {
        nothing()
    } else {
        meaning::read(&document, &mut findings)
    };
    reading.fatal = findings.has_errors();
    reading.diagnostics = findings.into_list();
    // In the order of the file; what several servers share is told once.
    reading
        .diagnostics
        .sort_by(|left, right| left.place.cmp(&right.place));
    reading.diagnostics.dedup();
    reading
}

fn nothing() -> Reading {
    Reading {
        candidates: Vec::new(),
        settings: Settings::default(),
        setting_rows: Vec::new(),
        mimetypes: Mimetypes::default(),
        diagnostics: Vec::new(),
        fatal: false,
    }
}

#[cfg(test)]
mod tests;

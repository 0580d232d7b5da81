//! The m2sh `.conf` language.

use std::path::Path;

use super::Reading;

pub(super) fn read(_path: &Path, _text: &[u8]) -> Reading {
    Reading {
        candidates: Vec::new(),
        settings: super::Settings::default(),
        setting_rows: Vec::new(),
        mimetypes: super::Mimetypes::default(),
        diagnostics: Vec::new(),
        fatal: true,
    }
}

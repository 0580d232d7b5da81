//! Certificates and keys as bytes. The front never opens a key file: who may reads them, perhaps outside of a jail, and passes
//! them in. Nothing is parsed here.

use std::collections::BTreeMap;
use std::fmt;

/// The contents of `certdir`, and of `ssl.ca_chain`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Contents by file name: every `*.crt` and `*.key` of the directory.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The certificates that client certificates are checked against.
    pub ca_chain: Option<Vec<u8>>,
}

/// Key files hold secrets: what is shown is names only.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("files", &self.files.keys())
            .field("ca_chain", &self.ca_chain.is_some())
            .finish()
    }
}

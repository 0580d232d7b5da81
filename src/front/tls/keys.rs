//! Certificates and keys as bytes, read from their directory by whoever may.
//!
//! The front never opens a key file: a process outside a jail reads them and passes them in. Nothing is parsed here.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use tracing::warn;

/// The largest file that is taken for a certificate or a key, in bytes: chains are a few KiB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The contents of `certdir`, and of `ssl.ca_chain`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Contents by file name: every `*.crt` and `*.key` of the directory.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The certificates that client certificates are checked against.
    pub ca_chain: Option<Vec<u8>>,
}

/// The directory, or the chain, cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {}", path.display())]
pub struct KeysError {
    /// Which of them.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl Keys {
    /// Reads every `*.crt` and `*.key` of `certdir`, and `ca_chain`. A file that cannot be read is left out with a warning:
    /// only what is really needed is missed later, by its name.
    ///
    /// # Errors
    ///
    /// When the directory or the chain cannot be read.
    pub fn read(certdir: &Path, ca_chain: Option<&Path>) -> Result<Self, KeysError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| KeysError { path, source }
        };
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(certdir).map_err(failed(certdir))? {
            let entry = entry.map_err(failed(certdir))?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if !matches!(name.rsplit_once('.'), Some((_, "crt" | "key"))) {
                continue;
            }
            match read_file(&entry.path()) {
                Ok(Some(bytes)) => {
                    files.insert(name, bytes);
                }
                Ok(None) => {}
                Err(error) => warn!("read {}: {error}", entry.path().display()),
            }
        }
        let ca_chain = match ca_chain {
            Some(path) => read_file(path).map_err(failed(path))?,
            None => None,
        };
        Ok(Self { files, ca_chain })
    }
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

/// The contents of a regular file; nothing of anything else, since a pipe would be waited for.
fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    if !fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let why = format!("larger than {FILE_BYTES_MAX} bytes: no certificate and no key");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_and_keys_are_read_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in [
            "a.crt",
            "a.key",
            "_.b.org.crt",
            "notes.txt",
            "crt",
            "a.crt.old",
        ] {
            fs::write(path(name), name).unwrap();
        }
        fs::create_dir(path("directory.crt")).unwrap();
        fs::write(path("huge.key"), vec![b'x'; 1024 * 1024 + 1]).unwrap();
        fs::write(path("ca.pem"), "chain").unwrap();
        let keys = Keys::read(directory.path(), Some(&path("ca.pem"))).unwrap();
        let names: Vec<_> = keys.files.keys().map(String::as_str).collect();
        assert_eq!(names, ["_.b.org.crt", "a.crt", "a.key"]);
        assert_eq!(keys.files["a.key"], b"a.key");
        assert_eq!(keys.ca_chain.as_deref(), Some(&b"chain"[..]));
        assert!(!format!("{keys:?}").contains("97"), "no bytes are shown");
    }

    #[test]
    fn a_directory_or_a_chain_that_is_not_there_is_an_error_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let nothing = directory.path().join("nothing");
        let error = Keys::read(&nothing, None).unwrap_err();
        assert!(error.to_string().ends_with("nothing"), "{error}");
        let error = Keys::read(directory.path(), Some(&nothing)).unwrap_err();
        assert!(error.to_string().ends_with("nothing"), "{error}");
    }
}

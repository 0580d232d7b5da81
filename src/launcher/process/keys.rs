//! The files of certificates and keys as bytes, so that they can be carried into a jail.
//!
//! It looks at names and sizes only; what is in the files is read by who speaks TLS.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// A larger file is no certificate chain and no key, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// More certificates than this are not carried in one message: 32 MiB of them.
const ALL_BYTES_MAX: usize = 32 << 20;

/// The certificates and keys of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::launcher) struct KeyFiles {
    /// The `.crt` and `.key` files of the certificate directory by their names.
    pub(in crate::launcher) files: BTreeMap<String, Vec<u8>>,
    /// What client certificates are checked against.
    pub(in crate::launcher) ca_chain: Option<Vec<u8>>,
}

/// Why the files cannot be had.
#[derive(Debug, thiserror::Error)]
pub(in crate::launcher) enum KeyFilesError {
    /// One of them, or the directory.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// All together.
    #[error("{} holds more than {} MiB of certificates", path.display(), ALL_BYTES_MAX >> 20)]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
}

impl KeyFiles {
    /// Reads every `.crt` and `.key` file of a directory, and the chain.
    pub(super) fn read(certdir: &Path, ca_chain: Option<&Path>) -> Result<Self, KeyFilesError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| KeyFilesError::Read { path, source }
        };
        let mut keys = KeyFiles::default();
        let mut size = 0;
        for entry in fs::read_dir(certdir).map_err(failed(certdir))? {
            let path = entry.map_err(failed(certdir))?.path();
            let wanted = path.extension().is_some_and(|e| e == "crt" || e == "key");
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if !wanted || !path.is_file() {
                continue;
            }
            let bytes = read(&path).map_err(failed(&path))?;
            size += bytes.len();
            if size > ALL_BYTES_MAX {
                let path = certdir.to_owned();
                return Err(KeyFilesError::TooMany { path });
            }
            keys.files.insert(name.to_owned(), bytes);
        }
        keys.ca_chain = match ca_chain {
            Some(path) => Some(read(path).map_err(failed(path))?),
            None => None,
        };
        Ok(keys)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("is too large for a certificate or a key"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_and_keys_are_read_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path();
        for name in ["a.crt", "a.key", "_.example.com.crt", "README", "chain.pem"] {
            fs::write(here.join(name), name).unwrap();
        }
        fs::create_dir(here.join("folder.crt")).unwrap();
        let keys = KeyFiles::read(here, Some(&here.join("chain.pem"))).unwrap();
        let names: Vec<_> = keys.files.keys().map(String::as_str).collect();
        assert_eq!(names, ["_.example.com.crt", "a.crt", "a.key"]);
        assert_eq!(keys.ca_chain.as_deref(), Some(&b"chain.pem"[..]));
        let large = vec![0; usize::try_from(FILE_BYTES_MAX).unwrap() + 1];
        fs::write(here.join("large.key"), large).unwrap();
        let error = KeyFiles::read(here, None).unwrap_err();
        assert!(error.to_string().contains("large.key"), "{error}");
    }
}

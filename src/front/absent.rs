//! Directories that a configuration names and that this process cannot use: the log tells them when the configuration takes effect,
//! not the first request that wants one.
//!
//! Nothing stands against a start here: what is absent now may be mounted or made later, and requests find it then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;
use tracing::warn;

use super::limits::Limits;
use super::{Plan, inside_chroot};
use crate::config::Target;
use crate::sys;

/// What is done with a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// Files in it are opened.
    Enter,
    /// Files are made in it.
    Write,
}

/// Looks at every directory of a plan, off this thread, and warns of those that cannot be used.
pub(super) fn tell(plan: &Plan, limits: &Limits) {
    let needed = needed(plan, limits);
    if needed.is_empty() {
        return;
    }
    drop(spawn_blocking(move || {
        for ((path, need), what) in needed {
            // The dot fails for what is no directory.
            if let Err(error) = sys::may_use(&path.join("."), need == Need::Write) {
                warn!("{what}: {}: {error}", path.display());
            }
        }
    }));
}

/// Every directory once, with what it is for and what comes of its absence.
fn needed(plan: &Plan, limits: &Limits) -> BTreeMap<(PathBuf, Need), String> {
    let server = plan.server();
    let below = |path: &str| inside_chroot(&server.chroot, path);
    let mut needed = BTreeMap::new();
    for route in server.hosts.iter().flat_map(|host| &host.routes) {
        if let Target::Dir(dir) = &route.target {
            needed
                .entry((below(&dir.base), Need::Enter))
                .or_insert_with(|| format!("route {} will answer 404", route.path));
        }
    }
    if let Some(store) = limits
        .upload_store
        .as_deref()
        .filter(|_| !limits.upload_stream)
    {
        let file = below(store);
        let directory = match file.parent() {
            Some(directory) if directory != Path::new("") => directory,
            _ => Path::new("."),
        };
        needed.insert(
            (directory.to_owned(), Need::Write),
            "large bodies will be answered 507, for want of the directory of `upload.temp_store`"
                .to_owned(),
        );
    }
    if let Some(base) = limits.sendfile_base.as_deref() {
        needed.insert(
            (below(base), Need::Enter),
            "handlers can have no file sent, for want of `sendfile.base`".to_owned(),
        );
    }
    needed
}

//! What can be asked of a front while it runs: by the control port, by signals. It belongs to the shard's own thread.

use std::rc::{Rc, Weak};

use super::Plan;
use super::Shard;
use super::reload::{ReloadError, Reloaded};

/// A running front, for those who look at it and steer it. Cheap to clone; when the front has ended it does nothing.
#[derive(Clone)]
pub struct Handle {
    shard: Weak<Shard>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    pub(super) fn new(shard: &Rc<Shard>) -> Self {
        Self {
            shard: Rc::downgrade(shard),
        }
    }

    /// Opens the access log again under its name: the old file was renamed.
    pub fn reopen_logs(&self) {
        if let Some(shard) = self.shard.upgrade()
            && let Some(log) = &*shard.access_log.borrow()
        {
            log.reopen();
        }
    }

    /// Serves another plan from now on; see [`Reloaded`]. What is open goes on as it began.
    ///
    /// # Errors
    ///
    /// When something new cannot be had. Then nothing has changed.
    ///
    /// # Cancel safety
    ///
    /// Not safe: let it complete, or the change may be half made.
    pub async fn reload(&self, plan: Plan) -> Result<Reloaded, ReloadError> {
        match self.shard.upgrade() {
            Some(shard) => shard.reload(plan).await,
            None => Err(ReloadError::Ended),
        }
    }
}

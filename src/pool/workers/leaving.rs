//! Workers that get no more requests although their PULL is open. What is queued for them is [`crate::pool`]'s business.

use tracing::debug;

use super::super::kin::{Kin, token};
use super::{Id, Link, Worker, Workers};
use crate::bus::server::{Origin, PeerId};

/// Whether a worker whose PULL is open gets new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// It does.
    No,
    /// It does not, and has not asked for that: it is told nothing.
    Unasked,
    /// It does not, has asked for that, and is yet to be told that it had its last one.
    Untold,
    /// It does not, and knows.
    Told,
}

impl Workers {
    /// The handler behind a voice asks for no more requests, and proves by its token that it speaks for itself. Gives its workers
    /// that got some until now; there are none while its PULL is not connected, and then it is told when that comes.
    pub(in crate::pool) fn drain_voice(&mut self, voice: PeerId, text: &[u8]) -> Vec<Id> {
        let Some(voice) = self.voices.get_mut(&voice) else {
            return Vec::new();
        };
        let kin = voice.kin;
        if token(text).map(Kin::Token) != Some(kin) {
            return Vec::new();
        }
        voice.drains = true;
        self.drain_where(Leave::Untold, |worker| worker.kin == kin)
    }

    /// Gives no more requests to the workers of a process.
    pub(in crate::pool) fn drain_process(&mut self, process: u32) -> Vec<Id> {
        let of_it = |worker: &Worker| worker.link.peer.origin() == Origin::Process(process);
        self.drain_where(Leave::Unasked, of_it)
    }

    pub(super) fn drain_where(&mut self, how: Leave, which: impl Fn(&Worker) -> bool) -> Vec<Id> {
        let mut begun = Vec::new();
        for (index, worker) in &mut self.all {
            if !worker.connected || !which(worker) {
                continue;
            }
            match worker.leave {
                Leave::No => {
                    debug!(peer = %worker.link.peer.id(), "handler gets no more requests");
                    worker.leave = how;
                    self.leaving += 1;
                    begun.push(Id(index));
                }
                // Somebody else has asked before it did.
                Leave::Unasked => worker.leave = how,
                Leave::Untold | Leave::Told => {}
            }
        }
        for id in &begun {
            self.restand(*id);
        }
        begun
    }

    /// Workers that have asked for no more requests and are to be told that they had their last.
    pub(in crate::pool) fn untold(&self) -> Vec<(Id, Link)> {
        if self.leaving == 0 {
            return Vec::new();
        }
        let untold = self.all.iter().filter(|(_, worker)| {
            // Whoever asks has a token, so that nobody is told who would not understand it.
            worker.leave == Leave::Untold && worker.connected
        });
        untold
            .map(|(index, worker)| (Id(index), worker.link.clone()))
            .collect()
    }

    /// A worker was told that it had its last request.
    pub(in crate::pool) fn told(&mut self, id: Id) {
        if let Some(worker) = self.all.get_mut(id.0) {
            worker.leave = Leave::Told;
        }
    }

    /// Whether a worker with an open PULL gets no new requests.
    pub(in crate::pool) fn is_leaving(&self, id: Id) -> bool {
        self.leaving > 0
            && self
                .all
                .get(id.0)
                .is_some_and(|worker| worker.connected && worker.leave != Leave::No)
    }

    /// Whether a request can be handed to somebody now.
    pub(in crate::pool) fn is_anyone_ready(&self) -> bool {
        self.balancer.has_room()
    }

    /// Whether somebody would take the messages of a connection now, though perhaps no request.
    pub(in crate::pool) fn is_anyone_attachable(&self) -> bool {
        let mut all = self.all.iter().map(|(index, _)| Id(index));
        all.any(|id| self.takes(id) && !self.is_leaving(id))
    }

    /// What the handlers of a process have open, attached connections included.
    pub(in crate::pool) fn held_by_process(&self, process: u32) -> usize {
        let workers = self.all.iter().map(|(_, worker)| worker);
        workers
            .filter(|worker| worker.link.peer.origin() == Origin::Process(process))
            .map(|worker| self.held(worker) as usize)
            .sum()
    }
}

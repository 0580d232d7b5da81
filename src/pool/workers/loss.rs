//! What the loss of one of a handler's two sockets means: whether it is dead, or answers what it has, or comes back.

use tokio::time::Instant;
use tracing::debug;

use super::super::LOSS_WINDOW;
use super::super::kin::Kin;
use super::leaving::Leave;
use super::{Id, Phase, Voice, Workers};
use crate::bus::BROKER_PROPERTY;
use crate::bus::server::PeerId;

impl Workers {
    /// A PULL peer is lost. Gives the worker when it is certain that the handler is dead with what it had.
    pub(in crate::pool) fn leave(&mut self, peer: PeerId, now: Instant) -> Option<Id> {
        let id = self.find(peer)?;
        let held = self.held_by(id);
        let worker = &mut self.all[id.0];
        worker.connected = false;
        self.leaving -= usize::from(worker.leave != Leave::No);
        debug!(%peer, held, "handler left");
        let kin = worker.kin;
        self.restand(id);
        self.depart(kin);
        let worker = &mut self.all[id.0];
        if held == 0 {
            if worker.voice.is_none() {
                // A voice that was lost just now was this one's, and speaks for no other worker's death.
                self.take_lost_voice(kin, now);
            }
            self.forget(id);
            return None;
        }
        worker.phase = Phase::Doubtful { since: now };
        let voices = &mut self.voices.values();
        let alive = match (kin, worker.voice) {
            // All voices of that name are its own, and nobody else's.
            (kin, _) if kin.is_certain() => voices.any(|voice| voice.kin == kin),
            (_, Some(voice)) => self.voices.contains_key(&voice),
            (_, None) => {
                !self.take_lost_voice(kin, now)
                    && self.voices.values().any(|voice| voice.kin == kin)
            }
        };
        (!alive).then_some(id)
    }

    /// A worker of this kin has left: one of the voices there, if they are more than the workers that stay, was its own.
    fn depart(&mut self, kin: Kin) {
        if kin.is_certain() {
            return;
        }
        let staying = self
            .all
            .iter()
            .filter(|(_, worker)| worker.connected && worker.kin == kin)
            .count();
        let voices = self.voices.values().filter(|voice| voice.kin == kin);
        let spare = voices.count().saturating_sub(staying);
        if spare > 0 {
            let departed = self.departed.entry(kin).or_default();
            *departed = spare.min(*departed + 1);
        } else {
            self.departed.remove(&kin);
        }
    }

    /// A PUB peer is lost. Gives the workers that are dead with it.
    pub(in crate::pool) fn voice_lost(&mut self, peer: PeerId, now: Instant) -> Vec<Id> {
        let Some(Voice { kin, .. }) = self.voices.remove(&peer) else {
            return Vec::new();
        };
        debug!(voice = %peer, ?kin, "reply socket left");
        let last_of_kin = !self.voices.values().any(|voice| voice.kin == kin);
        let named = kin.is_certain();
        if named && !last_of_kin {
            // It has connected anew, and the end of the old connection was noticed late.
            return Vec::new();
        }
        let of_the_living = self
            .all
            .iter()
            .any(|(_, worker)| worker.connected && worker.voice == Some(peer));
        let mut of_the_departed = false;
        if !of_the_living && let Some(departed) = self.departed.get_mut(&kin) {
            of_the_departed = true;
            *departed -= 1;
            if *departed == 0 {
                self.departed.remove(&kin);
            }
        }
        let mut dead = Vec::new();
        // Where it is not known whose voice it was, it was that of one worker at most that has left and has no other.
        let mut claimed = self
            .all
            .iter()
            .any(|(_, worker)| worker.voice == Some(peer));
        let mut unpaired = Vec::new();
        for (index, worker) in &mut self.all {
            // The last voice of that name, whichever of them has answered.
            let tied = worker.voice == Some(peer) || (named && worker.kin == kin);
            let near = worker.voice.is_none() && worker.kin == kin;
            match worker.phase {
                Phase::Doubtful { .. } | Phase::Draining
                    if tied || (near && (!claimed || last_of_kin)) =>
                {
                    claimed = true;
                    dead.push(Id(index));
                }
                // It still takes requests and could not answer them: held until it has a voice again.
                Phase::Ready if tied || (near && last_of_kin) => {
                    worker.phase = Phase::Pairing { since: now };
                    unpaired.push(Id(index));
                }
                _ => {}
            }
        }
        for id in unpaired {
            self.restand(id);
        }
        if !claimed && !of_the_departed && !named {
            self.forget_old_losses(now);
            self.lost_voices.push_back((now, kin));
        }
        dead
    }

    /// What ties a broker to its successor; none for what is no broker, or has not said whose it is.
    pub(in crate::pool) fn broker(&self, id: Id) -> Option<Kin> {
        let worker = self.all.get(id.0)?;
        worker.link.peer.property(BROKER_PROPERTY)?;
        matches!(worker.kin, Kin::Token(_)).then_some(worker.kin)
    }

    /// Whether a reply socket of this kin is heard.
    pub(in crate::pool) fn has_voice(&self, kin: Kin) -> bool {
        self.voices.values().any(|voice| voice.kin == kin)
    }

    /// Whether a reply socket is of this kin.
    pub(in crate::pool) fn is_of_kin(&self, voice: PeerId, kin: Kin) -> bool {
        self.voices
            .get(&voice)
            .is_some_and(|voice| voice.kin == kin)
    }

    /// The workers of this kin that have left and still have something.
    pub(in crate::pool) fn departed_of(&self, kin: Kin) -> Vec<Id> {
        let departed = |worker: &super::Worker| worker.kin == kin && !worker.connected;
        let all = self.all.iter().filter(|(_, worker)| departed(worker));
        all.map(|(index, _)| Id(index)).collect()
    }

    /// Whether a voice of this kin, whose worker was not known, was lost just now; it is then used up.
    fn take_lost_voice(&mut self, kin: Kin, now: Instant) -> bool {
        self.forget_old_losses(now);
        let found = self.lost_voices.iter().position(|(_, lost)| *lost == kin);
        found.is_some_and(|index| self.lost_voices.remove(index).is_some())
    }

    fn forget_old_losses(&mut self, now: Instant) {
        self.lost_voices
            .retain(|(at, _)| now.duration_since(*at) <= LOSS_WINDOW);
    }
}

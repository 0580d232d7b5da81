//! How much of a response is written, told to a handler that has asked for it (`flow`), or to every one (`download.flow_control`).
//!
//! Whoever asks is told, and nobody else: what a handler has asked for ends with the response that it has asked for, and is not told to
//! the handler of the next. A response has one handler: as long as that is told, no other one's question counts.

use std::rc::Rc;

use super::Client;
use crate::bus::server::PeerId;
use crate::pool::Pool;
use crate::wire::reply;
use crate::wire::request::Notice;

/// A handler that has asked for it is told when this part of its window was written: it need not stop meanwhile, and is not
/// told of every packet.
const TOLD_PER_WINDOW: u64 = 4;

/// A response of which a handler is told how much is written.
pub(super) struct Flow {
    /// Who has asked.
    pool: Rc<Pool>,
    voice: PeerId,
    /// What the handler wants to have outstanding.
    window: u64,
    /// What it has sent, as it counts: it says so whenever it asks, so that a notice that got lost is of no consequence.
    sent: u64,
    /// What it was last told.
    told: u64,
    /// It has asked, and waits for an answer.
    asked: bool,
}

impl Client {
    /// Flow control: tells the handler that the client has taken so many bytes.
    pub(in crate::front) fn credit(&self, bytes: usize) {
        if !self
            .flow
            .borrow()
            .as_deref()
            .is_some_and(|flow| self.is_handled_by(flow.voice))
        {
            if let Some(id) = self.id()
                && let Some((pool, peer)) = &*self.last_handler.borrow()
            {
                pool.notify(*peer, id, Notice::Credits(bytes as u64));
            }
            return;
        }
        // Who has asked is told by what he has asked for.
        self.tell_written();
    }

    /// The handler behind a reply socket asks to be told how much of its response is written, until that ends.
    pub(in crate::front) fn ask_flow(&self, pool: &Rc<Pool>, voice: PeerId, asked: reply::Flow) {
        // What is written there is longer than what the handler has sent.
        if self.speaks_messages() {
            return;
        }
        let slot = &mut *self.flow.borrow_mut();
        let told = match slot {
            Some(flow) if flow.voice == voice => Some(flow.told),
            Some(_) if !self.is_handled_by(voice) => return,
            _ => None,
        };
        let reply::Flow { window, sent } = asked;
        *slot = Some(Box::new(Flow {
            pool: Rc::clone(pool),
            voice,
            window,
            sent,
            told: told.unwrap_or_else(|| self.written_of(sent)),
            asked: true,
        }));
        self.wake();
    }

    /// The response has ended, or the next begins: who asks behind the end of a response asks once.
    pub(in crate::front) fn end_flow(&self) {
        self.flow.take();
    }

    /// Bytes were put into the mailbox.
    pub(super) fn count_sent(&self, bytes: usize) {
        if let Some(flow) = self.flow.borrow_mut().as_deref_mut() {
            flow.sent = flow.sent.saturating_add(bytes as u64);
        }
    }

    /// Tells the handler that has asked for it how much is written, when it is time.
    pub(in crate::front) fn tell_flow(&self) {
        let is_time = self.flow.borrow().as_deref().is_some_and(|flow| {
            let news = self.written_of(flow.sent).saturating_sub(flow.told);
            flow.asked || news >= self.window_of(flow) / TOLD_PER_WINDOW && news > 0
        });
        if is_time {
            self.tell_written();
        }
    }

    fn tell_written(&self) {
        let mut flow = self.flow.borrow_mut();
        let (Some(flow), Some(id)) = (flow.as_deref_mut(), self.id()) else {
            return;
        };
        let (window, sent) = (self.window_of(flow), self.written_of(flow.sent));
        let credits = sent.saturating_sub(flow.told);
        flow.told = sent;
        flow.asked = false;
        let peer = match &*self.last_handler.borrow() {
            Some((pool, peer)) if Rc::ptr_eq(pool, &flow.pool) => *peer,
            _ => None,
        };
        let notice = Notice::Flow {
            credits,
            flow: reply::Flow { window, sent },
        };
        flow.pool.notify_asker(flow.voice, peer, id, notice);
    }

    /// Of so many bytes that were sent, those that are written.
    fn written_of(&self, sent: u64) -> u64 {
        let waiting = self.mailbox.borrow().bytes + self.unwritten.get();
        sent.saturating_sub(waiting as u64)
    }

    /// What a handler may have outstanding: more than the mailbox takes would end the connection.
    fn window_of(&self, flow: &Flow) -> u64 {
        flow.window
            .clamp(1, (self.mailbox_bytes_max() as u64).max(1))
    }
}

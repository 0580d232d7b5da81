//! REP: questions in, answers out, each to the peer that asked, under the envelope it came with.
//!
//! An envelope is what stands before a question up to its first empty frame: just that for a REQ, and the return addresses
//! of routers on the way for a DEALER. As in libzmq, what has no such frame, or nothing behind it, is dropped without an
//! answer. The answer is found at once, by a plain call: who needs time has to answer that it has begun.

use std::rc::Rc;

use bytes::Bytes;

use super::{Message, Peer, Sink, Unsent};

/// A sink for [`super::Kind::Rep`] that answers each question with what `answer` makes of its first frame. Further frames are
/// ignored. `answer` must not block.
pub fn answering(answer: impl Fn(&Rc<Peer>, &Bytes) -> Vec<u8> + 'static) -> Rc<dyn Sink> {
    Rc::new(Answering(answer))
}

struct Answering<F>(F);

impl<F: Fn(&Rc<Peer>, &Bytes) -> Vec<u8>> Sink for Answering<F> {
    fn joined(&self, _: &Rc<Peer>) {}

    fn subscribed(&self, _: &Rc<Peer>) {}

    fn message(&self, peer: &Rc<Peer>, message: Message) {
        let mut frames = message.frames();
        let mut reply: Vec<&[u8]> = Vec::new();
        let delimited = frames.by_ref().any(|frame| {
            reply.push(frame);
            frame.is_empty()
        });
        let Some(question) = frames.next().filter(|_| delimited) else {
            tracing::debug!(peer = %peer.id(), origin = %peer.origin(), "no question in a message: dropped");
            return;
        };
        let answer = (self.0)(peer, question);
        reply.push(&answer);
        if let Err(why) = peer.send_frames(&reply, 0) {
            tracing::debug!(peer = %peer.id(), origin = %peer.origin(), "answer dropped: {why}");
        }
    }

    fn writable(&self, _: &Rc<Peer>) {}

    fn lost(&self, _: &Rc<Peer>, _: Vec<Unsent>) {}
}

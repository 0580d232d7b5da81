//! Workers of the own dialect that do everything that workers do, wrongly too, in any order: whatever happens, counts agree, each
//! request ends once, nothing is heard under an id that was given up, and at last nobody has anything.

use super::session::Condition;
use super::tests::{Note, pass};
use super::worker_tests::{Ears, Worker, pool_that_hears};
use super::*;
use crate::wire::worker::RequestId;

const SEEDS: u64 = 128;
const STEPS: u32 = 300;

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed >> 33) % end as u64).unwrap()
    }
}

/// Somebody who waits for an answer.
struct Client {
    ticket: Ticket,
    note: Rc<Note>,
    /// A worker has begun to answer it, or has said that it is done with it; the rest it leaves to others.
    left: bool,
}

/// What a worker has read and not finished: its number and the client's.
struct Got {
    id: RequestId,
    client: u32,
}

struct Mate {
    worker: Worker,
    got: Vec<Got>,
    drained: bool,
    blocked: bool,
}

struct World {
    pool: Rc<Pool>,
    ears: Rc<Ears>,
    dice: Dice,
    clients: Vec<Client>,
    mates: Vec<Mate>,
    asked: u32,
    ended: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let rules = Rules {
            wait_max: Duration::from_secs(4),
            suspect_grace: Duration::from_secs(2),
            shed_late: false,
            ..Rules::default()
        };
        let (pool, ears) = pool_that_hears(rules);
        Self {
            pool,
            ears,
            dice: Dice(seed),
            clients: Vec::new(),
            mates: Vec::new(),
            asked: 0,
            ended: 0,
        }
    }

    fn submit(&mut self) {
        let retry = [Retry::Never, Retry::Safe][self.dice.below(2)];
        let deadline = (self.dice.below(3) == 0)
            .then(|| Instant::now() + Duration::from_millis(100 + self.dice.below(5_000) as u64));
        let note = Rc::new(Note::from(self.asked * 100));
        let ask = Ask {
            retry,
            key: None,
            deadline,
        };
        let submitted = self
            .pool
            .submit(Bytes::from_static(b"x"), ask, Rc::clone(&note) as Rc<_>);
        if let Ok(ticket) = submitted {
            self.asked += 1;
            self.clients.push(Client {
                ticket,
                note,
                left: false,
            });
        }
    }

    fn hire(&mut self) {
        let slots = u32::try_from(self.dice.below(4)).unwrap();
        self.mates.push(Mate {
            worker: Worker::join(&self.pool, "w", slots),
            got: Vec::new(),
            drained: false,
            blocked: false,
        });
    }

    /// A worker reads what is queued for it.
    fn read(&mut self, at: usize) {
        let mate = &mut self.mates[at];
        for frames in mate.worker.messages() {
            match frames[0].as_str() {
                "REQUEST" => {
                    assert!(!mate.drained, "nothing comes behind DRAIN");
                    let address: Vec<&str> = frames[4].split(' ').collect();
                    mate.got.push(Got {
                        id: RequestId(frames[1].parse().unwrap()),
                        client: address[1].parse().unwrap(),
                    });
                }
                "DRAIN" => mate.drained = true,
                _ => {}
            }
        }
        mate.worker.takes_all();
        if mate.drained && mate.got.is_empty() {
            self.fire(at);
        }
    }

    fn fire(&mut self, at: usize) {
        self.mates.remove(at).worker.dies();
    }

    /// A worker answers: as a whole, or with the beginning of a stream.
    fn reply(&mut self, at: usize, which: usize, whole: bool) {
        let mate = &self.mates[at];
        let Some(Got { id, client }) = mate.got.get(which) else {
            return;
        };
        let (peer, client) = (mate.worker.peer.id(), *client);
        self.pool.worker_replied(peer, Some(*id), Bytes::new());
        let heard = self.ears.0.take().len();
        let to = |other: &Client| {
            Rc::clone(&other.note).id().0 == client && other.note.failures.borrow().is_empty()
        };
        let Some(place) = self.clients.iter().position(to) else {
            assert!(
                heard == 0
                    || self
                        .clients
                        .iter()
                        .any(|c| !c.note.failures.borrow().is_empty()),
                "what is heard is for somebody"
            );
            return;
        };
        if heard == 0 {
            return;
        }
        let client = &mut self.clients[place];
        assert!(client.ticket.started(peer), "who answers has it");
        assert_eq!(client.ticket.peer(), Some(peer), "nobody else does");
        client.left = true;
        if whole {
            let client = self.clients.remove(place);
            client.ticket.answered();
            self.ended += 1;
        } else if self.dice.below(2) == 0 {
            client.ticket.attach();
        }
    }

    fn done(&mut self, at: usize, which: usize) {
        let mate = &mut self.mates[at];
        if which < mate.got.len() {
            let got = mate.got.remove(which);
            mate.worker.done(got.id);
            let mut clients = self.clients.iter_mut();
            if let Some(client) = clients.find(|c| Rc::clone(&c.note).id().0 == got.client) {
                client.left = true;
            }
        }
    }

    fn step(&mut self) {
        let what = self.dice.below(18);
        if what < 4 {
            return self.submit();
        }
        if self.mates.is_empty() || (what == 4 && self.mates.len() < 6) {
            return self.hire();
        }
        let at = self.dice.below(self.mates.len());
        let peer = Rc::clone(&self.mates[at].worker.peer);
        let which = self.dice.below(self.mates[at].got.len().max(1));
        match what {
            5 | 6 => self.read(at),
            7 | 8 => {
                if let Some(got) = self.mates[at].got.get(which) {
                    self.mates[at].worker.began(got.id);
                }
            }
            9 => {
                let whole = self.dice.below(4) > 0;
                self.reply(at, which, whole);
            }
            10 => self.done(at, which),
            11 if self.dice.below(3) == 0 => self.fire(at),
            12 => {
                let silent = self.dice.below(2) == 0;
                if silent {
                    self.pool.worker_does(peer.id(), Condition::Silent);
                } else {
                    self.pool.worker_does(peer.id(), Condition::Well);
                }
            }
            13 if self.dice.below(4) == 0 => self.pool.worker_drains(peer.id()),
            14 => {
                let slots = u32::try_from(self.dice.below(4)).unwrap();
                self.pool.worker_credit(peer.id(), Some(slots));
            }
            15 if !self.clients.is_empty() => {
                let place = self.dice.below(self.clients.len());
                drop(self.clients.remove(place));
                self.ended += 1;
            }
            16 => {
                // Of what others have, and of what nobody has.
                let other = self.dice.below(self.mates.len());
                let id = self.mates[other].got.first().map_or(7, |got| got.id.0);
                if other != at {
                    self.mates[at].worker.began(RequestId(id));
                    self.mates[at].worker.done(RequestId(id));
                    self.pool
                        .worker_replied(peer.id(), Some(RequestId(id)), Bytes::new());
                    assert_eq!(self.ears.0.take().len(), 0, "nobody speaks for another");
                }
            }
            17 => {
                let mate = &mut self.mates[at];
                mate.blocked = !mate.blocked;
                peer.pretend_blocked(mate.blocked);
                if mate.blocked {
                    self.pool.worker_blocked(peer.id());
                } else {
                    self.pool.worker_writable(peer.id());
                }
            }
            _ => {}
        }
    }

    /// What callers and the bus do, and what must always be so.
    fn follow(&mut self) {
        while let Some(at) = self.mates.iter().position(|m| m.worker.peer.is_gone()) {
            self.fire(at);
        }
        while let Some(place) = self.clients.iter().position(|client| {
            let failures = client.note.failures.borrow();
            assert!(failures.len() <= 1, "a request fails once");
            !failures.is_empty()
        }) {
            drop(self.clients.remove(place));
            self.ended += 1;
        }
        self.pool.state.borrow().workers.balancer.check_invariants();
    }

    async fn come_to_rest(&mut self) {
        for mate in &mut self.mates {
            let peer = mate.worker.peer.id();
            mate.blocked = false;
            mate.worker.peer.pretend_blocked(false);
            self.pool.worker_writable(peer);
            self.pool.worker_does(peer, Condition::Well);
            self.pool.worker_credit(peer, Some(1));
        }
        for _ in 0..200 {
            for at in (0..self.mates.len()).rev() {
                self.read(at);
            }
            for at in 0..self.mates.len() {
                while !self.mates[at].got.is_empty() {
                    self.reply(at, 0, true);
                    self.done(at, 0);
                }
            }
            pass(&self.pool, Duration::from_millis(50)).await;
            self.follow();
        }
        let waits = self.clients.iter().filter(|client| !client.left);
        assert_eq!(waits.count(), 0, "nobody waits whom no worker left so");
        self.ended += u32::try_from(self.clients.len()).unwrap();
        self.clients.clear();
        assert_eq!(self.ended, self.asked, "each ended once");
        let report = self.pool.report();
        assert_eq!(
            (report.waiting, report.waiting_bytes, report.in_flight),
            (0, 0, 0)
        );
        for worker in &report.workers {
            assert_eq!((worker.open, worker.attached), (0, 0), "{worker:?}");
        }
        assert!(self.pool.state.borrow().is_idle());
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_workers_do_each_request_ends_once_and_at_last_nobody_has_anything() {
    let mut all = Counts::default();
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
            if world.dice.below(4) == 0 {
                let time = Duration::from_millis(world.dice.below(700) as u64);
                pass(&world.pool, time).await;
            }
            world.follow();
        }
        println!("seed {seed}");
        world.come_to_rest().await;
        let counts = world.pool.report().counts;
        all.served += counts.served;
        all.requeued += counts.requeued;
        all.retried += counts.retried;
        all.unsent += counts.unsent;
        all.quarantined += counts.quarantined;
        all.failed_worker_lost += counts.failed_worker_lost;
        all.failed_deadline_open += counts.failed_deadline_open;
        all.failed_deadline_waiting += counts.failed_deadline_waiting;
        all.failed_wait_over += counts.failed_wait_over;
        all.shed_queue_full += counts.shed_queue_full;
    }
    let rarest = [
        all.served,
        all.requeued,
        all.retried,
        all.unsent,
        all.quarantined,
        all.failed_worker_lost,
        all.failed_deadline_open,
        all.failed_deadline_waiting,
        all.failed_wait_over,
        all.shed_queue_full,
    ];
    assert!(!rarest.contains(&0), "all of it has happened: {all:?}");
}

//! What befalls the workers of a simulation, and its clients: they come, die, stall, leave, change their minds.

use super::*;

impl World {
    pub(super) fn hire(&mut self) {
        self.hired += 1;
        let number = self.hired;
        let slots = 1 + u32::try_from(self.below(4)).unwrap();
        let tells_start = self.chance(2);
        let says = !self.chance(4);
        // Names come again, as those of workers that are started anew.
        let name = format!("w{}", self.below(8));
        let weight = 1 + u32::try_from(self.below(3)).unwrap();
        let key = self.balancer.add(
            NewWorker {
                name: name.as_bytes(),
                slots: says.then_some(slots),
                weight,
                standing: Standing::Ready,
                tells_start,
            },
            self.now,
        );
        self.check();
        let slowness = if self.chance(4) { 20 } else { 1 };
        let mate = Mate {
            key,
            slots,
            slowness,
            tells_start,
            inbox: VecDeque::new(),
            running: Vec::new(),
            stalled: false,
            outbox: Vec::new(),
            draining: false,
        };
        self.mates.insert(number, mate);
    }

    pub(super) fn kill(&mut self, number: usize) {
        let Some(mate) = self.mates.remove(&number) else {
            return;
        };
        self.note("worker lost");
        self.dead.insert(number, mate.key);
        let picky = self.chance(10);
        let mut asked = Vec::new();
        let lost = self.balancer.lost(mate.key, self.now, &mut |request| {
            asked.push(request);
            !picky
        });
        self.check();
        for Lost { request, fate } in lost {
            match fate {
                Fate::Again => {
                    assert!(asked.contains(&request), "its owner was asked");
                    self.note("again");
                }
                Fate::Failed(why) => {
                    self.failed(request, why);
                }
            }
        }
        for request in std::mem::take(&mut self.zombies) {
            if self.balancer.worker_of(request).is_none() {
                self.balancer.end(request, self.now, None);
                self.check();
            } else {
                self.zombies.push(request);
            }
        }
        // What it had sent before may come after the news of its death.
        for (request, attempt) in mate.running {
            if self.chance(2) {
                let millis = self.below(300);
                self.plan(millis, Happens::Echo(number, request, attempt));
            }
        }
    }

    pub(super) fn awake(&mut self, number: usize) {
        let Some(mate) = self.mates.get_mut(&number) else {
            return;
        };
        mate.stalled = false;
        let key = mate.key;
        let standing = if mate.draining {
            Standing::Draining
        } else {
            Standing::Ready
        };
        let outbox = std::mem::take(&mut mate.outbox);
        if self.balancer.standing(key) == Some(Standing::Suspect) {
            self.note("suspect returned");
            self.balancer.set(key, standing, self.now);
            self.check();
        }
        for (request, attempt) in outbox {
            self.answer(key, request, attempt);
        }
        self.work(number);
        self.leave_if_done(number);
    }

    /// A worker that drains and has nothing goes.
    pub(super) fn leave_if_done(&mut self, number: usize) {
        let Some(mate) = self.mates.get(&number).filter(|mate| mate.draining) else {
            return;
        };
        let key = mate.key;
        if self.balancer.open(key) == 0 && self.balancer.attached(key) == 0 {
            assert!(self.balancer.remove(key, self.now), "it has nothing");
            self.check();
            self.note("drained");
            self.dead.insert(number, key);
            self.mates.remove(&number);
        }
    }

    pub(super) fn anyone(&mut self) -> Option<usize> {
        let count = u64::try_from(self.mates.len()).unwrap();
        if count == 0 {
            return None;
        }
        let place = usize::try_from(self.below(count)).unwrap();
        self.mates.keys().nth(place).copied()
    }

    pub(super) fn chaos(&mut self) {
        if self.closing {
            return;
        }
        let pause = 1 + self.below(120);
        self.plan(pause, Happens::Chaos);
        let Some(number) = self.anyone() else {
            if self.chance(3) {
                self.hire();
            }
            return;
        };
        let key = self.mates[&number].key;
        match self.below(14) {
            0 => self.kill(number),
            1 | 2 => self.hire(),
            3 | 4 => self.stall(number, key),
            5 => {
                let mate = self.mates.get_mut(&number).expect("it is there");
                mate.draining = true;
                self.balancer.set(key, Standing::Draining, self.now);
                self.check();
                self.leave_if_done(number);
            }
            6 => {
                self.note("credit");
                let slots = u32::try_from(self.below(5)).unwrap();
                self.balancer.set_slots(key, Some(slots), self.now);
                self.check();
            }
            7 => {
                let hop = Duration::from_millis(self.below(30));
                self.balancer.set_hop(key, hop);
                self.check();
            }
            8..=10 => self.client_leaves(),
            11 => {
                self.note("clock leap");
                let leap = Duration::from_millis(self.below(8_000));
                self.now += leap;
            }
            12 if self.chance(4) => {
                self.note("rules");
                let rules = rules(&mut self.random);
                let queue_max = self.balancer.rules().queue_max.max(rules.queue_max);
                self.balancer
                    .set_rules(Rules { queue_max, ..rules }, self.now);
                self.check();
            }
            _ => {
                if let Some(worker) = self.balancer.pick_attached() {
                    self.balancer.attach_more(worker);
                    self.check();
                    self.balancer.detach(worker);
                    self.check();
                }
                let foreign = u32::from(self.chance(4));
                self.balancer.set_foreign(key, foreign);
                self.check();
            }
        }
    }

    pub(super) fn stall(&mut self, number: usize, key: Worker) {
        let mate = self.mates.get_mut(&number).expect("it is there");
        if mate.stalled {
            return;
        }
        mate.stalled = true;
        let millis = self.below(6_000);
        self.plan(millis, Happens::Awakes(number));
        if !self.chance(3) {
            self.balancer.set(key, Standing::Suspect, self.now);
            self.check();
        }
    }

    pub(super) fn client_leaves(&mut self) {
        let mut open: Vec<Request> = self
            .truth
            .iter()
            .filter(|(_, truth)| truth.end.is_none())
            .map(|(request, _)| *request)
            .collect();
        open.sort_unstable();
        let count = u64::try_from(open.len()).unwrap();
        if count == 0 {
            return;
        }
        let place = usize::try_from(self.below(count)).unwrap();
        let request = open[place];
        self.ended(request, "client gone");
        if self.chance(2) {
            self.balancer.end(request, self.now, None);
        } else if self.balancer.abandon(request, self.now) {
            self.zombies.push(request);
        }
        self.check();
    }
}

//! What a crew does about deaths, reloads and wishes, told to it with times of the test's own.

use super::*;

/// A crew with a clock, whose actions are carried out as a system that never fails would.
struct Yard {
    crew: Crew,
    now: Instant,
    actions: Vec<Action>,
}

impl Yard {
    fn new(wanted: u32) -> Self {
        let crew = Crew::new(wanted, Duration::from_secs(30));
        let mut yard = Self {
            crew,
            now: Instant::now(),
            actions: Vec::new(),
        };
        yard.step();
        yard
    }

    fn step(&mut self) -> Vec<Action> {
        let actions = self.crew.step(self.now);
        // Nothing is asked for twice.
        assert_eq!(self.crew.step(self.now), []);
        self.actions.extend(&actions);
        actions
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.step()
    }

    fn in_state(&self, state: State) -> Vec<Id> {
        let workers = self
            .crew
            .workers
            .iter()
            .filter(|worker| worker.state == state);
        let mut ids: Vec<_> = workers.map(|worker| worker.id).collect();
        ids.sort_unstable();
        ids
    }

    fn ready(&mut self, id: Id) -> Vec<Action> {
        assert!(self.crew.ready(id, self.now));
        self.step()
    }

    fn all_ready(&mut self) {
        for id in self.in_state(State::Starting) {
            self.ready(id);
        }
    }

    fn ended(&mut self, id: Id) -> Meaning {
        self.crew.ended(id, self.now)
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn all_are_started_at_once_with_numbers_of_their_own() {
    let mut yard = Yard::new(3);
    assert_eq!(
        yard.actions,
        [
            Action::Start(0, 1),
            Action::Start(1, 2),
            Action::Start(2, 3)
        ]
    );
    assert!(!yard.crew.is_settled());
    yard.all_ready();
    assert!(yard.crew.is_settled());
    assert_eq!(yard.crew.wake(), None);
}

#[test]
fn a_death_is_followed_by_another_worker_after_a_pause_that_grows() {
    let mut yard = Yard::new(2);
    yard.all_ready();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let id = yard.in_state(State::Ready)[1];
        let Meaning::Died(pause) = yard.ended(id) else {
            panic!("it was ready")
        };
        pauses.push(pause);
        assert_eq!(yard.step(), []);
        assert_eq!(yard.crew.wake(), Some(yard.now + pause));
        assert_eq!(yard.pass(pause.saturating_sub(ms(1))), []);
        assert!(matches!(yard.pass(ms(1))[..], [Action::Start(_, 2)]));
        yard.all_ready();
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(ms));
    // One that has lived did not die of its start.
    yard.now += LIVED;
    let id = yard.in_state(State::Ready)[1];
    assert_eq!(yard.ended(id), Meaning::Died(PAUSE_FIRST));
}

#[test]
fn who_never_starts_is_given_up_when_nobody_serves() {
    let mut yard = Yard::new(1);
    for _ in 1..FAILURES_MAX {
        let id = yard.in_state(State::Starting)[0];
        let Meaning::Failed(pause) = yard.ended(id) else {
            panic!("it was not ready")
        };
        assert!(matches!(yard.pass(pause)[..], [Action::Start(_, 1)]));
    }
    let id = yard.in_state(State::Starting)[0];
    assert_eq!(yard.ended(id), Meaning::CrashLoop);
    assert!(yard.crew.is_stopping() && yard.crew.is_empty());
    assert_eq!(yard.pass(PAUSE_MAX), []);
}

#[test]
fn who_never_starts_is_tried_on_when_another_serves() {
    let mut yard = Yard::new(2);
    yard.ready(0);
    for _ in 0..3 * FAILURES_MAX {
        let id = yard.in_state(State::Starting)[0];
        let Meaning::Failed(pause) = yard.ended(id) else {
            panic!("another serves")
        };
        assert!(matches!(yard.pass(pause)[..], [Action::Start(_, 2)]));
    }
    yard.all_ready();
    assert!(yard.crew.is_settled());
}

#[test]
fn a_reload_never_has_fewer_ready_than_wanted() {
    let mut yard = Yard::new(2);
    yard.all_ready();
    yard.crew.roll();
    assert!(!yard.crew.is_settled());
    assert_eq!(yard.step(), [Action::Start(2, 3)]);
    assert_eq!(yard.in_state(State::Ready), [0, 1]);
    // The old one goes when the new one is ready, and not before; then the next is started.
    let [Action::Drain(first), ..] = yard.ready(2)[..] else {
        panic!("{:?}", yard.actions)
    };
    assert_eq!(yard.in_state(State::Ready).len(), 2);
    assert_eq!(yard.in_state(State::Starting), [3]);
    let actions = yard.ready(3);
    assert!(matches!(actions[..], [Action::Drain(second)] if second != first && second < 2));
    assert_eq!(yard.in_state(State::Ready), [2, 3]);
    assert!(yard.crew.is_settled());
    for id in [0, 1] {
        assert_eq!(yard.ended(id), Meaning::Asked);
    }
    assert_eq!(yard.step(), []);
}

#[test]
fn one_worker_is_replaced_without_a_gap_too() {
    let mut yard = Yard::new(1);
    yard.all_ready();
    for id in 0..50 {
        yard.crew.roll();
        assert!(matches!(yard.step()[..], [Action::Start(..)]));
        assert_eq!(yard.ready(id + 1), [Action::Drain(id)]);
        assert_eq!(yard.ended(id), Meaning::Asked);
        assert_eq!(yard.step(), []);
        assert!(yard.crew.is_settled());
    }
}

#[test]
fn reloads_in_a_hurry_do_not_fill_the_machine() {
    let mut yard = Yard::new(2);
    yard.all_ready();
    for _ in 0..100 {
        yard.crew.roll();
        yard.step();
        yard.all_ready();
        assert!(yard.crew.workers.len() <= 7, "{:?}", yard.crew);
        assert!(yard.in_state(State::Ready).len() >= 2);
    }
    // Nobody was ready in between.
    let mut yard = Yard::new(2);
    for _ in 0..100 {
        yard.crew.roll();
        yard.step();
        assert!(yard.crew.workers.len() <= 7, "{:?}", yard.crew);
    }
}

#[test]
fn a_reload_whose_workers_do_not_start_leaves_the_old_ones() {
    let mut yard = Yard::new(2);
    yard.all_ready();
    yard.crew.roll();
    yard.step();
    for _ in 1..FAILURES_MAX {
        let id = yard.in_state(State::Starting)[0];
        let Meaning::Failed(pause) = yard.ended(id) else {
            panic!("not yet")
        };
        yard.pass(pause);
    }
    let id = yard.in_state(State::Starting)[0];
    assert_eq!(yard.ended(id), Meaning::RollGivenUp);
    yard.pass(PAUSE_MAX);
    assert_eq!(yard.in_state(State::Ready), [0, 1]);
    assert_eq!(yard.crew.workers.len(), 2);
    assert!(yard.crew.is_settled());
    // The next reload is tried at once.
    yard.crew.roll();
    assert!(matches!(yard.step()[..], [Action::Start(..)]));
}

#[test]
fn a_retired_worker_is_replaced_once() {
    let mut yard = Yard::new(2);
    assert!(!yard.crew.retire(0), "it is not ready");
    yard.all_ready();
    assert!(yard.crew.retire(0));
    assert!(!yard.crew.retire(0));
    assert!(!yard.crew.retire(77));
    assert_eq!(yard.step(), [Action::Start(2, 3)]);
    assert_eq!(yard.ready(2), [Action::Drain(0)]);
    assert!(yard.crew.is_settled());
}

#[test]
fn scaling_starts_and_drains() {
    let mut yard = Yard::new(1);
    yard.all_ready();
    assert_eq!(yard.crew.scale(3), 3);
    assert_eq!(yard.step(), [Action::Start(1, 2), Action::Start(2, 3)]);
    yard.all_ready();
    assert_eq!(yard.crew.scale(1), 1);
    assert_eq!(yard.step(), [Action::Drain(2), Action::Drain(1)]);
    assert_eq!(yard.crew.scale(0), 1);
    assert_eq!(yard.step(), []);
    assert_eq!(yard.crew.scale(u32::MAX), WORKERS_MAX);
}

#[test]
fn of_too_many_that_start_those_go_that_are_not_ready() {
    let mut yard = Yard::new(1);
    yard.all_ready();
    yard.crew.scale(5);
    yard.step();
    yard.crew.scale(1);
    yard.step();
    assert_eq!(yard.in_state(State::Ready), [0]);
    assert!(yard.in_state(State::Starting).len() <= 1);
    yard.all_ready();
    assert_eq!(yard.in_state(State::Ready).len(), 1);
    assert!(yard.in_state(State::Starting).is_empty());
}

#[test]
fn who_takes_too_long_is_killed_once() {
    let mut yard = Yard::new(1);
    assert_eq!(yard.crew.wake(), Some(yard.now + START_TIMEOUT));
    assert_eq!(yard.pass(START_TIMEOUT), [Action::Kill(0)]);
    assert_eq!(yard.crew.wake(), None);
    assert!(matches!(yard.ended(0), Meaning::Failed(_)));
    yard.pass(PAUSE_MAX);
    yard.all_ready();
    yard.crew.stop();
    assert_eq!(yard.step(), [Action::Drain(1)]);
    assert_eq!(yard.pass(Duration::from_secs(29)), []);
    assert_eq!(yard.pass(Duration::from_secs(1)), [Action::Kill(1)]);
    assert_eq!(yard.ended(1), Meaning::Asked);
    assert!(yard.crew.is_empty());
    assert_eq!(yard.step(), []);
}

#[test]
fn told_so_twice_means_at_once() {
    let mut yard = Yard::new(2);
    yard.all_ready();
    yard.crew.stop();
    assert_eq!(yard.step().len(), 2);
    yard.crew.stop_at_once();
    let mut actions = yard.step();
    actions.sort_by_key(|action| matches!(action, Action::Kill(1)));
    assert_eq!(actions, [Action::Kill(0), Action::Kill(1)]);
}

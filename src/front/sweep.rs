//! The sweep: the clock, the deadlines, and Mongrel2's rules about idle connections.
//!
//! One task looks at all connections now and then, instead of each having a timer. It sleeps while there are none.

use std::rc::Rc;

use tracing::debug;

use super::Shard;
use super::client::{Activity, Client, Cut, NEVER};
use super::clock::TICK;
use super::limits::PingLimits;

/// An unfinished response counts as a stream after so many milliseconds: its handler is then free for other requests.
const STREAM_AFTER: u64 = 1_000;

pub(super) async fn run(shard: Rc<Shard>) {
    let mut pinged = shard.clock.milliseconds();
    loop {
        if shard.registry.len() == 0 {
            tokio::select! {
                () = shard.registry.joined.notified() => {}
                () = shard.watch.draining() => return,
            }
        }
        tokio::time::sleep(TICK).await;
        shard.clock.tick();
        let now = shard.clock.milliseconds();
        let limits = shard.limits();
        let tick = u64::try_from(limits.ping.tick.as_millis()).unwrap_or(NEVER);
        let ping = now.saturating_sub(pinged) >= tick;
        if ping {
            pinged = now;
        }
        shard.registry.for_each(|client| {
            look(client, now);
            if ping
                && violations(client.activity.get(), &limits.ping, shard.clock.seconds())
                    > limits.ping.kill_limit
            {
                debug!(client = %client.addr, "too many of the ping and rate limits are violated");
                client.cut(Cut::Idle);
            }
        });
    }
}

/// Sees to what is due on one connection.
fn look(client: &Client, now: u64) {
    let mut due = false;
    if now >= client.deadline.get() {
        client.deadline.set(NEVER);
        client.expired.set(true);
        due = true;
    }
    if now.saturating_sub(client.response_began.get()) >= STREAM_AFTER {
        client.response_began.set(NEVER);
        client.streaming.set(true);
        due = true;
    }
    if due {
        client.wake();
    }
}

/// How many of the three limits a connection violates (reference: timeouts). Times are seconds of the clock; what never
/// happened is no time ago.
fn violations(activity: Activity, limits: &PingLimits, now: u32) -> u64 {
    let since = |then: Option<u32>| u64::from(then.map_or(0, |then| now.saturating_sub(then)));
    let ping = limits.min_ping > 0 && since(Some(activity.last_ping)) > limits.min_ping;
    let slow = |bytes: u64, last, rate: u64| rate > 0 && bytes / (since(last) + 1) < rate;
    let read = slow(
        activity.bytes_read,
        activity.last_read,
        limits.min_read_rate,
    );
    let write = slow(
        activity.bytes_written,
        activity.last_write,
        limits.min_write_rate,
    );
    u64::from(ping) + u64::from(read) + u64::from(write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn limits(min_ping: u64, min_read_rate: u64, min_write_rate: u64) -> PingLimits {
        PingLimits {
            tick: Duration::from_secs(10),
            min_ping,
            min_read_rate,
            min_write_rate,
            kill_limit: 2,
        }
    }

    #[test]
    fn a_connection_that_does_nothing_violates_all_three_limits_after_the_ping_time() {
        let idle = Activity {
            last_ping: 0,
            last_read: Some(0),
            last_write: Some(0),
            bytes_read: 500,
            bytes_written: 500,
        };
        assert_eq!(violations(idle, &limits(120, 300, 300), 60), 2);
        assert_eq!(violations(idle, &limits(120, 300, 300), 121), 3);
    }

    #[test]
    fn a_limit_of_zero_is_off() {
        let idle = Activity {
            last_ping: 0,
            ..Activity::default()
        };
        assert_eq!(violations(idle, &limits(0, 0, 0), 10_000), 0);
        assert_eq!(violations(idle, &limits(3, 0, 0), 4), 1);
    }
}

//! An open load: requests begin when a schedule says so, whether those before are answered or not, and each is as late as it is
//! after its time in the schedule. A load that waits for answers, as wrk does, hides the very waiting that is to be seen.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::idle::BODY;

/// How long the last answers are waited for; what has none then counts as this late, and as unanswered.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one paced run has seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lateness {
    pub(crate) requests: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) worst_ms: f64,
    /// Answers that were not the expected one, ends of connections, and no answer at all.
    pub(crate) failed: usize,
}

/// Asks `rate` times a second for so long, at moments that are independent of each other as those of many clients are; the same
/// moments for the same seed.
pub(crate) fn load(
    address: SocketAddr,
    rate: f64,
    time: Duration,
    seed: u64,
) -> Result<Lateness, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let schedule = schedule(rate, time, seed);
    let (tell, mut due) = tokio::sync::mpsc::unbounded_channel();
    // A thread's sleep is some fifty microseconds exact, a timer of the runtime a millisecond.
    let pace = std::thread::spawn(move || {
        let start = Instant::now();
        for after in schedule {
            let moment = start + after;
            std::thread::sleep(moment.saturating_duration_since(Instant::now()));
            if tell.send(moment).is_err() {
                return;
            }
        }
    });
    let outcomes = tokio::task::LocalSet::new().block_on(&runtime, async {
        let idle = Rc::new(std::cell::RefCell::new(VecDeque::new()));
        let mut asking = JoinSet::new();
        let mut outcomes = Vec::new();
        while let Some(moment) = due.recv().await {
            let idle = Rc::clone(&idle);
            asking.spawn_local(async move {
                let kept = idle.borrow_mut().pop_back();
                let asked = tokio::time::timeout(PATIENCE, ask(kept, address)).await;
                let good = asked.ok().and_then(Result::ok).map(|stream| {
                    idle.borrow_mut().push_back(stream);
                });
                (moment.elapsed(), good.is_some())
            });
            while let Some(ended) = asking.try_join_next() {
                outcomes.extend(ended.ok());
            }
        }
        while let Some(ended) = asking.join_next().await {
            outcomes.extend(ended.ok());
        }
        outcomes
    });
    pace.join()
        .map_err(|_| "the pacing thread panicked".to_owned())?;
    Ok(summed(outcomes))
}

/// Moments after the start: exponential gaps, from a small generator of its own so that every run has the same.
#[expect(
    clippy::cast_precision_loss,
    reason = "53 bits are taken of 64, which a float holds exactly"
)]
fn schedule(rate: f64, time: Duration, seed: u64) -> Vec<Duration> {
    let mut state = seed;
    let mut at = 0.0;
    let mut moments = Vec::new();
    loop {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let uniform = ((mixed >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        at -= uniform.ln() / rate;
        if at >= time.as_secs_f64() {
            return moments;
        }
        moments.push(Duration::from_secs_f64(at));
    }
}

/// One request on a kept connection or a new one, which is given back when its answer was the right one.
async fn ask(kept: Option<TcpStream>, address: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = match kept {
        Some(stream) => stream,
        None => TcpStream::connect(address).await?,
    };
    stream.set_nodelay(true)?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    let mut answer = Vec::with_capacity(256);
    while !answer.ends_with(BODY.as_bytes()) {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    if answer.starts_with(b"HTTP/1.1 200 ") {
        Ok(stream)
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}

fn summed(mut outcomes: Vec<(Duration, bool)>) -> Lateness {
    outcomes.sort_unstable();
    let at = |share: usize| {
        let place = (outcomes.len().saturating_sub(1) * share).div_ceil(100);
        outcomes
            .get(place)
            .map_or(0.0, |(late, _)| late.as_secs_f64() * 1000.0)
    };
    Lateness {
        requests: outcomes.len(),
        p50_ms: at(50),
        p99_ms: at(99),
        worst_ms: at(100),
        failed: outcomes.iter().filter(|(_, good)| !good).count(),
    }
}

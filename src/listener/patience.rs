//! How slowly a client may take what waits for it.
//!
//! A client that takes a byte now and then is as stuck as one that takes none: what waits for it is memory, and
//! tasks in its hands, that others could use. So no single write is timed. A connection has an amount of patience,
//! which runs while data waits for the client, is earned back by each byte that it takes, and recovers while
//! nothing waits. Whoever takes at least [`Pace::min_rate`] never uses it up.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// The pace that a client must keep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// The patience of a new connection, and the most that there can be.
    pub(super) timeout: Duration,
    /// Bytes a second.
    pub(super) min_rate: u32,
}

/// What is left of one connection's patience.
#[derive(Debug)]
pub(super) struct Patience {
    pace: Pace,
    left: Duration,
    /// As of when.
    since: Instant,
    /// Bytes taken since then, not yet counted.
    taken: u64,
    /// While data waits: the end of the patience.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, left: pace.timeout, since: Instant::now(), taken: 0, waiting: None }
    }

    /// The client took so many bytes.
    pub(super) fn taken(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes as u64);
        if self.waiting.take().is_some() {
            self.waited_until(Instant::now());
        }
    }

    /// Data waits for the client. Ready when it has waited too long.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.waiting.is_none() {
            let end = self.waits_from(Instant::now());
            self.waiting = Some(Box::pin(sleep_until(end)));
        }
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(cx));
        }
        let Pace { timeout, min_rate } = self.pace;
        Poll::Ready(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("the client let data wait for {timeout:?}, taking less than {min_rate} bytes a second"),
        ))
    }

    /// Data begins to wait: until when it may.
    fn waits_from(&mut self, now: Instant) -> Instant {
        let recovered = now - self.since;
        let earned = Duration::from_secs(self.taken) / self.pace.min_rate.max(1);
        self.left = self.left.saturating_add(recovered).saturating_add(earned).min(self.pace.timeout);
        (self.since, self.taken) = (now, 0);
        now + self.left
    }

    fn waited_until(&mut self, now: Instant) {
        self.left = self.left.saturating_sub(now - self.since);
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { timeout: Duration::from_secs(30), min_rate: 1_000 };
    const HOUR: Duration = Duration::from_secs(3600);

    /// Whether an hour passes with a client that takes `bytes` after each `pause`, and for whom nothing waits
    /// during `rest`.
    fn lasts(pause: Duration, bytes: u64, rest: Duration) -> bool {
        let mut patience = Patience::new(PACE);
        let began = patience.since;
        let mut now = began;
        while now - began < HOUR {
            if patience.waits_from(now) < now + pause {
                return false;
            }
            now += pause;
            patience.waited_until(now);
            patience.taken += bytes;
            now += rest;
        }
        true
    }

    #[test]
    fn the_rate_counts_and_not_the_step() {
        let ms = Duration::from_millis;
        let never = Duration::ZERO;
        assert!(!lasts(ms(1_000), 1, never), "a byte a second");
        assert!(!lasts(ms(10), 9, never), "steady and too slow");
        assert!(lasts(ms(10), 10, never), "steady and just fast enough");
        assert!(lasts(ms(29_000), 29_000, never), "in leaps");
        assert!(!lasts(ms(31_000), 1 << 30, never), "nothing at all for too long");
    }

    #[test]
    fn patience_recovers_while_nothing_waits() {
        let seconds = Duration::from_secs;
        assert!(lasts(seconds(20), 1, seconds(20)));
        assert!(!lasts(seconds(20), 1, seconds(19)));
    }

    #[tokio::test]
    async fn it_ends_when_it_says() {
        let pace = Pace { timeout: Duration::from_millis(50), ..PACE };
        let mut patience = Patience::new(pace);
        let began = Instant::now();
        let lost = std::future::poll_fn(|cx| patience.poll_lost(cx)).await;
        assert_eq!(lost.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= pace.timeout, "{lost}");
    }
}

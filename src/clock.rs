//! Time as the scheduler sees it: an input. Only the engine reads a real clock.

use std::ops::{Add, Sub};
use std::time::{SystemTime, UNIX_EPOCH};

/// A point in time: milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Later than anything that happens.
    pub const NEVER: Self = Self(u64::MAX);

    /// Milliseconds from `earlier` to `self`; 0 when `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Timestamp {
    type Output = Self;
    fn add(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

impl Sub<u64> for Timestamp {
    type Output = Self;
    fn sub(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms))
    }
}

/// Wall-clock milliseconds that never go back and never jump: read once at the start, then driven by the
/// monotonic clock. A clock set forward or back by an operator or NTP therefore ends no lease and starts
/// no timeout; the drift is taken up by the next start of the process.
#[derive(Debug, Clone)]
pub struct Clock {
    origin: Timestamp,
    started: std::time::Instant,
}

impl Clock {
    /// Starts at the present wall-clock time, or at `floor` if that is later: a store may hold times
    /// ahead of a clock that was set back between two runs.
    pub fn start(floor: Timestamp) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Self { origin: Timestamp(wall).max(floor), started: std::time::Instant::now() }
    }

    /// The present.
    pub fn now(&self) -> Timestamp {
        self.origin + self.started.elapsed().as_millis() as u64
    }
}

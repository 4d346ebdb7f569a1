//! How long to wait before trying again.
use std::time::Duration;

use rand::RngExt;

/// Full jitter: each wait is drawn evenly from zero to a ceiling that doubles up to a cap, so that workers
/// which lost the same server do not come back at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    base: Duration,
    cap: Duration,
    ceiling: Duration,
}

impl Backoff {
    pub(crate) fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, ceiling: base }
    }

    /// The next wait, with randomness of the thread.
    pub(crate) fn next_wait(&mut self) -> Duration {
        self.draw(rand::rng().random::<f64>())
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.ceiling = self.base;
    }

    /// `fraction` from 0 to 1.
    fn draw(&mut self, fraction: f64) -> Duration {
        let wait = self.ceiling.mul_f64(fraction.clamp(0.0, 1.0));
        self.ceiling = self.ceiling.saturating_mul(2).min(self.cap);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let ceilings: Vec<u128> = (0..4).map(|_| backoff.draw(1.0).as_millis()).collect();
        assert_eq!(ceilings, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.draw(0.5).as_millis(), 50);
        assert_eq!(backoff.draw(0.0).as_millis(), 0);
    }
}

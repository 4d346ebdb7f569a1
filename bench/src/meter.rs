//! How calls are counted: warm-up, window, end; and a histogram of what took how long.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use crate::{BenchError, result::Latency};

const WARM_UP: u8 = 0;
const WINDOW: u8 = 1;
const OVER: u8 = 2;

/// Longer than anything here takes, in nanoseconds.
const LONGEST_NS: u64 = 600_000_000_000;
/// Three figures: a latency is off by a thousandth at most.
const FIGURES: u8 = 3;
/// A recorder hands its latencies over in groups of this, so that callers hardly meet at the lock.
const GROUP: usize = 256;

/// Shared by all callers of a load.
#[derive(Clone, Debug)]
pub struct Meter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    phase: AtomicU8,
    any: AtomicBool,
    histogram: Mutex<Histogram<u64>>,
}

/// A caller's own end of the meter. What it holds is handed over when it is dropped.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    group: Vec<u64>,
}

impl Meter {
    /// In its warm-up.
    ///
    /// # Errors
    /// Never in practice: only when the bounds of the histogram were wrong.
    pub fn new() -> Result<Self, BenchError> {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, FIGURES)
            .map_err(|error| BenchError::failed("histogram", error))?;
        let shared = Shared {
            phase: AtomicU8::new(WARM_UP),
            any: AtomicBool::new(false),
            histogram: Mutex::new(histogram),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// For one caller.
    pub fn recorder(&self) -> Recorder {
        Recorder { shared: self.shared.clone(), group: Vec::with_capacity(GROUP) }
    }

    /// From here on calls count.
    pub fn begin(&self) {
        self.shared.phase.store(WINDOW, Ordering::Relaxed);
    }

    /// From here on they do not, and callers stop after the one they are at.
    pub fn end(&self) {
        self.shared.phase.store(OVER, Ordering::Relaxed);
    }

    /// Whether a call was counted yet.
    pub fn any(&self) -> bool {
        self.shared.any.load(Ordering::Relaxed)
    }

    /// How many calls were counted. All recorders must have been dropped before.
    pub fn calls(&self) -> u64 {
        self.shared.histogram.lock().len()
    }

    /// How long they took; `None` when there was none. All recorders must have been dropped before.
    pub fn latency(&self) -> Option<Latency> {
        let histogram = self.shared.histogram.lock();
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        (!histogram.is_empty()).then(|| Latency {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            max_us: histogram.max() as f64 / 1000.0,
        })
    }
}

impl Recorder {
    /// Whether to make another call.
    pub fn goes_on(&self) -> bool {
        self.shared.phase.load(Ordering::Relaxed) != OVER
    }

    /// A call that was sent at `start` has its answer now. Counts only within the window.
    pub fn record(&mut self, start: Instant) {
        self.record_duration(start.elapsed());
    }

    /// A call took so long. Counts only within the window.
    pub fn record_duration(&mut self, took: Duration) {
        if self.shared.phase.load(Ordering::Relaxed) != WINDOW {
            return;
        }
        if self.group.is_empty() {
            self.shared.any.store(true, Ordering::Relaxed);
        }
        self.group.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        if self.group.len() >= GROUP {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        let mut histogram = self.shared.histogram.lock();
        for nanos in self.group.drain(..) {
            histogram.saturating_record(nanos);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.hand_over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_window_counts() {
        let meter = Meter::new().unwrap();
        let mut recorder = meter.recorder();
        recorder.record_duration(Duration::from_micros(1));
        meter.begin();
        for micros in 1..=1000 {
            recorder.record_duration(Duration::from_micros(micros));
        }
        meter.end();
        assert!(!recorder.goes_on());
        recorder.record_duration(Duration::from_secs(1));
        drop(recorder);
        assert_eq!(meter.calls(), 1000);
        let latency = meter.latency().unwrap();
        let near = |value: f64, wanted: f64| (value / wanted - 1.0).abs() < 0.002;
        assert!(near(latency.p50_us, 500.0) && near(latency.p99_us, 990.0) && near(latency.max_us, 1000.0));
    }
}

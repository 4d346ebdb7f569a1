//! No task waits while a worker that may run it has credit, and the rest of what `audit` checks.

use crewcall::clock::Timestamp;
use crewcall::scheduler::Scheduler;

use super::invariant::{Held, Invariant};

/// An audit looks at everything, a step at little: at this distance both take about as long.
const EVERY: u64 = 64;

#[derive(Default)]
pub(super) struct WorkConserving {
    steps: u64,
}

impl Invariant for WorkConserving {
    fn done(&mut self, _: Timestamp, _: bool, scheduler: &Scheduler) -> Held {
        self.steps += 1;
        if self.steps.is_multiple_of(EVERY) { scheduler.audit() } else { Ok(()) }
    }
}

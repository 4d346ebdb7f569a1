//! What is counted: the calls of the scheduler and nothing around them. Valgrind finds these functions by
//! their names, so they must stay functions.

use crewcall::clock::Timestamp;
use crewcall::scheduler::{Command, Output, Scheduler};

/// A pattern for the names of everything here.
pub(crate) const NAMES: &str = "instructions::measured::*";

#[inline(never)]
pub(crate) fn handle(scheduler: &mut Scheduler, now: Timestamp, command: Command, out: &mut Output) {
    scheduler.handle(now, command, out);
}

/// As the engine does it after each round.
#[inline(never)]
pub(crate) fn tick(scheduler: &mut Scheduler, now: Timestamp, out: &mut Output) {
    if scheduler.due().is_some_and(|at| at <= now) {
        scheduler.tick(now, out);
    }
}

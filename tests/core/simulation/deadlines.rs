//! Nothing stays due, and nothing begins after its time.

use std::collections::BTreeSet;

use crewcall::clock::Timestamp;
use crewcall::scheduler::{Command, Effect, EffectKind, Scheduler};
use crewcall::task::TaskId;

use super::invariant::{Held, Invariant};

#[derive(Default)]
pub(super) struct Deadlines {
    /// Retry runs a task at once, whatever it was to wait for.
    retried: BTreeSet<TaskId>,
}

impl Invariant for Deadlines {
    fn asked(&mut self, command: &Command) {
        if let Command::Retry { id, .. } = command {
            self.retried.insert(*id);
        }
    }

    fn made(&mut self, now: Timestamp, effect: &Effect) -> Held {
        let EffectKind::Assign(_, assign) = &effect.kind else { return Ok(()) };
        if assign.options.run_at.is_some_and(|at| at > now) && !self.retried.contains(&assign.id) {
            return Err(format!("{} runs before its time", assign.id));
        }
        let run = assign.options.run_timeout_ms;
        if run > 0 && assign.deadline > now + run {
            return Err(format!("{} may run until {:?}, longer than {run} ms", assign.id, assign.deadline));
        }
        Ok(())
    }

    fn done(&mut self, now: Timestamp, ticked: bool, scheduler: &Scheduler) -> Held {
        match scheduler.due() {
            Some(due) if ticked && due <= now => Err(format!("still due at {due:?}, ticked at {now:?}")),
            _ => Ok(()),
        }
    }
}

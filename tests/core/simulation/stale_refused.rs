//! Only the latest attempt can end a task. Handlers return their lease, so an outcome says who made it.

use std::collections::BTreeMap;

use crewcall::clock::Timestamp;
use crewcall::row::Row;
use crewcall::scheduler::{Effect, EffectKind, EventKind, Reply, Scheduler, TaskView};
use crewcall::task::{Outcome, State, TaskId};

use super::invariant::{Held, Invariant, Stored, Written};
use super::worker::result_of;

#[derive(Default)]
pub(super) struct StaleRefused {
    /// The leases of each task, oldest first.
    leases: BTreeMap<TaskId, Vec<u64>>,
    /// The lease that made the outcome, once it is known.
    winners: BTreeMap<u64, TaskId>,
}

impl Invariant for StaleRefused {
    /// Also of tasks that nobody waits for or watches.
    fn wrote(&mut self, rows: &[Written]) -> Held {
        for Written { put, .. } in rows {
            if let Some((_, Row::Task(task))) = put
                && let Some(outcome) = task.state.outcome()
            {
                self.ended(&task.id, outcome)?;
            }
        }
        Ok(())
    }

    fn made(&mut self, _: Timestamp, effect: &Effect) -> Held {
        match &effect.kind {
            EffectKind::Assign(_, assign) => {
                self.leases.entry(assign.id).or_default().push(assign.lease);
                Ok(())
            }
            EffectKind::Reply(_, Reply::Ended(id, outcome)) => self.ended(id, outcome),
            EffectKind::Reply(_, Reply::Task(view)) => self.seen(view),
            EffectKind::Event(_, event) => match &event.kind {
                EventKind::Task(view) => self.seen(view),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// A crash undoes assignments that were not stored: the attempt before stands again.
    fn restored(&mut self, _: &Stored, scheduler: &Scheduler) -> Held {
        for (_, row) in scheduler.rows() {
            if let Row::Task(task) = row
                && let State::Leased { lease, .. } = task.state
                && let Some(leases) = self.leases.get_mut(&task.id)
            {
                leases.retain(|other| *other <= lease);
            }
        }
        Ok(())
    }
}

impl StaleRefused {
    fn seen(&mut self, view: &TaskView) -> Held {
        view.state.outcome().map_or(Ok(()), |outcome| self.ended(&view.id, outcome))
    }

    fn ended(&mut self, id: &TaskId, outcome: &Outcome) -> Held {
        let Outcome::Succeeded(payload) = outcome else { return Ok(()) };
        let leases = self.leases.get(id).map(Vec::as_slice).unwrap_or_default();
        let Some(winner) = leases.iter().find(|lease| result_of(**lease) == *payload) else {
            return Err(format!(
                "{id}: {payload:?} is the result of another task; its leases are {leases:?}"
            ));
        };
        // A crash may undo what came after: only a result that nobody has seen must be of the latest.
        let first = self.winners.insert(*winner, *id).is_none();
        if first && leases.last() != Some(winner) {
            return Err(format!("{id}: lease {winner} ended it, the latest is {:?}", leases.last()));
        }
        Ok(())
    }
}

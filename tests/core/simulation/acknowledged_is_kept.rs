//! A durable task that was acknowledged is there after every crash, until it has ended and its time is over
//! or somebody took it.

use std::collections::BTreeSet;

use crewcall::row::{Row, RowChange, RowKey};
use crewcall::scheduler::{Command, EffectKind, Reply, Scheduler};
use crewcall::task::{Durability, TaskId};

use super::invariant::{Held, Invariant, Stored};
use super::world::decode;

#[derive(Default)]
pub(super) struct AcknowledgedIsKept {
    durable: BTreeSet<TaskId>,
    acknowledged: BTreeSet<TaskId>,
    deleted: BTreeSet<TaskId>,
}

impl Invariant for AcknowledgedIsKept {
    fn asked(&mut self, command: &Command) {
        let tasks = match command {
            Command::Call { task, .. } => std::slice::from_ref(task),
            Command::Submit { tasks, .. } => tasks,
            _ => return,
        };
        let durable = tasks.iter().filter(|task| task.options.durability == Durability::Durable);
        self.durable.extend(durable.map(|task| task.id));
    }

    fn told(&mut self, kind: &EffectKind) -> Held {
        if let EffectKind::Reply(_, Reply::Submitted(results)) = kind {
            let ids = results.iter().flatten().map(|accepted| accepted.id);
            self.acknowledged
                .extend(ids.filter(|id| self.durable.contains(id) && !self.deleted.contains(id)));
        }
        Ok(())
    }

    fn storing(&mut self, before: &Stored, batch: &[RowChange]) -> Held {
        let mut ended = BTreeSet::new();
        for row in batch {
            match row {
                RowChange::Put(key @ RowKey::Task(id), data) => {
                    if has_ended(&decode(*key, data)) {
                        ended.insert(*id);
                    }
                }
                RowChange::Put(..) => {}
                RowChange::Delete(key @ RowKey::Task(id)) => {
                    let over = before.get(key).is_some_and(|data| has_ended(&decode(*key, data)));
                    if !over && !ended.contains(id) {
                        return Err(format!("{id} is forgotten before it has ended"));
                    }
                    self.deleted.insert(*id);
                    self.acknowledged.remove(id);
                }
                RowChange::Delete(RowKey::LeasesReserved) => return Err("leases are forgotten".into()),
                RowChange::Delete(_) => {}
            }
        }
        Ok(())
    }

    fn restored(&mut self, stored: &Stored, _: &Scheduler) -> Held {
        let lost = self.acknowledged.iter().find(|id| !stored.contains_key(&RowKey::Task(**id)));
        lost.map_or(Ok(()), |id| Err(format!("{id} was acknowledged, and is lost")))
    }
}

fn has_ended(row: &Row) -> bool {
    matches!(row, Row::Task(task) if task.state.outcome().is_some())
}

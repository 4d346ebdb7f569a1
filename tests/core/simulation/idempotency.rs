//! Under one key there is one task, until it is forgotten.

use std::collections::{BTreeMap, BTreeSet};

use crewcall::row::{RowChange, RowKey};
use crewcall::scheduler::{Command, EffectKind, Reply};
use crewcall::task::{Durability, TaskId};

use super::invariant::{Held, Invariant, Stored};

#[derive(Default)]
pub(super) struct Idempotency {
    /// Method and key of durable tasks.
    keys: BTreeMap<TaskId, (String, String)>,
    /// Who was acknowledged under it.
    holders: BTreeMap<(String, String), TaskId>,
    deleted: BTreeSet<TaskId>,
}

impl Invariant for Idempotency {
    fn asked(&mut self, command: &Command) {
        let tasks = match command {
            Command::Call { task, .. } => std::slice::from_ref(task),
            Command::Submit { tasks, .. } => tasks,
            _ => return,
        };
        for task in tasks.iter().filter(|task| task.options.durability == Durability::Durable) {
            let key = task.idempotency_key.clone();
            if !key.is_empty() {
                self.keys.insert(task.id, (task.method.clone(), key));
            }
        }
    }

    fn told(&mut self, kind: &EffectKind) -> Held {
        let EffectKind::Reply(_, Reply::Submitted(results)) = kind else { return Ok(()) };
        for accepted in results.iter().flatten() {
            let Some(key) = self.keys.get(&accepted.id) else { continue };
            let holder = self.holders.insert(key.clone(), accepted.id);
            if let Some(holder) = holder.filter(|holder| *holder != accepted.id)
                && !self.deleted.contains(&holder)
            {
                return Err(format!("{key:?} stands for {holder} and for {}", accepted.id));
            }
        }
        Ok(())
    }

    fn storing(&mut self, _: &Stored, batch: &[RowChange]) -> Held {
        for row in batch {
            if let RowChange::Delete(RowKey::Task(id)) = row {
                self.deleted.insert(*id);
            }
        }
        Ok(())
    }
}

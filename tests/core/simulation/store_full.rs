//! While the disk is full, what is durable is refused for that reason and what is not goes on.

use std::collections::BTreeMap;

use crewcall::clock::Timestamp;
use crewcall::error::{Error, Reason};
use crewcall::scheduler::{Command, Effect, EffectKind, Reply, Waiter};
use crewcall::task::{Durability, NewTask, TaskId};

use super::invariant::{Held, Invariant};

#[derive(Default)]
pub(super) struct StoreFull {
    full: bool,
    durable: BTreeMap<TaskId, bool>,
    /// Who asks, and for which tasks.
    asked: Option<(Waiter, Vec<TaskId>)>,
}

impl StoreFull {
    fn remember(&mut self, task: &NewTask) {
        self.durable.insert(task.id, task.options.durability == Durability::Durable);
    }

    fn refused(&self, id: TaskId, error: &Error) -> Held {
        if error.reason != Reason::StoreUnavailable {
            return Ok(());
        }
        if !self.full {
            return Err(format!("{id} is refused for a disk that has room"));
        }
        if self.durable.get(&id) == Some(&false) {
            return Err(format!("{id} needs no room on the disk, and is refused for want of it"));
        }
        Ok(())
    }
}

impl Invariant for StoreFull {
    fn asked(&mut self, command: &Command) {
        self.asked = None;
        match command {
            Command::Call { task, waiter } => {
                self.remember(task);
                self.asked = Some((*waiter, vec![task.id]));
            }
            Command::Submit { tasks, waiter } => {
                tasks.iter().for_each(|task| self.remember(task));
                self.asked = Some((*waiter, tasks.iter().map(|task| task.id).collect()));
            }
            Command::Cancel { id, waiter, .. } | Command::Retry { id, waiter } => {
                self.asked = Some((*waiter, vec![*id]));
            }
            _ => {}
        }
    }

    fn made(&mut self, _: Timestamp, effect: &Effect) -> Held {
        let EffectKind::Reply(waiter, reply) = &effect.kind else { return Ok(()) };
        let Some((asked, ids)) = &self.asked else { return Ok(()) };
        if waiter != asked {
            return Ok(());
        }
        match reply {
            Reply::Refused(error) => ids.iter().try_for_each(|id| self.refused(*id, error)),
            Reply::Submitted(results) => {
                for (id, result) in ids.iter().zip(results) {
                    match result {
                        Err(error) => self.refused(*id, error)?,
                        Ok(accepted) if self.full && self.durable.get(id) == Some(&true) => {
                            return Err(format!("{} is accepted by a disk without room", accepted.id));
                        }
                        Ok(_) => {}
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn disk(&mut self, full: bool) {
        self.full = full;
    }
}

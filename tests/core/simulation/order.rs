//! What states a durable fact waits for the disk.

use std::collections::BTreeMap;

use crewcall::clock::Timestamp;
use crewcall::error::Reason;
use crewcall::row::{RowChange, RowKey};
use crewcall::scheduler::{Command, ConnId, Effect, EffectKind, EventKind, Reply, Scheduler, TaskView};
use crewcall::task::{Durability, NewTask, TaskId};

use super::invariant::{Held, Invariant, Stored, Written};

#[derive(Default)]
pub(super) struct Order {
    durable: BTreeMap<TaskId, bool>,
    /// Tasks with changes that are not stored, and how many.
    unstored: BTreeMap<TaskId, usize>,
    asked_about: Option<TaskId>,
    /// The last cursor of each watcher: what it is told comes in order.
    cursors: BTreeMap<ConnId, u64>,
}

impl Order {
    /// Whether the disk lacks something about the task.
    fn is_unstored(&self, id: &TaskId) -> bool {
        self.durable.get(id).copied().unwrap_or_default() && self.unstored.contains_key(id)
    }

    fn remember(&mut self, task: &NewTask) {
        self.durable.insert(task.id, task.options.durability == Durability::Durable);
    }
}

impl Invariant for Order {
    fn asked(&mut self, command: &Command) {
        self.asked_about = None;
        match command {
            Command::Call { task, .. } => self.remember(task),
            Command::Submit { tasks, .. } => tasks.iter().for_each(|task| self.remember(task)),
            Command::Cancel { id, .. } | Command::Retry { id, .. } => self.asked_about = Some(*id),
            _ => {}
        }
    }

    fn made(&mut self, _: Timestamp, effect: &Effect) -> Held {
        let view = |view: &TaskView| self.is_unstored(&view.id);
        let durable = match &effect.kind {
            EffectKind::Reply(_, Reply::Ended(id, _)) => self.is_unstored(id),
            EffectKind::Reply(_, Reply::Task(task)) => view(task),
            EffectKind::Reply(_, Reply::Explained(explanation)) => view(&explanation.task),
            EffectKind::Reply(_, Reply::Tasks(tasks, _)) => tasks.iter().any(view),
            EffectKind::Reply(_, Reply::Submitted(results)) => {
                results.iter().flatten().any(|accepted| self.is_unstored(&accepted.id))
            }
            EffectKind::Reply(_, Reply::Refused(error)) => match error.reason {
                Reason::TaskEnded | Reason::TaskNotEnded => {
                    self.asked_about.is_some_and(|id| self.is_unstored(&id))
                }
                reason => reason == Reason::IdempotencyConflict && !self.unstored.is_empty(),
            },
            // What operators ordered outlives a restart, so whoever is told of it may rely on that.
            EffectKind::Reply(_, Reply::Paused(_) | Reply::Resumed { .. } | Reply::Draining) => true,
            EffectKind::Reply(_, Reply::DeadLetters(tasks, _)) => tasks.iter().any(view),
            EffectKind::Reply(_, Reply::DeadChanged(changed)) => {
                changed.results.iter().any(|(id, _)| self.is_unstored(id))
            }
            EffectKind::Event(_, event) => match &event.kind {
                EventKind::Task(task) => view(task),
                EventKind::Progress(id, _) | EventKind::Chunk(id, _) => self.is_unstored(id),
            },
            _ => false,
        };
        if durable && !effect.gated {
            return Err(format!("a durable fact does not wait for the disk: {:?}", effect.kind));
        }
        Ok(())
    }

    fn wrote(&mut self, rows: &[Written]) -> Held {
        for row in rows {
            if let RowKey::Task(id) = row.key {
                *self.unstored.entry(id).or_default() += 1;
            }
        }
        Ok(())
    }

    fn storing(&mut self, _: &Stored, batch: &[RowChange]) -> Held {
        for row in batch {
            let (RowChange::Put(key, _) | RowChange::Delete(key)) = row;
            if let RowKey::Task(id) = key
                && let Some(changes) = self.unstored.get_mut(id)
            {
                *changes -= 1;
                if *changes == 0 {
                    self.unstored.remove(id);
                }
            }
        }
        Ok(())
    }

    fn restored(&mut self, _: &Stored, _: &Scheduler) -> Held {
        self.unstored.clear();
        Ok(())
    }

    fn told(&mut self, kind: &EffectKind) -> Held {
        let EffectKind::Event(conn, event) = kind else { return Ok(()) };
        // No place to go on from: the first look, which comes before everything else.
        let seq = if event.cursor.seq == u64::MAX { 0 } else { event.cursor.seq };
        let last = self.cursors.insert(*conn, seq).unwrap_or_default();
        if seq < last {
            return Err(format!("watcher {conn} was told {seq} after {last}"));
        }
        Ok(())
    }
}

//! Nothing of a paused method begins, and an acknowledged pause outlives a crash.

use std::collections::BTreeMap;

use crewcall::clock::Timestamp;
use crewcall::row::{Row, RowKey};
use crewcall::scheduler::{Command, Effect, EffectKind, Reply, Scheduler};

use super::invariant::{Held, Invariant, Stored, Written};
use super::world::decode;

#[derive(Default)]
pub(super) struct Paused {
    /// By the number of the order.
    paused: BTreeMap<RowKey, String>,
    commands: u64,
    /// When each pause was asked for, by who asked.
    asked: BTreeMap<u64, u64>,
    /// When the end of a method's pause was asked for last.
    resumed: BTreeMap<String, u64>,
    acknowledged: BTreeMap<String, u64>,
}

impl Invariant for Paused {
    fn asked(&mut self, command: &Command) {
        self.commands += 1;
        match command {
            Command::Pause { waiter, .. } => {
                self.asked.insert(waiter.tag, self.commands);
            }
            Command::Resume { method, .. } => {
                self.resumed.insert(method.clone(), self.commands);
            }
            _ => {}
        }
    }

    fn wrote(&mut self, rows: &[Written]) -> Held {
        for Written { key, put } in rows {
            match put {
                Some((_, Row::Pause(_, pause))) => {
                    self.paused.insert(*key, pause.method.to_string());
                }
                Some(_) => {}
                None => {
                    self.paused.remove(key);
                }
            }
        }
        Ok(())
    }

    fn made(&mut self, _: Timestamp, effect: &Effect) -> Held {
        match &effect.kind {
            EffectKind::Assign(_, assign)
                if self.paused.values().any(|method| **method == *assign.method) =>
            {
                Err(format!("{} begins, {:?} is paused", assign.id, assign.method))
            }
            _ => Ok(()),
        }
    }

    fn told(&mut self, kind: &EffectKind) -> Held {
        if let EffectKind::Reply(waiter, Reply::Paused(paused)) = kind
            && let Some(asked) = self.asked.remove(&waiter.tag)
        {
            self.acknowledged.insert(paused.pause.method.to_string(), asked);
        }
        Ok(())
    }

    fn restored(&mut self, stored: &Stored, _: &Scheduler) -> Held {
        let pauses = stored.iter().filter_map(|(key, data)| match decode(*key, data) {
            Row::Pause(_, pause) => Some((*key, pause.method.to_string())),
            _ => None,
        });
        self.paused = pauses.collect();
        for (method, asked) in &self.acknowledged {
            let resumed = self.resumed.get(method).is_some_and(|resumed| resumed > asked);
            if !resumed && !self.paused.values().any(|paused| paused == method) {
                return Err(format!("the pause of {method:?} was acknowledged, and is lost"));
            }
        }
        Ok(())
    }
}

//! A server that stops takes nothing in and gives nothing out.

use crewcall::clock::Timestamp;
use crewcall::scheduler::{Command, Effect, EffectKind, Reply, Scheduler};

use super::invariant::{Held, Invariant, Stored};

#[derive(Default)]
pub(super) struct Stopping {
    stopping: bool,
}

impl Invariant for Stopping {
    fn asked(&mut self, command: &Command) {
        self.stopping |= matches!(command, Command::Shutdown);
    }

    fn made(&mut self, _: Timestamp, effect: &Effect) -> Held {
        if !self.stopping {
            return Ok(());
        }
        match &effect.kind {
            EffectKind::Assign(_, assign) => Err(format!("{} begins while the server stops", assign.id)),
            EffectKind::Reply(_, Reply::Submitted(results)) => match results.iter().flatten().next() {
                Some(accepted) => Err(format!("{} is accepted while the server stops", accepted.id)),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn restored(&mut self, _: &Stored, _: &Scheduler) -> Held {
        self.stopping = false;
        Ok(())
    }
}

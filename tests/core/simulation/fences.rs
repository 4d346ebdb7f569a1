//! Leases rise with every assignment the server ever makes, across crashes.

use crewcall::clock::Timestamp;
use crewcall::scheduler::{Effect, EffectKind};

use super::invariant::{Held, Invariant};

#[derive(Default)]
pub(super) struct Fences {
    last: u64,
}

impl Invariant for Fences {
    fn made(&mut self, _: Timestamp, effect: &Effect) -> Held {
        let EffectKind::Assign(_, assign) = &effect.kind else { return Ok(()) };
        if assign.lease <= self.last {
            return Err(format!("lease {} was given out after {}", assign.lease, self.last));
        }
        self.last = assign.lease;
        Ok(())
    }
}

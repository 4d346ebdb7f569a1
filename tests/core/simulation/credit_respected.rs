//! A worker is never sent more than it said it can take, for each pool and stream.

use std::collections::BTreeMap;

use crewcall::clock::Timestamp;
use crewcall::scheduler::{Command, ConnId, Effect, EffectKind};

use super::invariant::{Held, Invariant};

#[derive(Default)]
pub(super) struct CreditRespected {
    /// Granted and assigned.
    pools: BTreeMap<(ConnId, String), (u64, u64)>,
}

impl Invariant for CreditRespected {
    fn asked(&mut self, command: &Command) {
        let Command::Frame { conn, frame, .. } = command else { return };
        for (pool, total) in &frame.credits {
            let (granted, _) = self.pools.entry((*conn, pool.clone())).or_default();
            *granted = (*granted).max(*total);
        }
    }

    fn made(&mut self, _: Timestamp, effect: &Effect) -> Held {
        let EffectKind::Assign(conn, assign) = &effect.kind else { return Ok(()) };
        let (granted, assigned) = self.pools.entry((*conn, assign.pool.to_string())).or_default();
        *assigned += 1;
        if assigned > granted {
            return Err(format!(
                "stream {conn}: {assigned} assigned to {:?}, {granted} granted",
                assign.pool
            ));
        }
        Ok(())
    }
}

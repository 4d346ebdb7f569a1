//! What an invariant may look at.

use std::collections::BTreeMap;

use bytes::Bytes;
use crewcall::clock::Timestamp;
use crewcall::row::{RowChange, RowKey};
use crewcall::scheduler::{Command, Effect, EffectKind, Scheduler};

pub(super) type Held = Result<(), String>;
pub(super) type Stored = BTreeMap<RowKey, Bytes>;

/// Something that must hold at every step. Each looks only at what it needs.
pub(super) trait Invariant {
    /// Somebody asks.
    fn asked(&mut self, _command: &Command) {}

    /// The scheduler put this out.
    fn made(&mut self, _now: Timestamp, _effect: &Effect) -> Held {
        Ok(())
    }

    /// It was carried out: somebody outside knows it now.
    fn told(&mut self, _kind: &EffectKind) -> Held {
        Ok(())
    }

    /// A batch is about to be stored.
    fn storing(&mut self, _before: &Stored, _batch: &[RowChange]) -> Held {
        Ok(())
    }

    /// A command or a tick is done.
    fn done(&mut self, _now: Timestamp, _ticked: bool, _scheduler: &Scheduler) -> Held {
        Ok(())
    }

    /// Everything handed out is stored, and the server is about to crash.
    fn synced(&mut self, _stored: &Stored, _scheduler: &Scheduler) -> Held {
        Ok(())
    }

    /// The server has crashed and is back.
    fn restored(&mut self, _stored: &Stored, _scheduler: &Scheduler) -> Held {
        Ok(())
    }
}

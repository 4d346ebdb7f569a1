//! What an invariant may look at.

use std::collections::BTreeMap;

use bytes::Bytes;
use crewcall::clock::Timestamp;
use crewcall::row::{Row, RowChange, RowKey};
use crewcall::scheduler::{Command, Effect, EffectKind, Scheduler};

pub(super) type Held = Result<(), String>;
pub(super) type Stored = BTreeMap<RowKey, Bytes>;

/// A change of a row, as stored and as read back; of a deletion, neither.
pub(super) struct Written {
    pub(super) key: RowKey,
    pub(super) put: Option<(Bytes, Row)>,
}

/// What was done, in how many steps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) steps: u64,
    /// Steps after which all that is stored was compared with all that lives.
    pub(super) compared: u64,
    /// Schedulers restored beside the live one, to be compared with it.
    pub(super) restored: u64,
    /// Times the live one was lost, and the restored one went on in its place.
    pub(super) crashes: u64,
    /// Times it was asked to stop.
    pub(super) stops: u64,
    /// Times the disk was full.
    pub(super) full: u64,
}

impl Figures {
    pub(super) fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.compared += other.compared;
        self.restored += other.restored;
        self.crashes += other.crashes;
        self.stops += other.stops;
        self.full += other.full;
    }
}

/// Something that must hold at every step. Each looks only at what it needs.
pub(super) trait Invariant {
    /// Somebody asks.
    fn asked(&mut self, _command: &Command) {}

    /// The scheduler put this out.
    fn made(&mut self, _now: Timestamp, _effect: &Effect) -> Held {
        Ok(())
    }

    /// The scheduler put these rows out: stored later, or lost in a crash.
    fn wrote(&mut self, _rows: &[Written]) -> Held {
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

    /// The server has crashed, or was stopped, and is back.
    fn restored(&mut self, _stored: &Stored, _scheduler: &Scheduler) -> Held {
        Ok(())
    }

    /// The disk has no room, or has room again, and the scheduler knows.
    fn disk(&mut self, _full: bool) {}

    /// Adds up what was looked at.
    fn count(&self, _figures: &mut Figures) {}
}

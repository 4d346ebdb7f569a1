//! What time alone will bring about: one ordered set, no timers.

use std::collections::BTreeSet;

use super::ledger::Slot;
use crate::clock::Timestamp;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// A task: delay over, deadline or timeout passed, retention over.
    Task(Slot),
    /// A session: silent beyond its lease, or gone beyond its grace.
    Session(usize),
}

/// At most one entry for each task and session.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    set: BTreeSet<(Timestamp, Due)>,
}

impl Deadlines {
    /// Moves the entry of `due` from `old` to `new`; `NEVER` stands for none. `old` is kept by whom the
    /// entry is about, which makes this O(log n) without a second index.
    pub(crate) fn set(&mut self, due: Due, old: &mut Timestamp, new: Timestamp) {
        if *old == new {
            return;
        }
        if *old != Timestamp::NEVER {
            self.set.remove(&(*old, due));
        }
        if new != Timestamp::NEVER {
            self.set.insert((new, due));
        }
        *old = new;
    }

    /// All entries, for the audit.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &(Timestamp, Due)> {
        self.set.iter()
    }

    /// The earliest.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.set.first().map(|(at, _)| *at)
    }

    /// Takes one entry that is due at `now`. Whoever it is about forgets that it had one.
    pub(crate) fn pop(&mut self, now: Timestamp) -> Option<Due> {
        let (at, _) = self.set.first()?;
        if *at > now {
            return None;
        }
        self.set.pop_first().map(|(_, due)| due)
    }
}

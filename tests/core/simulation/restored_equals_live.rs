//! What is restored from stored rows is the ledger that wrote them.

use crewcall::scheduler::Scheduler;

use super::invariant::{Held, Invariant, Stored};
use super::world::decode;

pub(super) struct RestoredEqualsLive;

impl Invariant for RestoredEqualsLive {
    fn synced(&mut self, stored: &Stored, scheduler: &Scheduler) -> Held {
        same(stored, scheduler, "the live ledger")
    }

    fn restored(&mut self, stored: &Stored, scheduler: &Scheduler) -> Held {
        same(stored, scheduler, "the restored ledger")?;
        scheduler.audit()
    }
}

fn same(stored: &Stored, scheduler: &Scheduler, which: &str) -> Held {
    let rows = scheduler.rows();
    if rows.len() != stored.len() {
        return Err(format!("{which} has {} rows, {} are stored", rows.len(), stored.len()));
    }
    for ((key, row), (stored_key, data)) in rows.iter().zip(stored) {
        if key != stored_key || *row != decode(*stored_key, data) {
            return Err(format!("{which} says {row:?}, stored is {:?}", decode(*stored_key, data)));
        }
    }
    Ok(())
}

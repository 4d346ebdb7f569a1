//! Where tasks lie, by id and by idempotency key. What is compared stands in the tasks themselves, so that an
//! entry for an id takes eight bytes and one for a key four.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::ledger::Slot;
use super::slots::Slots;
use crate::task::{Task, TaskId};

#[derive(Debug, Default)]
pub(crate) struct Index {
    by_id: HashTable<IdEntry>,
    by_key: HashTable<u32>,
    hasher: RandomState,
}

/// The hash stands beside the slot: a table that grows need not look at every task.
#[derive(Clone, Copy, Debug)]
struct IdEntry {
    hash: u32,
    slot: u32,
}

impl Index {
    pub(crate) fn of_id(&self, tasks: &Slots<Task>, id: TaskId) -> Option<Slot> {
        let hash = hash_of(id);
        let is_it = |entry: &IdEntry| entry.hash == hash && has_id(tasks, entry.slot, id);
        self.by_id.find(spread(hash), is_it).map(|entry| entry.slot as Slot)
    }

    pub(crate) fn of_key(&self, tasks: &Slots<Task>, method: &str, key: &str) -> Option<Slot> {
        let is_it = |slot: &u32| {
            tasks
                .get(*slot as Slot)
                .is_some_and(|task| &*task.method == method && task.idempotency_key() == key)
        };
        self.by_key.find(self.hasher.hash_one((method, key)), is_it).map(|slot| *slot as Slot)
    }

    pub(crate) fn insert(&mut self, tasks: &Slots<Task>, slot: Slot) {
        let Some(task) = tasks.get(slot) else { return };
        let entry = IdEntry { hash: hash_of(task.id), slot: slot as u32 };
        self.by_id.insert_unique(spread(entry.hash), entry, |entry| spread(entry.hash));
        if task.key.is_some() {
            let hasher = &self.hasher;
            let hash = |task: &Task| hasher.hash_one((&*task.method, task.idempotency_key()));
            let hash_at = |slot: &u32| tasks.get(*slot as Slot).map_or(0, hash);
            self.by_key.insert_unique(hash(task), slot as u32, hash_at);
        }
    }

    /// Forgets `task`, which was taken out of `slot`.
    pub(crate) fn remove(&mut self, task: &Task, slot: Slot) {
        let hash = hash_of(task.id);
        if let Ok(entry) = self.by_id.find_entry(spread(hash), |entry| entry.slot as Slot == slot) {
            entry.remove();
        }
        if task.key.is_some() {
            let hash = self.hasher.hash_one((&*task.method, task.idempotency_key()));
            if let Ok(entry) = self.by_key.find_entry(hash, |other| *other as Slot == slot) {
                entry.remove();
            }
        }
    }

    /// Ids, and keys.
    pub(crate) fn lens(&self) -> (usize, usize) {
        (self.by_id.len(), self.by_key.len())
    }
}

fn has_id(tasks: &Slots<Task>, slot: u32, id: TaskId) -> bool {
    tasks.get(slot as Slot).is_some_and(|task| task.id == id)
}

/// Ids are made by the server, so a fixed hash cannot be attacked. Those of one frame follow each other: their last bits stay
/// as they are, so that neighbours in time are neighbours in the table, and a long queue, which moves through all of it, misses
/// the cache once for a few of them. Not for more: where long runs are full, a table cannot forget without traces.
fn hash_of(id: TaskId) -> u32 {
    let id = id.0.as_u128();
    let run = ((id >> RUN_BITS) as u64 ^ (id >> 64) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    ((run as u32) << RUN_BITS) | (id as u32 & ((1 << RUN_BITS) - 1))
}

/// Ids in a run, as a power of two.
const RUN_BITS: u32 = 2;

/// Tables look at the lowest bits for the place, and at the highest to tell neighbours apart.
fn spread(hash: u32) -> u64 {
    let mixed = u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed & !u64::from(u32::MAX)) | u64::from(hash)
}

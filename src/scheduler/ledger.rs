//! The durable facts. They change only inside [`Ledger::commit`], which applies a record and writes down
//! which stored rows it changes, in one motion. What a restart restores is exactly what `commit` wrote.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;
use slab::Slab;

use super::audit::ensure;
use super::command::WorkerId;
use super::orders::Orders;
use crate::clock::Timestamp;
use crate::order::{Drain, Pause};
use crate::row::{Row, RowChange, RowKey};
use crate::task::{ATTEMPTS_KEPT, Attempt, Outcome, State, StateName, Task, TaskId};

/// Where a task lies in the ledger. Valid until the task is forgotten.
pub(crate) type Slot = usize;

/// Leases are reserved in the store this many at a time, so that a restart never hands out one again and
/// ephemeral work pays nothing for it.
const LEASES_RESERVED_AT_ONCE: u64 = 1 << 20;

/// Something that became true.
#[derive(Debug)]
pub(crate) enum Record {
    /// A task was accepted. Its state is `Delayed` or `Ready`.
    Submitted(Box<Task>),
    /// A worker holds it.
    Leased { slot: Slot, lease: u64, worker_id: WorkerId },
    /// It came back without having been tried.
    Requeued { slot: Slot },
    /// An attempt failed; the next one follows at `until`.
    Retrying { slot: Slot, error: Attempt, until: Timestamp },
    /// Its time has come.
    Woken { slot: Slot },
    /// It is over.
    Ended { slot: Slot, outcome: Outcome, error: Option<Attempt>, forget_at: Timestamp },
    /// Its outcome was withdrawn; it starts anew.
    Withdrawn { slot: Slot },
    /// It is known no longer.
    Forgotten { slot: Slot },
    /// Leases below this may have been handed out.
    LeasesReserved { below: u64 },
    /// Tasks of a method wait until told otherwise; takes the place of an earlier order about it.
    Paused(Pause),
    /// They wait no longer.
    Resumed { method: Arc<str> },
    /// A worker's process was asked to leave; takes the place of an earlier order about the worker.
    Drained(Drain),
    /// It has left, or is not expected any more.
    DrainOver { worker_id: WorkerId },
}

/// Everything that must survive.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    tasks: Slab<Task>,
    /// Ids are made by the server, so a fixed hash seed cannot be attacked, and iteration never matters.
    index: HashMap<TaskId, Slot, FixedState>,
    /// Idempotency keys, by method and key.
    keys: HashMap<(Arc<str>, String), Slot>,
    next_lease: u64,
    leases_reserved: u64,
    pauses: Orders<Pause>,
    drains: Orders<Drain>,
    bytes: usize,
    counts: [u64; 7],
}

impl Ledger {
    pub(crate) fn task(&self, slot: Slot) -> &Task {
        &self.tasks[slot]
    }

    pub(crate) fn slot_of(&self, id: TaskId) -> Option<Slot> {
        self.index.get(&id).copied()
    }

    pub(crate) fn slot_of_key(&self, method: &str, key: &str) -> Option<Slot> {
        // Tuples of owned strings cannot be looked up by parts; keys are rare enough to pay for it.
        self.keys.get(&(Arc::from(method), key.to_owned())).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Payloads and outcomes of all tasks.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Tasks in each state, in the order of `StateName::ALL`.
    pub(crate) fn counts(&self) -> [u64; 7] {
        self.counts
    }

    /// Tasks in one state.
    pub(crate) fn count(&self, state: StateName) -> u64 {
        self.counts.get(state as usize).copied().unwrap_or_default()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &Task)> {
        self.tasks.iter()
    }

    /// Methods whose tasks wait.
    pub(crate) fn pauses(&self) -> &Orders<Pause> {
        &self.pauses
    }

    /// Workers' processes that were asked to leave.
    pub(crate) fn drains(&self) -> &Orders<Drain> {
        &self.drains
    }

    /// Reserves leases anew once half of the block is used: the reservation is stored long before the first
    /// of the new leases leaves, which no effect waits for.
    pub(crate) fn reserve_leases(&mut self, now: Timestamp, rows: &mut Vec<RowChange>) {
        let next = self.next_lease.max(1);
        if self.leases_reserved < next + LEASES_RESERVED_AT_ONCE / 2 {
            self.commit(now, Record::LeasesReserved { below: next + LEASES_RESERVED_AT_ONCE }, rows);
        }
    }

    /// A lease that was never handed out. The reservation that makes this hold across restarts goes to
    /// `rows` when a new block begins.
    pub(crate) fn new_lease(&mut self, now: Timestamp, rows: &mut Vec<RowChange>) -> u64 {
        self.reserve_leases(now, rows);
        self.next_lease = self.next_lease.max(1);
        let lease = self.next_lease;
        self.next_lease += 1;
        lease
    }

    /// Applies `record` and appends the rows it changes. Returns the slot of the task it is about (0 when
    /// it is about none).
    pub(crate) fn commit(&mut self, now: Timestamp, record: Record, rows: &mut Vec<RowChange>) -> Slot {
        match record {
            Record::Submitted(task) => self.submitted(*task, rows),
            Record::Leased { slot, lease, worker_id } => self.change(now, slot, rows, |task| {
                task.attempt += 1;
                task.state = State::Leased { lease, worker_id };
            }),
            Record::Requeued { slot } => self.change(now, slot, rows, |task| {
                task.attempt = task.attempt.saturating_sub(1);
                task.state = State::Ready;
            }),
            Record::Retrying { slot, error, until } => self.change(now, slot, rows, |task| {
                keep_attempt(task, error);
                task.state = State::Delayed { until };
            }),
            Record::Woken { slot } => self.change(now, slot, rows, |task| task.state = State::Ready),
            Record::Ended { slot, outcome, error, forget_at } => self.change(now, slot, rows, |task| {
                if let Some(error) = error {
                    keep_attempt(task, error);
                }
                task.state = State::Ended(outcome);
                task.forget_at = forget_at;
            }),
            Record::Withdrawn { slot } => self.change(now, slot, rows, |task| {
                task.state = State::Ready;
                task.attempt = 0;
                task.since = now;
                task.forget_at = Timestamp::NEVER;
            }),
            Record::Forgotten { slot } => self.forgotten(slot, rows),
            Record::LeasesReserved { below } => {
                self.leases_reserved = below;
                rows.push(RowChange::Put(RowKey::LeasesReserved, Row::LeasesReserved(below).encode()));
                0
            }
            Record::Paused(pause) => {
                self.pauses.put(pause, rows);
                0
            }
            Record::Resumed { method } => {
                self.pauses.lift(&method, rows);
                0
            }
            Record::Drained(drain) => {
                self.drains.put(drain, rows);
                0
            }
            Record::DrainOver { worker_id } => {
                self.drains.lift(&worker_id, rows);
                0
            }
        }
    }

    /// Puts a stored row back; rows may come in any order. Used at start-up only.
    pub(crate) fn restore(&mut self, row: Row) {
        match row {
            Row::Task(task) => {
                // Only a repaired store can lack the row that says so more generally.
                if let State::Leased { lease, .. } = task.state {
                    self.next_lease = self.next_lease.max(lease + 1);
                }
                self.submitted(*task, &mut Vec::new());
            }
            Row::LeasesReserved(below) => {
                // All of the reserved block may have been handed out.
                self.leases_reserved = below;
                self.next_lease = self.next_lease.max(below);
            }
            Row::Pause(number, pause) => self.pauses.restore(number, *pause),
            Row::Drain(number, drain) => self.drains.restore(number, *drain),
        }
    }

    /// The durable facts as rows, sorted by key: two ledgers are equal when these are.
    pub(crate) fn rows(&self) -> Vec<(RowKey, Row)> {
        let mut rows: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.is_durable())
            .map(|(_, task)| (RowKey::Task(task.id), Row::Task(Box::new(task.clone()))))
            .collect();
        if self.leases_reserved > 0 {
            rows.push((RowKey::LeasesReserved, Row::LeasesReserved(self.leases_reserved)));
        }
        rows.extend(self.pauses.rows());
        rows.extend(self.drains.rows());
        rows.sort_by_key(|(key, _)| *key);
        rows
    }

    /// Whether counts, bytes and indexes say what the tasks say.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let (mut counts, mut bytes, mut keyed) = ([0_u64; 7], 0, 0);
        for (slot, task) in &self.tasks {
            if let Some(count) = counts.get_mut(task.state.name() as usize) {
                *count += 1;
            }
            bytes += task.size();
            ensure!(self.index.get(&task.id) == Some(&slot), "{} is not in the index", task.id);
            if let State::Leased { lease, .. } = task.state {
                ensure!(lease < self.next_lease, "{} holds lease {lease}, which was not given out", task.id);
            }
            if !task.options.idempotency_key.is_empty() {
                keyed += 1;
                let key = (Arc::clone(&task.method), task.options.idempotency_key.clone());
                ensure!(self.keys.get(&key) == Some(&slot), "{} is not under its key", task.id);
            }
        }
        ensure!(counts == self.counts, "counts are {:?}, should be {counts:?}", self.counts);
        ensure!(bytes == self.bytes, "{bytes} bytes, {} counted", self.bytes);
        ensure!(self.index.len() == self.tasks.len() && self.keys.len() == keyed, "an index holds too much");
        self.pauses.audit()?;
        self.drains.audit()?;
        ensure!(
            self.next_lease <= self.leases_reserved,
            "leases beyond {} were not reserved",
            self.leases_reserved
        );
        Ok(())
    }

    fn submitted(&mut self, task: Task, rows: &mut Vec<RowChange>) -> Slot {
        self.bytes += task.size();
        self.add_to_count(task.state.name(), 1);
        if task.is_durable() {
            rows.push(RowChange::Put(RowKey::Task(task.id), Row::encode_task(&task)));
        }
        let key = (!task.options.idempotency_key.is_empty())
            .then(|| (Arc::clone(&task.method), task.options.idempotency_key.clone()));
        let id = task.id;
        let slot = self.tasks.insert(task);
        self.index.insert(id, slot);
        if let Some(key) = key {
            self.keys.insert(key, slot);
        }
        slot
    }

    fn change(
        &mut self,
        now: Timestamp,
        slot: Slot,
        rows: &mut Vec<RowChange>,
        apply: impl FnOnce(&mut Task),
    ) -> Slot {
        let task = &mut self.tasks[slot];
        let (before, size) = (task.state.name(), task.size());
        apply(task);
        task.changed_at = now;
        let (after, new_size, durable) = (task.state.name(), task.size(), task.is_durable());
        if durable {
            rows.push(RowChange::Put(RowKey::Task(task.id), Row::encode_task(task)));
        }
        self.bytes = self.bytes + new_size - size;
        self.add_to_count(before, -1);
        self.add_to_count(after, 1);
        slot
    }

    fn forgotten(&mut self, slot: Slot, rows: &mut Vec<RowChange>) -> Slot {
        let task = self.tasks.remove(slot);
        self.index.remove(&task.id);
        if !task.options.idempotency_key.is_empty() {
            self.keys.remove(&(Arc::clone(&task.method), task.options.idempotency_key.clone()));
        }
        self.bytes -= task.size();
        self.add_to_count(task.state.name(), -1);
        if task.is_durable() {
            rows.push(RowChange::Delete(RowKey::Task(task.id)));
        }
        slot
    }

    fn add_to_count(&mut self, state: StateName, by: i64) {
        if let Some(count) = self.counts.get_mut(state as usize) {
            *count = count.wrapping_add_signed(by);
        }
    }
}

fn keep_attempt(task: &mut Task, error: Attempt) {
    if task.attempts.len() == ATTEMPTS_KEPT {
        task.attempts.remove(0);
    }
    task.attempts.push(error);
}

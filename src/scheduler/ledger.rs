//! The durable facts. They change only inside [`Ledger::commit`], which applies a record and writes down
//! which stored rows it changes, in one motion. What a restart restores is exactly what `commit` wrote.

use std::sync::Arc;

use super::audit::ensure;
use super::command::WorkerId;
use super::index::Index;
use super::orders::Orders;
use super::sharing::SharedOptions;
use super::slots::Slots;
use crate::clock::Timestamp;
use crate::order::{Drain, Pause};
use crate::row::{Row, RowChange, RowKey};
use crate::task::{Attempt, Body, Outcome, State, StateName, Task, TaskId};

/// Where a task lies in the ledger. Valid until the task is forgotten.
pub(crate) type Slot = usize;

/// The slot of no task.
pub(crate) const NO_SLOT: Slot = Slot::MAX;

/// Leases are reserved in the store this many at a time, so that a restart never hands out one again and
/// ephemeral work pays nothing for it.
const LEASES_RESERVED_AT_ONCE: u64 = 1 << 20;

/// Something that became true.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "never kept: it is taken apart where it is made")]
pub(crate) enum Record {
    /// A task was accepted. Its state is `Delayed` or `Ready`.
    Submitted(Task),
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
    tasks: Slots<Task>,
    index: Index,
    next_lease: u64,
    leases_reserved: u64,
    pauses: Orders<Pause>,
    drains: Orders<Drain>,
    bytes: usize,
    /// Payloads of durable tasks that are in memory.
    resident: usize,
    counts: [u64; 7],
    /// Rows handed out so far.
    written: u64,
}

impl Ledger {
    pub(crate) fn task(&self, slot: Slot) -> &Task {
        &self.tasks[slot]
    }

    pub(crate) fn slot_of(&self, id: TaskId) -> Option<Slot> {
        self.index.of_id(&self.tasks, id)
    }

    pub(crate) fn slot_of_key(&self, method: &str, key: &str) -> Option<Slot> {
        self.index.of_key(&self.tasks, method, key)
    }

    pub(crate) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Payloads and outcomes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Payloads of durable tasks in memory.
    pub(crate) fn resident(&self) -> usize {
        self.resident
    }

    /// How many changes of rows were handed out so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Lets go of the payload of a durable task: its row must be stored.
    pub(crate) fn let_go(&mut self, slot: Slot) {
        let task = &mut self.tasks[slot];
        let bytes = task.body.resident();
        task.body = task.body.stored();
        self.bytes -= bytes;
        self.resident -= bytes;
    }

    /// Takes an ephemeral task out, of which nothing is stored.
    #[inline]
    pub(crate) fn take_out(&mut self, slot: Slot) -> Task {
        let task = self.tasks.remove(slot);
        self.index.remove(&task, slot);
        self.bytes -= task.resident();
        self.add_to_count(task.state.name(), -1);
        task
    }

    /// Puts an ephemeral task back that was taken out.
    pub(crate) fn put_back(&mut self, task: Task) -> Slot {
        self.place(task)
    }

    /// Gives the task the options that stand for all equal to its own.
    pub(crate) fn share_options(&mut self, slot: Slot, shared: &mut SharedOptions) {
        let task = &mut self.tasks[slot];
        task.options = shared.share(Arc::clone(&task.options));
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

    /// Applies `record` and appends the rows it changes. Returns the slot of the task it is about ([`NO_SLOT`] when
    /// it is about none).
    // Inlined, with what follows, each place has the code of its own record only, and moves no task twice.
    #[inline(always)]
    pub(crate) fn commit(&mut self, now: Timestamp, record: Record, rows: &mut Vec<RowChange>) -> Slot {
        let before = rows.len();
        let slot = self.apply(now, record, rows);
        self.written += (rows.len() - before) as u64;
        slot
    }

    #[inline(always)]
    fn apply(&mut self, now: Timestamp, record: Record, rows: &mut Vec<RowChange>) -> Slot {
        match record {
            Record::Submitted(task) => self.submitted(task, rows),
            Record::Leased { slot, lease, worker_id } => self.change(now, slot, rows, |task| {
                task.attempt += 1;
                task.state = State::Leased { lease, worker_id };
            }),
            Record::Requeued { slot } => self.change(now, slot, rows, |task| {
                task.attempt = task.attempt.saturating_sub(1);
                task.state = State::Ready;
            }),
            Record::Retrying { slot, error, until } => self.change(now, slot, rows, |task| {
                task.attempts.keep(error);
                task.state = State::Delayed { until };
            }),
            Record::Woken { slot } => self.change(now, slot, rows, |task| task.state = State::Ready),
            Record::Ended { slot, outcome, error, forget_at } => self.change(now, slot, rows, |task| {
                if let Some(error) = error {
                    task.attempts.keep(error);
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
                NO_SLOT
            }
            Record::Paused(pause) => {
                self.pauses.put(pause, rows);
                NO_SLOT
            }
            Record::Resumed { method } => {
                self.pauses.lift(&method, rows);
                NO_SLOT
            }
            Record::Drained(drain) => {
                self.drains.put(drain, rows);
                NO_SLOT
            }
            Record::DrainOver { worker_id } => {
                self.drains.lift(&worker_id, rows);
                NO_SLOT
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
                self.place(*task);
            }
            Row::LeasesReserved(below) => {
                // All of the reserved block may have been handed out.
                self.leases_reserved = below;
                self.next_lease = self.next_lease.max(below);
            }
            Row::Pause(number, pause) => self.pauses.restore(number, *pause),
            Row::Drain(number, drain) => self.drains.restore(number, *drain),
            // Read when it is wanted.
            Row::Payload(..) => {}
        }
    }

    /// The durable facts as rows, sorted by key, those left out that are read when they are wanted: two ledgers are equal when these are.
    pub(crate) fn rows(&self) -> Vec<(RowKey, Row)> {
        let mut rows: Vec<_> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.is_durable())
            .map(|(_, task)| Task { body: task.body.stored(), ..task.clone() })
            .map(|task| (RowKey::Task(task.id), Row::Task(Box::new(task))))
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
        let (mut counts, mut bytes, mut resident, mut keyed) = ([0_u64; 7], 0, 0, 0);
        for (slot, task) in self.tasks.iter() {
            if let Some(count) = counts.get_mut(task.state.name() as usize) {
                *count += 1;
            }
            bytes += task.resident();
            match &task.body {
                Body::Held(payload) if task.is_durable() => resident += payload.size(),
                Body::Held(_) => {}
                Body::Stored(_) => ensure!(task.is_durable(), "{} is not stored, its payload is", task.id),
            }
            ensure!(self.slot_of(task.id) == Some(slot), "{} is not in the index", task.id);
            if let State::Leased { lease, .. } = task.state {
                ensure!(lease < self.next_lease, "{} holds lease {lease}, which was not given out", task.id);
            }
            if let Some(key) = &task.key {
                keyed += 1;
                let found = self.slot_of_key(&task.method, &key.text);
                ensure!(found == Some(slot), "{} is not under its key", task.id);
            }
        }
        ensure!(counts == self.counts, "counts are {:?}, should be {counts:?}", self.counts);
        ensure!(bytes == self.bytes, "{bytes} bytes, {} counted", self.bytes);
        ensure!(resident == self.resident, "{resident} bytes resident, {} counted", self.resident);
        ensure!(self.index.lens() == (self.tasks.len(), keyed), "an index holds too much");
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
        if task.is_durable() {
            rows.push(RowChange::Put(RowKey::Task(task.id), Row::encode_task(&task)));
            if let Body::Held(payload) = &task.body
                && payload.size() > 0
            {
                rows.push(RowChange::Put(RowKey::Payload(task.id), Row::encode_payload(payload)));
            }
        }
        self.place(task)
    }

    fn place(&mut self, task: Task) -> Slot {
        self.bytes += task.resident();
        if task.is_durable() {
            self.resident += task.body.resident();
        }
        self.add_to_count(task.state.name(), 1);
        let slot = self.tasks.insert(task);
        self.index.insert(&self.tasks, slot);
        slot
    }

    #[inline(always)]
    fn change(
        &mut self,
        now: Timestamp,
        slot: Slot,
        rows: &mut Vec<RowChange>,
        apply: impl FnOnce(&mut Task),
    ) -> Slot {
        let task = &mut self.tasks[slot];
        let (before, size) = (task.state.name(), task.resident());
        apply(task);
        task.changed_at = now;
        let (after, new_size, durable) = (task.state.name(), task.resident(), task.is_durable());
        if durable {
            rows.push(RowChange::Put(RowKey::Task(task.id), Row::encode_task(task)));
        }
        self.bytes = self.bytes + new_size - size;
        self.add_to_count(before, -1);
        self.add_to_count(after, 1);
        slot
    }

    fn forgotten(&mut self, slot: Slot, rows: &mut Vec<RowChange>) -> Slot {
        let task = self.take_out(slot);
        if task.is_durable() {
            self.resident -= task.body.resident();
            rows.push(RowChange::Delete(RowKey::Task(task.id)));
            if task.body.size() > 0 {
                rows.push(RowChange::Delete(RowKey::Payload(task.id)));
            }
        }
        slot
    }

    fn add_to_count(&mut self, state: StateName, by: i64) {
        if let Some(count) = self.counts.get_mut(state as usize) {
            *count = count.wrapping_add_signed(by);
        }
    }
}

//! The scheduler: synchronous and pure. No tokio, no sockets, no clock, no randomness, no I/O; a test
//! says so. Commands and the time come in, records and effects go out:
//!
//! ```text
//! handle(now, command, &mut out)   what someone asks              out.rows:    what became true, as rows
//! tick(now, &mut out)              what time alone makes true     out.effects: who must be told
//! due()                            when to call tick next         restore(rows): the ledger that wrote them
//! ```
//!
//! Contract: `now` may repeat but is forced never to go back; `tick` may be called at any time and does
//! nothing when nothing is due; effects are carried out in order, a gated one only once all rows handed out
//! so far are stored. Between calls these hold (the simulator checks them at every step):
//! no ready task while a pool that may run it has credit; a leased task is in exactly one session's leases,
//! unless its session was lost in a restart; every ended task has exactly one outcome, and it does not change.

#![allow(
    clippy::indexing_slicing,
    reason = "slots and keys come from the slabs they index; a dangling one is a defect that must stop the \
              engine rather than be passed over, and the audit and the simulator look for it"
)]

use std::collections::BTreeMap;

use slab::Slab;

pub use command::{
    AttemptEnd, AttemptResult, Command, ConnId, Cursor, Filter, Frame, Hello, PoolSpec, SessionId, Update,
    Waiter, WorkerId,
};
pub use dead_letters::{DeadChange, DeadChanged, DeadFilter, DeadPlace, DeadSelection};
pub use effect::{
    Accepted, Assign, Effect, EffectKind, Event, EventKind, Explanation, MethodView, PoolView, Reply, Room,
    Stats, TaskView, Tell, Totals, Welcome, WorkerState, WorkerView,
};
pub use limits::Limits;
pub use pauses::Paused;

use crate::clock::Timestamp;
use crate::error::{Error, Reason};
use crate::row::{Row, RowChange, RowKey};
use crate::task::{State, StateName, Task, TaskId};
use dead_letters::DeadLetters;
use deadlines::{Deadlines, Due};
use drains::Absent;
use ledger::{Ledger, Record, Slot};
use live::{Chain, List, Live};
use roster::Roster;
use watch::Watchers;

mod audit;
mod command;
mod dead_letters;
mod deadlines;
mod dispatch;
mod drains;
mod effect;
mod ledger;
mod lifecycle;
mod limits;
mod live;
mod orders;
mod pauses;
mod queue;
mod roster;
mod sessions;
mod views;
mod watch;

/// What a call of the scheduler brings about. Reused between calls; the caller drains it.
#[derive(Debug, Default)]
pub struct Output {
    /// Changes of stored rows, in order. One batch, stored whole or not at all.
    pub rows: Vec<RowChange>,
    /// Who must be told what, in order.
    pub effects: Vec<Effect>,
}

impl Output {
    /// Tells somebody something that may be told at once.
    fn now(&mut self, kind: EffectKind) {
        self.effects.push(Effect { gated: false, kind });
    }

    /// Tells somebody a durable fact when `gated`, else something that may be told at once.
    fn tell(&mut self, gated: bool, kind: EffectKind) {
        self.effects.push(Effect { gated, kind });
    }

    fn refuse(&mut self, waiter: Waiter, error: Error) {
        self.now(EffectKind::Reply(waiter, Reply::Refused(error)));
    }
}

/// The one owner of all scheduling state.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    /// Tells this run from others in cursors and jitter.
    epoch: u64,
    started_at: Timestamp,
    now: Timestamp,
    stopping: bool,
    /// Why durable work is refused.
    store_full: Option<String>,
    /// As the engine measured it last.
    store_bytes: u64,
    store_max_bytes: Option<u64>,
    ledger: Ledger,
    lives: Slab<Live>,
    /// All tasks, oldest first.
    by_age: List,
    /// Ended calls whose caller got the outcome, oldest first.
    answered: List,
    answered_bytes: usize,
    roster: Roster,
    /// Leases of restored tasks whose worker has not come back, for the worker that names them.
    orphans: BTreeMap<u64, Slot>,
    deadlines: Deadlines,
    dead: DeadLetters,
    absent: Absent,
    watchers: Watchers,
    next_session: u64,
    /// See `sessions.rs`.
    strays_left: u32,
    /// Until then a worker may have been heard without the scheduler having been told; see `sessions.rs`.
    hearing_until: Timestamp,
    /// Of the tasks that became ready.
    next_place: u64,
    totals: Totals,
}

impl Scheduler {
    /// An empty scheduler. `epoch` must differ from run to run; it also seeds the jitter of backoffs.
    pub fn new(limits: Limits, epoch: u64) -> Self {
        Self {
            limits,
            epoch,
            started_at: Timestamp::default(),
            now: Timestamp::default(),
            stopping: false,
            store_full: None,
            store_bytes: 0,
            store_max_bytes: None,
            ledger: Ledger::default(),
            lives: Slab::new(),
            by_age: List::new(Chain::Age),
            answered: List::new(Chain::Line),
            answered_bytes: 0,
            roster: Roster::default(),
            orphans: BTreeMap::new(),
            deadlines: Deadlines::default(),
            dead: DeadLetters::default(),
            absent: Absent::default(),
            watchers: Watchers::default(),
            next_session: 1,
            strays_left: 0,
            hearing_until: Timestamp::default(),
            next_place: 0,
            totals: Totals::default(),
        }
    }

    /// The scheduler as it was when `rows` were stored: the same ledger, nobody connected. Leases that
    /// stood are kept for one resume grace, so that workers may come back with their work.
    pub fn restore(limits: Limits, epoch: u64, now: Timestamp, rows: impl IntoIterator<Item = Row>) -> Self {
        let mut scheduler = Self::new(limits, epoch);
        for row in rows {
            scheduler.ledger.restore(row);
        }
        // The clock may have been set back between the runs.
        let latest = scheduler.ledger.iter().map(|(_, task)| task.changed_at).max().unwrap_or_default();
        scheduler.now = now.max(latest);
        scheduler.started_at = scheduler.now;
        scheduler.adopt_orders();
        scheduler.adopt_restored_tasks();
        scheduler
    }

    /// Call once, before the first command, and store the rows before any effect of a later command is
    /// carried out: they reserve leases. Work is sent to workers before anything about it is stored, so
    /// without this a crash in the first moments would hand out the same leases a second time.
    pub fn start(&mut self, out: &mut Output) {
        self.ledger.reserve_leases(self.now, &mut out.rows);
    }

    /// While the store has no room, whatever would need it is refused with `reason`; ephemeral work goes on.
    pub fn store_is_full(&mut self, reason: Option<String>) {
        self.store_full = reason;
    }

    /// What the store takes on the disk, and the most it may take: for Stats.
    pub fn store_measured(&mut self, bytes: u64, max_bytes: Option<u64>) {
        self.store_bytes = bytes;
        self.store_max_bytes = max_bytes;
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Tasks that a worker holds.
    pub fn leased(&self) -> u64 {
        self.ledger.count(StateName::Leased)
    }

    /// When `tick` has something to do next.
    pub fn due(&self) -> Option<Timestamp> {
        let answered = self.answered.head().map(|slot| self.ledger.task(slot).forget_at);
        [self.deadlines.next(), answered, self.absent.next()].into_iter().flatten().min()
    }

    /// Tasks in each state, in the order of [`StateName::ALL`](crate::task::StateName::ALL).
    pub fn counts(&self) -> [u64; 7] {
        self.ledger.counts()
    }

    /// The durable facts as rows, sorted by key: for tests that compare a restored scheduler with a live
    /// one, and for export.
    pub fn rows(&self) -> Vec<(RowKey, Row)> {
        self.ledger.rows()
    }

    /// All tasks, in no particular order: for tests that compare every one of them at every step.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.ledger.iter().map(|(_, task)| task)
    }

    /// Carries out what someone asks.
    pub fn handle(&mut self, now: Timestamp, command: Command, out: &mut Output) {
        self.advance(now);
        match command {
            Command::Call { task, waiter } => self.call(task, waiter, out),
            Command::Submit { tasks, waiter } => self.submit(tasks, waiter, out),
            Command::Await { id, waiter } => self.await_end(id, waiter, out),
            Command::Abandon { id, waiter, cancel } => self.abandon(id, waiter, cancel, out),
            Command::Get { id, take, waiter } => self.get(id, take, waiter, out),
            Command::List { filter, after, limit, waiter } => self.list(&filter, after, limit, waiter, out),
            Command::Cancel { id, reason, waiter } => self.cancel(id, reason, waiter, out),
            Command::Retry { id, waiter } => self.retry(id, waiter, out),
            Command::Explain { id, waiter } => self.explain(id, waiter, out),
            Command::Watch { ids, filter, cursor, conn, waiter } => {
                self.watch(ids, filter, cursor, conn, waiter, out);
            }
            Command::Unwatch { conn } => self.unwatch(conn),
            Command::Join { hello, conn, token, waiter } => self.join(*hello, conn, token, waiter, out),
            Command::Frame { session, conn, frame } => self.frame(session, conn, *frame, out),
            Command::Broken { session, conn } => self.broken(session, conn, out),
            Command::Workers { waiter } => self.list_workers(waiter, out),
            Command::Methods { waiter } => self.list_methods(waiter, out),
            Command::Stats { waiter } => self.stats(waiter, out),
            Command::Drain { worker_id, reason, waiter } => self.drain(&worker_id, reason, waiter, out),
            Command::Pause { method, reason, by, waiter } => self.pause(method, reason, by, waiter, out),
            Command::Resume { method, waiter } => self.resume_method(&method, waiter, out),
            Command::ListDead { filter, after, limit, waiter } => {
                self.list_dead(&filter, after, limit, waiter, out);
            }
            Command::ChangeDead { change, selection, dry_run, waiter } => {
                self.change_dead(change, selection, dry_run, waiter, out);
            }
            Command::Shutdown => self.shutdown(out),
        }
    }

    /// Brings about what is due at `now`. Harmless when nothing is.
    pub fn tick(&mut self, now: Timestamp, out: &mut Output) {
        self.advance(now);
        while let Some(due) = self.deadlines.pop(self.now) {
            match due {
                Due::Task(slot) => self.task_due(slot, out),
                Due::Session(session) => self.session_due(session, out),
            }
        }
        while let Some(slot) = self.answered.head() {
            if self.ledger.task(slot).forget_at > self.now {
                break;
            }
            self.forget(slot, out);
        }
        self.drains_due(out);
    }

    fn advance(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        if self.started_at == Timestamp::default() {
            self.started_at = self.now;
        }
    }

    fn commit(&mut self, record: Record, out: &mut Output) -> Slot {
        self.ledger.commit(self.now, record, &mut out.rows)
    }

    fn slot_of(&self, id: TaskId) -> Result<Slot, Error> {
        self.ledger.slot_of(id).ok_or_else(|| {
            Error::new(
                Reason::TaskNotFound,
                format!(
                    "no task {id}: it never was, or its outcome was kept for its retention time and is gone"
                ),
            )
        })
    }

    /// Moves the task's one entry in the deadlines to the earliest thing that can happen to it.
    fn reschedule(&mut self, slot: Slot) {
        let task = self.ledger.task(slot);
        let options = &task.options;
        let after = |ms: u64| if ms == 0 { Timestamp::NEVER } else { task.changed_at + ms };
        let at = match &task.state {
            State::Delayed { until } => (*until).min(task.deadline()),
            State::Ready => after(options.queue_timeout_ms).min(task.deadline()),
            State::Leased { .. } => after(options.run_timeout_ms).min(task.deadline()),
            State::Ended(_) => task.forget_at,
        };
        self.deadlines.set(Due::Task(slot), &mut self.lives[slot].due, at);
    }

    fn adopt_orders(&mut self) {
        let paused: Vec<_> = self.ledger.pauses().iter().map(|pause| pause.method.clone()).collect();
        for method in paused {
            self.roster.set_paused(&method, true);
        }
        self.expect_drained_workers();
    }

    fn adopt_restored_tasks(&mut self) {
        // By id, that is by age: slots of a restored ledger follow the order of rows, which is the store's.
        let by_id: BTreeMap<TaskId, Slot> = self.ledger.iter().map(|(slot, task)| (task.id, slot)).collect();
        for (slot, _) in self.ledger.iter() {
            // The slabs run in step: the ledger's keys of a fresh slab are dense and in order.
            let key = self.lives.insert(Live::new(usize::MAX, false, self.now));
            debug_assert_eq!(key, slot);
        }
        for slot in by_id.values() {
            self.adopt(*slot);
        }
        // Lines are in the order in which tasks became ready; of those with a worker, it took them.
        let mut in_line: Vec<Slot> = by_id.into_values().collect();
        in_line.sort_by_key(|slot| self.lives[*slot].ready_since);
        for slot in in_line {
            self.next_place += 1;
            let live = &mut self.lives[slot];
            live.place = self.next_place;
            let (task, route) = (self.ledger.task(slot), live.route);
            if matches!(task.state, State::Ready) {
                self.roster.routes[route].queue.push_back(&mut self.lives, slot, task.options.priority);
            }
        }
        self.expect_lost_workers();
    }

    fn adopt(&mut self, slot: Slot) {
        let task = self.ledger.task(slot);
        let (method, target, ready_since) =
            (task.method.clone(), task.options.target.clone(), task.changed_at);
        let route = match self.roster.find_route(&method, &target) {
            Some(route) => route,
            None => self.roster.add_route(&method, &target),
        };
        self.roster.routes[route].tasks += 1;
        let live = &mut self.lives[slot];
        live.route = route;
        live.ready_since = ready_since;
        self.by_age.push_back(&mut self.lives, slot);
        self.note_death(slot);
        self.reschedule(slot);
    }
}

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

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use command::{
    AttemptEnd, AttemptResult, Command, ConnId, Cursor, Filter, Frame, Hello, PoolSpec, SessionId, Update,
    Waiter, WorkerId,
};
pub use dead_letters::{DeadChange, DeadChanged, DeadFilter, DeadPlace, DeadSelection};
pub use effect::{
    Accepted, Assign, AssignOptions, Effect, EffectKind, Event, EventKind, Explanation, MethodView, PoolView,
    Reply, Room, SharedText, Stats, TaskView, Tell, Totals, Welcome, WorkerState, WorkerView,
};
pub use limits::Limits;
pub use pauses::Paused;

use crate::clock::Timestamp;
use crate::error::{Error, Reason};
use crate::row::{Row, RowChange, RowKey};
use crate::task::{State, StateName, Task, TaskId};
use answered::{Answered, Number};
use dead_letters::DeadLetters;
use deadlines::{Deadlines, Due};
use drains::Absent;
use ledger::{Ledger, Record, Slot};
use live::{Chain, List, Live};
use roster::Roster;
use sharing::SharedOptions;
use slots::Slots;
use watch::Watchers;

mod answered;
mod audit;
mod command;
mod dead_letters;
mod deadlines;
mod dispatch;
mod drains;
mod effect;
mod index;
mod leases;
mod ledger;
mod lifecycle;
mod limits;
mod live;
mod orders;
mod pauses;
mod queue;
mod roster;
mod sessions;
mod sharing;
mod slots;
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
    /// How many of the rows that were handed out are stored.
    stored: u64,
    /// Tasks that let go of their payload once so many rows are stored.
    parting: VecDeque<(u64, Slot, TaskId)>,
    /// Of durable tasks.
    options: SharedOptions,
    lives: Slots<Live>,
    /// All tasks of the ledger, oldest first.
    by_age: List,
    answered: Answered,
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
    /// Of the tasks that were accepted.
    next_age: u64,
    totals: Totals,
}

/// Where a task lies. Valid until something changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ledger(Slot),
    /// Not in the ledger any more: it has succeeded, and its caller got the outcome.
    Answered(Number),
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
            stored: 0,
            parting: VecDeque::new(),
            options: SharedOptions::default(),
            lives: Slots::default(),
            by_age: List::new(Chain::Age),
            answered: Answered::default(),
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
            next_age: 0,
            totals: Totals::default(),
        }
    }

    /// The scheduler as it was when `rows` were stored: the same ledger, nobody connected. Leases that
    /// stood are kept for one resume grace, so that workers may come back with their work.
    pub fn restore(limits: Limits, epoch: u64, now: Timestamp, rows: impl IntoIterator<Item = Row>) -> Self {
        let mut restoring = Restoring::new(limits, epoch);
        rows.into_iter().for_each(|row| restoring.take(row));
        restoring.finish(now)
    }

    /// Call once, before the first command, and store the rows before any effect of a later command is
    /// carried out: they reserve leases. Work is sent to workers before anything about it is stored, so
    /// without this a crash in the first moments would hand out the same leases a second time.
    pub fn start(&mut self, out: &mut Output) {
        self.ledger.reserve_leases(self.now, &mut out.rows);
    }

    /// So many more of the rows handed out, in their order, are stored. Payloads are let go of then, and what is
    /// said about tasks that have not changed since need not wait for the store any more. Whoever calls this first
    /// carries out the effects that waited for these rows.
    pub fn stored(&mut self, rows: u64) {
        self.stored += rows;
        self.let_go_of_stored();
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
        let answered = self.answered.oldest().map(|(_, ended_at)| self.forget_at(ended_at));
        [self.deadlines.next(), answered, self.absent.next()].into_iter().flatten().min()
    }

    /// Tasks in each state, in the order of [`StateName::ALL`](crate::task::StateName::ALL).
    pub fn counts(&self) -> [u64; 7] {
        let mut counts = self.ledger.counts();
        if let Some(finished) = counts.get_mut(StateName::Finished as usize) {
            *finished += self.answered.plain().calls as u64;
        }
        counts
    }

    /// The durable facts as rows, sorted by key: for tests that compare a restored scheduler with a live
    /// one, and for export.
    pub fn rows(&self) -> Vec<(RowKey, Row)> {
        self.ledger.rows()
    }

    /// All tasks but those of `answered`, in no particular order: for tests that compare every one of them at every
    /// step.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.ledger.iter().map(|(_, task)| task)
    }

    /// Calls that have succeeded and whose callers got the outcomes, oldest first: for tests likewise.
    pub fn answered(&self) -> impl Iterator<Item = Task> {
        self.answered.plain_numbers().map(|number| self.plain_task(number))
    }

    /// How many tasks are known.
    fn known_tasks(&self) -> usize {
        self.ledger.len() + self.answered.plain().calls
    }

    /// Payloads and outcomes in memory.
    fn bytes(&self) -> usize {
        self.ledger.bytes() + self.answered.plain().bytes
    }

    /// Carries out what someone asks.
    pub fn handle(&mut self, now: Timestamp, command: Command, out: &mut Output) {
        self.advance(now);
        match command {
            Command::Call { task, waiter } => self.call(task, waiter, out),
            Command::Submit { tasks, waiter } => self.submit(tasks, waiter, out),
            Command::Await { id, waiter } => self.await_end(id, waiter, out),
            Command::Abandon { id, waiter, cancel } => self.abandon(id, waiter, cancel, out),
            Command::Get { id, take, with_payload, waiter } => self.get(id, take, with_payload, waiter, out),
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

    /// What is put out from here on is sent apart from what was put out before: a burst ends here, so that a
    /// worker is given a chunk of it only when it gets all of it in one frame.
    pub fn begin_round(&mut self) {
        self.roster.begin_round();
    }

    /// Brings about what is due at `now`. Harmless when nothing is.
    pub fn tick(&mut self, now: Timestamp, out: &mut Output) {
        self.advance(now);
        while let Some((at, due)) = self.deadlines.pop(self.now) {
            match due {
                Due::Task(slot) => self.task_due(slot, out),
                Due::Session(session) => self.session_due(session, at, out),
            }
        }
        while let Some((oldest, ended_at)) = self.answered.oldest()
            && self.forget_at(ended_at) <= self.now
        {
            self.forget_answered(oldest, out);
        }
        self.drains_due(out);
    }

    fn advance(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        if self.started_at == Timestamp::default() {
            self.started_at = self.now;
        }
    }

    #[inline(always)]
    fn commit(&mut self, record: Record, out: &mut Output) -> Slot {
        let before = self.ledger.written();
        let slot = self.ledger.commit(self.now, record, &mut out.rows);
        if self.ledger.written() != before {
            self.note_written(slot);
        }
        slot
    }

    /// Until the rows handed out so far are stored, something about the task is not.
    fn note_written(&mut self, slot: Slot) {
        // A task that is being accepted or forgotten has no live side.
        if let Some(live) = self.lives.get_mut(slot)
            && self.ledger.task(slot).is_durable()
        {
            live.written = self.ledger.written();
        }
    }

    /// Where the task lies.
    fn find(&self, id: TaskId) -> Result<Place, Error> {
        if let Some(slot) = self.ledger.slot_of(id) {
            return Ok(Place::Ledger(slot));
        }
        if let Some(number) = self.answered.find(id) {
            return Ok(Place::Answered(number));
        }
        Err(not_found(id))
    }

    /// The same for several: the answered are looked through once.
    fn find_each(&self, ids: &[TaskId]) -> Vec<Result<Place, Error>> {
        let elsewhere = ids.iter().copied().filter(|id| self.ledger.slot_of(*id).is_none());
        let answered = self.answered.find_all(elsewhere);
        let find = |id: &TaskId| match (self.ledger.slot_of(*id), answered.get(id)) {
            (Some(slot), _) => Ok(Place::Ledger(slot)),
            (None, Some(number)) => Ok(Place::Answered(*number)),
            (None, None) => Err(not_found(*id)),
        };
        ids.iter().map(find).collect()
    }

    /// The task that lies there, as it stands.
    fn task_at(&self, place: Place) -> Cow<'_, Task> {
        match place {
            Place::Ledger(slot) => Cow::Borrowed(self.ledger.task(slot)),
            Place::Answered(number) => Cow::Owned(self.plain_task(number)),
        }
    }

    fn plain_task(&self, number: Number) -> Task {
        let method = &self.roster.routes[self.answered.route(number)].method;
        self.answered.task(number, method, self.limits.answered_retention_ms)
    }

    /// When a call is forgotten that ended then and was answered.
    fn forget_at(&self, ended_at: Timestamp) -> Timestamp {
        ended_at + self.limits.answered_retention_ms
    }

    /// Moves the task's one entry in the deadlines to the earliest thing that can happen to it.
    #[inline]
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
        self.deadlines.set(Due::Task(slot), at);
    }

    fn adopt_orders(&mut self) {
        let paused: Vec<_> = self.ledger.pauses().iter().map(|pause| pause.method.clone()).collect();
        for method in paused {
            self.roster.set_paused(&method, true);
        }
        self.expect_drained_workers();
    }

    fn adopt_restored_tasks(&mut self) {
        // By id, that is by age: the order of the rows is the store's.
        let mut by_id: Vec<(TaskId, u32)> = Vec::with_capacity(self.ledger.len());
        for (slot, task) in self.ledger.iter() {
            by_id.push((task.id, slot as u32));
            // The slabs run in step: the ledger's keys of a fresh slab are dense and in order.
            let key = self.lives.insert(Live::new(0, 0, false, self.now));
            debug_assert_eq!(key, slot);
        }
        by_id.sort_unstable();
        let mut like = None;
        for (_, slot) in &by_id {
            self.adopt(*slot as Slot, &mut like);
        }
        // Lines are in the order in which tasks became ready; of those with a worker, it took them.
        by_id.sort_by_key(|(_, slot)| self.lives[*slot as Slot].ready_since);
        for slot in by_id.into_iter().map(|(_, slot)| slot as Slot) {
            self.next_place += 1;
            let live = &mut self.lives[slot];
            live.place = self.next_place;
            let (task, route) = (self.ledger.task(slot), live.route());
            if matches!(task.state, State::Ready) {
                self.roster.routes[route].queue.push_back(&mut self.lives, slot, task.options.priority);
            }
        }
        self.expect_lost_workers();
    }

    /// `like`: a task before it, with its route. Most are called alike.
    fn adopt(&mut self, slot: Slot, like: &mut Option<(Slot, usize)>) {
        self.ledger.share_options(slot, &mut self.options);
        let task = self.ledger.task(slot);
        let known = like.filter(|(other, _)| {
            let other = self.ledger.task(*other);
            Arc::ptr_eq(&other.options, &task.options) && other.method == task.method
        });
        let known = known.map(|(_, route)| route);
        let route = known.or_else(|| self.roster.find_route(&task.method, &task.options.target));
        let route = route.unwrap_or_else(|| self.roster.add_route(&task.method, &task.options.target));
        *like = Some((slot, route));
        self.roster.routes[route].tasks += 1;
        let live = &mut self.lives[slot];
        live.set_route(route);
        self.next_age += 1;
        live.age = self.next_age;
        live.ready_since = task.changed_at;
        self.by_age.push_back(&mut self.lives, slot);
        self.note_death(slot);
        self.reschedule(slot);
    }
}

fn not_found(id: TaskId) -> Error {
    let why = "it never was, or its outcome was kept for its retention time and is gone";
    Error::new(Reason::TaskNotFound, format!("no task {id}: {why}"))
}

/// A scheduler that is being restored, row by row: see [`Scheduler::restore`].
#[derive(Debug)]
pub struct Restoring {
    scheduler: Scheduler,
    latest: Timestamp,
}

impl Restoring {
    /// Nothing is known yet.
    pub fn new(limits: Limits, epoch: u64) -> Self {
        Self { scheduler: Scheduler::new(limits, epoch), latest: Timestamp::default() }
    }

    /// Takes a stored row; they may come in any order. Those that are not loaded at start may be left out.
    pub fn take(&mut self, row: Row) {
        if let Row::Task(task) = &row {
            self.latest = self.latest.max(task.changed_at);
        }
        self.scheduler.ledger.restore(row);
    }

    /// The latest time in the rows so far.
    pub const fn latest(&self) -> Timestamp {
        self.latest
    }

    /// All rows were taken. The clock may have been set back between the runs: time goes on from the latest.
    pub fn finish(self, now: Timestamp) -> Scheduler {
        let mut scheduler = self.scheduler;
        scheduler.now = now.max(self.latest);
        scheduler.started_at = scheduler.now;
        scheduler.adopt_orders();
        scheduler.adopt_restored_tasks();
        scheduler
    }
}

//! A task's life: accepted, delayed, tried, tried again, ended, forgotten.

use std::sync::Arc;

use super::answered::{Number, Oldest};
use super::command::Waiter;
use super::deadlines::Due;
use super::effect::{Accepted, EffectKind, Reply, Tell};
use super::ledger::{Record, Slot};
use super::live::{Live, Waiters};
use super::{Output, Place, Scheduler};
use crate::clock::Timestamp;
use crate::error::{Error, Reason, Result};
use crate::task::{
    Attempt, Attempts, Body, Durability, ExpiredReason, IdempotencyKey, NewTask, Outcome, Payload, State,
    StateName, Task, TaskError, TaskId, TaskOptions, check_method_name,
};

/// Longest texts kept; longer ones are cut.
const MESSAGE_BYTES: usize = 16 << 10;
pub(super) const REASON_BYTES: usize = 1 << 10;
/// Bounds of options.
const KEY_BYTES: usize = 256;
const METADATA_ENTRIES: usize = 32;
const METADATA_BYTES: usize = 4 << 10;
const MAX_ATTEMPTS: u32 = 1_000;
const DAY_MS: u64 = 86_400_000;
/// Younger tasks that one which comes back from the answered is put behind, at most.
const AGES_COMPARED: usize = 10_000;

impl Scheduler {
    // --- accepted ---------------------------------------------------------------------------------

    pub(super) fn call(&mut self, task: NewTask, waiter: Waiter, out: &mut Output) {
        match self.accept(task, true, out) {
            Ok((slot, _)) => self.wait_for(slot, waiter, out),
            Err(error) => {
                let gated = self.tells_of_unstored(&error);
                out.tell(gated, EffectKind::Reply(waiter, Reply::Refused(error)));
            }
        }
    }

    pub(super) fn submit(&mut self, tasks: Vec<NewTask>, waiter: Waiter, out: &mut Output) {
        if let Err(error) = self.limits.check_submit(tasks.len()) {
            return out.refuse(waiter, error);
        }
        let mut gated = false;
        let results = tasks
            .into_iter()
            .map(|task| {
                let accepted = self.accept(task, false, out);
                gated |= accepted.as_ref().is_err_and(|error| self.tells_of_unstored(error));
                let (slot, attached) = accepted?;
                gated |= self.is_unstored(slot);
                Ok(Accepted { id: self.ledger.task(slot).id, attached })
            })
            .collect();
        out.tell(gated, EffectKind::Reply(waiter, Reply::Submitted(results)));
    }

    /// Takes a task, or finds the one that stands for it already.
    fn accept(&mut self, new: NewTask, of_caller: bool, out: &mut Output) -> Result<(Slot, bool)> {
        if self.stopping {
            return Err(Error::new(Reason::ShuttingDown, "the server is stopping; try another or come back"));
        }
        self.check_new(&new)?;
        self.check_store(new.options.durability == Durability::Durable)?;
        if !new.idempotency_key.is_empty()
            && let Some(slot) = self.find_same(&new)?
        {
            if !of_caller {
                self.lives[slot].of_caller = false;
            }
            return Ok((slot, true));
        }
        let route = self.route_of(&new)?;
        if let Err(error) = self.check_room(&new, route) {
            self.roster.drop_route_if_unused(route);
            return Err(error);
        }
        let delayed = new.options.run_at.filter(|at| *at > self.now);
        let durable = new.options.durability == Durability::Durable;
        let key = (!new.idempotency_key.is_empty())
            .then(|| Box::new(IdempotencyKey { digest: new.payload.digest(), text: new.idempotency_key }));
        let task = Task {
            id: new.id,
            method: Arc::clone(&self.roster.routes[route].method),
            body: Body::Held(new.payload),
            // Calls come and go: looking for equal options would cost them more than it saves.
            options: if durable { self.options.share(new.options) } else { new.options },
            key,
            created_at: self.now,
            since: self.now,
            changed_at: self.now,
            state: delayed.map_or(State::Ready, |until| State::Delayed { until }),
            attempt: 0,
            attempts: Attempts::default(),
            forget_at: Timestamp::NEVER,
        };
        let slot = self.commit(Record::Submitted(task), out);
        self.next_age += 1;
        let live = self.lives.insert(Live::new(route, self.next_age, of_caller, self.now));
        debug_assert_eq!(live, slot, "the slabs run in step");
        self.note_written(slot);
        self.by_age.push_back(&mut self.lives, slot);
        self.roster.routes[route].tasks += 1;
        self.totals.submitted += 1;
        self.changed(slot, out);
        if delayed.is_some() {
            self.reschedule(slot);
        } else {
            self.ready(slot, out);
        }
        self.let_go_if_it_waits(slot);
        Ok((slot, false))
    }

    fn check_new(&self, new: &NewTask) -> Result<()> {
        self.limits.check_payload("payload", &new.payload)?;
        if self.ledger.slot_of(new.id).is_some() || self.answered.find(new.id).is_some() {
            return Err(Error::invalid("task_id", format_args!("{} is taken", new.id)));
        }
        // Most calls share one default set of options, which needs no check.
        if new.idempotency_key.len() > KEY_BYTES {
            let problem = format!("is {}; at most {KEY_BYTES}", new.idempotency_key.len());
            return Err(Error::invalid("options.idempotency_key (bytes)", problem));
        }
        if !Arc::ptr_eq(&new.options, TaskOptions::default_call()) {
            self.check_options(&new.options)?;
        }
        Ok(())
    }

    /// Whether the store can take what a durable task needs.
    pub(super) fn check_store(&self, durable: bool) -> Result<()> {
        match &self.store_full {
            Some(reason) if durable => Err(Error::new(Reason::StoreUnavailable, reason.clone())),
            _ => Ok(()),
        }
    }

    fn check_options(&self, options: &TaskOptions) -> Result<()> {
        let at_most = |field: &str, value: u64, max: u64| {
            if value > max {
                return Err(Error::invalid(field, format_args!("is {value}; at most {max}")));
            }
            Ok(())
        };
        options.target.range()?;
        at_most("options.priority", options.priority.into(), 9)?;
        if let Some(run_at) = options.run_at {
            at_most("options.run_at (ms from now)", run_at.since(self.now), 366 * DAY_MS)?;
        }
        at_most("options.queue_timeout_ms", options.queue_timeout_ms, 366 * DAY_MS)?;
        at_most("options.run_timeout_ms", options.run_timeout_ms, 366 * DAY_MS)?;
        at_most("options.deadline_ms", options.deadline_ms, 366 * DAY_MS)?;
        at_most("options.retry.max_attempts", options.retry.max_attempts.into(), MAX_ATTEMPTS.into())?;
        at_most("options.retry.initial_backoff_ms", options.retry.initial_backoff_ms, DAY_MS)?;
        at_most("options.retry.max_backoff_ms", options.retry.max_backoff_ms, DAY_MS)?;
        at_most("options.retention_ms", options.retention_ms.unwrap_or(0), 30 * DAY_MS)?;
        at_most("options.metadata (entries)", options.metadata.len() as u64, METADATA_ENTRIES as u64)?;
        let metadata: usize = options.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        at_most("options.metadata (bytes)", metadata as u64, METADATA_BYTES as u64)?;
        at_most("options.target.labels", options.target.labels.len() as u64, self.limits.labels as u64)?;
        let target: usize = options.target.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        let target = target + options.target.group.len() + options.target.version.len();
        at_most("options.target (bytes)", target as u64, METADATA_BYTES as u64)
    }

    /// The task that the idempotency key stands for, if it is the same call.
    fn find_same(&self, new: &NewTask) -> Result<Option<Slot>> {
        let key = &new.idempotency_key;
        let Some(slot) = self.ledger.slot_of_key(&new.method, key) else { return Ok(None) };
        let task = self.ledger.task(slot);
        let same = match &task.body {
            Body::Held(payload) => *payload == new.payload,
            Body::Stored(size) => {
                *size == new.payload.size() as u64
                    && task.key.as_ref().is_some_and(|key| key.digest == new.payload.digest())
            }
        };
        if same {
            return Ok(Some(slot));
        }
        Err(Error::new(
            Reason::IdempotencyConflict,
            format!(
                "idempotency key {key:?} stands for task {} with another payload; use a new key",
                task.id
            ),
        ))
    }

    fn route_of(&mut self, new: &NewTask) -> Result<usize> {
        let target = &new.options.target;
        let plain = target.version.is_empty() && target.group.is_empty() && target.labels.is_empty();
        let known = if plain {
            self.roster.plain_route(&new.method)
        } else {
            self.roster.find_route(&new.method, target)
        };
        if let Some(route) = known {
            return Ok(route);
        }
        check_method_name(&new.method)?;
        if self.roster.routes.len() >= self.limits.queues {
            let message = format!("the server has {} queues, its limit (limits.queues)", self.limits.queues);
            return Err(Error::new(Reason::ServerFull, message));
        }
        Ok(self.roster.add_route(&new.method, target))
    }

    fn check_room(&mut self, new: &NewTask, route: usize) -> Result<()> {
        if new.only_if_served && !self.roster.is_served(route) {
            let message = format!("no live worker serves {:?} as asked for", new.method);
            return Err(Error::new(Reason::MethodNotServed, message));
        }
        let queued = self.roster.routes[route].queue.len();
        if queued >= self.limits.queue_tasks {
            let message = format!("{queued} tasks wait for {:?}, the limit (limits.queue_tasks)", new.method);
            return Err(Error::new(Reason::QueueFull, message));
        }
        if self.known_tasks() >= self.limits.tasks {
            let message = format!("the server knows {} tasks, its limit (limits.tasks)", self.known_tasks());
            return Err(Error::new(Reason::ServerFull, message));
        }
        let bytes = self.bytes() + new.payload.size();
        if bytes > self.limits.total_bytes {
            let message = format!(
                "payloads and outcomes would take {bytes} bytes of memory, over the limit of {} (limits.total_bytes)",
                self.limits.total_bytes
            );
            return Err(Error::new(Reason::ServerFull, message));
        }
        Ok(())
    }

    // --- payloads ---------------------------------------------------------------------------------

    /// A durable task that was not given to a worker at once may wait long: beyond what may be held in memory for
    /// such tasks, it lets go of its payload.
    fn let_go_if_it_waits(&mut self, slot: Slot) {
        let task = self.ledger.task(slot);
        let over = self.ledger.resident() > self.limits.resident_payload_bytes;
        if over && task.is_durable() && !matches!(task.state, State::Leased { .. }) {
            self.let_go_when_stored(slot);
        }
    }

    /// Not before: until then memory has the only copy.
    fn let_go_when_stored(&mut self, slot: Slot) {
        let task = self.ledger.task(slot);
        if task.body.resident() > 0 {
            self.parting.push_back((self.ledger.written(), slot, task.id));
        }
    }

    /// See [`Scheduler::stored`].
    pub(super) fn let_go_of_stored(&mut self) {
        while let Some((_, slot, id)) = self.parting.pop_front_if(|(written, ..)| *written <= self.stored) {
            // It may have been forgotten meanwhile.
            if self.ledger.slot_of(id) == Some(slot) {
                self.ledger.let_go(slot);
            }
        }
    }

    /// Whether something about the task is not stored yet: what is said of it must wait for the store.
    pub(super) fn is_unstored(&self, slot: Slot) -> bool {
        self.lives[slot].written > self.stored
    }

    /// The same, wherever it lies.
    pub(super) fn is_unstored_at(&self, place: Place) -> bool {
        matches!(place, Place::Ledger(slot) if self.is_unstored(slot))
    }

    /// A conflict tells that a task is known, which is any of those that changed last.
    fn tells_of_unstored(&self, error: &Error) -> bool {
        error.reason == Reason::IdempotencyConflict && self.ledger.written() > self.stored
    }

    // --- waited for -------------------------------------------------------------------------------

    fn wait_for(&mut self, slot: Slot, waiter: Waiter, out: &mut Output) {
        let task = self.ledger.task(slot);
        if let Some(outcome) = task.state.outcome() {
            let (id, outcome, gated) = (task.id, outcome.clone(), self.is_unstored(slot));
            return out.tell(gated, EffectKind::Reply(waiter, Reply::Ended(id, outcome)));
        }
        if self.stopping && !matches!(task.state, State::Leased { .. }) {
            return out.refuse(waiter, will_not_begin());
        }
        let max = self.limits.waiters_per_task;
        if self.lives[slot].waiters.len() >= max {
            let message =
                format!("{max} callers wait for task {} already (limits.waiters_per_task)", task.id);
            return out.refuse(waiter, Error::new(Reason::ServerFull, message));
        }
        self.lives[slot].waiters.push(waiter);
    }

    pub(super) fn await_end(&mut self, id: TaskId, waiter: Waiter, out: &mut Output) {
        match self.find(id) {
            Ok(Place::Ledger(slot)) => self.wait_for(slot, waiter, out),
            Ok(Place::Answered(number)) => {
                out.now(EffectKind::Reply(waiter, Reply::Ended(id, self.answered.outcome(number))));
            }
            Err(error) => out.refuse(waiter, error),
        }
    }

    /// A caller waits no longer: it went away, or (`cancel`) withdrew its call and is to be answered. The task
    /// is cancelled with it unless somebody else has an interest: others wait, it was submitted too, or it is
    /// durable and its caller merely went away.
    pub(super) fn abandon(&mut self, id: TaskId, waiter: Waiter, cancel: bool, out: &mut Output) {
        let Some(slot) = self.ledger.slot_of(id) else { return };
        let live = &mut self.lives[slot];
        let waited = live.waiters.remove(waiter);
        let nobody_else = live.waiters.is_empty() && live.of_caller;
        let task = self.ledger.task(slot);
        let gated = task.is_durable();
        if task.state.outcome().is_some() {
            return;
        }
        if cancel && waited && (!nobody_else || self.check_store(gated).is_err()) {
            let message = format!("the call was withdrawn; task {id} goes on, others have an interest in it");
            return out.refuse(waiter, Error::new(Reason::CallWithdrawn, message));
        }
        if nobody_else && (cancel || !gated) {
            if cancel && waited {
                self.lives[slot].waiters.push(waiter);
            }
            let reason = if cancel { "cancelled by its caller" } else { "the caller went away" };
            self.end(slot, Outcome::Cancelled(reason.to_owned()), None, out);
        }
    }

    /// While the server stops, whoever waits for work that will not begin any more is told at once.
    pub(super) fn turn_away(&mut self, slot: Slot, out: &mut Output) {
        for waiter in self.lives[slot].waiters.take() {
            out.refuse(waiter, will_not_begin());
        }
        if self.lives[slot].of_caller && !self.ledger.task(slot).is_durable() {
            self.end(slot, Outcome::Cancelled("the server was stopping".to_owned()), None, out);
        }
    }

    // --- ended ------------------------------------------------------------------------------------

    /// The one way to an outcome. Frees what the task holds, tells everyone, arranges its retention.
    pub(super) fn end(&mut self, slot: Slot, outcome: Outcome, error: Option<Attempt>, out: &mut Output) {
        let reason = match &outcome {
            Outcome::Cancelled(reason) => Some(reason.clone()),
            Outcome::Expired(_) => Some("the task's deadline has passed".to_owned()),
            Outcome::Succeeded(_) | Outcome::Failed(_) => None,
        };
        if let Some(reason) = reason {
            self.stop_running(slot, reason, out);
        }
        self.unqueue(slot);
        self.detach(slot);
        match &outcome {
            Outcome::Succeeded(_) => self.totals.finished += 1,
            Outcome::Failed(_) => self.totals.failed += 1,
            Outcome::Cancelled(_) => self.totals.cancelled += 1,
            Outcome::Expired(_) => self.totals.expired += 1,
        }
        let (task, live) = (self.ledger.task(slot), &self.lives[slot]);
        let (id, gated) = (task.id, task.is_durable());
        // Calls all have the same short retention, so a list in order of ending serves them, not the deadlines.
        let answered = live.of_caller && !gated && task.options.retention_ms.is_none() && task.key.is_none();
        let outcome = match outcome {
            Outcome::Succeeded(payload) if answered && live.talk.is_none() && task.attempts.is_empty() => {
                return self.end_plainly(slot, payload, out);
            }
            outcome => outcome,
        };
        let default = || self.default_retention_ms(slot, &outcome);
        let forget_at = self.now + task.options.retention_ms.unwrap_or_else(default);
        for waiter in self.lives[slot].waiters.take() {
            out.tell(gated, EffectKind::Reply(waiter, Reply::Ended(id, outcome.clone())));
        }
        self.commit(Record::Ended { slot, outcome, error, forget_at }, out);
        self.note_death(slot);
        if gated {
            self.let_go_when_stored(slot);
        }
        self.changed(slot, out);
        if answered {
            self.deadlines.set(Due::Task(slot), Timestamp::NEVER);
            self.answered.keep(self.ledger.task(slot), slot, &mut self.lives[slot]);
            self.make_room_for_answered(out);
        } else {
            self.reschedule(slot);
        }
    }

    /// An ephemeral call that succeeds, as nearly all do: it leaves the ledger at once.
    fn end_plainly(&mut self, slot: Slot, payload: Payload, out: &mut Output) {
        let id = self.ledger.task(slot).id;
        let waiters = std::mem::take(&mut self.lives[slot].waiters);
        if self.watchers.keeping {
            let outcome = Outcome::Succeeded(payload.clone());
            waiters.tell(id, outcome.clone(), out);
            let forget_at = self.forget_at(self.now);
            self.commit(Record::Ended { slot, outcome, error: None, forget_at }, out);
            self.changed(slot, out);
            self.become_plain(slot, &payload);
        } else {
            self.become_plain(slot, &payload);
            waiters.tell(id, Outcome::Succeeded(payload), out);
        }
        self.make_room_for_answered(out);
    }

    fn become_plain(&mut self, slot: Slot, outcome: &Payload) {
        self.deadlines.set(Due::Task(slot), Timestamp::NEVER);
        self.by_age.remove(&mut self.lives, slot);
        // Its route still counts it.
        let (task, live) = (self.ledger.take_out(slot), self.lives.remove(slot));
        self.answered.take_in(task, &live, self.now, outcome);
    }

    /// A plain call becomes a task of the ledger again.
    fn restore_plain(&mut self, number: Number) -> Slot {
        let (age, route) = (self.answered.age(number), self.answered.route(number));
        let slot = self.ledger.put_back(self.plain_task(number));
        self.answered.forget(number, &mut self.lives);
        let (mut next, mut looked_at) = (None, 0);
        let mut at = self.by_age.tail();
        while let Some(younger) = at.filter(|other| self.lives[*other].age > age && looked_at < AGES_COMPARED)
        {
            (next, looked_at) = (at, looked_at + 1);
            at = self.by_age.before(&self.lives, younger);
        }
        // Not farther back than was looked: listings go by this number.
        let age = at.map_or(age, |at| age.max(self.lives[at].age));
        let live = self.lives.insert(Live::new(route, age, true, self.now));
        debug_assert_eq!(live, slot, "the slabs run in step");
        self.by_age.insert_before(&mut self.lives, slot, next);
        slot
    }

    fn make_room_for_answered(&mut self, out: &mut Output) {
        let over = |scheduler: &Self| {
            let all = scheduler.answered.all();
            all.calls > scheduler.limits.answered_tasks || all.bytes > scheduler.limits.answered_bytes
        };
        // The newest stays even when it alone is over: whoever ended it is not done with it yet.
        while over(self) && self.answered.all().calls > 1 {
            let Some((oldest, _)) = self.answered.oldest() else { break };
            self.forget_answered(oldest, out);
        }
    }

    pub(super) fn forget_answered(&mut self, oldest: Oldest, out: &mut Output) {
        match oldest {
            Oldest::Kept(slot) => self.forget(slot, out),
            Oldest::Plain(number) => self.forget_plain(number),
        }
    }

    pub(super) fn forget_plain(&mut self, number: Number) {
        let route = self.answered.forget(number, &mut self.lives);
        self.roster.task_forgotten(route);
    }

    fn leave_answered(&mut self, slot: Slot) {
        if self.lives[slot].answered {
            self.answered.leave(slot, self.ledger.task(slot).size(), &mut self.lives);
        }
    }

    pub(super) fn forget(&mut self, slot: Slot, out: &mut Output) {
        self.leave_answered(slot);
        self.leave_dead(slot);
        self.deadlines.set(Due::Task(slot), Timestamp::NEVER);
        self.by_age.remove(&mut self.lives, slot);
        let live = self.lives.remove(slot);
        self.commit(Record::Forgotten { slot }, out);
        self.roster.task_forgotten(live.route());
    }

    /// Tells the worker that runs the task to stop.
    fn stop_running(&mut self, slot: Slot, reason: String, out: &mut Output) {
        let State::Leased { lease, .. } = self.ledger.task(slot).state else { return };
        let conn = self.lives[slot]
            .pool()
            .and_then(|pool| self.roster.sessions[self.roster.pools[pool].session].conn);
        if let Some(conn) = conn {
            out.now(EffectKind::Tell(conn, Tell::Cancel(lease, reason)));
        }
    }

    // --- tried ------------------------------------------------------------------------------------

    /// The running attempt failed: try again as the policy and the worker say, or end.
    pub(super) fn fail(
        &mut self,
        slot: Slot,
        mut error: TaskError,
        retryable: Option<bool>,
        retry_after_ms: u64,
        out: &mut Output,
    ) {
        cut(&mut error.message, MESSAGE_BYTES);
        let task = self.ledger.task(slot);
        let State::Leased { worker_id, .. } = &task.state else { return };
        let attempt = Attempt {
            number: task.attempt,
            worker_id: Arc::clone(worker_id),
            started_at: task.changed_at,
            ended_at: self.now,
            // Details can be as large as a payload; the last error's are kept in the outcome.
            error: TaskError { details: None, ..error.clone() },
        };
        let policy = task.options.retry;
        if retryable == Some(false) || task.attempt >= policy.max_attempts {
            return self.end(slot, Outcome::Failed(Box::new(error)), Some(attempt), out);
        }
        let wait = match retry_after_ms {
            // The low bits of a v7 id are random: a jitter seed that needs no other source.
            0 => policy.backoff_ms(task.attempt, task.id.0.as_u128() as u64 ^ self.epoch),
            ms => ms.min(DAY_MS),
        };
        let until = self.now + wait;
        self.detach(slot);
        self.totals.retried += 1;
        self.commit(Record::Retrying { slot, error: attempt, until }, out);
        if let Some(talk) = &mut self.lives[slot].talk {
            talk.progress = None;
        }
        self.changed(slot, out);
        self.reschedule(slot);
        if self.stopping {
            self.turn_away(slot, out);
        }
    }

    /// The task comes back untried and keeps its place. Returns the route to serve when all that comes back with
    /// it has.
    pub(super) fn requeue(&mut self, slot: Slot, out: &mut Output) -> usize {
        self.detach(slot);
        self.commit(Record::Requeued { slot }, out);
        if let Some(talk) = &mut self.lives[slot].talk {
            talk.progress = None;
        }
        self.changed(slot, out);
        self.ready_again(slot, out)
    }

    /// Its worker is lost: what had started counts as a failed attempt, what had not comes back. Returns a route
    /// as `requeue` does.
    pub(super) fn lose(&mut self, slot: Slot, why: &str, out: &mut Output) -> Option<usize> {
        if !self.lives[slot].started {
            return Some(self.requeue(slot, out));
        }
        self.fail(slot, TaskError::new(TaskError::WORKER_LOST, why), None, 0, out);
        None
    }

    // --- by time ----------------------------------------------------------------------------------

    pub(super) fn task_due(&mut self, slot: Slot, out: &mut Output) {
        let task = self.ledger.task(slot);
        if let State::Ended(_) = task.state {
            return self.forget(slot, out);
        }
        if task.deadline() <= self.now {
            return self.end(slot, Outcome::Expired(ExpiredReason::Deadline), None, out);
        }
        match task.state {
            State::Delayed { until } if until <= self.now => {
                self.commit(Record::Woken { slot }, out);
                self.changed(slot, out);
                self.ready(slot, out);
            }
            State::Ready => self.end(slot, Outcome::Expired(ExpiredReason::QueueTimeout), None, out),
            State::Leased { .. } => self.leased_due(slot, out),
            State::Delayed { .. } | State::Ended(_) => self.reschedule(slot),
        }
    }

    fn leased_due(&mut self, slot: Slot, out: &mut Output) {
        let task = self.ledger.task(slot);
        let ran = self.now.since(task.changed_at);
        let limit = task.options.run_timeout_ms;
        if limit > 0 && ran >= limit {
            let message = format!("ran for {ran} ms; its run timeout is {limit} ms");
            self.stop_running(slot, message.clone(), out);
            self.fail(slot, TaskError::new(TaskError::RUN_TIMEOUT, message), None, 0, out);
        } else if self.lives[slot].pool().is_none() {
            // Restored, and its worker has not come back in time.
            let message = "its worker did not come back after the server's restart";
            self.fail(slot, TaskError::new(TaskError::WORKER_LOST, message), None, 0, out);
        } else {
            self.reschedule(slot);
        }
    }

    /// After a restart, leased tasks wait one resume grace for their workers.
    pub(super) fn expect_lost_workers(&mut self) {
        let leased: Vec<Slot> = self
            .ledger
            .iter()
            .filter(|(_, task)| task.state.name() == StateName::Leased)
            .map(|(slot, _)| slot)
            .collect();
        let grace = self.now + self.limits.resume_ms.max(self.limits.lease_ms);
        for slot in leased {
            if let State::Leased { lease, .. } = self.ledger.task(slot).state {
                self.orphans.insert(lease, slot);
            }
            let at = grace.min(self.deadlines.at(Due::Task(slot)));
            self.deadlines.set(Due::Task(slot), at);
        }
    }

    // --- by callers -------------------------------------------------------------------------------

    pub(super) fn cancel(&mut self, id: TaskId, mut reason: String, waiter: Waiter, out: &mut Output) {
        let ended = |state: StateName| {
            Error::new(Reason::TaskEnded, format!("task {id} has ended already: {}", state.as_str()))
        };
        let slot = match self.find(id) {
            Ok(Place::Ledger(slot)) => slot,
            Ok(Place::Answered(_)) => return out.refuse(waiter, ended(StateName::Finished)),
            Err(error) => return out.refuse(waiter, error),
        };
        cut(&mut reason, REASON_BYTES);
        match &self.ledger.task(slot).state {
            State::Ended(Outcome::Cancelled(_)) => {}
            state @ State::Ended(_) => {
                let (gated, error) = (self.is_unstored(slot), ended(state.name()));
                return out.tell(gated, EffectKind::Reply(waiter, Reply::Refused(error)));
            }
            _ => {
                if let Err(error) = self.check_store(self.ledger.task(slot).is_durable()) {
                    return out.refuse(waiter, error);
                }
                self.end(slot, Outcome::Cancelled(reason), None, out);
            }
        }
        self.reply_task(slot, waiter, out);
    }

    pub(super) fn retry(&mut self, id: TaskId, waiter: Waiter, out: &mut Output) {
        let place = match self.find(id) {
            Ok(place) => place,
            Err(error) => return out.refuse(waiter, error),
        };
        let task = self.task_at(place);
        if task.state.outcome().is_none() {
            let message = format!("task {id} has not ended: it is {}", task.state.name().as_str());
            let (gated, error) = (self.is_unstored_at(place), Error::new(Reason::TaskNotEnded, message));
            return out.tell(gated, EffectKind::Reply(waiter, Reply::Refused(error)));
        }
        if self.stopping {
            return out.refuse(waiter, Error::new(Reason::ShuttingDown, "the server is stopping"));
        }
        if let Err(error) = self.check_store(task.is_durable()) {
            return out.refuse(waiter, error);
        }
        drop(task);
        let slot = match place {
            Place::Ledger(slot) => slot,
            Place::Answered(number) => self.restore_plain(number),
        };
        self.run_again(slot, out);
        self.reply_task(slot, waiter, out);
    }

    /// An ended task begins anew: its outcome is withdrawn.
    pub(super) fn run_again(&mut self, slot: Slot, out: &mut Output) {
        self.leave_answered(slot);
        self.leave_dead(slot);
        self.deadlines.set(Due::Task(slot), Timestamp::NEVER);
        // Whoever called first has had the answer; this life belongs to nobody's connection.
        self.lives[slot].of_caller = false;
        // Attempts count from 1 again: chunks of the earlier life would be taken for chunks of this one.
        self.lives[slot].talk = None;
        self.commit(Record::Withdrawn { slot }, out);
        self.changed(slot, out);
        self.ready(slot, out);
    }

    fn reply_task(&mut self, slot: Slot, waiter: Waiter, out: &mut Output) {
        let view = self.view(Place::Ledger(slot));
        out.tell(self.is_unstored(slot), EffectKind::Reply(waiter, Reply::Task(Box::new(view))));
    }
}

impl Waiters {
    /// Tells all of them an outcome that is stored nowhere.
    fn tell(mut self, id: TaskId, outcome: Outcome, out: &mut Output) {
        if let Self::One { conn, tag } = self {
            return out.now(EffectKind::Reply(Waiter { conn, tag }, Reply::Ended(id, outcome)));
        }
        for waiter in self.take() {
            out.now(EffectKind::Reply(waiter, Reply::Ended(id, outcome.clone())));
        }
    }
}

fn will_not_begin() -> Error {
    Error::new(
        Reason::ShuttingDown,
        "the server is stopping and no worker has begun; try another or come back",
    )
}

/// Cuts a text to at most `max` bytes, at a character's edge.
pub(super) fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
    }
}

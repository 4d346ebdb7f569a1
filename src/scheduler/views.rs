//! What people and programs may see: tasks, workers, methods, counts, and why a task waits.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::iter::Peekable;
use std::sync::Arc;
use std::vec::IntoIter;

use super::answered::Number;
use super::command::{Filter, Waiter};
use super::effect::{
    EffectKind, Explanation, MethodView, PoolView, Reply, Room, Stats, TaskView, WorkerState, WorkerView,
};
use super::ledger::Slot;
use super::{Output, Place, Scheduler};
use crate::error::{Error, Reason, Result};
use crate::task::{Body, State, Task, TaskId};

/// Tasks looked at for one page; a page may end early so that no request looks at a million.
const EXAMINED_PER_PAGE: usize = 20_000;
/// Tasks ahead of another are counted up to this many.
const AHEAD_COUNTED: usize = 10_000;

/// See [`Scheduler::newest_first`].
pub(super) struct NewestFirst {
    in_ledger: Option<Slot>,
    /// By age.
    answered: Peekable<IntoIter<(u64, Number)>>,
    /// There are answered calls beyond these.
    more_answered: bool,
}

impl NewestFirst {
    pub(super) fn next(&mut self, scheduler: &Scheduler) -> Option<Place> {
        let age = self.in_ledger.map(|slot| scheduler.lives[slot].age);
        if let Some((_, number)) =
            self.answered.next_if(|(answered, _)| age.is_none_or(|age| *answered > age))
        {
            return Some(Place::Answered(number));
        }
        let slot = self.in_ledger?;
        self.in_ledger = scheduler.by_age.before(&scheduler.lives, slot);
        Some(Place::Ledger(slot))
    }

    fn has_more(&mut self) -> bool {
        self.in_ledger.is_some() || self.answered.peek().is_some() || self.more_answered
    }
}

impl Scheduler {
    pub(super) fn view(&self, place: Place) -> TaskView {
        let task = self.task_at(place);
        let talk = match place {
            Place::Ledger(slot) => self.lives[slot].talk.as_ref(),
            Place::Answered(_) => None,
        };
        TaskView {
            id: task.id,
            method: task.method.clone(),
            payload: None,
            options: task.options.clone(),
            idempotency_key: task.idempotency_key().to_owned(),
            state: task.state.clone(),
            attempt: task.attempt,
            attempts: task.attempts.clone(),
            created_at: task.created_at,
            changed_at: task.changed_at,
            progress: talk.and_then(|talk| talk.progress.clone()),
        }
    }

    pub(super) fn get(
        &mut self,
        id: TaskId,
        take: bool,
        with_payload: bool,
        waiter: Waiter,
        out: &mut Output,
    ) {
        let place = match self.find(id).and_then(|place| self.check_stored(place).map(|()| place)) {
            Ok(place) => place,
            Err(error) => return out.refuse(waiter, error),
        };
        let mut view = Box::new(self.view(place));
        let task = self.task_at(place);
        let (body, take) = (task.body.clone(), take && task.state.outcome().is_some());
        if take && let Err(error) = self.check_store(task.is_durable()) {
            return out.refuse(waiter, error);
        }
        let gated = self.is_unstored_at(place) || (take && task.is_durable());
        drop(task);
        match place {
            Place::Ledger(slot) if take => self.forget(slot, out),
            Place::Answered(number) if take => self.forget_plain(number),
            _ => {}
        }
        let reply = match body {
            Body::Stored(_) if with_payload => EffectKind::ReplyStored(waiter, view),
            Body::Held(payload) => {
                view.payload = with_payload.then_some(payload);
                EffectKind::Reply(waiter, Reply::Task(view))
            }
            Body::Stored(_) => EffectKind::Reply(waiter, Reply::Task(view)),
        };
        out.tell(gated, reply);
    }

    /// While the store has no room, what has changed since cannot be said: it is not stored. What has not
    /// changed can.
    pub(super) fn check_stored(&self, place: Place) -> Result<()> {
        match &self.store_full {
            Some(reason) if self.is_unstored_at(place) => {
                let id = self.task_at(place).id;
                let message = format!("task {id} has changed, and the change is not stored yet: {reason}");
                Err(Error::new(Reason::StoreUnavailable, message))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn list(
        &mut self,
        filter: &Filter,
        after: Option<TaskId>,
        limit: usize,
        waiter: Waiter,
        out: &mut Output,
    ) {
        let mut newest = self.newest_first(after, limit.max(1), filter);
        let (mut tasks, mut examined, mut next, mut gated) = (Vec::new(), 0, None, false);
        while let Some(place) = newest.next(self) {
            // While the store has no room, what it does not have is left out: nobody would get any answer.
            if filter.matches(&self.task_at(place)) && self.check_stored(place).is_ok() {
                gated |= self.is_unstored_at(place);
                tasks.push(self.view(place));
            }
            examined += 1;
            if tasks.len() >= limit || examined == EXAMINED_PER_PAGE {
                next = newest.has_more().then(|| self.task_at(place).id);
                break;
            }
        }
        out.tell(gated, EffectKind::Reply(waiter, Reply::Tasks(tasks, next)));
    }

    /// Tasks in the order of listings: those of the ledger, and among them the answered calls that match, as far as
    /// `most` of these. `after`: the last one that was seen.
    pub(super) fn newest_first(&self, after: Option<TaskId>, most: usize, filter: &Filter) -> NewestFirst {
        let place = after.map(|id| (id, self.find(id).ok()));
        let in_ledger = match place {
            None => self.by_age.tail(),
            Some((_, Some(Place::Ledger(slot)))) => self.by_age.before(&self.lives, slot),
            Some((_, Some(Place::Answered(number)))) => {
                let age = self.answered.age(number);
                self.newest_where(|slot| self.lives[slot].age < age)
            }
            // Forgotten between two pages: ids are in order of time, so the rest is what is older.
            Some((after, None)) => self.newest_where(|slot| self.ledger.task(slot).id < after),
        };
        if !filter.may_match_answered() {
            return NewestFirst {
                in_ledger,
                answered: Vec::new().into_iter().peekable(),
                more_answered: false,
            };
        }
        // Neighbours are often of the same method.
        let like = Cell::new(None);
        let of_method = |route: usize| {
            let known = like.get().filter(|(other, _)| *other == route).map(|(_, of_method)| of_method);
            let of_method = known.unwrap_or_else(|| {
                filter.method.is_empty() || *self.roster.routes[route].method == *filter.method
            });
            like.set(Some((route, of_method)));
            of_method
        };
        // One more than may be shown: whether there are more.
        let mut answered = self.answered.newest(most.saturating_add(1), |id, age, route| {
            let older = match place {
                None => true,
                Some((_, Some(Place::Ledger(slot)))) => age < self.lives[slot].age,
                Some((_, Some(Place::Answered(number)))) => age < self.answered.age(number),
                Some((after, None)) => id < after,
            };
            older && of_method(route)
        });
        let more_answered = answered.len() > most;
        answered.truncate(most);
        NewestFirst { in_ledger, answered: answered.into_iter().peekable(), more_answered }
    }

    /// The newest task of the ledger of which this holds.
    fn newest_where(&self, holds: impl Fn(Slot) -> bool) -> Option<Slot> {
        let mut at = self.by_age.tail();
        while let Some(slot) = at.filter(|slot| !holds(*slot)) {
            at = self.by_age.before(&self.lives, slot);
        }
        at
    }

    pub(super) fn explain(&mut self, id: TaskId, waiter: Waiter, out: &mut Output) {
        match self.find(id) {
            Ok(place) => {
                if let Err(error) = self.check_stored(place) {
                    return out.refuse(waiter, error);
                }
                let (summary, details) = match place {
                    Place::Ledger(slot) => self.reasons(slot),
                    Place::Answered(_) => self.reasons_of_end(&self.task_at(place)),
                };
                let explanation = Explanation { task: self.view(place), summary, details };
                let gated = self.is_unstored_at(place);
                out.tell(gated, EffectKind::Reply(waiter, Reply::Explained(Box::new(explanation))));
            }
            Err(error) => out.refuse(waiter, error),
        }
    }

    fn reasons(&self, slot: Slot) -> (String, Vec<String>) {
        let (task, live) = (self.ledger.task(slot), &self.lives[slot]);
        let ms_since = self.now.since(task.changed_at);
        match &task.state {
            State::Ended(_) => self.reasons_of_end(task),
            State::Delayed { until } => {
                let wait = until.since(self.now);
                let (summary, mut details) = match task.attempts.last() {
                    Some(last) => (
                        format!("It waits {wait} ms more before attempt {}.", task.attempt + 1),
                        vec![format!(
                            "attempt {} on {} failed: {}: {}",
                            last.number, last.worker_id, last.error.code, last.error.message
                        )],
                    ),
                    None => (format!("It is to run in {wait} ms, as asked for."), Vec::new()),
                };
                details.extend(self.pause_of(slot).map(|pause| self.pause_in_words(pause)));
                (summary, details)
            }
            State::Leased { lease, worker_id } => {
                let stage = match (live.pool(), live.started) {
                    (None, _) => "the server was restarted and waits for the worker to come back",
                    (Some(pool), _)
                        if self.roster.sessions[self.roster.pools[pool].session].conn.is_none() =>
                    {
                        "the worker's connection is broken; the server waits for it to come back"
                    }
                    (Some(_), true) => "the handler has begun",
                    (Some(_), false) => "the worker has not said that the handler has begun",
                };
                (
                    format!("Worker {worker_id} has held it for {ms_since} ms (attempt {}).", task.attempt),
                    vec![stage.to_owned(), format!("lease {lease}")],
                )
            }
            State::Ready => self.reasons_to_wait(slot, ms_since),
        }
    }

    fn reasons_of_end(&self, task: &Task) -> (String, Vec<String>) {
        let ms_since = self.now.since(task.changed_at);
        let failures = task.attempts.iter().map(|attempt| {
            format!(
                "attempt {} on {}: {}: {}",
                attempt.number, attempt.worker_id, attempt.error.code, attempt.error.message
            )
        });
        let summary = format!("It has ended: {}, {ms_since} ms ago.", task.state.name().as_str());
        (summary, failures.rev().collect())
    }

    fn reasons_to_wait(&self, slot: Slot, ms_since: u64) -> (String, Vec<String>) {
        let (task, route_key) = (self.ledger.task(slot), self.lives[slot].route());
        let route = &self.roster.routes[route_key];
        let serving = self.roster.live_pools_of(&task.method);
        let mut details = Vec::new();
        let fitting: Vec<usize> = serving
            .iter()
            .map(|(_, pool)| *pool)
            .filter(|pool| self.roster.pool_may_serve(*pool, route_key))
            .collect();
        let paused = self.pause_of(slot);
        details.extend(paused.map(|pause| self.pause_in_words(pause)));
        let summary = if paused.is_some() {
            format!("Method {:?} is paused; the task has waited {ms_since} ms.", &*task.method)
        } else if serving.is_empty() {
            format!("No live worker serves {:?}; it has waited {ms_since} ms.", &*task.method)
        } else if fitting.is_empty() {
            format!(
                "{} live worker pools serve {:?}, but none fits its target.",
                serving.len(),
                &*task.method
            )
        } else {
            format!(
                "All {} worker pools that may run it are full; it has waited {ms_since} ms.",
                fitting.len()
            )
        };
        let target = route.target();
        if !target.version.is_empty() {
            let mut versions: Vec<String> =
                serving.iter().flat_map(|(versions, _)| versions.iter().map(ToString::to_string)).collect();
            versions.sort();
            versions.dedup();
            details.push(format!(
                "it asks for version {}; served are: {}",
                target.version,
                versions.join(", ")
            ));
        }
        if !target.group.is_empty() {
            details.push(format!("it asks for group {:?}", target.group));
        }
        for (key, value) in &target.labels {
            details.push(format!("it asks for label {key}={value}"));
        }
        for pool in fitting.into_iter().take(10) {
            let pool = &self.roster.pools[pool];
            details.push(format!(
                "worker {} runs {} of {} with credit for {} more",
                self.roster.sessions[pool.session].worker_id,
                pool.in_flight,
                pool.concurrency,
                pool.credit()
            ));
        }
        let priority = task.options.priority;
        let ahead = route.queue.ahead_of(&self.lives, slot, priority, self.limits.ageing_ms, AHEAD_COUNTED);
        let or_more = if ahead == AHEAD_COUNTED { " or more" } else { "" };
        details.push(format!(
            "{} tasks wait in its queue, {ahead}{or_more} of them ahead of it",
            route.queue.len()
        ));
        (summary, details)
    }

    pub(super) fn list_workers(&mut self, waiter: Waiter, out: &mut Output) {
        let mut workers: Vec<WorkerView> = self
            .roster
            .sessions
            .iter()
            .map(|(_, session)| WorkerView {
                id: session.worker_id.clone(),
                session: session.id,
                state: match (session.conn, session.draining) {
                    (None, _) => WorkerState::Away,
                    (Some(_), true) => WorkerState::Draining,
                    (Some(_), false) => WorkerState::Active,
                },
                group: session.hello.group.clone(),
                labels: session.hello.labels.clone(),
                version: session.hello.version.clone(),
                sdk: session.hello.sdk.clone(),
                host: session.hello.host.clone(),
                peer: session.hello.peer.clone(),
                joined_at: session.joined_at,
                seen_at: session.seen_at,
                pools: session
                    .pools
                    .iter()
                    .map(|pool| {
                        let pool = &self.roster.pools[*pool];
                        PoolView {
                            name: pool.name.clone(),
                            concurrency: pool.concurrency,
                            in_flight: pool.in_flight,
                            credit: pool.credit(),
                        }
                    })
                    .collect(),
                methods: session.hello.methods.iter().cloned().map(std::sync::Arc::new).collect(),
                finished: session.finished,
            })
            .collect();
        workers.sort_by(|a, b| a.id.cmp(&b.id));
        out.now(EffectKind::Reply(waiter, Reply::Workers(workers)));
    }

    pub(super) fn list_methods(&mut self, waiter: Waiter, out: &mut Output) {
        let mut methods = Vec::new();
        for (name, served, ready) in self.roster.method_entries() {
            let paused = self.ledger.pauses().get(name).cloned();
            if served.is_empty() && ready > 0 {
                methods.push(MethodView { name: name.clone(), method: None, workers: 0, ready, paused });
                continue;
            }
            for (method, workers) in served.values() {
                let method = Some(method.clone());
                let paused = paused.clone();
                methods.push(MethodView { name: name.clone(), method, workers: *workers, ready, paused });
            }
        }
        let mut shown: BTreeSet<Arc<str>> = methods.iter().map(|view| view.name.clone()).collect();
        for pause in self.ledger.pauses().iter().filter(|pause| shown.insert(pause.method.clone())) {
            let (name, paused) = (pause.method.clone(), Some(pause.clone()));
            methods.push(MethodView { name, method: None, workers: 0, ready: 0, paused });
        }
        // Stable: the versions of a method stay in their order.
        methods.sort_by(|a, b| a.name.cmp(&b.name));
        out.now(EffectKind::Reply(waiter, Reply::Methods(methods)));
    }

    pub(super) fn stats(&mut self, waiter: Waiter, out: &mut Output) {
        let stats = Stats {
            tasks: self.counts(),
            totals: self.totals,
            workers: self.roster.sessions.len() as u32,
            uptime_ms: self.now.since(self.started_at),
            paused_methods: self.ledger.pauses().len() as u32,
            room: Room {
                max_tasks: self.limits.tasks as u64,
                memory_bytes: self.bytes() as u64,
                max_memory_bytes: self.limits.total_bytes as u64,
                max_dead: self.limits.dead_tasks as u64,
                store_bytes: self.store_bytes,
                max_store_bytes: self.store_max_bytes,
                store_full: self.store_full.clone(),
            },
        };
        out.now(EffectKind::Reply(waiter, Reply::Stats(Box::new(stats))));
    }
}

//! Everything that must hold between two calls, checked in one pass. For tests and tools that look for the
//! cause of a wrong decision: it looks at everything there is, so no server calls it while it serves.

use std::collections::{BTreeMap, BTreeSet};

use super::deadlines::Due;
use super::ledger::Slot;
use super::live::List;
use super::{Live, Scheduler};
use crate::clock::Timestamp;
use crate::task::{State, StateName, Task, TaskId};

type Checked = Result<(), String>;

macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

impl Scheduler {
    /// Checks every invariant of the whole state, in time linear in its size.
    ///
    /// # Errors
    /// Says the first one that does not hold. That is a defect of the scheduler.
    pub fn audit(&self) -> Result<(), String> {
        self.audit_ledger()?;
        self.audit_age()?;
        self.audit_answered()?;
        self.audit_leases()?;
        self.audit_sessions()?;
        self.audit_deadlines()?;
        self.audit_watchers()?;
        self.audit_dead()?;
        self.audit_drains()?;
        let paused = self.ledger.pauses().iter().map(|pause| &pause.method);
        ensure!(paused.eq(self.roster.paused()), "paused methods of ledger and roster differ");
        let mut tasks_of_routes = BTreeMap::new();
        for number in self.answered.plain_numbers() {
            *tasks_of_routes.entry(self.answered.route(number)).or_insert(0_usize) += 1;
        }
        for (slot, task) in self.ledger.iter() {
            let live = &self.lives[slot];
            *tasks_of_routes.entry(live.route()).or_insert(0_usize) += 1;
            self.audit_task(slot, task, live)?;
        }
        self.audit_queues()?;
        self.roster.audit(&tasks_of_routes)
    }

    fn audit_ledger(&self) -> Checked {
        ensure!(
            self.lives.len() == self.ledger.len(),
            "slabs: {} and {}",
            self.lives.len(),
            self.ledger.len()
        );
        let slots = self.ledger.iter().map(|(slot, _)| slot);
        ensure!(slots.eq(self.lives.iter().map(|(slot, _)| slot)), "the slabs are out of step");
        self.ledger.audit()
    }

    fn audit_age(&self) -> Checked {
        let slots = self.walk(&self.by_age)?;
        let distinct: BTreeSet<Slot> = slots.iter().copied().collect();
        ensure!(slots.is_sorted_by_key(|slot| self.lives[*slot].age), "by_age is not in order");
        ensure!(
            distinct.len() == self.ledger.len(),
            "by_age has {} of {}",
            distinct.len(),
            self.ledger.len()
        );
        Ok(())
    }

    fn audit_answered(&self) -> Checked {
        self.answered.audit(&self.ledger, &self.lives)?;
        let all = self.answered.all();
        let over = all.calls > self.limits.answered_tasks || all.bytes > self.limits.answered_bytes;
        ensure!(all.calls <= 1 || !over, "{all:?} answered, over the limits");
        Ok(())
    }

    fn audit_task(&self, slot: Slot, task: &Task, live: &Live) -> Checked {
        let id = task.id;
        let Some(route) = self.roster.routes.get(live.route()) else { return Err(format!("{id}: no route")) };
        ensure!(
            route.method == task.method && *route.target() == task.options.target,
            "{id}: another's route"
        );
        let leased = matches!(task.state, State::Leased { .. });
        let ended = task.state.outcome().is_some();
        ensure!(leased || live.pool().is_none(), "{id}: {:?} in a pool", task.state.name());
        ensure!(leased || !(live.started || live.recalled), "{id}: begun or recalled, not leased");
        ensure!(!ended || live.waiters.is_empty(), "{id}: ended, and callers wait");
        ensure!(live.waiters.len() <= self.limits.waiters_per_task, "{id}: too many waiters");
        ensure!((task.forget_at == Timestamp::NEVER) != ended, "{id}: forget_at {:?}", task.forget_at);
        ensure!(task.changed_at <= self.now && task.since <= task.changed_at, "{id}: times out of order");
        if let Some(talk) = &live.talk {
            let bytes: usize = talk.chunks.iter().map(|(_, chunk)| chunk.data.size()).sum();
            ensure!(bytes == talk.chunk_bytes, "{id}: {bytes} bytes of chunks, {} counted", talk.chunk_bytes);
            let over =
                talk.chunks.len() > self.limits.chunks_per_task || bytes > self.limits.chunk_bytes_per_task;
            ensure!(!over, "{id}: more chunks than may be kept");
            ensure!(!ended || talk.watchers.is_empty(), "{id}: ended, and watched");
        }
        let kept_until = self.forget_at(task.changed_at);
        ensure!(!live.answered || task.forget_at == kept_until, "{id}: answered, kept until another time");
        let expected = self.expected_due(slot, task, live);
        let due = self.deadlines.at(Due::Task(slot));
        ensure!(due == expected, "{id}: due {due:?}, should be {expected:?}");
        Ok(())
    }

    /// What `reschedule` would say, worked out from the rules.
    fn expected_due(&self, slot: Slot, task: &Task, live: &Live) -> Timestamp {
        let after = |ms: u64| if ms == 0 { Timestamp::NEVER } else { task.changed_at + ms };
        match &task.state {
            State::Delayed { until } => (*until).min(task.deadline()),
            State::Ready => after(task.options.queue_timeout_ms).min(task.deadline()),
            // The end of its grace is known to nobody else.
            State::Leased { lease, .. } if self.orphans.get(lease) == Some(&slot) => {
                self.deadlines.at(Due::Task(slot))
            }
            State::Leased { .. } => after(task.options.run_timeout_ms).min(task.deadline()),
            State::Ended(_) if live.answered => Timestamp::NEVER,
            State::Ended(_) => task.forget_at,
        }
    }

    fn audit_leases(&self) -> Checked {
        let mut holders: BTreeMap<u64, usize> = BTreeMap::new();
        for (_, session) in &self.roster.sessions {
            for (lease, slot) in session.leases.iter() {
                *holders.entry(lease).or_default() += 1;
                let pool = self.lives.get(slot).and_then(Live::pool);
                ensure!(
                    pool.is_some_and(|p| session.pools.contains(&p)),
                    "lease {lease}: not in a pool of its session"
                );
                let theirs = matches!(&self.ledger.task(slot).state,
                    State::Leased { lease: own, worker_id } if *own == lease && *worker_id == session.worker_id);
                ensure!(theirs, "lease {lease}: the session holds it, the task does not say so");
            }
        }
        for (lease, slot) in &self.orphans {
            *holders.entry(*lease).or_default() += 1;
            let live = self.lives.get(*slot).ok_or_else(|| format!("orphan {lease}: no task"))?;
            ensure!(
                live.pool().is_none() && self.deadlines.at(Due::Task(*slot)) != Timestamp::NEVER,
                "orphan {lease}: in a pool or not due"
            );
        }
        let mut leased = 0;
        for (_, task) in self.ledger.iter() {
            let State::Leased { lease, .. } = task.state else { continue };
            leased += 1;
            ensure!(holders.get(&lease) == Some(&1), "lease {lease} of {} is not held exactly once", task.id);
        }
        ensure!(leased == holders.len(), "{leased} tasks are leased, {} leases are held", holders.len());
        Ok(())
    }

    fn audit_sessions(&self) -> Checked {
        for (key, session) in &self.roster.sessions {
            let name = &session.worker_id;
            let digest = session.leases.iter().fold(0, |digest, (lease, _)| digest ^ lease);
            let held = session.leases.iter().filter(|(lease, _)| session.leases.contains(*lease)).count();
            ensure!(held == session.leases.len(), "{name}: {held} leases, {} counted", session.leases.len());
            ensure!(digest == session.digest, "{name}: digest {}, should be {digest}", session.digest);
            let serving = session.conn.is_some() && !session.draining && !self.stopping;
            ensure!(session.serving == serving, "{name}: serving {}, should be {serving}", session.serving);
            ensure!(session.result_acked <= session.result_seq, "{name}: acknowledged more than it said");
            ensure!(
                self.deadlines.at(Due::Session(key)) != Timestamp::NEVER,
                "{name}: nothing ends its silence"
            );
            for pool in &session.pools {
                let Some(entry) = self.roster.pools.get(*pool) else {
                    return Err(format!("{name}: no pool {pool}"));
                };
                ensure!(entry.session == key, "{name}: pool {pool} is another's");
                let held =
                    session.leases.iter().filter(|(_, slot)| self.lives[*slot].pool() == Some(*pool)).count();
                ensure!(
                    held == entry.in_flight as usize,
                    "{name}: pool {pool} holds {held}, counts {}",
                    entry.in_flight
                );
            }
        }
        ensure!(self.roster.sessions.len() <= self.limits.sessions, "more sessions than may be");
        Ok(())
    }

    fn audit_deadlines(&self) -> Checked {
        // What each is due at was looked at with it: here only that there is nothing else.
        for (at, due) in self.deadlines.entries() {
            let known = match due {
                Due::Task(slot) => self.lives.contains(slot),
                Due::Session(key) => self.roster.sessions.contains(key),
            };
            ensure!(known && self.deadlines.at(due) == at, "{due:?} is due at {at:?}, and is not there");
        }
        Ok(())
    }

    fn audit_queues(&self) -> Checked {
        let mut waiting = 0;
        for (key, route) in &self.roster.routes {
            let mut length = 0;
            for (priority, list) in route.queue.lists().iter().enumerate() {
                let mut last = (0, Timestamp::default());
                for slot in self.walk(list)? {
                    let (task, live) = (self.ledger.task(slot), &self.lives[slot]);
                    let fits = matches!(task.state, State::Ready)
                        && live.route() == key
                        && usize::from(task.options.priority) == priority;
                    ensure!(fits, "{} waits in a queue that is not its own", task.id);
                    let place = (live.place, live.ready_since);
                    ensure!(last.0 < place.0 && last.1 <= place.1, "{} is not in its place in line", task.id);
                    last = place;
                    length += 1;
                }
            }
            ensure!(length == route.queue.len(), "a queue holds {length}, counts {}", route.queue.len());
            ensure!(
                length == 0 || self.roster.choose(key).is_none(),
                "{length} tasks of {:?} wait although a worker has credit",
                route.method
            );
            waiting += length as u64;
        }
        let ready = self.ledger.counts().get(StateName::Ready as usize).copied().unwrap_or_default();
        ensure!(waiting == ready, "{ready} tasks are ready, {waiting} wait in queues");
        Ok(())
    }

    fn audit_watchers(&self) -> Checked {
        let mut followed = BTreeSet::new();
        for (slot, live) in self.lives.iter() {
            for conn in live.talk.iter().flat_map(|talk| &talk.watchers) {
                let id = self.ledger.task(slot).id;
                ensure!(followed.insert((*conn, id)), "watcher {conn} follows {id} twice");
            }
        }
        let named: BTreeSet<(u32, TaskId)> = self.watchers.named().collect();
        ensure!(followed == named, "watchers and the tasks they follow differ");
        ensure!(self.watchers.audit(&self.limits), "watchers: filters, or limits, do not agree");
        Ok(())
    }

    /// The list from head to tail, after checking that its links and its length agree.
    fn walk(&self, list: &List) -> Result<Vec<Slot>, String> {
        let mut slots = Vec::new();
        let (mut at, mut before) = (list.head(), None);
        while let Some(slot) = at {
            ensure!(self.lives.contains(slot) && slots.len() < list.len(), "a list holds what it should not");
            ensure!(list.before(&self.lives, slot) == before, "a list is torn");
            slots.push(slot);
            before = at;
            at = list.after(&self.lives, slot);
        }
        ensure!(
            list.tail() == before && slots.len() == list.len(),
            "a list of {} counts {}",
            slots.len(),
            list.len()
        );
        Ok(slots)
    }
}

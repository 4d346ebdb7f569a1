//! The rules of the scheduler as plainly as they can be said: lists, and loops over them. Written from the design
//! and the contract, not from the scheduler.
//!
//! Where the rules leave a choice, and where they name the one that is right, the reference does not choose: it
//! is shown what the scheduler chose, says whether that is among the choices it had, and follows it.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};

pub(crate) const NEVER: u64 = u64::MAX;
/// The limits in force, from the documentation.
const AGEING: u64 = 30_000;
const SILENCE: u64 = 10_000;
const RESUME: u64 = 10_000;
const RETENTION: u64 = 3_600_000;
const ANSWERED_RETENTION: u64 = 60_000;
const DEAD_RETENTION: u64 = 30 * 86_400_000;
const MAX_BACKOFF: u64 = 60_000;

pub(crate) const METHODS: [&str; 2] = ["add", "mul"];

/// A worker, as long as the test runs.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) concurrency: u64,
    /// The version of each method, if it serves it.
    pub(crate) serves: [Option<u64>; 2],
    pub(crate) group: &'static str,
    pub(crate) starts_on_receipt: bool,
}

pub(crate) const CREW: [Kind; 4] = [
    Kind { name: "w0", concurrency: 1, serves: [Some(1), Some(1)], group: "", starts_on_receipt: false },
    Kind { name: "w1", concurrency: 2, serves: [Some(1), None], group: "", starts_on_receipt: true },
    Kind { name: "w2", concurrency: 3, serves: [Some(1), Some(1)], group: "g", starts_on_receipt: false },
    Kind { name: "w3", concurrency: 1, serves: [None, Some(2)], group: "", starts_on_receipt: false },
];

/// Which workers may run a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// The newest version that has a live worker.
    Any,
    /// Version 1.
    First,
    /// The newest version, in the group.
    Group,
}

/// What a caller says. Times in ms; 0 is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) method: usize,
    pub(crate) aim: Aim,
    pub(crate) priority: u8,
    pub(crate) durable: bool,
    /// Idempotency key, and payload.
    pub(crate) key: Option<(u8, u8)>,
    pub(crate) delay: u64,
    pub(crate) queue_timeout: u64,
    pub(crate) run_timeout: u64,
    pub(crate) deadline: u64,
    pub(crate) max_attempts: u32,
    pub(crate) backoff: u64,
    pub(crate) retention: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Delayed(u64),
    Ready,
    /// By a worker, under a lease; the handler has begun.
    Held(usize, u64, bool),
    /// Held before the restart; its worker may come back until then.
    Lost(usize, u64, u64),
    /// As the pair puts outcomes.
    Ended(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) id: u64,
    pub(crate) spec: Spec,
    pub(crate) state: State,
    pub(crate) attempt: u32,
    pub(crate) failures: Vec<String>,
    pub(crate) forget: u64,
    pub(crate) waiters: Vec<u64>,
    /// Made by Call, and nobody but callers has asked for it.
    of_caller: bool,
    ready_since: u64,
    /// Number among all that became ready.
    place: u64,
    since: u64,
    changed: u64,
}

impl Task {
    pub(crate) fn ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    fn holder(&self) -> Option<(usize, u64)> {
        match self.state {
            State::Held(worker, lease, _) => Some((worker, lease)),
            _ => None,
        }
    }

    fn deadline(&self) -> u64 {
        after(self.since, self.spec.deadline)
    }

    fn due(&self) -> u64 {
        match self.state {
            State::Delayed(until) => until.min(self.deadline()),
            State::Ready => after(self.changed, self.spec.queue_timeout).min(self.deadline()),
            State::Held(..) => after(self.changed, self.spec.run_timeout).min(self.deadline()),
            State::Lost(_, _, until) => {
                after(self.changed, self.spec.run_timeout).min(self.deadline()).min(until)
            }
            State::Ended(_) => self.forget,
        }
    }

    /// The lowest goes first.
    fn rank(&self) -> (i128, Reverse<u8>, u64) {
        let priority = self.spec.priority;
        let rank = i128::from(self.ready_since) - i128::from(priority) * i128::from(AGEING);
        (rank, Reverse(priority), self.place)
    }
}

fn after(from: u64, ms: u64) -> u64 {
    if ms == 0 { NEVER } else { from + ms }
}

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) conn: Option<u32>,
    pub(crate) boot: u32,
    draining: bool,
    granted: u64,
    assigned: u64,
    /// When it was last given or relieved of work, in steps.
    used: u64,
    seen: u64,
    away_until: u64,
}

impl Session {
    fn due(&self) -> u64 {
        if self.conn.is_some() { self.seen + SILENCE } else { self.away_until }
    }
}

/// Something the scheduler chose.
#[derive(Clone, Debug)]
pub(crate) struct Assigned {
    pub(crate) task: u64,
    pub(crate) worker: usize,
    pub(crate) conn: u32,
    pub(crate) lease: u64,
    pub(crate) attempt: u32,
    pub(crate) version: u64,
}

/// What the scheduler chose in one step.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    pub(crate) assigned: VecDeque<Assigned>,
    /// Until when tasks are delayed.
    pub(crate) delayed: Vec<(u64, u64)>,
}

pub(crate) type Legal = Result<(), String>;

#[derive(Debug, Default)]
pub(crate) struct Naive {
    pub(crate) now: u64,
    /// In the order in which they came.
    pub(crate) tasks: Vec<Task>,
    pub(crate) sessions: [Option<Session>; CREW.len()],
    /// What people and workers are told.
    pub(crate) said: Vec<String>,
    /// Processes that were asked to leave.
    drained: [Option<u32>; CREW.len()],
    paused: BTreeSet<usize>,
    stopping: bool,
    places: u64,
    uses: u64,
    last_lease: u64,
}

impl Naive {
    pub(crate) fn new(now: u64) -> Self {
        Self { now, ..Self::default() }
    }

    fn task(&self, id: u64) -> Option<usize> {
        self.tasks.iter().position(|task| task.id == id)
    }

    fn say(&mut self, what: String) {
        self.said.push(what);
    }

    // --- callers ----------------------------------------------------------------------------------

    /// Of `Submit` without a waiter, of `Call` with one.
    pub(crate) fn submit(&mut self, id: u64, spec: Spec, tag: u64, call: bool, chosen: &mut Chosen) -> Legal {
        let refused = |reason: &str| {
            if call {
                format!("{tag}: refused {reason}")
            } else {
                format!("{tag}: submitted refused {reason}")
            }
        };
        if self.stopping {
            self.say(refused("shutting_down"));
            return Ok(());
        }
        let same = self.tasks.iter().position(|task| {
            task.spec.method == spec.method
                && matches!((task.spec.key, spec.key), (Some((a, _)), Some((b, _))) if a == b)
        });
        if let Some(at) = same {
            if self.tasks[at].spec.key != spec.key {
                self.say(refused("idempotency_conflict"));
            } else if call {
                self.wait_for(at, tag);
            } else {
                self.tasks[at].of_caller = false;
                self.say(format!("{tag}: submitted attached {}", self.tasks[at].id));
            }
            return Ok(());
        }
        let delayed = spec.delay > 0;
        self.tasks.push(Task {
            id,
            spec,
            state: if delayed { State::Delayed(self.now + spec.delay) } else { State::Ready },
            attempt: 0,
            failures: Vec::new(),
            forget: NEVER,
            waiters: Vec::new(),
            of_caller: call,
            ready_since: self.now,
            place: 0,
            since: self.now,
            changed: self.now,
        });
        let at = self.tasks.len() - 1;
        if call {
            self.wait_for(at, tag);
        } else {
            self.say(format!("{tag}: submitted accepted {id}"));
        }
        if !delayed {
            self.last_in_line(at);
        }
        self.settle(chosen)
    }

    fn wait_for(&mut self, at: usize, tag: u64) {
        let task = &mut self.tasks[at];
        match &task.state {
            State::Ended(outcome) => {
                let said = format!("{tag}: {} {outcome}", task.id);
                self.say(said);
            }
            State::Held(..) | State::Lost(..) => task.waiters.push(tag),
            _ if self.stopping => self.say(format!("{tag}: refused shutting_down")),
            _ => task.waiters.push(tag),
        }
    }

    pub(crate) fn await_end(&mut self, id: u64, tag: u64) {
        match self.task(id) {
            Some(at) => self.wait_for(at, tag),
            None => self.say(format!("{tag}: refused task_not_found")),
        }
    }

    /// One who waits does so no longer.
    pub(crate) fn abandon(&mut self, id: u64, tag: u64, withdraws: bool, chosen: &mut Chosen) -> Legal {
        let Some(at) = self.task(id) else { return Ok(()) };
        let task = &mut self.tasks[at];
        task.waiters.retain(|other| *other != tag);
        let nobody_else = task.waiters.is_empty() && task.of_caller;
        if withdraws && !nobody_else {
            self.say(format!("{tag}: refused call_withdrawn"));
        } else if withdraws {
            task.waiters.push(tag);
            self.end(at, "cancelled cancelled by its caller".to_owned());
        } else if nobody_else && !task.spec.durable {
            self.end(at, "cancelled the caller went away".to_owned());
        }
        self.settle(chosen)
    }

    pub(crate) fn cancel(&mut self, id: u64, tag: u64, chosen: &mut Chosen) -> Legal {
        let Some(at) = self.task(id) else {
            self.say(format!("{tag}: refused task_not_found"));
            return Ok(());
        };
        match &self.tasks[at].state {
            State::Ended(outcome) if !outcome.starts_with("cancelled") => {
                self.say(format!("{tag}: refused task_ended"));
                return Ok(());
            }
            State::Ended(_) => {}
            _ => self.end(at, "cancelled enough".to_owned()),
        }
        self.say(format!("{tag}: task {id}"));
        self.settle(chosen)
    }

    pub(crate) fn retry(&mut self, id: u64, tag: u64, chosen: &mut Chosen) -> Legal {
        let refusal = match self.task(id) {
            None => Some("task_not_found"),
            Some(at) if !self.tasks[at].ended() => Some("task_not_ended"),
            Some(_) if self.stopping => Some("shutting_down"),
            Some(_) => None,
        };
        if let Some(reason) = refusal {
            self.say(format!("{tag}: refused {reason}"));
            return Ok(());
        }
        let now = self.now;
        let at = self.task(id).ok_or("it was there a moment ago")?;
        let task = &mut self.tasks[at];
        (task.attempt, task.since, task.of_caller, task.forget) = (0, now, false, NEVER);
        self.become_ready(at);
        self.say(format!("{tag}: task {id}"));
        self.settle(chosen)
    }

    pub(crate) fn discard_dead(&mut self, tag: u64) {
        let dead = |task: &Task| matches!(&task.state, State::Ended(end) if end.starts_with("failed"));
        let before = self.tasks.len();
        self.tasks.retain(|task| !dead(task));
        self.say(format!("{tag}: changed {}", before - self.tasks.len()));
    }

    pub(crate) fn pause(&mut self, method: usize, tag: u64) {
        let was_paused = !self.paused.insert(method);
        self.say(format!("{tag}: paused {was_paused}"));
    }

    pub(crate) fn resume_method(&mut self, method: usize, tag: u64, chosen: &mut Chosen) -> Legal {
        let was_paused = self.paused.remove(&method);
        self.say(format!("{tag}: resumed {was_paused}"));
        self.settle(chosen)
    }

    // --- a task's life ----------------------------------------------------------------------------

    fn become_ready(&mut self, at: usize) {
        let task = &mut self.tasks[at];
        task.state = State::Ready;
        task.changed = self.now;
        task.ready_since = self.now;
        self.last_in_line(at);
        self.turn_away(at);
    }

    fn last_in_line(&mut self, at: usize) {
        self.places += 1;
        self.tasks[at].place = self.places;
    }

    /// While the server stops: nobody waits for what will not begin.
    fn turn_away(&mut self, at: usize) {
        if !self.stopping || self.tasks[at].ended() {
            return;
        }
        for tag in std::mem::take(&mut self.tasks[at].waiters) {
            self.say(format!("{tag}: refused shutting_down"));
        }
        if self.tasks[at].of_caller && !self.tasks[at].spec.durable {
            self.end(at, "cancelled the server was stopping".to_owned());
        }
    }

    fn used(&mut self, worker: usize) {
        self.uses += 1;
        if let Some(session) = &mut self.sessions[worker] {
            session.used = self.uses;
        }
    }

    fn stop_handler(&mut self, at: usize) {
        if let Some((worker, lease)) = self.tasks[at].holder()
            && let Some(conn) = self.sessions[worker].as_ref().and_then(|session| session.conn)
        {
            self.say(format!("{conn} stop {lease}"));
        }
    }

    fn end(&mut self, at: usize, outcome: String) {
        if outcome.starts_with("cancelled") || outcome.starts_with("expired") {
            self.stop_handler(at);
        }
        if let Some((worker, _)) = self.tasks[at].holder() {
            self.used(worker);
        }
        let now = self.now;
        let task = &mut self.tasks[at];
        let answers = task.of_caller && !(task.spec.durable && task.waiters.is_empty());
        let retention = match outcome.starts_with("failed") && task.spec.durable {
            _ if answers => ANSWERED_RETENTION,
            true => DEAD_RETENTION,
            false => RETENTION,
        };
        task.forget = now + task.spec.retention.unwrap_or(retention);
        task.changed = now;
        task.state = State::Ended(outcome.clone());
        let id = task.id;
        for tag in std::mem::take(&mut task.waiters) {
            self.say(format!("{tag}: {id} {outcome}"));
        }
    }

    fn fail(&mut self, at: usize, code: &str, retryable: Option<bool>, wait: u64, chosen: &Chosen) -> Legal {
        let now = self.now;
        let task = &mut self.tasks[at];
        task.failures.push(code.to_owned());
        if retryable == Some(false) || task.attempt >= task.spec.max_attempts {
            self.end(at, format!("failed {code}"));
            return Ok(());
        }
        let full = match wait {
            0 => (task.spec.backoff << (task.attempt - 1)).min(MAX_BACKOFF),
            wait => wait,
        };
        let least = if wait == 0 { full - full / 2 } else { full };
        // When it was not for long, it is not seen any more.
        let seen = chosen.delayed.iter().find(|(id, _)| *id == task.id).map(|(_, until)| *until);
        let until = seen.unwrap_or(now + full);
        if !(now + least..=now + full).contains(&until) {
            return Err(format!("task {} waits until {until}, not {least} to {full} from {now}", task.id));
        }
        let holder = task.holder();
        task.state = State::Delayed(until);
        task.changed = now;
        if let Some((worker, _)) = holder {
            self.used(worker);
        }
        self.turn_away(at);
        Ok(())
    }

    /// It was not tried, and keeps its place.
    fn give_back(&mut self, at: usize) {
        let now = self.now;
        let task = &mut self.tasks[at];
        let holder = task.holder();
        task.attempt -= 1;
        task.state = State::Ready;
        task.changed = now;
        if let Some((worker, _)) = holder {
            self.used(worker);
        }
        self.turn_away(at);
    }

    fn lose(&mut self, id: u64, chosen: &Chosen) -> Legal {
        let Some(at) = self.task(id) else { return Ok(()) };
        match self.tasks[at].state {
            State::Held(_, _, false) => self.give_back(at),
            _ => self.fail(at, "worker_lost", None, 0, chosen)?,
        }
        Ok(())
    }

    // --- workers ----------------------------------------------------------------------------------

    pub(crate) fn held_by(&self, worker: usize) -> Vec<(u64, u64)> {
        let held = self.tasks.iter().filter_map(|task| match task.holder() {
            Some((holder, lease)) if holder == worker => Some((lease, task.id)),
            _ => None,
        });
        let mut held: Vec<_> = held.collect();
        held.sort_unstable();
        held
    }

    pub(crate) fn join(
        &mut self,
        worker: usize,
        conn: u32,
        boot: u32,
        named: &[u64],
        chosen: &mut Chosen,
    ) -> Legal {
        let known = self.sessions[worker].clone();
        let resumes = known.as_ref().is_some_and(|session| session.boot == boot);
        if let Some(session) = &known {
            if let Some(old) = session.conn {
                self.say(format!("{old} closed session_replaced"));
            }
            if !resumes {
                self.forget_session(worker, chosen)?;
                self.settle(chosen)?;
            }
        }
        if self.stopping && !resumes {
            self.say(format!("{conn} refused shutting_down"));
            return self.settle(chosen);
        }
        if self.drained[worker].is_some_and(|drained| drained != boot) {
            self.drained[worker] = None;
        }
        let used = if resumes { known.map_or(0, |session| session.used) } else { 0 };
        self.sessions[worker] = Some(Session {
            conn: Some(conn),
            boot,
            draining: self.drained[worker] == Some(boot),
            granted: 0,
            assigned: 0,
            used,
            seen: self.now,
            away_until: NEVER,
        });
        for (lease, id) in self.held_by(worker) {
            if !named.contains(&lease) {
                self.lose(id, chosen)?;
            }
        }
        self.settle(chosen)?;
        let (mut keep, mut drop) = (Vec::new(), Vec::new());
        for lease in named {
            let found = self.tasks.iter_mut().find_map(|task| match &mut task.state {
                State::Held(holder, held, _) if *holder == worker && held == lease => Some(()),
                State::Lost(holder, held, _) if *holder == worker && held == lease => {
                    task.state = State::Held(worker, *lease, true);
                    Some(())
                }
                _ => None,
            });
            if found.is_some() { &mut keep } else { &mut drop }.push(*lease);
        }
        self.say(format!("{conn} joined keep {keep:?} drop {drop:?}"));
        Ok(())
    }

    /// The session behind a stream that still stands; a frame over any other changes nothing.
    pub(crate) fn hears(&mut self, worker: usize, conn: u32) -> bool {
        let now = self.now;
        match &mut self.sessions[worker] {
            Some(session) if session.conn == Some(conn) => {
                session.seen = now;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn credit(&mut self, worker: usize, total: u64, chosen: &mut Chosen) -> Legal {
        if let Some(session) = &mut self.sessions[worker] {
            session.granted = session.granted.max(total);
        }
        self.settle(chosen)
    }

    fn held(&mut self, worker: usize, conn: u32, lease: u64) -> Option<usize> {
        let at = self.tasks.iter().position(|task| task.holder() == Some((worker, lease)));
        if at.is_none() {
            let foreign = self.tasks.iter().any(|task| task.holder().is_some_and(|(_, held)| held == lease));
            let reason = if foreign { "not_your_lease" } else { "stale_lease" };
            self.say(format!("{conn} refused {lease} {reason}"));
        }
        at
    }

    pub(crate) fn start(&mut self, worker: usize, conn: u32, lease: u64) {
        if let Some(at) = self.held(worker, conn, lease) {
            self.tasks[at].state = State::Held(worker, lease, true);
        }
    }

    pub(crate) fn succeed(&mut self, worker: usize, conn: u32, lease: u64, chosen: &mut Chosen) -> Legal {
        if let Some(at) = self.held(worker, conn, lease) {
            self.end(at, format!("succeeded {lease}"));
        }
        self.settle(chosen)
    }

    pub(crate) fn failed(
        &mut self,
        worker: usize,
        conn: u32,
        lease: u64,
        (retryable, wait): (Option<bool>, u64),
        chosen: &mut Chosen,
    ) -> Legal {
        if let Some(at) = self.held(worker, conn, lease) {
            self.fail(at, "handler_error", retryable, wait, chosen)?;
        }
        self.settle(chosen)
    }

    pub(crate) fn release(&mut self, worker: usize, conn: u32, lease: u64, chosen: &mut Chosen) -> Legal {
        if let Some(at) = self.held(worker, conn, lease) {
            self.give_back(at);
        }
        self.settle(chosen)
    }

    pub(crate) fn broken(&mut self, worker: usize, conn: u32, chosen: &mut Chosen) -> Legal {
        let Some(session) = self.sessions[worker].as_mut().filter(|session| session.conn == Some(conn))
        else {
            return Ok(());
        };
        session.conn = None;
        session.away_until = self.now + RESUME;
        for (_, id) in self.held_by(worker) {
            let at = self.task(id).ok_or("it was there a moment ago")?;
            if matches!(self.tasks[at].state, State::Held(_, _, false)) {
                self.give_back(at);
            }
        }
        if self.held_by(worker).is_empty() {
            self.sessions[worker] = None;
        }
        self.settle(chosen)
    }

    pub(crate) fn leave(&mut self, worker: usize, conn: u32, chosen: &mut Chosen) -> Legal {
        self.say(format!("{conn} closed"));
        self.drained[worker] = None;
        self.forget_session(worker, chosen)?;
        self.settle(chosen)
    }

    pub(crate) fn drain(&mut self, worker: usize, tag: u64, chosen: &mut Chosen) -> Legal {
        match &mut self.sessions[worker] {
            None => self.say(format!("{tag}: refused worker_not_found")),
            Some(session) => {
                session.draining = true;
                self.drained[worker] = Some(session.boot);
                self.say(format!("{tag}: draining"));
            }
        }
        self.settle(chosen)
    }

    fn forget_session(&mut self, worker: usize, chosen: &Chosen) -> Legal {
        let held = self.held_by(worker);
        for (_, id) in held {
            self.lose(id, chosen)?;
        }
        self.sessions[worker] = None;
        Ok(())
    }

    // --- the choice -------------------------------------------------------------------------------

    /// The workers that serve the task, with the version each would run, whether they have credit or not.
    fn serving(&self, task: &Task) -> Vec<(usize, u64)> {
        let live = (0..CREW.len()).filter(|worker| {
            let session = self.sessions[*worker].as_ref();
            session.is_some_and(|session| session.conn.is_some() && !session.draining) && !self.stopping
        });
        let fit = live.filter_map(|worker| {
            let kind = &CREW[worker];
            let version = kind.serves[task.spec.method]?;
            let fits = match task.spec.aim {
                Aim::Any => true,
                Aim::First => version == 1,
                Aim::Group => kind.group == "g",
            };
            fits.then_some((worker, version))
        });
        let mut fit: Vec<_> = fit.collect();
        if task.spec.aim != Aim::First {
            let newest = fit.iter().map(|(_, version)| *version).max();
            fit.retain(|(_, version)| Some(*version) == newest);
        }
        fit
    }

    /// Those of them that can take it now.
    fn candidates(&self, task: &Task) -> Vec<(usize, u64)> {
        if task.state != State::Ready || self.paused.contains(&task.spec.method) {
            return Vec::new();
        }
        let mut serving = self.serving(task);
        serving.retain(|(worker, _)| {
            self.sessions[*worker].as_ref().is_some_and(|session| session.granted > session.assigned)
        });
        serving
    }

    /// Load as a fraction, for comparison.
    fn lighter(&self, a: usize, b: usize) -> std::cmp::Ordering {
        let load = |worker: usize| self.held_by(worker).len() as u64;
        let used = |worker: usize| self.sessions[worker].as_ref().map_or(0, |session| session.used);
        let fractions = (load(a) * CREW[b].concurrency).cmp(&(load(b) * CREW[a].concurrency));
        fractions.then(used(a).cmp(&used(b)))
    }

    /// Nothing waits that a worker could take: the scheduler must have chosen until that is so.
    fn settle(&mut self, chosen: &mut Chosen) -> Legal {
        self.settle_after(chosen, &[])
    }

    /// `together`: tasks that became ready at the same moment, in an order that nobody can know; among them,
    /// each may go first, and loads may have been others in between.
    fn settle_after(&mut self, chosen: &mut Chosen, together: &[u64]) -> Legal {
        while let Some(waits) = self.tasks.iter().find(|task| !self.candidates(task).is_empty()) {
            let Some(choice) = chosen.assigned.pop_front() else {
                let who = self.candidates(waits);
                return Err(format!("task {} waits although there is credit: {who:?}", waits.id));
            };
            self.check_choice(&choice, together)?;
            self.last_lease = choice.lease;
            let (now, at) = (self.now, self.task(choice.task).ok_or("no such task")?);
            let task = &mut self.tasks[at];
            let started = CREW[choice.worker].starts_on_receipt;
            task.state = State::Held(choice.worker, choice.lease, started);
            task.attempt += 1;
            task.changed = now;
            if let Some(session) = &mut self.sessions[choice.worker] {
                session.assigned += 1;
            }
            self.used(choice.worker);
        }
        Ok(())
    }

    fn check_choice(&self, choice: &Assigned, together: &[u64]) -> Legal {
        let task = self.task(choice.task).map(|at| &self.tasks[at]).ok_or("a task that is not known")?;
        let candidates = self.candidates(task);
        if !candidates.contains(&(choice.worker, choice.version)) {
            return Err(format!("{choice:?}: the choice was among {candidates:?} for {task:?}"));
        }
        let session = self.sessions[choice.worker].as_ref().ok_or("no session")?;
        if session.conn != Some(choice.conn) {
            return Err(format!("{choice:?}: over a stream that is no more"));
        }
        if choice.lease <= self.last_lease || choice.attempt != task.attempt + 1 {
            return Err(format!("{choice:?}: after lease {}, attempt {}", self.last_lease, task.attempt));
        }
        let mixed = |other: &Task| together.contains(&other.id) && together.contains(&task.id);
        let first = self.tasks.iter().find(|other| {
            other.state == State::Ready
                && (other.spec.method, other.spec.aim) == (task.spec.method, task.spec.aim)
                && other.rank() < task.rank()
                && !mixed(other)
        });
        if let Some(first) = first {
            return Err(format!("{choice:?}: task {} goes first", first.id));
        }
        let lighter = candidates.iter().find(|(other, _)| self.lighter(*other, choice.worker).is_lt());
        match lighter.filter(|_| together.len() < 2) {
            Some(lighter) => Err(format!("{choice:?}: {lighter:?} is less loaded, or idle longer")),
            None => Ok(()),
        }
    }

    // --- time, the end, the beginning ---------------------------------------------------------------

    pub(crate) fn due(&self) -> u64 {
        let tasks = self.tasks.iter().map(Task::due);
        let sessions = self.sessions.iter().flatten().map(Session::due);
        tasks.chain(sessions).min().unwrap_or(NEVER)
    }

    /// Brings about what is due: first what becomes of tasks, then of sessions.
    pub(crate) fn tick(&mut self, chosen: &mut Chosen) -> Legal {
        while self.due() <= self.now {
            let due: Vec<u64> =
                self.tasks.iter().filter(|task| task.due() <= self.now).map(|task| task.id).collect();
            for id in &due {
                self.task_due(*id, chosen)?;
            }
            self.settle_after(chosen, &due)?;
            if due.is_empty() {
                self.sessions_due(chosen)?;
            }
        }
        Ok(())
    }

    fn sessions_due(&mut self, chosen: &mut Chosen) -> Legal {
        for worker in 0..CREW.len() {
            let Some(session) = self.sessions[worker].as_ref().filter(|session| session.due() <= self.now)
            else {
                continue;
            };
            if let Some(conn) = session.conn {
                self.say(format!("{conn} closed session_expired"));
            }
            self.forget_session(worker, chosen)?;
            self.settle(chosen)?;
        }
        Ok(())
    }

    fn task_due(&mut self, id: u64, chosen: &Chosen) -> Legal {
        let at = self.task(id).ok_or("it was there a moment ago")?;
        let now = self.now;
        let task = &self.tasks[at];
        if task.ended() {
            self.tasks.remove(at);
            return Ok(());
        }
        if task.deadline() <= now {
            self.end(at, "expired Deadline".to_owned());
            return Ok(());
        }
        match task.state {
            State::Delayed(_) => self.become_ready(at),
            State::Ready => self.end(at, "expired QueueTimeout".to_owned()),
            _ if after(task.changed, task.spec.run_timeout) <= now => {
                self.stop_handler(at);
                return self.fail(at, "run_timeout", None, 0, chosen);
            }
            _ => return self.fail(at, "worker_lost", None, 0, chosen),
        }
        Ok(())
    }

    pub(crate) fn stop(&mut self, chosen: &mut Chosen) -> Legal {
        self.stopping = true;
        let ids: Vec<u64> = self.tasks.iter().map(|task| task.id).collect();
        for id in ids {
            let at = self.task(id).ok_or("it was there a moment ago")?;
            if matches!(self.tasks[at].state, State::Ready | State::Delayed(_)) {
                self.turn_away(at);
            }
        }
        self.settle(chosen)
    }

    pub(crate) fn crash(&mut self) {
        self.tasks.retain(|task| task.spec.durable);
        self.sessions = Default::default();
        self.stopping = false;
        // Lines are in the order of what the rows say: when a task came into its present state.
        let mut order: Vec<usize> = (0..self.tasks.len()).collect();
        order.sort_by_key(|at| (self.tasks[*at].changed, self.tasks[*at].id));
        for at in order {
            self.last_in_line(at);
            let until = self.now + RESUME.max(SILENCE);
            let task = &mut self.tasks[at];
            task.ready_since = task.changed;
            task.of_caller = false;
            task.waiters.clear();
            if let State::Held(worker, lease, _) | State::Lost(worker, lease, _) = task.state {
                task.state = State::Lost(worker, lease, until);
            }
        }
    }
}

//! The scheduler and the reference, side by side.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use crewcall::clock::Timestamp;
use crewcall::row::{Row, RowChange, RowKey};
use crewcall::scheduler::{
    AttemptEnd, AttemptResult, Command, ConnId, DeadChange, DeadFilter, DeadSelection, EffectKind, Frame,
    Hello, Limits, Output, PoolSpec, Reply, Scheduler, SessionId, Tell, Waiter,
};
use crewcall::task::{
    Durability, Method, NewTask, Outcome, Payload, RetryPolicy, State as RealState, Target, Task as RealTask,
    TaskError, TaskId, TaskOptions,
};
use uuid::Uuid;

use super::naive::{Aim, Assigned, CREW, Chosen, Legal, METHODS, NEVER, Naive, Spec, State};
use super::plan::{Comes, End, Transition};

const START: u64 = 1_000_000;

/// A worker's process, as it sees itself.
#[derive(Debug, Default)]
struct Process {
    boot: u32,
    token: Option<u128>,
    session: Option<(SessionId, ConnId)>,
    credit: u64,
}

#[derive(Debug)]
pub(crate) struct Pair {
    real: Scheduler,
    naive: Naive,
    now: u64,
    rows: BTreeMap<RowKey, Bytes>,
    crew: [Process; CREW.len()],
    conns: BTreeMap<ConnId, usize>,
    tasks: u64,
    tags: u64,
    runs: u64,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let mut pair = Self {
            real: Scheduler::new(Limits::default(), 0),
            naive: Naive::new(START),
            now: START,
            rows: BTreeMap::new(),
            crew: Default::default(),
            conns: BTreeMap::new(),
            tasks: 0,
            tags: 0,
            runs: 0,
        };
        pair.begin();
        pair
    }

    fn begin(&mut self) {
        let mut out = Output::default();
        self.real.start(&mut out);
        self.store(&mut out);
    }

    /// Carries the transition out on both, a millisecond after the one before: so no two sessions fall silent at
    /// the same moment.
    pub(crate) fn apply(&mut self, transition: Transition) -> Legal {
        let later = if let Transition::Wait(ms) = transition { ms } else { 0 };
        self.advance(self.now + 1 + later)?;
        match transition {
            Transition::Submit(spec) => self.submit(spec, false),
            Transition::Call(spec) => self.submit(spec, true),
            Transition::Await(nth) => {
                let Some(id) = self.newest(nth) else { return Ok(()) };
                self.ask(
                    |waiter| Command::Await { id: t(id), waiter },
                    |naive, tag, _| {
                        naive.await_end(id, tag);
                        Ok(())
                    },
                )
            }
            Transition::Abandon(nth, withdraws) => self.abandon(nth, withdraws),
            Transition::Cancel(nth) => {
                let Some(id) = self.newest(nth) else { return Ok(()) };
                let command = |waiter| Command::Cancel { id: t(id), reason: "enough".into(), waiter };
                self.ask(command, |naive, tag, chosen| naive.cancel(id, tag, chosen))
            }
            Transition::Retry(nth) => {
                let Some(id) = self.newest(nth) else { return Ok(()) };
                let command = |waiter| Command::Retry { id: t(id), waiter };
                self.ask(command, |naive, tag, chosen| naive.retry(id, tag, chosen))
            }
            Transition::Pause(method) => {
                let name = METHODS[method].to_owned();
                let command = |waiter| Command::Pause {
                    method: name,
                    reason: String::new(),
                    by: String::new(),
                    waiter,
                };
                self.ask(command, |naive, tag, _| {
                    naive.pause(method, tag);
                    Ok(())
                })
            }
            Transition::Resume(method) => {
                let command = |waiter| Command::Resume { method: METHODS[method].to_owned(), waiter };
                self.ask(command, |naive, tag, chosen| naive.resume_method(method, tag, chosen))
            }
            Transition::Discard => {
                let selection =
                    DeadSelection::Matching { filter: DeadFilter::default(), limit: 1_000, after: None };
                let change = DeadChange::Discard;
                let command = |waiter| Command::ChangeDead { change, selection, dry_run: false, waiter };
                self.ask(command, |naive, tag, _| {
                    naive.discard_dead(tag);
                    Ok(())
                })
            }
            Transition::Drain(worker) => {
                let worker_id = CREW[worker].name.to_owned();
                let command = |waiter| Command::Drain { worker_id, reason: "please".into(), waiter };
                self.ask(command, |naive, tag, chosen| naive.drain(worker, tag, chosen))
            }
            Transition::Join(worker, comes) => self.join(worker, comes),
            Transition::Break(worker) => {
                let Some((session, conn)) = self.crew[worker].session else { return Ok(()) };
                let command = Command::Broken { session, conn };
                self.command(command, |naive, chosen| naive.broken(worker, conn, chosen))
            }
            Transition::Wait(_) => Ok(()),
            Transition::Stop => self.command(Command::Shutdown, Naive::stop),
            Transition::Crash => {
                self.crash();
                Ok(())
            }
            Transition::Credit(worker, more) => {
                self.crew[worker].credit += more;
                let total = self.crew[worker].credit;
                let frame = Frame { credits: vec![(String::new(), total)], ..Frame::default() };
                self.frame(worker, frame, |naive, _, chosen| naive.credit(worker, total, chosen))
            }
            Transition::Beat(worker) => {
                let held = self.naive.held_by(worker);
                let digest = held.iter().fold(0, |digest, (lease, _)| digest ^ lease);
                let frame = Frame { beat: Some((held.len() as u32, digest)), ..Frame::default() };
                self.frame(worker, frame, |_, _, _| Ok(()))
            }
            Transition::Start(worker, nth) => {
                let Some(lease) = self.lease(worker, nth) else { return Ok(()) };
                let frame = Frame { started: vec![lease], ..Frame::default() };
                self.frame(worker, frame, |naive, conn, _| {
                    naive.start(worker, conn, lease);
                    Ok(())
                })
            }
            Transition::Release(worker, nth) => {
                let Some(lease) = self.lease(worker, nth) else { return Ok(()) };
                let frame = Frame { released: vec![lease], ..Frame::default() };
                self.frame(worker, frame, |naive, conn, chosen| naive.release(worker, conn, lease, chosen))
            }
            Transition::Finish(worker, nth, end) => {
                let Some(lease) = self.lease(worker, nth) else { return Ok(()) };
                self.result(worker, lease, end)
            }
            Transition::Stray(worker, lease) => {
                let own = self.naive.held_by(worker).iter().any(|(held, _)| *held == lease);
                if own { Ok(()) } else { self.result(worker, lease, End::Succeeded) }
            }
            Transition::Leave(worker) => {
                let frame = Frame { bye: Some(String::new()), ..Frame::default() };
                self.frame(worker, frame, |naive, conn, chosen| naive.leave(worker, conn, chosen))
            }
        }
    }

    // --- callers ----------------------------------------------------------------------------------

    fn newest(&self, nth: usize) -> Option<u64> {
        self.tasks.checked_sub(nth as u64).filter(|id| *id > 0)
    }

    fn submit(&mut self, spec: Spec, call: bool) -> Legal {
        self.tasks += 1;
        let id = self.tasks;
        let task = new_task(id, spec, self.now);
        let command = |waiter| match call {
            true => Command::Call { task, waiter },
            false => Command::Submit { tasks: vec![task], waiter },
        };
        self.ask(command, |naive, tag, chosen| naive.submit(id, spec, tag, call, chosen))
    }

    fn abandon(&mut self, nth: usize, withdraws: bool) -> Legal {
        let Some(id) = self.newest(nth) else { return Ok(()) };
        let waits = self.naive.tasks.iter().find(|task| task.id == id);
        let Some(tag) = waits.and_then(|task| task.waiters.first().copied()) else { return Ok(()) };
        let waiter = Waiter { conn: 0, tag };
        let command = Command::Abandon { id: t(id), waiter, cancel: withdraws };
        self.command(command, |naive, chosen| naive.abandon(id, tag, withdraws, chosen))
    }

    // --- workers ----------------------------------------------------------------------------------

    fn lease(&self, worker: usize, nth: usize) -> Option<u64> {
        self.naive.held_by(worker).get(nth).map(|(lease, _)| *lease)
    }

    fn join(&mut self, worker: usize, comes: Comes) -> Legal {
        let mut named: Vec<u64> = self
            .naive
            .tasks
            .iter()
            .filter_map(|task| match task.state {
                State::Held(holder, lease, _) | State::Lost(holder, lease, _) if holder == worker => {
                    Some(lease)
                }
                _ => None,
            })
            .collect();
        named.sort_unstable();
        match comes {
            // One that it only believes to hold.
            Comes::Back => named.push(1 << 40),
            Comes::WithoutOldest => drop(named.splice(..named.len().min(1), [])),
            Comes::Anew => {
                named.clear();
                let boot = self.crew[worker].boot + 1;
                self.crew[worker] = Process { boot, ..Process::default() };
            }
        }
        self.tags += 1;
        let conn = 100 + self.tags as ConnId;
        self.conns.insert(conn, worker);
        let process = &mut self.crew[worker];
        process.credit = 0;
        process.session = None;
        let boot = process.boot;
        let command = Command::Join {
            hello: Box::new(hello(worker, boot, process.token, named.clone())),
            conn,
            token: u128::from(conn),
            waiter: Waiter { conn, tag: 0 },
        };
        self.command(command, |naive, chosen| naive.join(worker, conn, boot, &named, chosen))
    }

    /// Over the stream that the worker believes to have.
    fn frame(
        &mut self,
        worker: usize,
        frame: Frame,
        rule: impl FnOnce(&mut Naive, ConnId, &mut Chosen) -> Legal,
    ) -> Legal {
        let Some((session, conn)) = self.crew[worker].session else { return Ok(()) };
        let command = Command::Frame { session, conn, frame: Box::new(frame) };
        self.command(
            command,
            |naive, chosen| {
                if naive.hears(worker, conn) { rule(naive, conn, chosen) } else { Ok(()) }
            },
        )
    }

    fn result(&mut self, worker: usize, lease: u64, end: End) -> Legal {
        let (end, fails) = match end {
            End::Succeeded => (AttemptEnd::Succeeded(Payload::json(lease.to_string())), None),
            End::Failed { retryable, after } => {
                let error = TaskError::new("", "no luck");
                (AttemptEnd::Failed { error, retryable, retry_after_ms: after }, Some((retryable, after)))
            }
        };
        let frame = Frame { results: vec![AttemptResult { lease, seq: 0, end }], ..Frame::default() };
        self.frame(worker, frame, |naive, conn, chosen| match fails {
            None => naive.succeed(worker, conn, lease, chosen),
            Some(fails) => naive.failed(worker, conn, lease, fails, chosen),
        })
    }

    // --- both -------------------------------------------------------------------------------------

    fn ask(
        &mut self,
        command: impl FnOnce(Waiter) -> Command,
        rule: impl FnOnce(&mut Naive, u64, &mut Chosen) -> Legal,
    ) -> Legal {
        self.tags += 1;
        let tag = self.tags;
        self.command(command(Waiter { conn: 0, tag }), |naive, chosen| rule(naive, tag, chosen))
    }

    fn command(&mut self, command: Command, rule: impl FnOnce(&mut Naive, &mut Chosen) -> Legal) -> Legal {
        let mut out = Output::default();
        self.real.handle(Timestamp(self.now), command, &mut out);
        self.naive.now = self.now;
        self.follow(out, rule)
    }

    /// Time passes as it does in the engine: the scheduler is woken exactly when it wants to be.
    fn advance(&mut self, to: u64) -> Legal {
        loop {
            let wants = self.real.due().map_or(NEVER, |due| due.0);
            let due = self.naive.due();
            if due < wants {
                return Err(format!("something is due at {due}, the scheduler wants to sleep until {wants}"));
            }
            if wants > to {
                break;
            }
            self.now = self.now.max(wants);
            let mut out = Output::default();
            self.real.tick(Timestamp(self.now), &mut out);
            self.naive.now = self.now;
            self.follow(out, Naive::tick)?;
        }
        self.now = to;
        Ok(())
    }

    fn follow(&mut self, mut out: Output, rule: impl FnOnce(&mut Naive, &mut Chosen) -> Legal) -> Legal {
        self.store(&mut out);
        let mut chosen = Chosen::default();
        let mut said = Vec::new();
        for effect in out.effects {
            self.heard(effect.kind, &mut chosen, &mut said);
        }
        for task in self.real.tasks() {
            if let RealState::Delayed { until } = task.state {
                chosen.delayed.push((number(task.id), until.0));
            }
        }
        rule(&mut self.naive, &mut chosen)?;
        if let Some(choice) = chosen.assigned.front() {
            return Err(format!("{choice:?}: nothing was to be given out"));
        }
        let mut expected = std::mem::take(&mut self.naive.said);
        said.sort_unstable();
        expected.sort_unstable();
        if said != expected {
            return Err(format!("said {said:?}, should be {expected:?}"));
        }
        Ok(())
    }

    fn store(&mut self, out: &mut Output) {
        let count = out.rows.len() as u64;
        for row in out.rows.drain(..) {
            match row {
                RowChange::Put(key, data) => self.rows.insert(key, data),
                RowChange::Delete(key) => self.rows.remove(&key),
            };
        }
        self.real.stored(count);
    }

    fn crash(&mut self) {
        self.runs += 1;
        let rows = self.rows.iter().map(|(key, data)| Row::decode(*key, data.clone()).unwrap());
        self.real = Scheduler::restore(Limits::default(), self.runs, Timestamp(self.now), rows);
        self.begin();
        self.naive.now = self.now;
        self.naive.crash();
        for process in &mut self.crew {
            process.session = None;
        }
    }

    fn heard(&mut self, kind: EffectKind, chosen: &mut Chosen, said: &mut Vec<String>) {
        match kind {
            EffectKind::ReplyStored(..) => said.push("nobody asks for payloads".to_owned()),
            EffectKind::Assign(conn, assign) | EffectKind::AssignStored { conn, assign, .. } => {
                chosen.assigned.push_back(Assigned {
                    task: number(assign.id),
                    worker: self.conns[&conn],
                    conn,
                    lease: assign.lease,
                    attempt: assign.attempt,
                    version: assign.version.split('.').next().unwrap().parse().unwrap(),
                })
            }
            EffectKind::Reply(Waiter { conn: 0, tag }, reply) => {
                said.push(format!("{tag}: {}", replied(&reply)))
            }
            EffectKind::Reply(Waiter { conn, .. }, Reply::Joined(welcome)) => {
                let process = &mut self.crew[self.conns[&conn]];
                process.token = Some(welcome.token);
                process.session = Some((welcome.session, conn));
                said.push(format!("{conn} joined keep {:?} drop {:?}", welcome.keep, welcome.drop));
            }
            EffectKind::Reply(Waiter { conn, .. }, reply) => said.push(format!("{conn} {}", replied(&reply))),
            EffectKind::Tell(conn, Tell::Cancel(lease, _)) => said.push(format!("{conn} stop {lease}")),
            EffectKind::Tell(conn, Tell::Refused(lease, error)) => {
                said.push(format!("{conn} refused {lease} {}", error.reason.as_str()));
            }
            // Advice, which a worker may leave unheard.
            EffectKind::Tell(..) => {}
            EffectKind::Event(..) => said.push("somebody watches".to_owned()),
            EffectKind::Close(conn, None) => said.push(format!("{conn} closed")),
            EffectKind::Close(conn, Some(error)) => {
                said.push(format!("{conn} closed {}", error.reason.as_str()))
            }
        }
    }

    /// Whether both know the same tasks, each as far as the other.
    pub(crate) fn compare(&self) -> Legal {
        self.real.audit()?;
        let mut real: Vec<String> = self.real.tasks().map(real_task).collect();
        real.extend(self.real.answered().map(|task| real_task(&task)));
        let mut naive: Vec<String> = self.naive.tasks.iter().map(naive_task).collect();
        real.sort_unstable();
        naive.sort_unstable();
        match real == naive {
            true => Ok(()),
            false => Err(format!("tasks are\n{real:#?}, should be\n{naive:#?}")),
        }
    }
}

fn real_task(task: &RealTask) -> String {
    let state = match &task.state {
        RealState::Delayed { until } => format!("delayed until {}", until.0),
        RealState::Ready => "ready".to_owned(),
        RealState::Leased { lease, worker_id } => format!("held by {worker_id} under {lease}"),
        RealState::Ended(outcome) => outcome_of(outcome),
    };
    let failures: Vec<&str> = task.attempts.iter().map(|attempt| attempt.error.code.as_str()).collect();
    let kept = if task.forget_at == Timestamp::NEVER { NEVER } else { task.forget_at.0 };
    format!("{} {state}, attempt {}, failures {failures:?}, until {kept}", number(task.id), task.attempt)
}

fn naive_task(task: &super::naive::Task) -> String {
    let state = match &task.state {
        State::Delayed(until) => format!("delayed until {until}"),
        State::Ready => "ready".to_owned(),
        State::Held(worker, lease, _) | State::Lost(worker, lease, _) => {
            format!("held by {} under {lease}", CREW[*worker].name)
        }
        State::Ended(outcome) => outcome.clone(),
    };
    let (id, attempt, failures) = (task.id, task.attempt, &task.failures);
    format!("{id} {state}, attempt {attempt}, failures {failures:?}, until {}", task.forget)
}

fn replied(reply: &Reply) -> String {
    match reply {
        Reply::Refused(error) => format!("refused {}", error.reason.as_str()),
        Reply::Ended(id, outcome) => format!("{} {}", number(*id), outcome_of(outcome)),
        Reply::Submitted(results) => match &results[..] {
            [Ok(accepted)] if accepted.attached => format!("submitted attached {}", number(accepted.id)),
            [Ok(accepted)] => format!("submitted accepted {}", number(accepted.id)),
            [Err(error)] => format!("submitted refused {}", error.reason.as_str()),
            other => format!("submitted {other:?}"),
        },
        Reply::Task(view) => format!("task {}", number(view.id)),
        Reply::Draining => "draining".to_owned(),
        Reply::Paused(paused) => format!("paused {}", paused.was_paused),
        Reply::Resumed { was_paused } => format!("resumed {was_paused}"),
        Reply::DeadChanged(changed) => format!("changed {}", changed.changed()),
        other => format!("{other:?}"),
    }
}

fn outcome_of(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Succeeded(payload) => format!("succeeded {}", String::from_utf8_lossy(&payload.data)),
        Outcome::Failed(error) => format!("failed {}", error.code),
        Outcome::Cancelled(reason) => format!("cancelled {reason}"),
        Outcome::Expired(reason) => format!("expired {reason:?}"),
    }
}

fn t(number: u64) -> TaskId {
    TaskId(Uuid::from_u128(u128::from(number)))
}

fn number(id: TaskId) -> u64 {
    id.0.as_u128() as u64
}

fn new_task(id: u64, spec: Spec, now: u64) -> NewTask {
    let target = match spec.aim {
        Aim::Any => Target::default(),
        Aim::First => Target { version: "^1".into(), ..Target::default() },
        Aim::Group => Target { group: "g".into(), ..Target::default() },
    };
    let options = TaskOptions {
        target,
        priority: spec.priority,
        run_at: (spec.delay > 0).then(|| Timestamp(now + spec.delay)),
        queue_timeout_ms: spec.queue_timeout,
        run_timeout_ms: spec.run_timeout,
        deadline_ms: spec.deadline,
        retry: RetryPolicy {
            max_attempts: spec.max_attempts,
            initial_backoff_ms: spec.backoff,
            max_backoff_ms: RetryPolicy::NONE.max_backoff_ms,
        },
        durability: if spec.durable { Durability::Durable } else { Durability::Ephemeral },
        retention_ms: spec.retention,
        ..TaskOptions::call()
    };
    let data = spec.key.map_or(String::new(), |(_, payload)| payload.to_string());
    NewTask {
        id: t(id),
        method: METHODS[spec.method].to_owned(),
        payload: Payload::json(data),
        options: Arc::new(options),
        idempotency_key: spec.key.map_or(String::new(), |(key, _)| format!("key{key}")),
        only_if_served: false,
    }
}

fn hello(worker: usize, boot: u32, token: Option<u128>, in_flight: Vec<u64>) -> Hello {
    let kind = &CREW[worker];
    let methods = METHODS.iter().zip(kind.serves).filter_map(|(name, version)| {
        let version_text = format!("{}.0.0", version?);
        Some(Method {
            name: Arc::from(*name),
            version: Method::parse_version(name, &version_text).unwrap(),
            version_text,
            summary: String::new(),
            docs: String::new(),
            input_schema: String::new(),
            output_schema: String::new(),
            examples: Vec::new(),
            pool: String::new(),
        })
    });
    Hello {
        worker_id: kind.name.to_owned(),
        boot_id: format!("boot{boot}"),
        resume_token: token,
        group: kind.group.to_owned(),
        pools: vec![PoolSpec { name: String::new(), concurrency: kind.concurrency as u32 }],
        methods: methods.collect(),
        in_flight,
        starts_on_receipt: kind.starts_on_receipt,
        ..Hello::default()
    }
}

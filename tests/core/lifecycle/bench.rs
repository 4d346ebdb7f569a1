//! A scheduler on a bench: short verbs in, one readable line of effects out. Every verb audits.

use std::collections::BTreeMap;
use std::sync::Arc;

use crewcall::clock::Timestamp;
use crewcall::row::{Row, RowChange, RowKey};
use crewcall::scheduler::{
    AttemptEnd, AttemptResult, Command, ConnId, Cursor, DeadPlace, EffectKind, EventKind, Filter, Frame,
    Hello, Limits, Output, PoolSpec, Reply, Scheduler, SessionId, TaskView, Tell, Update, Waiter,
};
use crewcall::task::{Method, NewTask, Outcome, Payload, Progress, State, TaskError, TaskId, TaskOptions};
use uuid::Uuid;

pub(super) const START: u64 = 1_000_000;

pub(super) struct Bench {
    pub(super) scheduler: Scheduler,
    pub(super) now: u64,
    pub(super) limits: Limits,
    /// The idempotency key of new tasks.
    pub(super) key: String,
    unstored: u64,
    tasks: u64,
    asked: u64,
    conns: BTreeMap<ConnId, String>,
    sessions: BTreeMap<String, (SessionId, ConnId, u128)>,
    pub(super) rows: BTreeMap<crewcall::row::RowKey, bytes::Bytes>,
    /// The cursor of the last event.
    pub(super) cursor: Option<Cursor>,
    /// Where the last request about dead letters stopped.
    pub(super) place: Option<DeadPlace>,
}

/// What a verb brought about.
#[must_use = "say what it gives"]
pub(super) struct Seen(pub(super) String);

impl Seen {
    #[track_caller]
    pub(super) fn gives(self, expected: &str) {
        assert_eq!(self.0, expected);
    }

    #[track_caller]
    pub(super) fn has(self, part: &str) {
        assert!(self.0.contains(part), "{:?} has no {part:?}", self.0);
    }

    /// Set-up: another test looks at it.
    pub(super) fn whatever(self) {}
}

/// A worker to be.
#[derive(Clone, Default)]
pub(super) struct Worker(pub(super) Hello);

/// `"w1 add mul@1.2.0"`: a name and what it serves, in one pool "" that runs one task at once.
pub(super) fn worker(text: &str) -> Worker {
    let mut words = text.split(' ');
    let name = words.next().unwrap().to_owned();
    let methods = words.map(|word| method(word, "")).collect();
    let pools = vec![PoolSpec { name: String::new(), concurrency: 1 }];
    Worker(Hello { worker_id: name, boot_id: "b1".into(), pools, methods, ..Hello::default() })
}

pub(super) fn method(text: &str, pool: &str) -> Method {
    let (name, version) = text.split_once('@').unwrap_or((text, ""));
    Method {
        name: Arc::from(name),
        version: Method::parse_version(name, version).unwrap(),
        version_text: version.into(),
        summary: String::new(),
        docs: String::new(),
        input_schema: String::new(),
        output_schema: String::new(),
        examples: Vec::new(),
        pool: pool.into(),
    }
}

impl Worker {
    pub(super) fn runs(mut self, concurrency: u32) -> Self {
        self.0.pools[0].concurrency = concurrency;
        self
    }

    pub(super) fn group(mut self, group: &str) -> Self {
        self.0.group = group.into();
        self
    }

    pub(super) fn label(mut self, key: &str, value: &str) -> Self {
        self.0.labels.insert(key.into(), value.into());
        self
    }

    pub(super) fn boot(mut self, boot: &str) -> Self {
        self.0.boot_id = boot.into();
        self
    }

    pub(super) fn holds(mut self, leases: &[u64]) -> Self {
        self.0.in_flight = leases.to_vec();
        self
    }

    pub(super) fn starts_on_receipt(mut self) -> Self {
        self.0.starts_on_receipt = true;
        self
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Hello)) -> Self {
        change(&mut self.0);
        self
    }
}

pub(super) fn t(number: u64) -> TaskId {
    TaskId(Uuid::from_u128(u128::from(number)))
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(super) fn with(limits: Limits) -> Self {
        let mut bench = Self {
            scheduler: Scheduler::new(limits.clone(), 7),
            now: START,
            limits,
            key: String::new(),
            unstored: 0,
            tasks: 0,
            asked: 0,
            conns: BTreeMap::new(),
            sessions: BTreeMap::new(),
            rows: BTreeMap::new(),
            cursor: None,
            place: None,
        };
        bench.start();
        bench
    }

    fn start(&mut self) {
        let mut out = Output::default();
        self.scheduler.start(&mut out);
        self.take(&mut out).gives("");
        self.stored();
    }

    /// The server crashes and comes back, everything stored.
    pub(super) fn restart(&mut self) {
        let rows: Vec<Row> =
            self.rows.iter().map(|(key, data)| Row::decode(*key, data.clone()).unwrap()).collect();
        let live = self.scheduler.rows();
        self.scheduler = Scheduler::restore(self.limits.clone(), 8, Timestamp(self.now), rows);
        assert_eq!(self.scheduler.rows(), live, "restored and live");
        self.scheduler.audit().unwrap();
        self.unstored = 0;
        self.start();
    }

    // --- callers ----------------------------------------------------------------------------------

    pub(super) fn ask(&mut self, command: impl FnOnce(Waiter) -> Command) -> Seen {
        self.asked += 1;
        let waiter = Waiter { conn: 0, tag: self.asked };
        self.command(command(waiter))
    }

    pub(super) fn new_task(&mut self, method: &str, options: TaskOptions) -> NewTask {
        self.tasks += 1;
        let payload = Payload::json("1");
        let options = Arc::new(options);
        NewTask {
            id: t(self.tasks),
            method: method.into(),
            payload,
            options,
            idempotency_key: self.key.clone(),
            only_if_served: false,
        }
    }

    pub(super) fn call(&mut self, method: &str) -> Seen {
        self.call_with(method, |_| {})
    }

    pub(super) fn call_with(&mut self, method: &str, change: impl FnOnce(&mut TaskOptions)) -> Seen {
        let mut options = TaskOptions::call();
        change(&mut options);
        let task = self.new_task(method, options);
        self.ask(|waiter| Command::Call { task, waiter })
    }

    pub(super) fn submit(&mut self, method: &str) -> Seen {
        self.submit_with(method, |_| {})
    }

    pub(super) fn submit_with(&mut self, method: &str, change: impl FnOnce(&mut TaskOptions)) -> Seen {
        let mut options = TaskOptions::submit();
        change(&mut options);
        let task = self.new_task(method, options);
        self.ask(|waiter| Command::Submit { tasks: vec![task], waiter })
    }

    pub(super) fn await_end(&mut self, task: u64) -> Seen {
        self.ask(|waiter| Command::Await { id: t(task), waiter })
    }

    /// The one who asked as number `asked` has gone.
    pub(super) fn abandon(&mut self, task: u64, asked: u64) -> Seen {
        let waiter = Waiter { conn: 0, tag: asked };
        self.command(Command::Abandon { id: t(task), waiter, cancel: false })
    }

    pub(super) fn cancel(&mut self, task: u64) -> Seen {
        self.ask(|waiter| Command::Cancel { id: t(task), reason: "enough".into(), waiter })
    }

    pub(super) fn retry(&mut self, task: u64) -> Seen {
        self.ask(|waiter| Command::Retry { id: t(task), waiter })
    }

    pub(super) fn get(&mut self, task: u64) -> Seen {
        self.ask(|waiter| Command::Get { id: t(task), take: false, with_payload: false, waiter })
    }

    pub(super) fn get_with_payload(&mut self, task: u64) -> Seen {
        self.ask(|waiter| Command::Get { id: t(task), take: false, with_payload: true, waiter })
    }

    /// All rows handed out so far are stored.
    pub(super) fn stored(&mut self) {
        self.scheduler.stored(std::mem::take(&mut self.unstored));
        self.scheduler.audit().unwrap();
    }

    pub(super) fn explain(&mut self, task: u64) -> Seen {
        self.ask(|waiter| Command::Explain { id: t(task), waiter })
    }

    pub(super) fn watch(&mut self, conn: ConnId, tasks: &[u64], cursor: Option<Cursor>) -> Seen {
        self.conns.insert(conn, format!("watch{conn}"));
        let ids = tasks.iter().map(|task| t(*task)).collect();
        self.ask(|waiter| Command::Watch { ids, filter: Filter::default(), cursor, conn, waiter })
    }

    // --- workers ----------------------------------------------------------------------------------

    pub(super) fn join(&mut self, worker: Worker) -> Seen {
        let conn = 100 + self.asked as ConnId;
        let name = worker.0.worker_id.clone();
        self.conns.insert(conn, name);
        self.asked += 1;
        let waiter = Waiter { conn, tag: self.asked };
        let token = u128::from(conn);
        self.command(Command::Join { hello: Box::new(worker.0), conn, token, waiter })
    }

    /// Joins with the token of its last welcome.
    pub(super) fn resume(&mut self, mut worker: Worker) -> Seen {
        worker.0.resume_token = self.sessions.get(&worker.0.worker_id).map(|(_, _, token)| *token);
        self.join(worker)
    }

    /// Joins, and can take so many.
    pub(super) fn crew(&mut self, worker: Worker, credit: u64) {
        let name = worker.0.worker_id.clone();
        self.join(worker).whatever();
        self.credit(&name, credit).whatever();
    }

    pub(super) fn frame(&mut self, name: &str, frame: Frame) -> Seen {
        let (session, conn, _) = self.sessions[name];
        self.command(Command::Frame { session, conn, frame: Box::new(frame) })
    }

    pub(super) fn credit(&mut self, name: &str, total: u64) -> Seen {
        self.frame(name, Frame { credits: vec![(String::new(), total)], ..Frame::default() })
    }

    pub(super) fn started(&mut self, name: &str, lease: u64) -> Seen {
        self.frame(name, Frame { started: vec![lease], ..Frame::default() })
    }

    pub(super) fn release(&mut self, name: &str, leases: &[u64]) -> Seen {
        self.frame(name, Frame { released: leases.to_vec(), ..Frame::default() })
    }

    pub(super) fn progress(&mut self, name: &str, lease: u64, current: u64) -> Seen {
        let progress = Progress { current, total: 10, message: String::new() };
        self.frame(name, Frame { progress: vec![(lease, progress)], ..Frame::default() })
    }

    pub(super) fn chunk(&mut self, name: &str, lease: u64, data: &'static str) -> Seen {
        self.frame(name, Frame { chunks: vec![(lease, Payload::json(data))], ..Frame::default() })
    }

    pub(super) fn succeed(&mut self, name: &str, lease: u64) -> Seen {
        self.succeed_as(name, lease, 0)
    }

    pub(super) fn succeed_with(&mut self, name: &str, lease: u64, result: &str) -> Seen {
        let end = AttemptEnd::Succeeded(Payload::json(result.to_owned()));
        self.frame(name, Frame { results: vec![AttemptResult { lease, seq: 0, end }], ..Frame::default() })
    }

    pub(super) fn succeed_as(&mut self, name: &str, lease: u64, seq: u64) -> Seen {
        let end = AttemptEnd::Succeeded(Payload::json("ok"));
        self.frame(name, Frame { results: vec![AttemptResult { lease, seq, end }], ..Frame::default() })
    }

    pub(super) fn fail(&mut self, name: &str, lease: u64) -> Seen {
        self.fail_with(name, lease, None, 0)
    }

    pub(super) fn fail_with(&mut self, name: &str, lease: u64, retryable: Option<bool>, after: u64) -> Seen {
        let error = TaskError::new("", "no luck");
        let end = AttemptEnd::Failed { error, retryable, retry_after_ms: after };
        self.frame(name, Frame { results: vec![AttemptResult { lease, seq: 0, end }], ..Frame::default() })
    }

    pub(super) fn beat(&mut self, name: &str, leases: &[u64]) -> Seen {
        let digest = leases.iter().fold(0, |digest, lease| digest ^ lease);
        self.frame(name, Frame { beat: Some((leases.len() as u32, digest)), ..Frame::default() })
    }

    pub(super) fn update(&mut self, name: &str, update: Update) -> Seen {
        self.frame(name, Frame { update: Some(update), ..Frame::default() })
    }

    pub(super) fn bye(&mut self, name: &str) -> Seen {
        self.frame(name, Frame { bye: Some(String::new()), ..Frame::default() })
    }

    /// The stream of a worker, to speak over it once it was replaced.
    pub(super) fn session(&self, name: &str) -> (SessionId, ConnId) {
        let (session, conn, _) = self.sessions[name];
        (session, conn)
    }

    pub(super) fn token(&self, name: &str) -> u128 {
        self.sessions[name].2
    }

    pub(super) fn succeed_over(&mut self, (session, conn): (SessionId, ConnId), lease: u64) -> Seen {
        let end = AttemptEnd::Succeeded(Payload::json("late"));
        let frame = Frame { results: vec![AttemptResult { lease, seq: 0, end }], ..Frame::default() };
        self.command(Command::Frame { session, conn, frame: Box::new(frame) })
    }

    pub(super) fn broken(&mut self, name: &str) -> Seen {
        let (session, conn, _) = self.sessions[name];
        self.command(Command::Broken { session, conn })
    }

    pub(super) fn drain(&mut self, name: &str) -> Seen {
        let worker_id = name.to_owned();
        self.ask(|waiter| Command::Drain { worker_id, reason: "please".into(), waiter })
    }

    // --- time -------------------------------------------------------------------------------------

    /// So many milliseconds later.
    pub(super) fn after(&mut self, ms: u64) -> Seen {
        self.now += ms;
        let mut out = Output::default();
        self.scheduler.tick(Timestamp(self.now), &mut out);
        self.take(&mut out)
    }

    pub(super) fn command(&mut self, command: Command) -> Seen {
        let mut out = Output::default();
        self.scheduler.handle(Timestamp(self.now), command, &mut out);
        self.take(&mut out)
    }

    #[track_caller]
    fn take(&mut self, out: &mut Output) -> Seen {
        self.scheduler.audit().unwrap();
        self.unstored += out.rows.len() as u64;
        for row in out.rows.drain(..) {
            match row {
                RowChange::Put(key, data) => self.rows.insert(key, data),
                RowChange::Delete(key) => self.rows.remove(&key),
            };
        }
        let effects = std::mem::take(&mut out.effects);
        let lines: Vec<String> = effects
            .iter()
            .map(|effect| format!("{}{}", if effect.gated { "~" } else { "" }, self.effect(&effect.kind)))
            .collect();
        Seen(lines.join("; "))
    }

    // --- effects as text --------------------------------------------------------------------------

    fn effect(&mut self, kind: &EffectKind) -> String {
        match kind {
            EffectKind::Reply(waiter, reply) => self.reply(waiter.conn, reply),
            EffectKind::Assign(conn, a) => {
                let version = if a.version.is_empty() { String::new() } else { format!("@{}", &*a.version) };
                format!(
                    "{} runs {}{version} attempt {} lease {}",
                    self.conns[conn],
                    name(a.id),
                    a.attempt,
                    a.lease
                )
            }
            EffectKind::AssignStored { conn, assign, bytes } => {
                let row = &self.rows[&RowKey::Payload(assign.id)];
                let Row::Payload(_, payload) = Row::decode(RowKey::Payload(assign.id), row.clone()).unwrap()
                else {
                    panic!("{row:?} is no payload");
                };
                assert_eq!(payload.size() as u64, *bytes);
                let (task, lease) = (name(assign.id), assign.lease);
                format!("{} runs {task} attempt {} lease {lease} (read)", self.conns[conn], assign.attempt)
            }
            EffectKind::ReplyStored(_, view) => {
                format!("[{} {}] (read)", name(view.id), state(view))
            }
            EffectKind::Tell(conn, tell) => format!("{} {}", self.conns[conn], told(tell)),
            EffectKind::Event(conn, event) => {
                self.cursor = Some(event.cursor);
                let what = match &event.kind {
                    EventKind::Task(view) => format!("{} {}", name(view.id), state(view)),
                    EventKind::Progress(id, progress) => format!("{} at {}", name(*id), progress.current),
                    EventKind::Chunk(id, c) => format!("{} chunk {}.{}", name(*id), c.attempt, c.index),
                };
                format!("{}: {what}", self.conns[conn])
            }
            EffectKind::Close(conn, None) => format!("{} closed", self.conns[conn]),
            EffectKind::Close(conn, Some(error)) => {
                format!("{} closed: {}", self.conns[conn], error.reason.as_str())
            }
        }
    }

    fn reply(&mut self, conn: ConnId, reply: &Reply) -> String {
        match reply {
            Reply::Refused(error) => format!("refused: {}", error.reason.as_str()),
            Reply::Ended(id, end) => format!("{} {}", name(*id), outcome(end)),
            Reply::Submitted(results) => {
                let each = results.iter().map(|result| match result {
                    Ok(accepted) if accepted.attached => format!("attached to {}", name(accepted.id)),
                    Ok(accepted) => format!("accepted {}", name(accepted.id)),
                    Err(error) => format!("refused: {}", error.reason.as_str()),
                });
                each.collect::<Vec<_>>().join(", ")
            }
            Reply::Task(view) => format!("[{} {}]", name(view.id), state(view)),
            Reply::Tasks(views, next) => {
                let ids: Vec<String> = views.iter().map(|view| name(view.id)).collect();
                let next = next.map_or(String::new(), |id| format!(" next {}", name(id)));
                format!("[{}]{next}", ids.join(" "))
            }
            Reply::Explained(explanation) => {
                format!("{} ({})", explanation.summary, explanation.details.join("; "))
            }
            Reply::Watching => "watching".into(),
            Reply::Joined(welcome) => {
                let (id, token) = (welcome.session, welcome.token);
                self.sessions.insert(welcome.worker_id.to_string(), (id, conn, token));
                format!(
                    "{} joined {} keep {:?} drop {:?}",
                    welcome.worker_id, id.0, welcome.keep, welcome.drop
                )
            }
            Reply::Workers(workers) => {
                let each = workers.iter().map(|w| format!("{} {:?}", w.id, w.state));
                each.collect::<Vec<_>>().join(", ")
            }
            Reply::Methods(methods) => {
                let each = methods.iter().map(|m| {
                    let version = m.method.as_ref().map_or("?", |method| method.version_text.as_str());
                    let paused = if m.paused.is_some() { " paused" } else { "" };
                    format!("{}@{version} workers {} ready {}{paused}", m.name, m.workers, m.ready)
                });
                each.collect::<Vec<_>>().join(", ")
            }
            Reply::Stats(stats) => format!("{:?} {:?}", stats.tasks, stats.totals),
            Reply::Draining => "draining".into(),
            Reply::Paused(paused) => {
                let again = if paused.was_paused { " again" } else { "" };
                let unknown = if paused.known { "" } else { ", unknown" };
                format!("paused {}{again}{unknown}", paused.pause.method)
            }
            Reply::Resumed { was_paused } => format!("resumed {was_paused}"),
            Reply::DeadLetters(views, next) => {
                self.place = *next;
                let ids: Vec<String> = views.iter().map(|view| name(view.id)).collect();
                format!("[{}]{}", ids.join(" "), if next.is_some() { " and more" } else { "" })
            }
            Reply::DeadChanged(changed) => {
                self.place = changed.next;
                let each = changed.results.iter().map(|(id, result)| match result {
                    Ok(()) => name(*id),
                    Err(error) => format!("{} {}", name(*id), error.reason.as_str()),
                });
                let more = if changed.next.is_some() { " and more" } else { "" };
                format!("changed [{}]{more}", each.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

fn name(id: TaskId) -> String {
    format!("t{}", id.0.as_u128())
}

fn state(view: &TaskView) -> String {
    match &view.state {
        State::Ended(end) => outcome(end),
        other => other.name().as_str().to_owned(),
    }
}

fn outcome(end: &Outcome) -> String {
    match end {
        Outcome::Succeeded(payload) => format!("= {}", String::from_utf8_lossy(&payload.data)),
        Outcome::Failed(error) => format!("failed {}", error.code),
        Outcome::Cancelled(reason) => format!("cancelled ({reason})"),
        Outcome::Expired(reason) => format!("expired {reason:?}"),
    }
}

fn told(tell: &Tell) -> String {
    match tell {
        Tell::Cancel(lease, reason) => format!("cancel {lease} ({reason})"),
        Tell::Recall(lease) => format!("recall {lease}"),
        Tell::DurableSeq(seq) => format!("durable {seq}"),
        Tell::Beat(count, digest) => format!("beat {count} {digest}"),
        Tell::Drain(reason) => format!("drain ({reason})"),
        Tell::Move(reason) => format!("move ({reason})"),
        Tell::Refused(lease, error) => format!("refused {lease}: {}", error.reason.as_str()),
    }
}

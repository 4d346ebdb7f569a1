//! A scheduler with workers, played in rounds: tasks in, assignments out, results in, outcomes out. Names and
//! time come from counters, so every run is the same.

use std::sync::Arc;

use crewcall::clock::Timestamp;
use crewcall::row::RowChange;
use crewcall::scheduler::{
    AttemptEnd, AttemptResult, Command, EffectKind, Frame, Hello, Limits, Output, PoolSpec, Reply, Scheduler,
    SessionId, Waiter,
};
use crewcall::task::{Method, NewTask, Outcome, Payload, TaskId, TaskOptions};
use uuid::Uuid;

use crate::measured;

/// The scheduler's time at the start, in milliseconds.
const START: u64 = 1_000_000;
/// The stream of worker `n` is `n + FIRST_CONN`; 0 are those who ask.
const FIRST_CONN: u32 = 1;

pub(crate) struct Bench {
    scheduler: Scheduler,
    out: Output,
    now: Timestamp,
    workers: Vec<Worker>,
    methods: Vec<String>,
    payload: Payload,
    /// Tasks made so far; the last one's name.
    made: u64,
    /// What workers hold, by worker and lease.
    held: Vec<(usize, u64)>,
    accepted: u64,
    ended: u64,
    rows: u64,
    counting: bool,
}

struct Worker {
    session: SessionId,
    granted: u64,
    seq: u64,
}

impl Bench {
    /// So many workers that serve so many methods between them, each `concurrency` tasks at once. They have not
    /// said yet that they can take any.
    pub(crate) fn new(workers: usize, methods: usize, concurrency: u32) -> Result<Self, String> {
        let limits = Limits {
            // Small, so that a case forgets as many ended calls as it makes, as a server does that runs for long.
            answered_tasks: 256,
            ..Limits::default()
        };
        let mut bench = Self {
            scheduler: Scheduler::new(limits, 7),
            out: Output::default(),
            now: Timestamp(START),
            workers: Vec::new(),
            methods: (0..methods).map(|number| format!("method{number}")).collect(),
            payload: Payload::json(r#"{"a":12345,"b":67890,"note":"aaaaaaaaaaaaaaaaaaaa"}"#),
            made: 0,
            held: Vec::new(),
            accepted: 0,
            ended: 0,
            rows: 0,
            counting: false,
        };
        bench.scheduler.start(&mut bench.out);
        bench.take()?;
        for _ in 0..workers {
            bench.join(concurrency)?;
        }
        Ok(bench)
    }

    fn join(&mut self, concurrency: u32) -> Result<(), String> {
        let number = self.workers.len();
        let conn = FIRST_CONN + number as u32;
        let each = self.methods.len().min(self.scheduler.limits().methods_per_worker);
        let mine = self.methods.iter().cycle().skip(number * each % self.methods.len()).take(each);
        let methods = mine.map(|name| Method {
            name: Arc::from(name.as_str()),
            version: Method::parse_version(name, "").unwrap_or_else(|_| unreachable!("no version is one")),
            version_text: String::new(),
            summary: String::new(),
            docs: String::new(),
            input_schema: String::new(),
            output_schema: String::new(),
            examples: Vec::new(),
            pool: String::new(),
        });
        let hello = Box::new(Hello {
            protocol: (1, 1),
            worker_id: format!("worker{number}"),
            boot_id: "1".to_owned(),
            pools: vec![PoolSpec { name: String::new(), concurrency }],
            methods: methods.collect(),
            ..Hello::default()
        });
        let waiter = Waiter { conn: 0, tag: 0 };
        self.handle(Command::Join { hello, conn, token: u128::from(conn), waiter });
        self.take()?;
        if self.workers.len() == number {
            return Err(format!("worker {number} was not welcomed"));
        }
        Ok(())
    }

    /// Gives a worker room for so many more tasks.
    pub(crate) fn grant(&mut self, worker: usize, more: u64) -> Result<(), String> {
        let credits = self.credit(worker, more)?;
        self.say(worker, Frame { credits, ..Frame::default() })
    }

    fn credit(&mut self, worker: usize, more: u64) -> Result<Vec<(String, u64)>, String> {
        let worker = self.workers.get_mut(worker).ok_or("no such worker")?;
        worker.granted += more;
        Ok(vec![(String::new(), worker.granted)])
    }

    fn say(&mut self, worker: usize, frame: Frame) -> Result<(), String> {
        let session = self.workers.get(worker).ok_or("no such worker")?.session;
        let conn = FIRST_CONN + worker as u32;
        self.handle(Command::Frame { session, conn, frame: Box::new(frame) });
        self.take()
    }

    fn new_task(&mut self, options: Arc<TaskOptions>) -> Result<NewTask, String> {
        let method = (self.made % self.methods.len() as u64) as usize;
        self.made += 1;
        Ok(NewTask {
            id: TaskId(Uuid::from_u128(u128::from(self.made))),
            method: self.methods.get(method).ok_or("no methods")?.clone(),
            payload: self.payload.clone(),
            options,
            idempotency_key: String::new(),
            only_if_served: false,
        })
    }

    /// Calls, one by one.
    pub(crate) fn call(&mut self, count: usize) -> Result<(), String> {
        for _ in 0..count {
            let task = self.new_task(TaskOptions::shared_call())?;
            let waiter = Waiter { conn: 0, tag: self.made };
            self.handle(Command::Call { task, waiter });
            self.take()?;
        }
        Ok(())
    }

    /// Tasks handed in together.
    pub(crate) fn submit(&mut self, count: usize, options: &Arc<TaskOptions>) -> Result<(), String> {
        let tasks = (0..count).map(|_| self.new_task(Arc::clone(options))).collect::<Result<_, _>>()?;
        let waiter = Waiter { conn: 0, tag: self.made };
        self.handle(Command::Submit { tasks, waiter });
        self.take()
    }

    /// Every worker that holds something says that it has done all of it, in one frame; and, when it goes
    /// `on`, that it can take as much again.
    pub(crate) fn finish(&mut self, on: bool) -> Result<(), String> {
        let mut held = std::mem::take(&mut self.held);
        held.sort_unstable();
        for work in held.chunk_by(|one, other| one.0 == other.0) {
            let Some((number, _)) = work.first().copied() else { continue };
            let worker = self.workers.get_mut(number).ok_or("no such worker")?;
            let first = worker.seq + 1;
            worker.seq += work.len() as u64;
            let result = |(seq, (_, lease)): (u64, &(usize, u64))| AttemptResult {
                lease: *lease,
                seq,
                end: AttemptEnd::Succeeded(Payload::json("80235")),
            };
            let results = (first..).zip(work).map(result).collect();
            let credits = if on { self.credit(number, work.len() as u64)? } else { Vec::new() };
            self.say(number, Frame { results, credits, ..Frame::default() })?;
        }
        Ok(())
    }

    /// A millisecond passes.
    pub(crate) fn pass(&mut self) -> Result<(), String> {
        self.now = self.now + 1;
        match self.counting {
            true => measured::tick(&mut self.scheduler, self.now, &mut self.out),
            false => self.scheduler.tick(self.now, &mut self.out),
        }
        self.take()
    }

    fn handle(&mut self, command: Command) {
        match self.counting {
            true => measured::handle(&mut self.scheduler, self.now, command, &mut self.out),
            false => self.scheduler.handle(self.now, command, &mut self.out),
        }
    }

    /// Does what the engine does with effects; anything that should not happen ends the case.
    fn take(&mut self) -> Result<(), String> {
        self.rows += self.out.rows.iter().filter(|row| matches!(row, RowChange::Put(..))).count() as u64;
        self.out.rows.clear();
        for effect in self.out.effects.drain(..) {
            match effect.kind {
                EffectKind::Assign(conn, assign) => {
                    self.held.push(((conn - FIRST_CONN) as usize, assign.lease));
                }
                EffectKind::Reply(_, Reply::Ended(_, Outcome::Succeeded(payload)))
                    if *payload.data == *b"80235" =>
                {
                    self.ended += 1;
                }
                EffectKind::Reply(_, Reply::Submitted(results)) if results.iter().all(Result::is_ok) => {
                    self.accepted += results.len() as u64;
                }
                EffectKind::Reply(_, Reply::Joined(welcome)) => {
                    self.workers.push(Worker { session: welcome.session, granted: 0, seq: 0 });
                }
                EffectKind::Tell(..) => {}
                other => return Err(format!("unexpected: {other:?}")),
            }
        }
        Ok(())
    }

    /// Plays rounds: the first half unseen, until everything has grown to its size; the second is counted.
    pub(crate) fn play(
        &mut self,
        rounds: u32,
        mut round: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        for counting in [false, true] {
            self.counting = counting;
            for _ in 0..rounds {
                round(self)?;
            }
        }
        self.counting = false;
        self.scheduler.audit()
    }

    /// Whether so many tasks, no fewer, were called and answered; or handed in, done, and each row written.
    pub(crate) fn expect(&self, called: u64, submitted: u64) -> Result<(), String> {
        let idle = self.held.is_empty() && self.scheduler.leased() == 0;
        // Accepted, leased, ended.
        let stored = self.rows >= submitted * 3;
        if idle && self.ended == called && self.accepted == submitted && stored {
            return Ok(());
        }
        Err(format!(
            "{called} calls and {submitted} submitted were expected; {} ended, {} accepted, {} rows, {} held",
            self.ended,
            self.accepted,
            self.rows,
            self.held.len()
        ))
    }
}

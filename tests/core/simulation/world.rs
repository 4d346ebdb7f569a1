//! The main loop: scheduler, disk, network, workers, callers, and what befalls them.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use crewcall::clock::Timestamp;
use crewcall::row::{Row, RowChange, RowKey};
use crewcall::scheduler::{
    Command, ConnId, EffectKind, Filter, Frame, Limits, Output, Reply, Scheduler, Waiter,
};
use crewcall::task::StateName;

use super::calls::Calls;
use super::invariant::{Held, Invariant, Stored};
use super::network::{Down, Stream, Up};
use super::rng::Rng;
use super::worker::Worker;

const WORKERS: usize = 5;

pub(super) struct World {
    pub(super) rng: Rng,
    /// Commands and ticks of the scheduler so far.
    pub(super) steps: u64,
    pub(super) now: Timestamp,
    pub(super) scheduler: Scheduler,
    pub(super) workers: Vec<Worker>,
    pub(super) calls: Calls,
    /// A hash of everything that was put out, when asked for.
    pub(super) trace: Option<u64>,
    seed: u64,
    runs: u64,
    out: Output,
    stored: Stored,
    /// Batches handed to the disk, each with the effects that wait for it.
    unstored: VecDeque<(Vec<RowChange>, Vec<EffectKind>)>,
    streams: BTreeMap<ConnId, Stream>,
    next_conn: ConnId,
    invariants: Vec<Box<dyn Invariant>>,
}

impl World {
    pub(super) fn new(seed: u64, invariants: Vec<Box<dyn Invariant>>) -> Self {
        let mut world = Self {
            rng: Rng(seed),
            steps: 0,
            now: Timestamp(1_000_000),
            scheduler: Scheduler::new(limits(), seed),
            workers: (0..WORKERS).map(Worker::new).collect(),
            calls: Calls::default(),
            trace: None,
            seed,
            runs: 0,
            out: Output::default(),
            stored: Stored::default(),
            unstored: VecDeque::new(),
            streams: BTreeMap::new(),
            next_conn: 1,
            invariants,
        };
        world.start();
        world
    }

    pub(super) fn faults(&mut self, steps: u64) -> Held {
        while self.steps < steps {
            match self.rng.below(1_000) {
                0..250 => self.caller()?,
                250..450 => self.worker_acts()?,
                450..700 => self.deliver_up()?,
                700..850 => self.deliver_down()?,
                850..920 => self.tick()?,
                920..980 => self.store()?,
                980..993 => self.tear(),
                993..996 => self.worker_dies(),
                996 => self.clock_jumps(),
                997 => self.crash()?,
                _ => self.worker_leaves()?,
            }
        }
        Ok(())
    }

    // --- the scheduler and the disk ---------------------------------------------------------------

    pub(super) fn command(&mut self, command: Command) -> Held {
        for invariant in &mut self.invariants {
            invariant.asked(&command);
        }
        // A clock may stand still and, at times, say something older than before.
        let now = if self.rng.chance(2) { self.now - 5_000 } else { self.now };
        self.scheduler.handle(now, command, &mut self.out);
        self.carry_out(false)
    }

    pub(super) fn tick(&mut self) -> Held {
        self.now = self.now + self.rng.below(400) as u64;
        self.tick_now()
    }

    pub(super) fn tick_now(&mut self) -> Held {
        self.scheduler.tick(self.now, &mut self.out);
        self.carry_out(true)
    }

    /// Rows go to the disk; effects leave, or wait for it when they state a durable fact.
    fn carry_out(&mut self, ticked: bool) -> Held {
        self.steps += 1;
        if let Some(trace) = &mut self.trace {
            let mut hasher = DefaultHasher::new();
            format!("{trace} {:?} {:?}", self.out.rows, self.out.effects).hash(&mut hasher);
            *trace = hasher.finish();
        }
        if !self.out.rows.is_empty() {
            self.unstored.push_back((std::mem::take(&mut self.out.rows), Vec::new()));
        }
        let mut leaving = Vec::new();
        for effect in std::mem::take(&mut self.out.effects) {
            for invariant in &mut self.invariants {
                invariant.made(self.now, &effect)?;
            }
            match self.unstored.back_mut() {
                Some((_, waiting)) if effect.gated => waiting.push(effect.kind),
                // Overtakes what waits: the weakest order that an engine may keep.
                _ => leaving.push(effect.kind),
            }
        }
        for kind in leaving {
            self.tell(kind)?;
        }
        for invariant in &mut self.invariants {
            invariant.done(self.now, ticked, &self.scheduler)?;
        }
        Ok(())
    }

    /// The disk finishes some batches.
    fn store(&mut self) -> Held {
        for _ in 0..1 + self.rng.below(20) {
            self.store_one()?;
        }
        Ok(())
    }

    pub(super) fn store_all(&mut self) -> Held {
        while self.store_one()? {}
        Ok(())
    }

    fn store_one(&mut self) -> Result<bool, String> {
        let Some((rows, waiting)) = self.unstored.pop_front() else { return Ok(false) };
        for invariant in &mut self.invariants {
            invariant.storing(&self.stored, &rows)?;
        }
        self.apply(rows);
        for kind in waiting {
            self.tell(kind)?;
        }
        Ok(true)
    }

    fn apply(&mut self, rows: Vec<RowChange>) {
        for row in rows {
            match row {
                RowChange::Put(key, data) => self.stored.insert(key, data),
                RowChange::Delete(key) => self.stored.remove(&key),
            };
        }
    }

    fn start(&mut self) {
        self.scheduler.start(&mut self.out);
        let rows = std::mem::take(&mut self.out.rows);
        self.apply(rows);
    }

    /// The server is gone, with every batch that was not stored and every effect behind it.
    pub(super) fn crash(&mut self) -> Held {
        if self.rng.chance(50) {
            self.store_all()?;
            for invariant in &mut self.invariants {
                invariant.synced(&self.stored, &self.scheduler)?;
            }
        }
        self.unstored.clear();
        self.runs += 1;
        let epoch = self.seed.wrapping_add(self.runs << 32);
        let rows = self.stored.iter().map(|(key, data)| decode(*key, data));
        self.scheduler = Scheduler::restore(limits(), epoch, self.now, rows);
        for invariant in &mut self.invariants {
            invariant.restored(&self.stored, &self.scheduler)?;
        }
        self.start();
        self.streams.clear();
        self.workers.iter_mut().for_each(Worker::disconnected);
        self.calls.server_crashed();
        Ok(())
    }

    fn clock_jumps(&mut self) {
        self.now = if self.rng.chance(30) { self.now + 3_600_000 } else { self.now + 9_000 };
    }

    /// Why the oldest task that has not ended has not, in the scheduler's own words.
    pub(super) fn explain(&mut self) -> String {
        let waiter = self.calls.waiter();
        let states = vec![StateName::Delayed, StateName::Ready, StateName::Leased];
        let filter = Filter { states, ..Filter::default() };
        self.scheduler.handle(
            self.now,
            Command::List { filter, after: None, limit: 1_000, waiter },
            &mut self.out,
        );
        let listed = self.out.effects.drain(..).find_map(|effect| match effect.kind {
            EffectKind::Reply(_, Reply::Tasks(tasks, _)) => tasks.last().map(|task| task.id),
            _ => None,
        });
        let Some(id) = listed else { return String::new() };
        self.scheduler.handle(self.now, Command::Explain { id, waiter }, &mut self.out);
        format!("{:?}", self.out.effects)
    }

    // --- what is told -----------------------------------------------------------------------------

    fn tell(&mut self, kind: EffectKind) -> Held {
        for invariant in &mut self.invariants {
            invariant.told(&kind)?;
        }
        match kind {
            EffectKind::Reply(waiter, reply) => match (self.streams.get_mut(&waiter.conn), reply) {
                (Some(stream), Reply::Joined(welcome)) => {
                    stream.session = Some(welcome.session);
                    stream.down.push_back(Down::Welcome(welcome));
                }
                (Some(stream), Reply::Refused(_)) => stream.down.push_back(Down::Refused),
                (_, reply) => self.calls.answered(waiter, reply),
            },
            EffectKind::Assign(conn, assign) => self.send_down(conn, Down::Assign(assign)),
            EffectKind::Tell(conn, tell) => self.send_down(conn, Down::Tell(tell)),
            EffectKind::Event(..) => {}
            EffectKind::Close(conn, _) => {
                self.send_down(conn, Down::Close);
                self.calls.watch_ended(conn);
                if self.streams.get(&conn).is_some_and(|stream| !stream.read) {
                    self.streams.remove(&conn);
                }
            }
        }
        Ok(())
    }

    fn send_down(&mut self, conn: ConnId, down: Down) {
        if let Some(stream) = self.streams.get_mut(&conn).filter(|stream| stream.read) {
            stream.down.push_back(down);
        }
    }

    // --- callers ----------------------------------------------------------------------------------

    fn caller(&mut self) -> Held {
        let names: Vec<String> = self.workers.iter().map(|worker| worker.name.clone()).collect();
        let command = self.calls.ask(&mut self.rng, self.now, &names, &mut self.next_conn);
        self.command(command)
    }

    // --- workers and their streams ----------------------------------------------------------------

    pub(super) fn connect(&mut self, index: usize) {
        let conn = self.next_conn;
        self.next_conn += 1;
        let hello = self.workers[index].connect(conn);
        let stream = Stream { read: true, up: [hello].into(), ..Stream::default() };
        self.streams.insert(conn, stream);
    }

    /// Puts a frame on the worker's stream; it is lost when there is none.
    pub(super) fn send(&mut self, index: usize, frame: Frame) {
        let Some(conn) = self.workers[index].conn else { return };
        let Some(stream) = self.streams.get_mut(&conn) else { return };
        if self.workers[index].welcomed {
            stream.up.push_back(Up::Frame(Box::new(frame)));
        }
    }

    fn worker_acts(&mut self) -> Held {
        let index = self.rng.below(WORKERS);
        if self.workers[index].conn.is_none() {
            if self.rng.chance(30) {
                self.connect(index);
            }
            return Ok(());
        }
        if !self.workers[index].welcomed {
            return Ok(());
        }
        if let Some(frame) = self.workers[index].act(&mut self.rng) {
            if self.rng.chance(3) {
                self.send(index, frame.clone());
            }
            self.send(index, frame);
        }
        Ok(())
    }

    fn deliver_up(&mut self) -> Held {
        let busy: Vec<ConnId> =
            self.streams.iter().filter(|(_, stream)| !stream.up.is_empty()).map(|(conn, _)| *conn).collect();
        if busy.is_empty() {
            return Ok(());
        }
        let conn = self.rng.pick(&busy);
        self.deliver_one_up(conn)
    }

    fn deliver_one_up(&mut self, conn: ConnId) -> Held {
        let Some(stream) = self.streams.get_mut(&conn) else { return Ok(()) };
        let Some(up) = stream.up.pop_front() else { return Ok(()) };
        match (up, stream.session) {
            (Up::Hello(hello), _) => {
                let token = u128::from(self.rng.next()) << 64 | u128::from(self.rng.next());
                let waiter = Waiter { conn, tag: 0 };
                self.command(Command::Join { hello, conn, token, waiter })
            }
            (Up::Frame(frame), Some(session)) => self.command(Command::Frame { session, conn, frame }),
            (Up::Frame(_), None) => Ok(()),
            (Up::Broken, session) => {
                self.streams.remove(&conn);
                match session {
                    Some(session) => self.command(Command::Broken { session, conn }),
                    None => Ok(()),
                }
            }
        }
    }

    fn deliver_down(&mut self) -> Held {
        let index = self.rng.below(WORKERS);
        self.hear_one(index).map(|_| ())
    }

    /// The worker takes one message off its stream.
    fn hear_one(&mut self, index: usize) -> Result<bool, String> {
        let Some(conn) = self.workers[index].conn else { return Ok(false) };
        let Some(down) = self.streams.get_mut(&conn).and_then(|stream| stream.down.pop_front()) else {
            return Ok(false);
        };
        if let Some(frame) = self.workers[index].hear(down) {
            self.send(index, frame);
        }
        if self.workers[index].conn.is_none() {
            self.streams.remove(&conn);
        }
        Ok(true)
    }

    /// Everything on its way arrives.
    pub(super) fn settle(&mut self) -> Held {
        loop {
            let mut moved = false;
            for conn in self.streams.keys().copied().collect::<Vec<_>>() {
                while self.streams.get(&conn).is_some_and(|stream| !stream.up.is_empty()) {
                    self.deliver_one_up(conn)?;
                    moved = true;
                }
            }
            self.store_all()?;
            for index in 0..WORKERS {
                while self.hear_one(index)? {
                    moved = true;
                }
            }
            if !moved {
                return Ok(());
            }
        }
    }

    fn tear(&mut self) {
        let index = self.rng.below(WORKERS);
        self.tear_of(index);
    }

    /// A stream breaks, and loses the tail of what was on its way. The server may not notice.
    fn tear_of(&mut self, index: usize) {
        let Some(conn) = self.workers[index].conn else { return };
        self.workers[index].disconnected();
        let notices = self.rng.chance(70);
        let Some(stream) = self.streams.get_mut(&conn) else { return };
        let arrived = self.rng.below(stream.up.len() + 1);
        stream.up.truncate(arrived);
        stream.down.clear();
        stream.read = false;
        if notices {
            stream.up.push_back(Up::Broken);
        }
    }

    fn worker_dies(&mut self) {
        let index = self.rng.below(WORKERS);
        self.tear_of(index);
        self.workers[index].restart();
    }

    fn worker_leaves(&mut self) -> Held {
        let index = self.rng.below(WORKERS);
        self.leave(index);
        Ok(())
    }

    pub(super) fn leave(&mut self, index: usize) {
        self.send(index, Frame { bye: Some("done".into()), ..Frame::default() });
        // What it sent arrives; it reads no more.
        if let Some(conn) = self.workers[index].conn
            && let Some(stream) = self.streams.get_mut(&conn)
        {
            stream.read = false;
            stream.down.clear();
            stream.up.push_back(Up::Broken);
        }
        self.workers[index].restart();
    }
}

pub(super) fn decode(key: RowKey, data: &bytes::Bytes) -> Row {
    Row::decode(key, data.clone()).unwrap()
}

/// Small, so that runs reach them.
pub(super) fn limits() -> Limits {
    Limits {
        tasks: 400,
        queue_tasks: 60,
        queues: 30,
        total_bytes: 4_000,
        payload_bytes: 30,
        waiters_per_task: 3,
        watchers: 6,
        events_kept: 50,
        chunks_per_task: 4,
        chunk_bytes_per_task: 60,
        answered_tasks: 40,
        answered_bytes: 100,
        sessions: WORKERS,
        credit_per_pool: 8,
        retention_ms: 20_000,
        answered_retention_ms: 3_000,
        ..Limits::default()
    }
}

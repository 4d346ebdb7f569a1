//! The main loop: scheduler, disk, network, workers, callers, and what befalls them.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use crewcall::clock::Timestamp;
use crewcall::row::{Row, RowChange, RowKey};
use crewcall::scheduler::{
    Command, ConnId, EffectKind, Filter, Frame, Limits, Output, Reply, Scheduler, Waiter,
};
use crewcall::task::{StateName, TaskId};

use super::calls::Calls;
use super::invariant::{Figures, Held, Invariant, Stored, Written};
use super::network::{Down, Stream, Up};
use super::rng::Rng;
use super::worker::{METHODS, Worker};

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
    shape: Shape,
    figures: Figures,
    out: Output,
    stored: Stored,
    /// The disk has no room; the scheduler learns it from the next batch.
    full: bool,
    /// The scheduler knows.
    told_full: bool,
    /// The server was asked to stop, and has not yet.
    stopping: bool,
    /// Batches handed to the disk, each with the effects that wait for it.
    unstored: VecDeque<(Vec<RowChange>, Vec<EffectKind>)>,
    streams: BTreeMap<ConnId, Stream>,
    next_conn: ConnId,
    invariants: Vec<Box<dyn Invariant>>,
}

impl World {
    pub(super) fn new(seed: u64, shape: Shape, invariants: Vec<Box<dyn Invariant>>) -> Self {
        let mut world = Self {
            rng: Rng(seed),
            steps: 0,
            now: Timestamp(1_000_000),
            scheduler: Scheduler::new(shape.limits(), seed),
            workers: (0..WORKERS).map(Worker::new).collect(),
            calls: Calls::default(),
            trace: None,
            seed,
            shape,
            figures: Figures::default(),
            out: Output::default(),
            stored: Stored::default(),
            full: false,
            told_full: false,
            stopping: false,
            unstored: VecDeque::new(),
            streams: BTreeMap::new(),
            next_conn: 1,
            invariants,
        };
        world.start().expect("nothing is wrong yet");
        world
    }

    pub(super) fn faults(&mut self, steps: u64) -> Held {
        while self.steps < steps {
            if self.rng.below(1_000) < self.shape.crashes_per_mille {
                self.crash()?;
            }
            match self.rng.below(1_000) {
                0..250 => self.caller()?,
                250..450 => self.worker_acts()?,
                450..700 => self.deliver_up()?,
                700..850 => self.deliver_down()?,
                850..920 => self.tick()?,
                920..977 => self.store()?,
                977..990 => self.tear(),
                990..993 => self.worker_dies(),
                993 => self.clock_jumps(),
                994 | 995 => self.disk_fills(),
                996 | 997 => self.shut_down()?,
                _ => self.worker_leaves()?,
            }
            self.stop()?;
        }
        Ok(())
    }

    /// Nothing is amiss any more, and nothing is held back.
    pub(super) fn repair(&mut self) -> Held {
        self.full = false;
        self.store_all()?;
        self.tell_of_disk(false);
        if self.stopping {
            self.restart()?;
        }
        for method in METHODS {
            let waiter = self.calls.waiter();
            self.command(Command::Resume { method: method.to_owned(), waiter })?;
        }
        Ok(())
    }

    pub(super) fn figures(&self) -> Figures {
        let mut figures = Figures { steps: self.steps, ..self.figures };
        for invariant in &self.invariants {
            invariant.count(&mut figures);
        }
        figures
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
            self.wrote()?;
            self.unstored.push_back((std::mem::take(&mut self.out.rows), Vec::new()));
        }
        let mut leaving = Vec::new();
        for mut effect in std::mem::take(&mut self.out.effects) {
            effect.kind = self.read_back(effect.kind)?;
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

    /// A payload that lies on the disk only is read at once; it is there whatever was stored since.
    fn read_back(&self, kind: EffectKind) -> Result<EffectKind, String> {
        let read = |id: TaskId| {
            let row = self.stored.get(&RowKey::Payload(id)).map(|data| decode(RowKey::Payload(id), data));
            match row {
                Some(Row::Payload(_, payload)) => Ok(payload),
                _ => Err(format!("the payload of {id} is to be read, and is not stored")),
            }
        };
        match kind {
            EffectKind::AssignStored { conn, mut assign, bytes } => {
                assign.payload = read(assign.id)?;
                if assign.payload.size() as u64 != bytes {
                    return Err(format!("{bytes} bytes announced of {:?}", assign.payload));
                }
                Ok(EffectKind::Assign(conn, assign))
            }
            EffectKind::ReplyStored(waiter, mut view) => {
                view.payload = Some(read(view.id)?);
                Ok(EffectKind::Reply(waiter, Reply::Task(view)))
            }
            kind => Ok(kind),
        }
    }

    /// The disk finishes some batches.
    fn store(&mut self) -> Held {
        if self.full && self.rng.chance(10) {
            self.full = false;
        }
        for _ in 0..1 + self.rng.below(20) {
            self.store_one()?;
        }
        Ok(())
    }

    fn disk_fills(&mut self) {
        self.full = true;
    }

    pub(super) fn store_all(&mut self) -> Held {
        while self.store_one()? {}
        Ok(())
    }

    fn store_one(&mut self) -> Result<bool, String> {
        let Some(waiting) = self.write_one()? else { return Ok(false) };
        for kind in waiting {
            self.tell(kind)?;
        }
        Ok(true)
    }

    /// Stores the oldest batch. Returns what waited for it.
    fn write_one(&mut self) -> Result<Option<Vec<EffectKind>>, String> {
        if self.unstored.is_empty() {
            return Ok(None);
        }
        self.tell_of_disk(self.full);
        if self.full {
            return Ok(None);
        }
        let Some((rows, waiting)) = self.unstored.pop_front() else { return Ok(None) };
        for invariant in &mut self.invariants {
            invariant.storing(&self.stored, &rows)?;
        }
        let count = rows.len() as u64;
        self.apply(rows);
        self.scheduler.stored(count);
        Ok(Some(waiting))
    }

    fn tell_of_disk(&mut self, full: bool) {
        if self.told_full != full {
            self.told_full = full;
            self.figures.full += u64::from(full);
            self.scheduler.store_is_full(full.then(|| "no room".to_owned()));
            for invariant in &mut self.invariants {
                invariant.disk(full);
            }
        }
    }

    fn apply(&mut self, rows: Vec<RowChange>) {
        for row in rows {
            match row {
                RowChange::Put(key, data) => self.stored.insert(key, data),
                RowChange::Delete(key) => self.stored.remove(&key),
            };
        }
    }

    fn start(&mut self) -> Held {
        self.scheduler.start(&mut self.out);
        self.wrote()?;
        let rows = std::mem::take(&mut self.out.rows);
        let count = rows.len() as u64;
        self.apply(rows);
        self.scheduler.stored(count);
        Ok(())
    }

    fn wrote(&mut self) -> Held {
        let read = |change: &RowChange| match change {
            RowChange::Put(key, data) => Written { key: *key, put: Some((data.clone(), decode(*key, data))) },
            RowChange::Delete(key) => Written { key: *key, put: None },
        };
        let written: Vec<Written> = self.out.rows.iter().map(read).collect();
        self.invariants.iter_mut().try_for_each(|invariant| invariant.wrote(&written))
    }

    /// The server is gone, with every batch that was not stored and every effect behind it.
    pub(super) fn crash(&mut self) -> Held {
        match self.rng.below(10) {
            0..5 => self.sync()?,
            // Stored, and nobody told: their effects are lost all the same.
            5..8 => while self.rng.chance(70) && self.write_one()?.is_some() {},
            _ => {}
        }
        self.figures.crashes += 1;
        self.restart()
    }

    /// Everything handed out is stored and told, if there is room.
    fn sync(&mut self) -> Held {
        self.store_all()?;
        if self.unstored.is_empty() {
            for invariant in &mut self.invariants {
                invariant.synced(&self.stored, &self.scheduler)?;
            }
        }
        Ok(())
    }

    /// A new scheduler, from what is stored and nothing else. Workers come back, some without their work.
    fn restart(&mut self) -> Held {
        self.unstored.clear();
        // It would not start without room.
        self.full = false;
        self.tell_of_disk(false);
        self.stopping = false;
        let run = self.figures.crashes + self.figures.stops;
        let epoch = self.seed.wrapping_add(run << 32);
        let rows = self.stored.iter().map(|(key, data)| decode(*key, data));
        // The clock may have been set back meanwhile.
        let now = if self.rng.chance(10) { self.now - 5_000 } else { self.now };
        self.scheduler = Scheduler::restore(self.shape.limits(), epoch, now, rows);
        for invariant in &mut self.invariants {
            invariant.restored(&self.stored, &self.scheduler)?;
        }
        self.start()?;
        self.streams.clear();
        for worker in &mut self.workers {
            if self.rng.chance(15) { worker.restart() } else { worker.disconnected() }
        }
        self.calls.server_crashed();
        Ok(())
    }

    fn shut_down(&mut self) -> Held {
        if self.stopping {
            return Ok(());
        }
        self.stopping = true;
        self.figures.stops += 1;
        self.command(Command::Shutdown)
    }

    /// A server that was asked to stop does so once nothing runs any more, or when its patience ends.
    fn stop(&mut self) -> Held {
        if !self.stopping {
            return Ok(());
        }
        let idle = self.scheduler.leased() == 0;
        if !self.rng.chance(if idle { 30 } else { 2 }) {
            return Ok(());
        }
        self.sync()?;
        if idle && self.unstored.is_empty() && !self.calls.waiting.is_empty() {
            return Err(format!("stopped, and nobody answered {:?}", self.calls.waiting));
        }
        self.restart()
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
            // Read back before they are told.
            EffectKind::AssignStored { .. } | EffectKind::ReplyStored(..) => {}
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

/// How large a world is, and what befalls it. From the seed, so that the seed says everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    size: Size,
    /// Crashes in a thousand actions.
    crashes_per_mille: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// So few tasks that a second scheduler can be restored at every step.
    Small,
    Middle,
    Large,
}

impl Shape {
    pub(super) fn of(seed: u64) -> Self {
        let size = match seed % 20 {
            0 | 10 => Size::Small,
            1 => Size::Large,
            _ => Size::Middle,
        };
        let crashes_per_mille = match seed % 4 {
            0 => 1,
            1 => 2,
            2 => 4,
            _ => 10,
        };
        Self { size, crashes_per_mille }
    }

    pub(super) fn restored_at_every_step(&self) -> bool {
        self.size == Size::Small
    }

    /// So low that runs reach them.
    pub(super) fn limits(&self) -> Limits {
        let (tasks, queue_tasks, queues, total_bytes) = match self.size {
            Size::Small => (10, 6, 8, 300),
            Size::Middle => (60, 20, 20, 1_000),
            Size::Large => (400, 60, 30, 4_000),
        };
        Limits {
            tasks,
            queue_tasks,
            queues,
            total_bytes,
            resident_payload_bytes: total_bytes / 6,
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
            dead_retention_ms: 60_000,
            dead_tasks: 12,
            dead_bytes: 200,
            dead_batch: 5,
            pauses: 2,
            drains: 3,
            ..Limits::default()
        }
    }
}

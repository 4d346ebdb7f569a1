//! The one async loop. It owns the scheduler, reads the clock, hands rows to the store and carries out
//! effects:
//!
//! ```text
//! inbox ──▶ scheduler ──▶ rows ──▶ store thread
//!   ▲           │                      │ stored
//! Handle     effects ──▶ gate ◀────────┘
//!               │          │ gated effects, once their rows are stored
//!               ▼          ▼
//!            outboxes (one append and one wake-up for each stream and round)
//! ```
//!
//! **Invariant:** a gated effect leaves only when every row handed out before it is stored. It is here, and
//! nowhere else, that "acknowledged" means "stored".
//!
//! Payloads that lie in the store only are read back on the way out: see `engine/reads.rs`.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;

use foldhash::fast::FixedState;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::clock::{Clock, Timestamp};
use crate::error::{Error, Reason};
use crate::handle::Handle;
use crate::outbox::Outbox;
use crate::row::{RowChange, RowReader};
use crate::scheduler::{
    Assign, Command, ConnId, EffectKind, Event, Limits, Output, Reply, Restoring, Scheduler, Tell, Waiter,
};
use crate::store::{Committer, Done, Store, StoreError};
use crate::task::{NewTask, TaskId};
use reads::{Answer, Reads, Ready};

mod reads;

/// Messages taken in one round. Bounds how long an answer waits for its neighbours; large enough that the
/// fixed costs of a round vanish.
const ROUND: usize = 256;
/// Messages that may wait for the engine. When it is full, whoever sends waits: backpressure reaches the
/// socket.
const INBOX: usize = 4_096;
/// How long after a batch found no room it is tried again.
const FULL_RETRY: std::time::Duration = std::time::Duration::from_millis(250);
/// `Waiter::conn` of questions answered once, through a oneshot.
const ASK: ConnId = 0;

/// What reaches the engine from its handles.
#[derive(Debug)]
pub(crate) enum Message {
    /// A command that nobody is answered for, or whose answer goes to a stream.
    Command(Command),
    /// A command whose answer goes to `reply`. `tag` is unique among questions.
    Ask { command: Command, tag: u64, reply: oneshot::Sender<Reply> },
    /// The one who asked has gone.
    Unask { tag: u64 },
    /// Calls of a pipe, with their numbers.
    Calls { conn: ConnId, calls: Vec<(u64, NewTask)> },
    /// A pipe's caller has gone, with these calls in flight.
    HungUp { conn: ConnId, calls: Vec<(u64, TaskId)> },
    /// A stream that effects may go to from now on.
    Open { conn: ConnId, stream: Stream },
    /// It has gone.
    Gone { conn: ConnId },
    /// Begin to stop; answered when no worker runs anything any more.
    Shutdown { idle: oneshot::Sender<()> },
    /// Copy the store into a new directory; answered once it has begun, with where the end is told.
    Backup { into: PathBuf, reply: oneshot::Sender<oneshot::Receiver<Result<u64, StoreError>>> },
    /// Stop now. Rows handed out are stored first.
    Halt,
}

/// Something a worker's stream is told.
#[derive(Debug)]
pub enum SessionItem {
    /// Run this.
    Assign(Box<Assign>),
    /// Anything else.
    Tell(Tell),
}

/// The streams effects can go to.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Answers to calls, by number.
    Pipe(Outbox<(u64, Reply)>),
    /// A worker.
    Session(Outbox<SessionItem>),
    /// A watcher.
    Watch(Outbox<Event>),
}

impl Stream {
    fn close(&self, error: Option<Error>) {
        match self {
            Self::Pipe(outbox) => outbox.close(error),
            Self::Session(outbox) => outbox.close(error),
            Self::Watch(outbox) => outbox.close(error),
        }
    }
}

/// Why the engine could not start, or stopped other than by being asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The store failed: nothing was acknowledged that is not stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored row cannot be read.
    #[error(transparent)]
    Row(#[from] crate::row::RowError),
    /// The store's thread could not be started.
    #[error("the store's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// The running engine. Ends with `Ok` after [`Handle::halt`] or when the last handle is dropped.
pub type EngineTask = JoinHandle<Result<(), EngineError>>;

/// Loads what the store holds and starts the loop on the present tokio runtime.
///
/// # Errors
/// When the store cannot be loaded or a row in it cannot be read.
pub fn start(limits: Limits, mut store: Box<dyn Store>) -> Result<(Handle, EngineTask), EngineError> {
    // Never the same for two runs, even with a clock set back: the low bits of a fresh UUIDv7 are random.
    let epoch = (uuid::Uuid::now_v7().as_u128() as u64) >> 1;
    let mut restoring = Restoring::new(limits.clone(), epoch);
    let (mut reader, mut rows, mut unreadable) = (RowReader::default(), 0_u64, None);
    store.load(&mut |key, data| match reader.read(key, data) {
        Ok(row) => {
            rows += 1;
            restoring.take(row);
        }
        Err(error) => unreadable = Some(error),
    })?;
    if let Some(error) = unreadable {
        return Err(error.into());
    }
    let clock = Clock::start(restoring.latest());
    tracing::info!(rows, store = store.describe(), "engine starts");
    let mut scheduler = restoring.finish(clock.now());
    let mut output = Output::default();
    scheduler.start(&mut output);
    store.commit(&output.rows)?;
    scheduler.stored(output.rows.len() as u64);
    output.rows.clear();
    let data_dir = store.dir().map(std::path::Path::to_owned);
    if let Some(dir) = &data_dir {
        crate::handle::backups::sweep(dir);
    }
    let (sender, inbox) = mpsc::channel(INBOX);
    let engine = Engine {
        scheduler,
        clock,
        inbox,
        store_max: store.max_size(),
        committer: Committer::start(store)?,
        output,
        gate: Gate::default(),
        asks: HashMap::default(),
        streams: HashMap::default(),
        staged: Staged::default(),
        reads: Reads::default(),
        ready: Vec::new(),
        idle: None,
    };
    Ok((Handle::new(sender, limits, data_dir), tokio::spawn(engine.run())))
}

struct Engine {
    scheduler: Scheduler,
    clock: Clock,
    inbox: mpsc::Receiver<Message>,
    committer: Committer,
    store_max: Option<u64>,
    output: Output,
    gate: Gate,
    /// Tags are made by the handles, so a fixed hash seed cannot be attacked.
    asks: HashMap<u64, oneshot::Sender<Reply>, FixedState>,
    streams: HashMap<ConnId, Stream, FixedState>,
    staged: Staged,
    reads: Reads,
    ready: Vec<Ready>,
    idle: Option<oneshot::Sender<()>>,
}

/// Rows on their way to the store, and the effects that wait for them.
#[derive(Default)]
struct Gate {
    /// The batch being gathered.
    rows: Vec<RowChange>,
    /// The number of the batch being gathered; those below have been handed over.
    batch: u64,
    /// A batch is being stored: number `batch - 1`.
    storing: bool,
    /// Rows in it, as they were handed out.
    storing_rows: u64,
    /// Rows in the one being gathered, likewise.
    gathered: u64,
    /// Batches below this are stored.
    stored: u64,
    /// The store had no room for the last one; it is tried again at this time.
    full: Option<tokio::time::Instant>,
    /// Durable work is refused since a batch found no room: the log says so once, not at each try.
    refusing: bool,
    /// With the batch each waits for, in order.
    waiting: VecDeque<(u64, EffectKind)>,
}

/// Items for streams, gathered over a round: one lock and one wake-up each.
#[derive(Default)]
struct Staged {
    pipes: HashMap<ConnId, Vec<(u64, Reply)>, FixedState>,
    sessions: HashMap<ConnId, Vec<SessionItem>, FixedState>,
    watches: HashMap<ConnId, Vec<Event>, FixedState>,
}

impl Engine {
    async fn run(mut self) -> Result<(), EngineError> {
        let mut round = Vec::with_capacity(ROUND);
        let timer = tokio::time::sleep(std::time::Duration::ZERO);
        tokio::pin!(timer);
        let mut timer_at = None;
        loop {
            let due = self.scheduler.due();
            if due != timer_at {
                timer_at = due;
                if let Some(at) = due {
                    let wait = at.since(self.clock.now());
                    timer
                        .as_mut()
                        .reset(tokio::time::Instant::now() + std::time::Duration::from_millis(wait));
                }
            }
            tokio::select! {
                biased;
                done = self.committer.done(), if self.gate.storing || self.reads.are_under_way() => self.done(done?)?,
                () = self.reads.taken.any(), if self.reads.are_paced() => self.reads.go_on(),
                () = until(self.gate.full), if self.gate.full.is_some() => self.gate.full = None,
                () = &mut timer, if due.is_some() => timer_at = None,
                taken = self.inbox.recv_many(&mut round, ROUND) => {
                    if taken == 0 {
                        break;
                    }
                }
            }
            let now = self.clock.now();
            let mut halt = false;
            for message in round.drain(..) {
                halt |= matches!(message, Message::Halt);
                self.take(now, message);
            }
            if due.is_some_and(|at| at <= now) {
                self.scheduler.tick(now, &mut self.output);
                self.carry_out();
            }
            self.reads.ask(&self.committer);
            self.store();
            self.flush();
            self.report_idle();
            if halt {
                break;
            }
        }
        self.finish().await
    }

    fn take(&mut self, now: Timestamp, message: Message) {
        match message {
            Message::Command(command) => self.scheduler.handle(now, command, &mut self.output),
            Message::Ask { mut command, tag, reply } => {
                if matches!(command, Command::Stats { .. }) {
                    self.scheduler.store_measured(self.committer.size(), self.store_max);
                }
                self.asks.insert(tag, reply);
                command.set_waiter(Waiter { conn: ASK, tag });
                self.scheduler.handle(now, command, &mut self.output);
            }
            Message::Unask { tag } => {
                self.asks.remove(&tag);
            }
            Message::Calls { conn, calls } => {
                for (tag, task) in calls {
                    let command = Command::Call { task, waiter: Waiter { conn, tag } };
                    self.scheduler.handle(now, command, &mut self.output);
                    self.carry_out();
                }
            }
            Message::HungUp { conn, calls } => {
                self.streams.remove(&conn);
                for (tag, id) in calls {
                    let command = Command::Abandon { id, waiter: Waiter { conn, tag }, cancel: false };
                    self.scheduler.handle(now, command, &mut self.output);
                }
            }
            Message::Open { conn, stream } => {
                self.streams.insert(conn, stream);
            }
            Message::Gone { conn } => {
                self.streams.remove(&conn);
                self.reads.forget(conn);
            }
            Message::Shutdown { idle } => {
                self.scheduler.handle(now, Command::Shutdown, &mut self.output);
                self.idle = Some(idle);
            }
            Message::Backup { into, reply } => {
                reply.send(self.committer.backup(into)).ok();
            }
            Message::Halt => {}
        }
        self.carry_out();
    }

    /// Takes what the scheduler put out: rows to the gate, effects to whom they are for, or to the gate.
    fn carry_out(&mut self) {
        self.gate.gathered += self.output.rows.len() as u64;
        self.gate.rows.append(&mut self.output.rows);
        for effect in self.output.effects.drain(..) {
            let batch = if effect.gated { self.gate.holds() } else { None };
            match (effect.kind, batch) {
                // Asked for at once, gated or not: the row may be deleted by the next batch.
                (EffectKind::ReplyStored(waiter, view), batch) => {
                    self.reads.add_answer(Answer { waiter, view, batch });
                }
                (kind, Some(batch)) => self.gate.waiting.push_back((batch, kind)),
                (kind, None) => {
                    deliver(kind, &mut self.asks, &mut self.streams, &mut self.staged, &mut self.reads)
                }
            }
        }
    }

    fn store(&mut self) {
        if !self.gate.storing && self.gate.full.is_none() && !self.gate.rows.is_empty() {
            self.gate.storing = true;
            self.gate.batch += 1;
            self.gate.storing_rows = std::mem::take(&mut self.gate.gathered);
            self.committer.store(std::mem::take(&mut self.gate.rows));
        }
    }

    fn done(&mut self, done: Done) -> Result<(), EngineError> {
        match done {
            Done::Stored(buffer) => {
                self.gate.storing = false;
                self.gate.stored = self.gate.batch;
                if self.gate.rows.is_empty() {
                    self.gate.rows = buffer;
                }
                if std::mem::take(&mut self.gate.refusing) {
                    tracing::info!("the store has room again; durable work is taken");
                }
                self.scheduler.store_is_full(None);
                self.scheduler.stored(self.gate.storing_rows);
                while let Some((_, effect)) =
                    self.gate.waiting.pop_front_if(|(batch, _)| *batch < self.gate.batch)
                {
                    deliver(effect, &mut self.asks, &mut self.streams, &mut self.staged, &mut self.reads);
                }
            }
            Done::Full { mut batch, reason } => {
                if !std::mem::replace(&mut self.gate.refusing, true) {
                    tracing::error!(%reason, "durable work is refused until there is room");
                }
                // What became true since goes behind it, into the same batch; nobody is told of any of it before
                // it is stored.
                batch.append(&mut self.gate.rows);
                self.gate.rows = batch;
                self.gate.storing = false;
                self.gate.gathered += self.gate.storing_rows;
                self.gate.full = Some(tokio::time::Instant::now() + FULL_RETRY);
                self.scheduler.store_is_full(Some(reason.to_string()));
            }
            Done::Read { keys, rows } => {
                let mut ready = std::mem::take(&mut self.ready);
                self.reads.back(keys, rows, &mut ready)?;
                for ready in ready.drain(..) {
                    self.hand_out(ready);
                }
                self.ready = ready;
            }
        }
        Ok(())
    }

    /// What waited for its payload goes out.
    fn hand_out(&mut self, ready: Ready) {
        match ready {
            Ready::Assign(conn, assign, then) => {
                let items = self.staged.sessions.entry(conn).or_default();
                items.push(SessionItem::Assign(assign));
                items.extend(then.into_iter().map(SessionItem::Tell));
            }
            Ready::Answer(Answer { waiter, view, batch }) => {
                let kind = EffectKind::Reply(waiter, Reply::Task(view));
                match batch.filter(|batch| *batch >= self.gate.stored) {
                    Some(batch) => self.gate.wait(batch, kind),
                    None => {
                        deliver(kind, &mut self.asks, &mut self.streams, &mut self.staged, &mut self.reads);
                    }
                }
            }
        }
    }

    /// Moves what was gathered into the outboxes.
    fn flush(&mut self) {
        self.scheduler.begin_round();
        for (conn, mut items) in self.staged.pipes.drain() {
            if let Some(Stream::Pipe(outbox)) = self.streams.get(&conn) {
                outbox.append(&mut items);
            }
        }
        for (conn, mut items) in self.staged.sessions.drain() {
            if let Some(Stream::Session(outbox)) = self.streams.get(&conn) {
                outbox.append(&mut items);
                if self.reads.wait_for(conn) {
                    outbox.tell_when_taken(&self.reads.taken, conn);
                }
            }
        }
        let most = self.scheduler.limits().watch_backlog;
        for (conn, mut items) in self.staged.watches.drain() {
            let Some(Stream::Watch(outbox)) = self.streams.get(&conn) else { continue };
            if outbox.append(&mut items) > most {
                let message = format!(
                    "{most} events wait unread, the limit (limits.watch_backlog); go on from your cursor"
                );
                outbox.close(Some(Error::new(Reason::SlowReader, message)));
                self.streams.remove(&conn);
                let now = self.clock.now();
                self.scheduler.handle(now, Command::Unwatch { conn }, &mut self.output);
            }
        }
    }

    fn report_idle(&mut self) {
        if self.idle.is_some() && self.gate.waiting.is_empty() && self.scheduler.leased() == 0 {
            // Streams have had what was for them; whoever asked halts the engine next, which ends them.
            if let Some(idle) = self.idle.take() {
                idle.send(()).ok();
            }
        }
    }

    /// Stores what was handed out and tells everyone what waited for it.
    async fn finish(mut self) -> Result<(), EngineError> {
        while self.gate.storing
            || self.reads.are_under_way()
            || !(self.gate.rows.is_empty() || self.gate.full.is_some())
        {
            self.store();
            let done = self.committer.done().await?;
            self.done(done)?;
        }
        self.flush();
        for stream in self.streams.values() {
            stream.close(Some(Error::new(Reason::ShuttingDown, "the server is stopping")));
        }
        Ok(())
    }
}

impl Gate {
    /// Lets an effect wait that has waited for something else since its batch was the newest.
    fn wait(&mut self, batch: u64, effect: EffectKind) {
        let place = self.waiting.partition_point(|(other, _)| *other <= batch);
        self.waiting.insert(place, (batch, effect));
    }

    /// The batch a gated effect must wait for now, if any.
    fn holds(&self) -> Option<u64> {
        if !self.rows.is_empty() {
            Some(self.batch)
        } else if self.storing {
            Some(self.batch - 1)
        } else {
            None
        }
    }
}

async fn until(at: Option<tokio::time::Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

/// To whom it is for. Whoever has gone misses it.
fn deliver(
    effect: EffectKind,
    asks: &mut HashMap<u64, oneshot::Sender<Reply>, FixedState>,
    streams: &mut HashMap<ConnId, Stream, FixedState>,
    staged: &mut Staged,
    reads: &mut Reads,
) {
    match effect {
        EffectKind::Reply(Waiter { conn: ASK, tag }, reply) => {
            if let Some(ask) = asks.remove(&tag) {
                ask.send(reply).ok();
            }
        }
        EffectKind::Reply(Waiter { conn, tag }, reply) => {
            staged.pipes.entry(conn).or_default().push((tag, reply));
        }
        EffectKind::Assign(conn, assign) => {
            if let Some(assign) = reads.line_up(conn, assign) {
                staged.sessions.entry(conn).or_default().push(SessionItem::Assign(assign));
            }
        }
        EffectKind::AssignStored { conn, assign, bytes } => {
            if streams.contains_key(&conn) {
                reads.add_assign(conn, assign, bytes);
            }
        }
        EffectKind::Tell(conn, tell) => {
            if let Some(tell) = reads.hold_back(conn, tell) {
                staged.sessions.entry(conn).or_default().push(SessionItem::Tell(tell));
            }
        }
        EffectKind::ReplyStored(waiter, view) => reads.add_answer(Answer { waiter, view, batch: None }),
        EffectKind::Event(conn, event) => staged.watches.entry(conn).or_default().push(*event),
        EffectKind::Close(conn, error) => {
            let Some(stream) = streams.remove(&conn) else { return };
            reads.forget(conn);
            match &stream {
                Stream::Pipe(outbox) => flush_one(outbox, staged.pipes.remove(&conn)),
                Stream::Session(outbox) => flush_one(outbox, staged.sessions.remove(&conn)),
                Stream::Watch(outbox) => flush_one(outbox, staged.watches.remove(&conn)),
            }
            stream.close(error);
        }
    }
}

fn flush_one<T>(outbox: &Outbox<T>, items: Option<Vec<T>>) {
    if let Some(mut items) = items {
        outbox.append(&mut items);
    }
}

#[cfg(test)]
mod tests;

//! What the engine owns, and one round of it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::sync::{mpsc, mpsc::error::TryRecvError, oneshot};
use tokio::time::Instant;

use super::reads::{Answer, Reads, Ready};
use super::{EngineError, Message, SessionItem, Stream};
use crate::clock::{Clock, Timestamp};
use crate::error::{Error, Reason};
use crate::outbox::{Outbox, Taken};
use crate::row::RowChange;
use crate::scheduler::{Command, ConnId, EffectKind, Event, Output, Reply, Scheduler, Waiter};
use crate::store::{Committer, Done, Stored};

/// Messages taken in one round. Bounds how long an answer waits for its neighbours; large enough that the
/// fixed costs of a round vanish.
const ROUND: usize = 256;
/// How long after a batch found no room it is tried again.
const FULL_RETRY: Duration = Duration::from_millis(250);
/// `Waiter::conn` of questions answered once, through a oneshot.
const ASK: ConnId = 0;

/// All that the engine owns. Whoever holds it may run the scheduler.
pub(super) struct State {
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
    /// Nothing more is taken.
    pub(super) halted: bool,
    /// What the keeper's timer is set to.
    armed: Option<Timestamp>,
}

/// Rows on their way to the store, and the effects that wait for them.
#[derive(Default)]
struct Gate {
    /// The batch being gathered.
    rows: Vec<RowChange>,
    /// The number of the batch being gathered; those below have been handed over.
    batch: u64,
    /// Batches below this are stored; those between are being stored.
    stored: u64,
    /// Rows in each of those, as they were handed out.
    storing_rows: VecDeque<u64>,
    /// Rows in the one being gathered, likewise.
    gathered: u64,
    /// The store had no room for those being stored; they are tried again at this time.
    full: Option<Instant>,
    /// That time has come: a batch must be handed over, even an empty one.
    again: bool,
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

impl State {
    pub(super) fn new(
        scheduler: Scheduler,
        clock: Clock,
        inbox: mpsc::Receiver<Message>,
        committer: Committer,
        store_max: Option<u64>,
    ) -> Self {
        Self {
            scheduler,
            clock,
            inbox,
            committer,
            store_max,
            output: Output::default(),
            gate: Gate::default(),
            asks: HashMap::default(),
            streams: HashMap::default(),
            staged: Staged::default(),
            reads: Reads::default(),
            ready: Vec::new(),
            idle: None,
            halted: false,
            armed: None,
        }
    }

    /// Takes what waits in the inbox and what time has brought, and says what is to be said. Returns whether more may
    /// wait.
    pub(super) fn round(&mut self) -> bool {
        let now = self.clock.now();
        let mut more = true;
        for _ in 0..ROUND {
            if self.halted {
                more = false;
                break;
            }
            match self.inbox.try_recv() {
                Ok(message) => self.take(now, message),
                Err(TryRecvError::Empty) => {
                    more = false;
                    break;
                }
                // The last handle is gone.
                Err(TryRecvError::Disconnected) => self.halted = true,
            }
        }
        if self.scheduler.due().is_some_and(|at| at <= now) {
            self.scheduler.tick(now, &mut self.output);
            self.carry_out();
        }
        self.reads.ask(&self.committer);
        self.store();
        self.flush();
        self.report_idle();
        more
    }

    /// Whether the keeper must look again at what it waits for.
    pub(super) fn has_news_for_keeper(&mut self) -> bool {
        let due = self.scheduler.due();
        let sooner = due.is_some_and(|due| self.armed.is_none_or(|armed| due < armed));
        if sooner {
            // Called once is enough.
            self.armed = due;
        }
        sooner || self.halted
    }

    /// When something is due, when a batch that found no room is to be tried again, and whether it is over.
    pub(super) fn next_for_keeper(&mut self) -> (Option<Instant>, Option<Instant>, bool) {
        self.armed = self.scheduler.due();
        let due = self.armed.map(|at| Instant::now() + Duration::from_millis(at.since(self.clock.now())));
        (due, self.gate.full, self.halted)
    }

    /// Streams have taken what was held back for them.
    pub(super) fn go_on(&mut self) {
        self.reads.go_on();
    }

    /// Who tells that streams have taken what was there.
    pub(super) fn taken(&self) -> Arc<Taken> {
        Arc::clone(&self.reads.taken)
    }

    /// A batch that found no room is to be tried again.
    pub(super) fn retry(&mut self) {
        self.gate.full = None;
        self.gate.again = true;
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
            Message::Halt => self.halted = true,
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
        if self.gate.full.is_none() && (!self.gate.rows.is_empty() || self.gate.again) {
            self.gate.again = false;
            self.gate.batch += 1;
            self.gate.storing_rows.push_back(std::mem::take(&mut self.gate.gathered));
            self.committer.store(std::mem::take(&mut self.gate.rows));
        }
    }

    /// Something asked of the store has ended.
    ///
    /// # Errors
    /// When what was read is damaged.
    pub(super) fn done(&mut self, done: Done) -> Result<(), EngineError> {
        match done {
            Done::Stored { batches, buffer } => {
                self.gate.stored += batches;
                let rows: u64 = self.gate.storing_rows.drain(..batches as usize).sum();
                self.gate.full = None;
                if self.gate.rows.is_empty() {
                    self.gate.rows = buffer;
                }
                if std::mem::take(&mut self.gate.refusing) {
                    tracing::info!("the store has room again; durable work is taken");
                }
                self.scheduler.store_is_full(None);
                self.scheduler.stored(rows);
                while let Some((_, effect)) =
                    self.gate.waiting.pop_front_if(|(batch, _)| *batch < self.gate.stored)
                {
                    deliver(effect, &mut self.asks, &mut self.streams, &mut self.staged, &mut self.reads);
                }
            }
            Done::Full(reason) => {
                if !std::mem::replace(&mut self.gate.refusing, true) {
                    tracing::error!(%reason, "durable work is refused until there is room");
                }
                // What becomes true meanwhile goes behind it; nobody is told of any of it before it is stored.
                self.gate.full = Some(Instant::now() + FULL_RETRY);
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
    pub(super) async fn finish(mut self, stored: &mut Stored) -> Result<(), EngineError> {
        while self.reads.are_under_way()
            || self.gate.full.is_none() && (self.gate.is_storing() || !self.gate.rows.is_empty())
        {
            self.store();
            let done = stored.next().await?;
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
        } else if self.is_storing() {
            Some(self.batch - 1)
        } else {
            None
        }
    }

    /// Whether something was handed over that is not stored.
    const fn is_storing(&self) -> bool {
        self.stored < self.batch
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

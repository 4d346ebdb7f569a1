//! Whoever brings a message runs the scheduler, unless somebody else does at that moment: then that one takes the
//! message too. A task of the engine's own, the keeper, brings what comes from nobody: time, and what the store says.
//!
//! ```text
//! Handle ──▶ inbox ──▶ desk ──▶ scheduler ──▶ rows ──▶ store thread
//!                       ▲           │                      │
//!            keeper ────┘        effects ──▶ gate          │
//!              ▲                    │          │ gated effects, once their rows are stored
//!              │                    ▼          ▼           │
//!              │                 outboxes (one append and one wake-up for each stream and round)
//!              └── stored, timers ─────────────────────────┘
//! ```
//!
//! **Invariant:** a gated effect leaves only when every row handed out before it is stored. It is in `engine/state.rs`,
//! and nowhere else, that "acknowledged" means "stored".
//!
//! Payloads that lie in the store only are read back on the way out: see `engine/reads.rs`.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::error::Error;
use crate::handle::Handle;
use crate::outbox::{Outbox, Taken};
use crate::row::RowReader;
use crate::scheduler::{Assign, Command, ConnId, Event, Limits, Output, Reply, Restoring, Tell};
use crate::store::{Committer, Store, StoreError, Stored};
use crate::task::{NewTask, TaskId};
pub(crate) use desk::Inbox;
use desk::{Brought, Desk};
use state::State;

mod desk;
mod reads;
mod state;

/// Messages that may wait for the engine. When it is full, whoever sends waits: backpressure reaches the
/// socket.
const INBOX: usize = 4_096;

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
    /// The scheduler panicked: a defect. What was not acknowledged may be lost, nothing else.
    #[error("the scheduler panicked; the lines above say where: please report them")]
    Panicked,
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
    let store_max = store.max_size();
    let (committer, stored) = Committer::start(store)?;
    let state = State::new(scheduler, clock, inbox, committer, store_max);
    let taken = state.taken();
    let desk = Arc::new(Desk::new(state));
    let handle = Handle::new(Inbox::new(sender, Arc::clone(&desk)), limits, data_dir);
    Ok((handle, tokio::spawn(keep(desk, stored, taken))))
}

/// Brings what comes from nobody's hands, until the engine is halted or fails.
async fn keep(desk: Arc<Desk>, mut stored: Stored, taken: Arc<Taken>) -> Result<(), EngineError> {
    let timer = tokio::time::sleep(std::time::Duration::ZERO);
    tokio::pin!(timer);
    let (mut timer_at, mut brought) = (None, None);
    loop {
        let next = desk.keep(brought.take())?;
        if next.halted {
            break;
        }
        if next.more {
            tokio::task::yield_now().await;
            continue;
        }
        if next.due != timer_at {
            timer_at = next.due;
            if let Some(at) = timer_at {
                timer.as_mut().reset(at);
            }
        }
        tokio::select! {
            biased;
            done = stored.next() => brought = Some(Brought::Done(done?)),
            () = taken.any() => brought = Some(Brought::Taken),
            () = until(next.retry_at), if next.retry_at.is_some() => brought = Some(Brought::Retry),
            () = &mut timer, if timer_at.is_some() => timer_at = None,
            () = desk.called() => {}
        }
    }
    match desk.clear() {
        Some(state) => state.finish(&mut stored).await,
        None => Ok(()),
    }
}

async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests;

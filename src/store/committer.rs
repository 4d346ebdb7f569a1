//! The store's own thread, and the way to it.
//!
//! One channel in, one out, so the engine waits for one thing:
//!
//! ```text
//! store(batch) ─┐                                       ┌─▶ Stored: acknowledge
//! read(keys) ───┼─▶ thread: one at a time, in order ──▶ ┼─▶ Full: refuse, ask again later
//! backup(path) ─┘   quiet for a moment: idle()          └─▶ Read
//! ```
//!
//! Batches that wait one behind the other are stored as one, so what comes while one is being stored needs no
//! word from the engine to be next, and group commit falls out. A batch that had no room is kept, and is the beginning
//! of whatever is stored next.
//!
//! Any other failure ends the thread, and [`Committer::done`] says why.

use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::backup::Backup;
use super::{Store, StoreError};
use crate::row::{RowChange, RowKey};

/// Nothing asked for so long is a quiet moment. Longer than the gap between two batches under load, short
/// enough that gaps in traffic are found.
const QUIET: Duration = Duration::from_millis(20);

/// The way to the store's thread.
#[derive(Debug)]
pub struct Committer {
    requests: Option<Sender<Request>>,
    size: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Tells what became of what the [`Committer`] was asked for.
#[derive(Debug)]
pub struct Stored {
    done: mpsc::UnboundedReceiver<Result<Done, StoreError>>,
}

impl Stored {
    /// The next end of something asked for. Cancel-safe.
    ///
    /// # Errors
    /// When the store has failed: nothing more will be stored or read.
    pub async fn next(&mut self) -> Result<Done, StoreError> {
        self.done.recv().await.unwrap_or_else(|| Err(StoreError::Fatal("its thread has ended".to_owned())))
    }
}

/// Something asked of the store has ended.
#[derive(Debug)]
pub enum Done {
    /// The oldest batches are stored.
    Stored {
        /// How many of those handed over.
        batches: u64,
        /// A buffer without content, to be used again.
        buffer: Vec<RowChange>,
    },
    /// No room: nothing of what was handed over and not said to be stored is. It is kept, and tried again with the next
    /// batch, which may be empty. Until then nothing that waits for it may leave. The reason is for whoever is refused
    /// meanwhile.
    Full(StoreError),
    /// Rows read back, in the order of `keys`. The store goes on after an error: it concerns these rows.
    Read {
        /// As asked.
        keys: Vec<RowKey>,
        /// None where there is no such row.
        rows: Result<Vec<Option<Bytes>>, StoreError>,
    },
}

enum Request {
    Commit(Vec<RowChange>),
    Read(Vec<RowKey>),
    Backup { into: PathBuf, reply: oneshot::Sender<Result<u64, StoreError>> },
}

impl Committer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system refuses one.
    pub fn start(store: Box<dyn Store>) -> std::io::Result<(Self, Stored)> {
        let (requests, inbox) = channel();
        let (outbox, done) = mpsc::unbounded_channel();
        let size = Arc::new(AtomicU64::new(store.size()));
        let keeper = Keeper {
            store,
            inbox,
            next: None,
            held: Vec::new(),
            held_batches: 0,
            outbox,
            size: Arc::clone(&size),
            backup: None,
        };
        let thread = thread::Builder::new().name("crewcall-store".to_owned()).spawn(|| keeper.run())?;
        Ok((Self { requests: Some(requests), size, thread: Some(thread) }, Stored { done }))
    }

    /// Hands over a batch, to be stored behind those before it.
    pub fn store(&self, batch: Vec<RowChange>) {
        self.ask(Request::Commit(batch));
    }

    /// Asks for rows. A row is found only once the batch that puts it is stored.
    pub fn read(&self, keys: Vec<RowKey>) {
        self.ask(Request::Read(keys));
    }

    /// Writes a copy of everything stored into the new data directory `into`, while the store goes on. The
    /// copy is the store as it is when this ends; the answer is the number of rows in it. One at a time.
    pub fn backup(&self, into: PathBuf) -> oneshot::Receiver<Result<u64, StoreError>> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Backup { into, reply });
        answer
    }

    /// Bytes of disk in use, as of the last batch or quiet moment.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn ask(&self, request: Request) {
        if let Some(requests) = &self.requests {
            // A thread that has ended has said why through `done`.
            requests.send(request).ok();
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // Ends the thread after what it was asked, so that a store closes in order.
        self.requests.take();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// What runs on the thread.
struct Keeper {
    store: Box<dyn Store>,
    inbox: Receiver<Request>,
    /// Taken from the inbox already.
    next: Option<Request>,
    /// To be stored: what had no room so far, and what came behind it.
    held: Vec<RowChange>,
    held_batches: u64,
    outbox: mpsc::UnboundedSender<Result<Done, StoreError>>,
    size: Arc<AtomicU64>,
    backup: Option<(Backup, oneshot::Sender<Result<u64, StoreError>>)>,
}

/// Nobody is left to work for.
struct Gone;

impl Keeper {
    fn run(mut self) {
        while let Ok(request) = self.next() {
            let served = match request {
                Request::Commit(batch) => self.commit(batch),
                Request::Read(keys) => {
                    let rows = self.store.read(&keys);
                    self.tell(Ok(Done::Read { keys, rows }))
                }
                Request::Backup { into, reply } => {
                    self.begin_backup(into, reply);
                    Ok(())
                }
            };
            // Under load there is no quiet moment: a backup moves on a little with each request.
            if served.is_err() {
                return;
            }
            self.continue_backup();
        }
    }

    /// Waits for something to do, and uses the time.
    fn next(&mut self) -> Result<Request, Gone> {
        if let Some(request) = self.next.take() {
            return Ok(request);
        }
        while self.backup.is_some() {
            match self.inbox.try_recv() {
                Ok(request) => return Ok(request),
                Err(TryRecvError::Disconnected) => return Err(Gone),
                Err(TryRecvError::Empty) => self.continue_backup(),
            }
        }
        match self.inbox.recv_timeout(QUIET) {
            Ok(request) => return Ok(request),
            Err(RecvTimeoutError::Disconnected) => return Err(Gone),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Err(failed) = self.store.idle() {
            self.tell(Err(failed))?;
            return Err(Gone);
        }
        self.measure();
        self.inbox.recv().map_err(|_| Gone)
    }

    fn commit(&mut self, batch: Vec<RowChange>) -> Result<(), Gone> {
        self.hold(batch);
        // Not past anything else: rows are asked for before the batch is handed over that may delete them.
        while self.next.is_none() {
            match self.inbox.try_recv() {
                Ok(Request::Commit(more)) => self.hold(more),
                Ok(other) => self.next = Some(other),
                Err(_) => break,
            }
        }
        // Under load a task is submitted, leased and over within one batch: then its row is written once.
        RowChange::settle(&mut self.held);
        match self.store.commit(&self.held) {
            Ok(()) => {
                let (mut buffer, batches) = (mem::take(&mut self.held), mem::take(&mut self.held_batches));
                self.follow_with_backup(&buffer);
                buffer.clear();
                self.measure();
                self.tell(Ok(Done::Stored { batches, buffer }))
            }
            Err(reason @ StoreError::Full(_)) => self.tell(Ok(Done::Full(reason))),
            Err(failed) => {
                self.tell(Err(failed))?;
                Err(Gone)
            }
        }
    }

    fn hold(&mut self, mut batch: Vec<RowChange>) {
        if self.held.is_empty() {
            self.held = batch;
        } else {
            self.held.append(&mut batch);
        }
        self.held_batches += 1;
    }

    fn begin_backup(&mut self, into: PathBuf, reply: oneshot::Sender<Result<u64, StoreError>>) {
        let begun = match &self.backup {
            Some(_) => Err(StoreError::InUse(into)),
            None => Backup::begin(into),
        };
        match begun {
            Ok(backup) => self.backup = Some((backup, reply)),
            // The asker may have gone.
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn follow_with_backup(&mut self, batch: &[RowChange]) {
        if let Some((mut backup, reply)) = self.backup.take() {
            match backup.follow(batch) {
                Ok(()) => self.backup = Some((backup, reply)),
                Err(error) => drop(reply.send(Err(error))),
            }
        }
    }

    fn continue_backup(&mut self) {
        let Some((mut backup, reply)) = self.backup.take() else { return };
        // Dropping it removes what was written.
        if reply.is_closed() {
            return;
        }
        match backup.step(&mut *self.store) {
            Ok(false) => self.backup = Some((backup, reply)),
            Ok(true) => drop(reply.send(backup.finish())),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn measure(&self) {
        self.size.store(self.store.size(), Ordering::Relaxed);
    }

    fn tell(&self, done: Result<Done, StoreError>) -> Result<(), Gone> {
        self.outbox.send(done).map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests;

//! Where durable facts lie. The port is narrow on purpose: load everything at start, then store batches of
//! row changes, each whole or not at all. A replicated log fits behind it as well as a file.
//!
//! One thread owns the store ([`Committer`]). At most one batch is being stored while the engine gathers the
//! next, so group commit falls out by itself: a slow disk makes larger batches, not a longer queue.

use std::thread;

use bytes::Bytes;
use tokio::sync::mpsc;

pub use memory::MemoryStore;

use crate::row::{RowChange, RowKey};

mod memory;

/// A place for rows. Called from one thread only.
pub trait Store: Send + 'static {
    /// Name and reach of the store, for people: `memory (nothing survives a restart)`.
    fn describe(&self) -> String;

    /// All rows, in any order. Called once, before the first commit.
    ///
    /// # Errors
    /// When not every row can be read: a shorter history is never handed out silently.
    fn load(&mut self) -> Result<Vec<(RowKey, Bytes)>, StoreError>;

    /// Stores a batch; when this returns, it survives whatever the store promises to survive.
    ///
    /// # Errors
    /// When the batch may not have been stored. Nothing of it has been acknowledged to anyone, and the
    /// process must end: what is truly stored is found out at the next start.
    fn commit(&mut self, batch: &[RowChange]) -> Result<(), StoreError>;
}

/// The store failed; the text says where and how.
#[derive(Debug, thiserror::Error)]
#[error("store: {0}")]
pub struct StoreError(pub String);

/// The store's own thread, and the way to it.
#[derive(Debug)]
pub(crate) struct Committer {
    batches: Option<std::sync::mpsc::Sender<Vec<RowChange>>>,
    done: mpsc::UnboundedReceiver<Result<Vec<RowChange>, StoreError>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Committer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system refuses one.
    pub(crate) fn start(mut store: Box<dyn Store>) -> std::io::Result<Self> {
        let (batches, inbox) = std::sync::mpsc::channel::<Vec<RowChange>>();
        let (outbox, done) = mpsc::unbounded_channel();
        let thread = thread::Builder::new().name("crewcall-store".to_owned()).spawn(move || {
            for mut batch in inbox {
                let stored = store.commit(&batch).map(|()| {
                    batch.clear();
                    batch
                });
                let failed = stored.is_err();
                if outbox.send(stored).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Self { batches: Some(batches), done, thread: Some(thread) })
    }

    /// Hands over a batch. `stored` must be awaited before the next one.
    pub(crate) fn store(&self, batch: Vec<RowChange>) {
        if let Some(batches) = &self.batches {
            // A thread that has ended has said why through `done`.
            batches.send(batch).ok();
        }
    }

    /// The end of the batch handed over: its emptied buffer, to be used again. Cancel-safe.
    pub(crate) async fn stored(&mut self) -> Result<Vec<RowChange>, StoreError> {
        self.done.recv().await.unwrap_or_else(|| Err(StoreError("its thread has ended".to_owned())))
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // Ends the thread after the batch it has, so that a store closes in order.
        self.batches.take();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

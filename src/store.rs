//! Where durable facts lie. The port is narrow on purpose: load what a start needs, then store batches of
//! row changes, each whole or not at all, and read single rows back. A replicated log fits behind it as well
//! as a file.
//!
//! - [`MemoryStore`]: for tests and `--ephemeral`.
//! - [`EmbeddedStore`]: a file in the data directory; what it survives and what it notices is said there.
//! - [`doctor`]: what is left of a damaged data directory.
//!
//! One thread owns the store (`committer.rs`). What is handed over while one batch is being stored is the next
//! one, so group commit falls out by itself: a slow disk makes larger batches, not a longer queue.

use std::path::PathBuf;

use bytes::Bytes;

pub use committer::{Committer, Done, Stored};
pub use doctor::{LostRows, Report, doctor, repair};
pub use embedded::{EmbeddedStore, StoreOptions};
pub use memory::MemoryStore;

use crate::row::{RowChange, RowKey};

mod backup;
mod committer;
mod doctor;
mod embedded;
mod memory;

/// A place for rows. Called from one thread only.
///
/// Every error but [`StoreError::Full`] ends the store's life: whoever gets one stops serving from it.
pub trait Store: Send + 'static {
    /// Name and reach of the store, for people: `memory (nothing survives a restart)`.
    fn describe(&self) -> String;

    /// Hands every row that is [loaded at start](RowKey::is_loaded_at_start) to `take`, each once, in any
    /// order. Called once, before the first commit. What it hands over is durable when it returns, also
    /// what a process that died had written without having synced it.
    ///
    /// # Errors
    /// When not every row can be read: a shorter history is never handed out silently. Rows taken before an
    /// error mean nothing.
    fn load(&mut self, take: &mut dyn FnMut(RowKey, Bytes)) -> Result<(), StoreError>;

    /// The rows stored under `keys`, in their order; none where there is no such row.
    ///
    /// # Errors
    /// When one of them cannot be read as it was stored.
    fn read(&mut self, keys: &[RowKey]) -> Result<Vec<Option<Bytes>>, StoreError>;

    /// Up to `most` rows of any kind whose keys follow `after`, in the order of [`RowKey::parts`].
    ///
    /// # Errors
    /// When one of them cannot be read as it was stored.
    fn scan(&mut self, after: Option<RowKey>, most: usize) -> Result<Vec<(RowKey, Bytes)>, StoreError>;

    /// Stores a batch; when this returns, it survives whatever the store promises to survive. Changes apply
    /// in order: the last one of a key counts.
    ///
    /// # Errors
    /// [`StoreError::Full`]: nothing of the batch is stored; the same batch may be tried again at any time.
    /// Anything else: the batch may or may not be stored, nothing of it may be acknowledged, and the process
    /// must end; what is truly stored is found out at the next start.
    fn commit(&mut self, batch: &[RowChange]) -> Result<(), StoreError>;

    /// Called when nothing has been asked for a short while: the time for work that would be in the way
    /// otherwise. Must be quick when there is nothing to do.
    ///
    /// # Errors
    /// As [`Store::commit`], but never `Full`.
    fn idle(&mut self) -> Result<(), StoreError>;

    /// Bytes of disk in use.
    fn size(&self) -> u64;

    /// Most bytes of disk that its rows may take; `None` is as much as there is.
    fn max_size(&self) -> Option<u64> {
        None
    }

    /// The directory it lies in, if it lies in one.
    fn dir(&self) -> Option<&std::path::Path> {
        None
    }
}

/// What went wrong, by what can be done about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No room for the batch, and nothing of it is stored: hold it, refuse what would need more, try again.
    #[error("the store has no room: {0}; free some space, nothing else is needed")]
    Full(String),
    /// It cannot be known what is stored: stop without acknowledging anything more. After a failed fsync
    /// the kernel may have dropped what it could not write, so trying again would prove nothing.
    #[error("the store failed: {0}; what is truly stored is found out at the next start")]
    Fatal(String),
    /// Opening: another process has it.
    #[error("the data directory {} is in use by another process; stop that one, or use another directory", .0.display())]
    InUse(PathBuf),
    /// Opening: the directory or a file in it cannot be created or written.
    #[error("the data directory {} cannot be written: {why}", .dir.display())]
    Unwritable {
        /// The data directory.
        dir: PathBuf,
        /// What the operating system says.
        why: String,
    },
    /// Opening: not enough space to start.
    #[error("the disk that holds the data directory {} is full; free some space and start again", .0.display())]
    DiskFull(PathBuf),
    /// Opening: written by a newer crewcall.
    #[error(
        "the data directory {} has format {found}; this crewcall knows formats up to {known}: use the one that wrote it, or a newer one",
        .dir.display()
    )]
    NewerFormat {
        /// The data directory.
        dir: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format this program reads.
        known: u32,
    },
    /// Damaged, or cut short: nothing is served from it.
    #[error(
        "the store is damaged: {what} ({place}); `crewcall doctor` shows what is left and what would be lost"
    )]
    Corrupt {
        /// What is wrong.
        what: String,
        /// The file, and the row or frame in it.
        place: String,
    },
}

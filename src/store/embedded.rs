//! The durable store of one machine: SQLite in the data directory.
//!
//! ```text
//! crewcall.db       tables (format.rs)          written at checkpoints only
//! crewcall.db-wal   SQLite's log (log.rs)       appended and synced with each batch
//! crewcall.head     the last batch (head.rs)    written after each batch, synced before checkpoints
//! ```
//!
//! # What it survives
//! The death of the process at any moment, and a power cut if the disk keeps what it said it had synced:
//! every batch whose commit returned is there, each is there whole or not at all.
//!
//! # What it notices
//! Instead of opening a shorter history it refuses, when
//! - a row does not match its checksum, or rows that are loaded at start are missing, too many or exchanged
//!   (each kind's count and sum of digests are stored with each batch);
//! - the log is damaged before its last transactions: what follows a damaged one proves that it was synced;
//! - fewer batches are there than `crewcall.head` has seen: the log is gone, cut or damaged at its end, or
//!   `crewcall.db` was replaced by an older copy;
//! - one of the three files is missing, or belongs to another store.
//!
//! # What it does not notice
//! - After a power cut, damage to the end of the log that happens to look like the trace of the power cut,
//!   as far as `crewcall.head` had not been synced: at most what was stored since the last quiet moment or
//!   checkpoint if the log was cut off, the last two transactions if bits changed. After the mere death of
//!   the process there is no such gap.
//! - All three files replaced by older copies of themselves: that is what restoring a backup is.
//! - Rows that are not loaded at start, before they are read: [`doctor`](super::doctor) reads everything.
//! - A page of SQLite's list of free pages that points to a page in use: `doctor` finds it.
//!
//! # Settings, and why
//! - `journal_mode=WAL`, `synchronous=FULL`: one sequential write and one fsync for each batch; with `NORMAL`
//!   a power cut would lose acknowledged batches (<https://sqlite.org/pragma.html#pragma_synchronous>).
//!   `fullfsync`: on macOS fsync does not reach the disk otherwise.
//! - `locking_mode=EXCLUSIVE`: no shared memory, no lock traffic, and no second writer; one writing
//!   connection is also what the WAL-reset bug of SQLite before 3.51.3 needed two of.
//! - `wal_autocheckpoint=0`: a checkpoint inside a commit is its p99. They are made in quiet moments, or
//!   before a commit once the log has [`StoreOptions::checkpoint_bytes`]. The log keeps its length: writing
//!   over allocated blocks syncs faster than growing. None when closing, either: so the log is always there,
//!   and its absence means something.
//! - `cell_size_check`: damaged pages are found before they are followed
//!   (<https://sqlite.org/pragma.html#pragma_cell_size_check>). `mmap_size=0`: an I/O error is an error, not a
//!   SIGBUS, and stray writes cannot reach the file. `trusted_schema=OFF`: the file is data, not code.
//! - Pages of 8 KiB: in a `WITHOUT ROWID` table a quarter of a page stays in its leaf, so a payload of 1 KiB
//!   needs no overflow page of its own.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rusqlite::Connection;

use super::{Store, StoreError};
use crate::row::{RowChange, RowKey};
use error::{corrupt, failure, is_full, no_room, opening, opening_tables, running};
use format::{State, Totals};
use head::{Found, Head, HeadFile};
use open::{create_dir, sync_dir};
use rows::Table;

pub(super) mod error;
pub(super) mod format;
pub(super) mod head;
pub(super) mod log;
pub(super) mod open;
mod rows;

const PAGE: u64 = 8192;
/// A log shorter than this is not worth two syncs in a quiet moment: it is read back in milliseconds.
const WORTH_A_CHECKPOINT: u64 = 256 * 1024 / PAGE;

/// What may be chosen about an [`EmbeddedStore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// A log that has grown to this many bytes is written into the tables also when there is no quiet moment.
    /// More makes the stall rarer and longer, and the start after a crash slower. Default 16 MiB.
    pub checkpoint_bytes: u64,
    /// Memory for pages, in bytes. Default 16 MiB.
    pub cache_bytes: u64,
    /// Most bytes that the tables may take; at it batches are refused with [`StoreError::Full`] until rows
    /// are deleted. The log comes on top. Default none.
    pub max_bytes: Option<u64>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { checkpoint_bytes: 16 << 20, cache_bytes: 16 << 20, max_bytes: None }
    }
}

/// SQLite in a data directory. What it survives and what it notices is said at the top of its file.
#[derive(Debug)]
pub struct EmbeddedStore {
    dir: PathBuf,
    connection: Connection,
    head: HeadFile,
    state: State,
    table: Table,
    /// Pages in the log that the tables do not have yet; told by SQLite with each commit.
    log_pages: Arc<AtomicU64>,
    /// The next checkpoint that is made without a quiet moment.
    checkpoint_at: u64,
    checkpoint_pages: u64,
    max_bytes: Option<u64>,
    /// What was found at the start has been made durable.
    settled: bool,
    /// Why nothing more can be done.
    failed: Option<StoreError>,
}

impl EmbeddedStore {
    /// Opens the store in `dir`, creating directory and files that nobody else may read where there are none.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`Unwritable`](StoreError::Unwritable), [`DiskFull`](StoreError::DiskFull),
    /// [`NewerFormat`](StoreError::NewerFormat) and [`Corrupt`](StoreError::Corrupt), as they say. Nothing was
    /// changed then, except that an unfinished creation may have left files without content.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        create_dir(dir).map_err(|error| opening(dir, &error))?;
        let head = HeadFile::lock(dir).map_err(|error| opening(dir, &error))?;
        let Some(mut head) = head else { return Err(StoreError::InUse(dir.to_owned())) };
        let seen = match head.read().map_err(|error| opening(dir, &error))? {
            Found::Head(seen) => Some(seen),
            Found::Nothing => None,
            // Torn by a power cut while the store was made, if its tables are there and empty.
            Found::Damaged if dir.join(format::FILE).exists() => None,
            Found::Damaged => return Err(corrupt("neither of its two entries can be read", head::FILE)),
            Found::Newer(found) => {
                let known = format::FORMAT;
                return Err(StoreError::NewerFormat { dir: dir.to_owned(), found, known });
            }
        };
        open::check_files(dir, seen)?;
        if seen.is_none() {
            open::create_files(dir)?;
        }
        let (mut connection, state) = open::open_tables(dir, &options)?;
        open::check_state(&state, seen)?;
        if seen.is_none() {
            let first = Head { store: state.store, batch: state.batch };
            head.create(first).and_then(|()| sync_dir(dir)).map_err(|error| opening(dir, &error))?;
        }
        let log_pages = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&log_pages);
        count_log_pages(&mut connection, told).map_err(|error| opening_tables(dir, &error))?;
        let table = Table::new(&connection).map_err(|error| opening_tables(dir, &error))?;
        let checkpoint_pages = (options.checkpoint_bytes / PAGE).max(1);
        Ok(Self {
            dir: dir.to_owned(),
            connection,
            head,
            state,
            table,
            log_pages,
            checkpoint_at: checkpoint_pages,
            checkpoint_pages,
            max_bytes: options.max_bytes,
            settled: false,
            failed: None,
        })
    }

    /// How many rows are stored.
    pub fn rows(&self) -> u64 {
        self.state.totals.all().map(|total| total.rows).sum()
    }

    /// How many batches were stored in the store's life. Each start is one more.
    pub fn batch(&self) -> u64 {
        self.state.batch
    }

    /// Writes the log into the tables and closes. Dropping does the same and can only log what goes wrong;
    /// nothing acknowledged depends on it.
    ///
    /// # Errors
    /// When that fails.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.wind_up()
    }

    fn wind_up(&mut self) -> Result<(), StoreError> {
        if self.failed.is_none() {
            self.checkpoint()?;
            // Once: what follows is `drop`.
            self.failed = Some(StoreError::Fatal("it is closed".to_owned()));
        }
        Ok(())
    }

    fn alive(&self) -> Result<(), StoreError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// From here on nothing is stored any more: after a failed fsync nobody knows what the disk has.
    fn fail(&mut self, error: StoreError) -> StoreError {
        self.failed = Some(error.clone());
        error
    }

    /// Makes what was found at the start durable. A process that died may have written a batch without having
    /// synced it, or its sync may have failed: the kernel's copy is then all there is, and marked clean. So
    /// everything in the log is written anew, into the tables, before anyone is told of it. It also shows
    /// that there is room.
    fn settle(&mut self) -> Result<(), StoreError> {
        if self.settled {
            return Ok(());
        }
        let full = || StoreError::DiskFull(self.dir.clone());
        match transact(&mut self.connection, &self.state, &[], &mut self.table) {
            Ok(state) => self.state = state,
            Err(error) if is_full(&error) => return Err(full()),
            Err(error) => {
                let error = opening_tables(&self.dir, &error);
                return Err(self.fail(error));
            }
        }
        self.witness()?;
        if !self.checkpoint()? {
            return Err(StoreError::DiskFull(self.dir.clone()));
        }
        self.settled = true;
        Ok(())
    }

    /// Writes the log into the tables. False if there is no room for that.
    fn checkpoint(&mut self) -> Result<bool, StoreError> {
        // First: should a torn log be all that is left after a power cut, this tells what it lacks.
        self.head.sync().map_err(|error| self.fail(running(head::FILE, &error)))?;
        let pages = self.log_pages.load(Ordering::Relaxed);
        if pages == 0 {
            return Ok(true);
        }
        let whole = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
            let (busy, log, done): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(busy == 0 && log == done)
        });
        match whole {
            Ok(true) => {
                self.log_pages.store(0, Ordering::Relaxed);
                self.checkpoint_at = self.checkpoint_pages;
                Ok(true)
            }
            Err(error) if !is_full(&error) => Err(self.fail(failure(&error))),
            // The log can grow meanwhile.
            _ => {
                self.checkpoint_at = pages + self.checkpoint_pages;
                Ok(false)
            }
        }
    }

    /// Tells `crewcall.head` of the last batch.
    fn witness(&mut self) -> Result<(), StoreError> {
        match self.head.write(Head { store: self.state.store, batch: self.state.batch }) {
            // On a file system that never writes in place. The witness then knows less; what it says is true.
            Err(error) if no_room(&error) => Ok(()),
            Err(error) => Err(self.fail(running(head::FILE, &error))),
            Ok(()) => Ok(()),
        }
    }

    /// Cuts off what a batch that had no room left behind the last whole one in the log: frames that look
    /// like acknowledged ones to `log.rs` once something was written over their beginning.
    fn trim_log(&mut self) -> Result<(), StoreError> {
        let pages = self.connection.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get::<_, i64>(1));
        let pages = pages.map_err(|error| self.fail(failure(&error)))?;
        let length = match u64::try_from(pages) {
            Ok(0) | Err(_) => 0,
            Ok(pages) => log::HEADER + pages * (log::FRAME_HEADER + PAGE),
        };
        let trimmed = OpenOptions::new()
            .write(true)
            .open(self.dir.join(log::FILE))
            .and_then(|log| if log.metadata()?.len() > length { log.set_len(length) } else { Ok(()) });
        trimmed.map_err(|error| self.fail(running(log::FILE, &error)))
    }
}

impl Store for EmbeddedStore {
    fn describe(&self) -> String {
        format!("embedded ({}, SQLite {})", self.dir.display(), rusqlite::version())
    }

    fn load(&mut self, take: &mut dyn FnMut(RowKey, Bytes)) -> Result<(), StoreError> {
        self.alive()?;
        let mut found = Totals::default();
        let mut statement = self
            .connection
            .prepare("SELECT kind, id, crc, data FROM rows WHERE kind < ?1")
            .map_err(|error| failure(&error))?;
        let mut rows = statement.query([RowKey::READ_WHEN_WANTED]).map_err(|error| failure(&error))?;
        while let Some(row) = rows.next().map_err(|error| failure(&error))? {
            let row = format::stored(row).map_err(|error| failure(&error))?;
            let row = row.map_err(|bad| corrupt(bad.problem, bad))?;
            found.add(row.kind, row.crc);
            take(row.key, row.data);
        }
        drop(rows);
        drop(statement);
        for kind in 0..RowKey::READ_WHEN_WANTED {
            let (found, stored) = (found.get(kind), self.state.totals.get(kind));
            if found != stored {
                let what = format!(
                    "{} rows of kind {kind} were stored, {} of them are found",
                    stored.rows, found.rows
                );
                let what = if found.rows == stored.rows {
                    format!("rows of kind {kind} were exchanged")
                } else {
                    what
                };
                return Err(corrupt(what, format::FILE));
            }
        }
        self.settle()
    }

    fn read(&mut self, keys: &[RowKey]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.alive()?;
        let read = |key: &RowKey| match rows::read(&self.connection, *key).map_err(|error| failure(&error))? {
            Some(Ok(row)) if row.key == *key => Ok(Some(row.data)),
            Some(Ok(row)) => {
                Err(corrupt(format!("{:?} lies under the key of {key:?}", row.key), format::FILE))
            }
            Some(Err(bad)) => Err(corrupt(bad.problem, bad)),
            None => Ok(None),
        };
        keys.iter().map(read).collect()
    }

    fn scan(&mut self, after: Option<RowKey>, most: usize) -> Result<Vec<(RowKey, Bytes)>, StoreError> {
        self.alive()?;
        let rows = rows::scan(&self.connection, after, most).map_err(|error| failure(&error))?;
        rows.into_iter()
            .map(|row| match row {
                Ok(row) => Ok((row.key, row.data)),
                Err(bad) => Err(corrupt(bad.problem, bad)),
            })
            .collect()
    }

    fn commit(&mut self, batch: &[RowChange]) -> Result<(), StoreError> {
        self.alive()?;
        self.settle()?;
        let batch = RowChange::settled(batch);
        if self.log_pages.load(Ordering::Relaxed) >= self.checkpoint_at {
            self.checkpoint()?;
        }
        let mut stored = transact(&mut self.connection, &self.state, &batch, &mut self.table);
        // Once the tables have what the log holds, the batch can be written over it.
        if stored.as_ref().is_err_and(is_full) && self.checkpoint()? {
            stored = transact(&mut self.connection, &self.state, &batch, &mut self.table);
        }
        match stored {
            Ok(state) => {
                self.state = state;
                self.witness()
            }
            Err(error) if is_full(&error) => {
                self.trim_log()?;
                Err(StoreError::Full(error.to_string()))
            }
            Err(error) => Err(self.fail(failure(&error))),
        }
    }

    fn idle(&mut self) -> Result<(), StoreError> {
        self.alive()?;
        if self.log_pages.load(Ordering::Relaxed) >= WORTH_A_CHECKPOINT {
            self.checkpoint()?;
        }
        self.head.sync().map_err(|error| self.fail(running(head::FILE, &error)))
    }

    fn size(&self) -> u64 {
        let length = |file| fs::metadata(self.dir.join(file)).map_or(0, |found: fs::Metadata| found.len());
        [format::FILE, log::FILE, head::FILE].into_iter().map(length).sum()
    }

    fn max_size(&self) -> Option<u64> {
        self.max_bytes
    }

    fn dir(&self) -> Option<&Path> {
        Some(&self.dir)
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        if let Err(error) = self.wind_up() {
            tracing::warn!(%error, "the store was closed without a checkpoint; the next start makes it");
        }
    }
}

/// One batch, settled, in one transaction; the state after it.
fn transact(
    connection: &mut Connection,
    state: &State,
    batch: &[RowChange],
    table: &mut Table,
) -> rusqlite::Result<State> {
    let mut state = state.clone();
    state.batch += 1;
    let transaction = connection.transaction()?;
    table.apply(&transaction, batch, &mut state.totals)?;
    state.save(&transaction)?;
    transaction.commit()?;
    Ok(state)
}

fn count_log_pages(connection: &mut Connection, told: Arc<AtomicU64>) -> rusqlite::Result<()> {
    connection.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages| {
        told.store(u64::try_from(pages).unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }))
}

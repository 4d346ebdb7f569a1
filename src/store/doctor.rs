//! What is left of a data directory, and what would be lost: for a person who has to decide.
//!
//! Nothing in the directory is changed. What can be read is told, and [`repair`] copies it into a new
//! directory beside; whether that is used is for a person to say. Rows are also matched: a task's payload lies in
//! a row of its own, and neither is of use without the other.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags};

use super::embedded::format::{self, State, Totals};
use super::embedded::head::{self, Found, HeadFile};
use super::embedded::{EmbeddedStore, StoreOptions, error, log, open};
use super::{Store, StoreError};
use crate::row::{Row, RowChange, RowKey, RowReader};
use crate::task::TaskId;

/// Findings of one kind that are told singly; the rest is counted.
const MOST_TOLD: usize = 100;
/// Rows in a batch of a repair.
const SLICE: usize = 500;

/// The state of a data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The directory.
    pub dir: PathBuf,
    /// What is wrong, in words, each with its place. Empty when all is well.
    pub findings: Vec<String>,
    /// How many batches are known to have been stored; none if nothing readable says so.
    pub batches_stored: Option<u64>,
    /// Up to which batch the directory can be read; none if it cannot.
    pub batches_found: Option<u64>,
    /// Rows that can be read as they were written.
    pub rows_found: u64,
    /// Rows that were stored and cannot be read.
    pub rows_lost: Vec<LostRows>,
    /// Tasks that can be read, but whose payload cannot: a repair leaves them out.
    pub tasks_without_payload: u64,
    /// Whether what can be read comes from `crewcall.db` alone, because that is better than with its log.
    pub without_log: bool,
}

/// Rows of a kind that were stored and cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostRows {
    /// The kind: see [`RowKey::parts`].
    pub kind: u8,
    /// How many were stored.
    pub stored: u64,
    /// How many of them can be read.
    pub found: u64,
}

impl Report {
    /// Whether all is well: opening would succeed, and nothing is lost.
    pub const fn is_healthy(&self) -> bool {
        self.findings.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} rows can be read", self.dir.display(), self.rows_found)?;
        if self.without_log {
            writeln!(f, "  from {} alone, which has more than it has with its log", format::FILE)?;
        }
        for finding in &self.findings {
            writeln!(f, "  wrong: {finding}")?;
        }
        match (self.batches_stored, self.batches_found) {
            (Some(stored), Some(found)) if stored > found => {
                writeln!(f, "  would be lost: the last {} of {stored} stored batches", stored - found)?;
            }
            (_, None) => writeln!(f, "  would be lost: everything; restore a backup")?,
            _ => {}
        }
        for lost in &self.rows_lost {
            let missing = lost.stored.saturating_sub(lost.found);
            writeln!(f, "  would be lost: {missing} of {} rows of kind {}", lost.stored, lost.kind)?;
        }
        if self.tasks_without_payload > 0 {
            writeln!(f, "  would be lost: {} tasks whose payload is lost", self.tasks_without_payload)?;
        }
        if self.is_healthy() { writeln!(f, "  nothing is wrong") } else { Ok(()) }
    }
}

/// Examines the data directory `dir`: every row, SQLite's own check of its structure, the log and the
/// witness. Reads everything, so it takes as long as that takes. Changes nothing.
///
/// # Errors
/// [`StoreError::InUse`], [`Unwritable`](StoreError::Unwritable) when there is no such directory or it cannot be
/// read, [`NewerFormat`](StoreError::NewerFormat). Damage is no error: it is what the report is about.
pub fn doctor(dir: &Path) -> Result<Report, StoreError> {
    examine(dir).map(|(report, _)| report)
}

/// Copies what can be read of `dir` into the new data directory `into`, and changes nothing in `dir`. A task without
/// its payload, and a payload without its task, are left out.
///
/// # Errors
/// As [`doctor`], and when `into` exists or cannot be written.
pub fn repair(dir: &Path, into: &Path) -> Result<Report, StoreError> {
    if into.exists() {
        let why = "it is there already; what is saved goes into a directory of its own".to_owned();
        return Err(StoreError::Unwritable { dir: into.to_owned(), why });
    }
    // Again: which way of reading is the better one is known in the end.
    let (report, _lock) = examine(dir)?;
    let mut saved = EmbeddedStore::open(into, StoreOptions::default())?;
    let mut batch = Vec::with_capacity(SLICE);
    let connection = if report.without_log { tables_alone(dir) } else { with_log(dir) };
    if let Ok(connection) = connection {
        let mut halves = Halves::default();
        each_row(&connection, &mut Vec::new(), &mut |key, data| {
            halves.see(key, data);
            Ok(())
        })?;
        each_row(&connection, &mut Vec::new(), &mut |key, data| {
            if halves.are_parted(key) {
                return Ok(());
            }
            batch.push(RowChange::Put(key, data));
            if batch.len() == SLICE {
                saved.commit(&batch)?;
                batch.clear();
            }
            Ok(())
        })?;
    }
    saved.commit(&batch)?;
    saved.close()?;
    Ok(report)
}

/// Takes a readable row.
type Take<'a> = dyn FnMut(RowKey, Bytes) -> Result<(), StoreError> + 'a;

fn examine(dir: &Path) -> Result<(Report, Option<HeadFile>), StoreError> {
    fs::read_dir(dir).map_err(|error| error::opening(dir, &error))?;
    let mut findings = Vec::new();
    let lock = lock(dir, &mut findings)?;
    let (lock, seen) = match lock {
        Some((lock, seen)) => (Some(lock), seen),
        None => (None, None),
    };
    let log = log::inspect(dir).map_err(|error| error::opening(dir, &error))?;
    match log {
        None => findings.push(format!("{} is missing", log::FILE)),
        Some(state) if state.acknowledged_beyond > 0 => findings.push(format!(
            "{}: frame {} is damaged, and at least {} stored batches follow it",
            log::FILE,
            state.good + 1,
            state.acknowledged_beyond
        )),
        Some(_) => {}
    }
    if !dir.join(format::FILE).exists() {
        findings.push(format!("{} is missing", format::FILE));
        let batches_stored = seen.map(|seen| seen.batch);
        return Ok((Report { dir: dir.to_owned(), findings, batches_stored, ..Report::default() }, lock));
    }

    // Opening with a log that is missing would create it.
    let mut read = if log.is_some() { Reading::of(dir, with_log(dir), seen)? } else { Reading::default() };
    let mut without_log = false;
    if !read.is_whole() || !findings.is_empty() {
        let alone = Reading::of(dir, tables_alone(dir), seen)?;
        if alone.rank() > read.rank() {
            (read, without_log) = (alone, true);
        }
    }
    findings.append(&mut read.findings);
    let report = Report {
        dir: dir.to_owned(),
        findings,
        batches_stored: seen.map(|seen| seen.batch).max(read.batch),
        batches_found: read.batch,
        rows_found: read.rows,
        rows_lost: read.lost,
        tasks_without_payload: read.tasks_without_payload,
        without_log,
    };
    Ok((report, lock))
}

fn lock(
    dir: &Path,
    findings: &mut Vec<String>,
) -> Result<Option<(HeadFile, Option<head::Head>)>, StoreError> {
    if !dir.join(head::FILE).exists() {
        findings.push(format!("{} is missing", head::FILE));
        return Ok(None);
    }
    let lock = HeadFile::lock(dir).map_err(|error| error::opening(dir, &error))?;
    let Some(mut lock) = lock else { return Err(StoreError::InUse(dir.to_owned())) };
    let seen = match lock.read().map_err(|error| error::opening(dir, &error))? {
        Found::Head(seen) => Some(seen),
        Found::Nothing => None,
        Found::Damaged => {
            findings.push(format!("{}: neither of its two entries can be read", head::FILE));
            None
        }
        Found::Newer(found) => {
            return Err(StoreError::NewerFormat { dir: dir.to_owned(), found, known: format::FORMAT });
        }
    };
    Ok(Some((lock, seen)))
}

/// As a start would read it. Nothing is written: the log is not written into the tables when it is closed.
fn with_log(dir: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(dir.join(format::FILE), flags)?;
    open::lock(&connection)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// As of the last checkpoint. When the log is damaged in a part that was in the tables already, its healthy
/// beginning would hide newer pages.
fn tables_alone(dir: &Path) -> rusqlite::Result<Connection> {
    let mut uri = "file:".to_owned();
    for byte in dir.join(format::FILE).as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte))
            }
            _ => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

/// One way to read a directory, and what came of it.
#[derive(Default)]
struct Reading {
    findings: Vec<String>,
    batch: Option<u64>,
    rows: u64,
    lost: Vec<LostRows>,
    tasks_without_payload: u64,
}

impl Reading {
    fn of(
        dir: &Path,
        connection: rusqlite::Result<Connection>,
        seen: Option<head::Head>,
    ) -> Result<Self, StoreError> {
        let mut read = Self::default();
        let opened = connection.and_then(|connection| Ok((open::identify(&connection)?, connection)));
        let connection = match opened {
            Ok((identity, connection)) => match open::check_identity(dir, &identity) {
                Ok(()) => connection,
                Err(error @ StoreError::NewerFormat { .. }) => return Err(error),
                Err(error) => {
                    read.findings.push(error.to_string());
                    connection
                }
            },
            Err(error) => {
                return match error::opening_tables(dir, &error) {
                    error @ (StoreError::InUse(_) | StoreError::Unwritable { .. }) => Err(error),
                    _ => {
                        read.findings.push(format!("{}: {error}", format::FILE));
                        Ok(read)
                    }
                };
            }
        };
        read.structure(&connection);
        let state = read.state(&connection, seen);
        let (mut found, mut halves) = (Totals::default(), Halves::default());
        each_row(&connection, &mut read.findings, &mut |key, data| {
            let (kind, id) = key.parts();
            found.add(kind, format::row_crc(kind, &id, &data));
            halves.see(key, data);
            Ok(())
        })?;
        halves.tell(&mut read);
        read.rows = found.all().map(|total| total.rows).sum();
        let Some(state) = state else { return Ok(read) };
        read.batch = Some(state.batch);
        for stored in state.totals.all().filter(|stored| found.get(stored.kind) != *stored) {
            let found = found.get(stored.kind).rows;
            let what = "rows of kind";
            read.findings
                .push(format!("{what} {}: {} were stored, {found} can be read", stored.kind, stored.rows));
            read.lost.push(LostRows { kind: stored.kind, stored: stored.rows, found });
        }
        Ok(read)
    }

    const fn is_whole(&self) -> bool {
        self.findings.is_empty() && self.batch.is_some()
    }

    /// More is better: nothing wrong, then history, then rows.
    const fn rank(&self) -> (bool, Option<u64>, u64) {
        (self.is_whole(), self.batch, self.rows)
    }

    /// SQLite's own check: order of keys, free pages, pages used twice.
    fn structure(&mut self, connection: &Connection) {
        let mut check = || -> rusqlite::Result<()> {
            let mut statement = connection.prepare(&format!("PRAGMA integrity_check({MOST_TOLD})"))?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let text: String = row.get(0)?;
                if text != "ok" {
                    self.findings.push(format!("{}: {text}", format::FILE));
                }
            }
            Ok(())
        };
        if let Err(error) = check() {
            self.findings.push(format!("{}: {error}", format::FILE));
        }
    }

    fn state(&mut self, connection: &Connection, seen: Option<head::Head>) -> Option<State> {
        let state = State::read(connection).ok().flatten();
        match (&state, seen) {
            (None, _) => self.findings.push(format!("{}: its state cannot be read", format::FILE)),
            (Some(state), None) if state.batch > 0 => self.findings.push(format!(
                "{} does not say that {} batches were stored",
                head::FILE,
                state.batch
            )),
            (Some(state), Some(seen)) if seen.store != state.store => {
                self.findings.push(format!("{} belongs to another store", head::FILE));
            }
            (Some(state), Some(seen)) if seen.batch > state.batch => self
                .findings
                .push(format!("{} batches were stored, only {} are found", seen.batch, state.batch)),
            _ => {}
        }
        state
    }
}

/// Tasks and payloads that must come in pairs.
#[derive(Default)]
struct Halves {
    reader: RowReader,
    /// Tasks that have a payload.
    tasks: BTreeSet<TaskId>,
    payloads: BTreeSet<TaskId>,
}

impl Halves {
    fn see(&mut self, key: RowKey, data: Bytes) {
        match key {
            RowKey::Payload(id) => {
                self.payloads.insert(id);
            }
            RowKey::Task(id) => {
                if matches!(self.reader.read(key, data), Ok(Row::Task(task)) if task.body.size() > 0) {
                    self.tasks.insert(id);
                }
            }
            _ => {}
        }
    }

    /// Whether the row is one half without the other.
    fn are_parted(&self, key: RowKey) -> bool {
        match key {
            RowKey::Task(id) => self.tasks.contains(&id) && !self.payloads.contains(&id),
            RowKey::Payload(id) => self.payloads.contains(&id) && !self.tasks.contains(&id),
            _ => false,
        }
    }

    fn tell(&self, read: &mut Reading) {
        let lost: Vec<_> = self.tasks.difference(&self.payloads).collect();
        let orphans: Vec<_> = self.payloads.difference(&self.tasks).collect();
        read.tasks_without_payload = lost.len() as u64;
        let finding = |what: &str, ids: &[&TaskId]| {
            let named: Vec<_> = ids.iter().take(MOST_TOLD).map(ToString::to_string).collect();
            let more = if ids.len() > MOST_TOLD { ", ..." } else { "" };
            (!ids.is_empty()).then(|| format!("{} {what}: {}{more}", ids.len(), named.join(", ")))
        };
        read.findings.extend(finding("tasks lack their payload", &lost));
        read.findings.extend(finding("payloads lack their task", &orphans));
    }
}

/// Hands over every row that can be read: from the first key on, and where a page cannot be read also from
/// the last key back.
fn each_row(
    connection: &Connection,
    findings: &mut Vec<String>,
    take: &mut Take<'_>,
) -> Result<(), StoreError> {
    // Before format 2 no payload lay in the row of its task.
    let beside = match connection.prepare("SELECT payload_crc FROM rows") {
        Ok(_) => "payload_crc, payload",
        Err(_) => "NULL, NULL",
    };
    let (mut bad_rows, mut reached, mut taken) = (0, None, Ok(()));
    for order in ["ASC", "DESC"] {
        let mut walk = || -> rusqlite::Result<()> {
            let all =
                format!("SELECT kind, id, crc, data, {beside} FROM rows ORDER BY kind {order}, id {order}");
            let mut statement = connection.prepare(&all)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let key = format::key(row)?;
                if order == "ASC" {
                    reached = key.or(reached);
                } else if key.is_some() && key <= reached {
                    return Ok(());
                }
                for row in [Some(format::stored(row)?), format::beside(row)?].into_iter().flatten() {
                    match row {
                        Ok(row) => {
                            taken = take(row.key, row.data);
                            if taken.is_err() {
                                return Ok(());
                            }
                        }
                        Err(bad) => {
                            bad_rows += 1;
                            if bad_rows <= MOST_TOLD {
                                findings.push(format!("{bad}: {}", bad.problem));
                            }
                        }
                    }
                }
            }
            Ok(())
        };
        match walk() {
            Ok(()) => break,
            Err(error) if order == "ASC" => findings.push(format!("{}: {error}", format::FILE)),
            Err(_) => {}
        }
    }
    if bad_rows > MOST_TOLD {
        findings.push(format!("{}: {} more bad rows", format::FILE, bad_rows - MOST_TOLD));
    }
    taken
}

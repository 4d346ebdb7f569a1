//! From a directory to a store: files made, locked and checked, settings made.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::error::{corrupt, opening, opening_tables};
use super::format::{self, State};
use super::head::{self, Head};
use super::{PAGE, StoreOptions, log};
use crate::store::StoreError;

/// The three files are there together, or not at all, and the log is whole as far as it was acknowledged.
pub(super) fn check_files(dir: &Path, seen: Option<Head>) -> Result<(), StoreError> {
    let log = log::inspect(dir).map_err(|error| opening(dir, &error))?;
    if let Some(state) = log
        && state.acknowledged_beyond > 0
    {
        let what = format!(
            "frame {} is damaged, and at least {} stored batches follow it",
            state.good + 1,
            state.acknowledged_beyond
        );
        return Err(corrupt(what, log::FILE));
    }
    let Some(seen) = seen else { return Ok(()) };
    if !dir.join(format::FILE).exists() {
        return Err(corrupt(format!("it is missing, with the {} batches it had", seen.batch), format::FILE));
    }
    if log.is_none() {
        return Err(corrupt("it is missing, with what was stored last", log::FILE));
    }
    Ok(())
}

/// Empty tables under another name, renamed when they are on the disk: a creation that is cut short is begun
/// again. Does nothing where there are tables.
pub(super) fn create_files(dir: &Path) -> Result<(), StoreError> {
    let (tables, new) = (dir.join(format::FILE), dir.join("crewcall.db.new"));
    if !tables.exists() {
        for leftover in ["crewcall.db.new", "crewcall.db.new-wal", "crewcall.db.new-journal"] {
            fs::remove_file(dir.join(leftover)).ok();
        }
        let opened = private().write(true).create(true).truncate(true).open(&new);
        let file = opened.map_err(|error| opening(dir, &error))?;
        create_tables(&new).map_err(|error| opening_tables(dir, &error))?;
        let renamed = file.sync_all().and_then(|()| fs::rename(&new, &tables));
        renamed.map_err(|error| opening(dir, &error))?;
    }
    // SQLite would make it too, but with its name on the disk only after the first batch.
    let log = private().write(true).create(true).truncate(false).open(dir.join(log::FILE));
    log.and_then(|_| sync_dir(dir)).map_err(|error| opening(dir, &error))
}

fn create_tables(path: &Path) -> rusqlite::Result<()> {
    let mut connection = Connection::open_with_flags(path, FLAGS)?;
    connection.pragma_update(None, "page_size", PAGE as i64)?;
    let transaction = connection.transaction()?;
    transaction.pragma_update(None, "application_id", format::APPLICATION)?;
    transaction.pragma_update(None, "user_version", format::FORMAT)?;
    for statement in format::SCHEMA {
        transaction.execute_batch(statement)?;
    }
    State { store: *uuid::Uuid::new_v4().as_bytes(), ..State::default() }.save(&transaction)?;
    transaction.commit()?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))
}

const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

pub(super) fn open_tables(dir: &Path, options: &StoreOptions) -> Result<(Connection, State), StoreError> {
    let failed = |error: rusqlite::Error| opening_tables(dir, &error);
    let mut connection = Connection::open_with_flags(dir.join(format::FILE), FLAGS).map_err(failed)?;
    lock(&connection).map_err(failed)?;
    let found = identify(&connection).map_err(failed)?;
    check_identity(dir, &found)?;
    configure(&connection, options).map_err(failed)?;
    format::upgrade(&mut connection, found.format).map_err(failed)?;
    let state = State::read(&connection).map_err(failed)?;
    let state = state.ok_or_else(|| corrupt("its state cannot be read", format::FILE))?;
    Ok((connection, state))
}

/// Takes SQLite's own lock too, against its tools, and keeps it.
pub(in crate::store) fn lock(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::ZERO)?;
    connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)
}

fn configure(connection: &Connection, options: &StoreOptions) -> rusqlite::Result<()> {
    let kib = |bytes: u64| i64::try_from(bytes / 1024).unwrap_or(i64::MAX);
    // Stands in the file already; whoever changed it with another tool is put right.
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    let limit = i64::try_from(options.checkpoint_bytes).unwrap_or(i64::MAX);
    connection.pragma_update_and_check(None, "journal_size_limit", limit, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "mmap_size", 0, |_| Ok(()))?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -kib(options.cache_bytes).max(64))?;
    if let Some(most) = options.max_bytes {
        let pages = i64::try_from(most / PAGE).unwrap_or(i64::MAX).clamp(1, 0xffff_fffe);
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
    }
    Ok(())
}

/// Whose file it is.
pub(in crate::store) struct Identity {
    pub(in crate::store) application: u32,
    pub(in crate::store) format: u32,
    pub(in crate::store) schema: Vec<String>,
}

pub(in crate::store) fn identify(connection: &Connection) -> rusqlite::Result<Identity> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let mut schema = connection.prepare("SELECT sql FROM sqlite_schema ORDER BY name")?;
    let schema = schema.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(Identity {
        application: number("application_id")?.cast_unsigned(),
        format: number("user_version")?.cast_unsigned(),
        schema,
    })
}

pub(in crate::store) fn check_identity(dir: &Path, found: &Identity) -> Result<(), StoreError> {
    if found.application != format::APPLICATION {
        return Err(corrupt("it is an SQLite file, but not crewcall's", format::FILE));
    }
    if found.format > format::FORMAT {
        let (found, known) = (found.format, format::FORMAT);
        return Err(StoreError::NewerFormat { dir: dir.to_owned(), found, known });
    }
    if found.format == 0 || found.format == format::FORMAT && found.schema != format::SCHEMA {
        return Err(corrupt("its tables are not those of its format", format::FILE));
    }
    Ok(())
}

pub(super) fn check_state(state: &State, seen: Option<Head>) -> Result<(), StoreError> {
    match seen {
        None if state.batch > 0 => {
            Err(corrupt(format!("it cannot be read, but {} batches were stored", state.batch), head::FILE))
        }
        Some(seen) if seen.store != state.store => {
            Err(corrupt("it belongs to another store than crewcall.db", head::FILE))
        }
        Some(seen) if seen.batch > state.batch => Err(corrupt(
            format!("{} batches were stored, only {} are found", seen.batch, state.batch),
            format_args!("{} and {}", format::FILE, log::FILE),
        )),
        _ => Ok(()),
    }
}

/// Files that nobody else may read: payloads are whatever callers send.
pub(super) fn private() -> OpenOptions {
    #[allow(unused_mut)]
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

pub(super) fn create_dir(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// Makes the names in `dir` durable. Windows has no such thing to ask for.
pub(in crate::store) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

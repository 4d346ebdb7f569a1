//! What errors of the operating system and of SQLite mean for whoever uses the store.

use std::io;
use std::path::Path;

use rusqlite::ErrorCode;

use super::format;
use crate::store::StoreError;

pub(in crate::store) fn corrupt(what: impl Into<String>, place: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { what: what.into(), place: place.to_string() }
}

pub(in crate::store) fn no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What an error of the operating system means while opening.
pub(in crate::store) fn opening(dir: &Path, error: &io::Error) -> StoreError {
    use io::ErrorKind as Kind;
    match error.kind() {
        _ if no_room(error) => StoreError::DiskFull(dir.to_owned()),
        Kind::PermissionDenied
        | Kind::ReadOnlyFilesystem
        | Kind::NotADirectory
        | Kind::IsADirectory
        | Kind::AlreadyExists
        | Kind::NotFound
        | Kind::InvalidInput => StoreError::Unwritable { dir: dir.to_owned(), why: error.to_string() },
        _ => StoreError::Fatal(format!("{}: {error}", dir.display())),
    }
}

/// What an error of SQLite means while opening.
pub(in crate::store) fn opening_tables(dir: &Path, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::InUse(dir.to_owned()),
        Some(ErrorCode::DiskFull) => StoreError::DiskFull(dir.to_owned()),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            StoreError::Unwritable { dir: dir.to_owned(), why: error.to_string() }
        }
        _ => failure(error),
    }
}

/// What an error of SQLite means afterwards.
pub(in crate::store) fn failure(error: &rusqlite::Error) -> StoreError {
    let extended = error.sqlite_extended_error_code();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(error.to_string()),
        // The file is shorter than its own pages say.
        _ if extended == Some(rusqlite::ffi::SQLITE_IOERR_SHORT_READ) => {
            corrupt("it ends before its last page", format::FILE)
        }
        Some(ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory) => StoreError::Fatal(error.to_string()),
        // Statements and types are fixed: whatever else SQLite finds wrong is wrong in the file.
        _ => corrupt(error.to_string(), format::FILE),
    }
}

pub(in crate::store) fn running(file: &str, error: &io::Error) -> StoreError {
    StoreError::Fatal(format!("{file}: {error}"))
}

pub(in crate::store) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

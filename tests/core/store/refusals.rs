//! What a data directory is refused for, and that the refusal says so.

use std::fs::{self, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use crewcall::store::{EmbeddedStore, Store as _, StoreError};

use super::child::{self, Running};
use super::model::{contents, examine, open, put, scratch};

fn refused(dir: &Path) -> StoreError {
    match open(dir).and_then(|mut store| contents(&mut store)) {
        Ok(rows) => panic!("{} rows were served", rows.len()),
        Err(error) => error,
    }
}

/// A store with some batches, in `crewcall.db` or still in the log.
fn filled(dir: &Path) -> EmbeddedStore {
    let mut store = open(dir).unwrap();
    for number in 1..20 {
        store.commit(&[put(number, &[number; 300])]).unwrap();
    }
    store
}

#[test]
fn a_second_process() {
    let root = scratch();
    let mut first = Running::start(child::command("open", root.path()));
    assert_eq!(first.hear().as_deref(), Some("open"));
    let error = refused(root.path());
    assert_eq!(error, StoreError::InUse(root.path().to_owned()));
    assert!(error.to_string().contains(root.path().to_str().unwrap()), "{error}");
    assert_eq!(examine(root.path()), Err(error));
    // A killed process leaves no lock behind.
    first.kill();
    open(root.path()).unwrap();
}

#[test]
fn a_second_store_in_this_process() {
    let root = scratch();
    let store = open(root.path()).unwrap();
    assert_eq!(refused(root.path()), StoreError::InUse(root.path().to_owned()));
    drop(store);
    open(root.path()).unwrap();
}

#[test]
fn a_directory_that_cannot_be_made() {
    let root = scratch();
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    for dir in [file.join("data"), file] {
        let error = refused(&dir);
        assert!(matches!(&error, StoreError::Unwritable { dir: named, .. } if *named == dir), "{error:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_directory_that_cannot_be_written() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;

    let root = scratch();
    let dir = root.path().join("data");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).unwrap();
    let mut command = child::command("open", &dir);
    if fs::write(dir.join("probe"), "").is_ok() {
        // We are root, for whom permissions mean nothing: let nobody try.
        fs::remove_file(dir.join("probe")).unwrap();
        command.uid(65_534).gid(65_534).current_dir("/");
    }
    let said = Running::start(command).hear().expect("the child died");
    assert!(said.starts_with("Unwritable"), "{said}");
}

#[test]
fn a_newer_format() {
    let root = scratch();
    filled(root.path()).close().unwrap();
    // `user_version`, as a newer crewcall would have left it.
    let mut tables = OpenOptions::new().write(true).open(root.path().join("crewcall.db")).unwrap();
    tables.seek(SeekFrom::Start(60)).unwrap();
    tables.write_all(&9_u32.to_be_bytes()).unwrap();
    fs::write(root.path().join("crewcall.db-wal"), "").unwrap();
    let error = refused(root.path());
    assert_eq!(error, StoreError::NewerFormat { dir: root.path().to_owned(), found: 9, known: 2 });
    assert!(error.to_string().contains("format 9"), "{error}");
}

#[test]
fn files_that_are_missing() {
    for (missing, stays) in [
        ("crewcall.db", "crewcall.head"),
        ("crewcall.db-wal", "crewcall.db"),
        ("crewcall.head", "crewcall.db"),
    ] {
        let root = scratch();
        filled(root.path()).close().unwrap();
        fs::remove_file(root.path().join(missing)).unwrap();
        let error = refused(root.path());
        assert!(matches!(&error, StoreError::Corrupt { place, .. } if place == missing), "{error:?}");
        assert!(error.to_string().contains("crewcall doctor"), "{error}");
        assert!(root.path().join(stays).exists());
        let report = examine(root.path()).unwrap();
        assert!(report.findings.iter().any(|finding| finding.contains(missing)), "{report}");
    }
}

#[test]
fn files_of_something_else() {
    let root = scratch();
    fs::write(root.path().join("crewcall.db"), "a letter to a friend").unwrap();
    assert!(matches!(refused(root.path()), StoreError::Corrupt { .. }));

    // The witness of another store.
    let (one, other) = (scratch(), scratch());
    filled(one.path()).close().unwrap();
    filled(other.path()).close().unwrap();
    fs::copy(other.path().join("crewcall.head"), one.path().join("crewcall.head")).unwrap();
    assert!(matches!(refused(one.path()), StoreError::Corrupt { place, .. } if place == "crewcall.head"));
}

#[test]
fn tables_older_than_what_was_acknowledged() {
    let root = scratch();
    filled(root.path()).close().unwrap();
    let old = fs::read(root.path().join("crewcall.db")).unwrap();
    let mut store = open(root.path()).unwrap();
    store.commit(&[put(30, b"later")]).unwrap();
    store.close().unwrap();
    fs::write(root.path().join("crewcall.db"), old).unwrap();
    fs::write(root.path().join("crewcall.db-wal"), "").unwrap();
    let error = refused(root.path());
    assert!(error.to_string().contains("batches were stored"), "{error}");
}

//! What only the durable store promises.

use std::fs;
use std::path::Path;
use std::time::Instant;

use crewcall::row::{RowChange, RowKey};
use crewcall::store::{EmbeddedStore, Store as _, StoreOptions};
use crewcall::task::TaskId;

use super::model::{Rows, apply, contents, examine, open, put, scratch};

/// As kill -9 leaves it: the files as they are, without the store's end.
fn killed(dir: &Path) -> tempfile::TempDir {
    let copy = scratch();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

#[test]
fn every_batch_outlives_the_process() {
    let root = scratch();
    let options = StoreOptions { checkpoint_bytes: 200_000, ..StoreOptions::default() };
    let mut store = EmbeddedStore::open(root.path(), options).unwrap();
    let mut rows = Rows::new();
    for round in 0..60_u8 {
        let batch: Vec<_> = (0..5).map(|number| put(number * 7 + round % 11, &[round; 900])).collect();
        store.commit(&batch).unwrap();
        apply(&mut rows, &batch);
        let copy = killed(root.path());
        assert_eq!(contents(&mut open(copy.path()).unwrap()).unwrap(), rows);
    }
}

#[cfg(unix)]
#[test]
fn nobody_else_may_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = scratch();
    let dir = root.path().join("deep").join("data");
    let mut store = open(&dir).unwrap();
    store.commit(&[put(1, b"secret")]).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn the_log_stays_short() {
    let root = scratch();
    let options = StoreOptions { checkpoint_bytes: 1 << 20, ..StoreOptions::default() };
    let mut store = EmbeddedStore::open(root.path(), options).unwrap();
    for round in 0..400_u32 {
        store.commit(&[put((round % 50) as u8, &vec![round as u8; 20_000])]).unwrap();
    }
    let log = fs::metadata(root.path().join("crewcall.db-wal")).unwrap().len();
    assert!(log < 2 << 20, "{log} bytes");
    assert!(store.size() > log);
    assert!(store.size() < 5 << 20, "{} bytes", store.size());
}

#[test]
fn a_creation_that_was_cut_short_is_begun_again() {
    let root = scratch();
    for leftover in ["crewcall.db.new", "crewcall.db.new-journal", "crewcall.head"] {
        fs::write(root.path().join(leftover), "").unwrap();
    }
    let mut store = open(root.path()).unwrap();
    store.commit(&[put(1, b"one")]).unwrap();
    drop(store);
    assert_eq!(contents(&mut open(root.path()).unwrap()).unwrap().len(), 1);
    // With the tables made, but not yet witnessed, or the witness torn.
    for witness in ["", "crewhead"] {
        let root = scratch();
        let store = open(root.path()).unwrap();
        let cut = killed(root.path());
        drop(store);
        fs::write(cut.path().join("crewcall.head"), witness).unwrap();
        fs::remove_file(cut.path().join("crewcall.db-wal")).unwrap();
        assert_eq!(contents(&mut open(cut.path()).unwrap()).unwrap(), Rows::new());
    }
}

#[test]
fn a_healthy_store_has_a_healthy_report() {
    let root = scratch();
    let mut store = open(root.path()).unwrap();
    for number in 1..40 {
        store.commit(&[put(number, &[number; 2_000])]).unwrap();
    }
    let copy = killed(root.path());
    let before: Vec<_> = files(copy.path());
    let report = examine(copy.path()).unwrap();
    assert!(report.is_healthy(), "{report}");
    assert_eq!(report.rows_found, 39);
    assert_eq!(report.batches_found, Some(store.batch()));
    assert!(files(copy.path()) == before, "the doctor changed what it examined");
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// A guard, not a figure: `examples/store_speed.rs` measures. Bounds what a mistake in the way of loading
/// would cost, on any machine and without optimisation.
#[test]
fn a_start_reads_rows_by_the_hundred_thousand() {
    let root = scratch();
    let mut store = open(root.path()).unwrap();
    let rows: Vec<_> = (0..50_000)
        .map(|_| RowChange::Put(RowKey::Task(TaskId::generate()), bytes::Bytes::from_static(&[7; 300])))
        .collect();
    for batch in rows.chunks(5_000) {
        store.commit(batch).unwrap();
    }
    drop(store);
    let begun = Instant::now();
    let mut loaded = 0;
    open(root.path()).unwrap().load(&mut |_, _| loaded += 1).unwrap();
    assert_eq!(loaded, rows.len());
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

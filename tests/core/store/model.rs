//! What a store should hold.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use crewcall::row::{RowChange, RowKey};
use crewcall::store::{EmbeddedStore, Report, Store, StoreError, StoreOptions, doctor};
use crewcall::task::TaskId;
use rand::{RngExt as _, rngs::StdRng};
use uuid::Uuid;

pub(super) type Rows = BTreeMap<(u8, [u8; 16]), Bytes>;

/// A key out of a few, so that random changes meet. From 240 on, of rows that no start loads: the payloads of the
/// tasks from 1 on.
pub(super) fn key(number: u8) -> RowKey {
    match number {
        0 => RowKey::LeasesReserved,
        240.. => RowKey::Payload(TaskId(Uuid::from_u128(u128::from(number - 239) << 70))),
        _ => RowKey::Task(TaskId(Uuid::from_u128(u128::from(number) << 70))),
    }
}

pub(super) fn put(number: u8, data: &[u8]) -> RowChange {
    RowChange::Put(key(number), Bytes::copy_from_slice(data))
}

pub(super) fn delete(number: u8) -> RowChange {
    RowChange::Delete(key(number))
}

pub(super) fn apply(rows: &mut Rows, batch: &[RowChange]) {
    for change in batch {
        match change {
            RowChange::Put(key, data) => rows.insert(key.parts(), data.clone()),
            RowChange::Delete(key) => rows.remove(&key.parts()),
        };
    }
}

/// Everything, as a start and later reads find it.
pub(super) fn contents(store: &mut dyn Store) -> Result<Rows, StoreError> {
    let mut rows = Rows::new();
    let mut taken = 0;
    store.load(&mut |key, data| {
        taken += 1;
        rows.insert(key.parts(), data);
    })?;
    assert_eq!(rows.len(), taken, "a row was loaded twice");
    let mut after = None;
    loop {
        let page = store.scan(after, 7)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        for (key, data) in page {
            let loaded = rows.insert(key.parts(), data.clone());
            assert_eq!(loaded.is_some(), key.is_loaded_at_start(), "{key:?}");
            assert_eq!(loaded.unwrap_or_else(|| data.clone()), data, "{key:?}");
            assert_eq!(store.read(&[key])?, [Some(data)]);
        }
    }
    Ok(rows)
}

/// A directory for a store. Where there is a file system in memory it is there: these tests ask for thousands
/// of syncs, and none of them depends on what a disk does with one.
pub(super) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

static STARTING_A_CHILD: RwLock<()> = RwLock::new(());

/// Held while a child is started: until it has become another program it holds the locks of all stores that
/// were open in this one, so nobody opens a store in that moment.
pub(super) fn locks_are_inherited() -> RwLockWriteGuard<'static, ()> {
    STARTING_A_CHILD.write().unwrap_or_else(PoisonError::into_inner)
}

fn no_child_is_starting() -> RwLockReadGuard<'static, ()> {
    STARTING_A_CHILD.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn examine(dir: &Path) -> Result<Report, StoreError> {
    let _guard = no_child_is_starting();
    doctor(dir)
}

pub(super) fn open(dir: &Path) -> Result<EmbeddedStore, StoreError> {
    let _guard = no_child_is_starting();
    EmbeddedStore::open(dir, StoreOptions::default())
}

/// Batches of random changes, and the rows after each; the first is empty. Payloads are some with their tasks, some
/// without, which is nothing a scheduler would store.
pub(super) fn random_batches(
    rng: &mut StdRng,
    batches: usize,
    payloads: bool,
) -> Vec<(Vec<RowChange>, Rows)> {
    let mut rows = Rows::new();
    let mut made = vec![(Vec::new(), rows.clone())];
    for number in 1..=batches {
        let mut batch = Vec::new();
        for _ in 0..rng.random_range(1..12) {
            let payload = payloads && rng.random_bool(0.3);
            let key = if payload { rng.random_range(240..=255) } else { rng.random_range(0..60) };
            if rng.random_bool(0.3) {
                batch.push(delete(key));
            } else {
                // Now and then larger than a page.
                let most = if rng.random_bool(0.05) { 20_000 } else { 600 };
                let mut data = vec![0; rng.random_range(0..most)];
                rng.fill(&mut data[..]);
                batch.push(put(key, &data));
            }
        }
        // Never the same rows twice, so that the rows tell which batch was the last.
        batch.push(put(200, &number.to_le_bytes()));
        apply(&mut rows, &batch);
        made.push((batch, rows.clone()));
    }
    made
}

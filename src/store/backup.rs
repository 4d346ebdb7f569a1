//! A copy of a store, made while it is in use.
//!
//! Rows are copied in the order of their keys, a slice at a time. Between slices the store goes on; what a
//! batch changes behind the place reached is changed in the copy too, what it changes ahead of it will be
//! copied as it is then. So the copy is at every moment equal to the store up to the place reached, and in
//! the end equal as a whole. Every row's checksum is verified on the way, and the copy is free of holes.

use std::fs;
use std::path::{Path, PathBuf};

use super::embedded::error::opening;
use super::embedded::open::sync_dir;
use super::embedded::{EmbeddedStore, StoreOptions};
use super::{Store, StoreError};
use crate::row::{RowChange, RowKey};

/// Rows in a slice: the time in which nothing else is stored, a few milliseconds.
const SLICE: usize = 500;

#[derive(Debug)]
pub(super) struct Backup {
    into: PathBuf,
    partial: PathBuf,
    copy: Option<EmbeddedStore>,
    reached: Option<RowKey>,
}

impl Backup {
    pub(super) fn begin(into: PathBuf) -> Result<Self, StoreError> {
        let refuse = |why: &str| StoreError::Unwritable { dir: into.clone(), why: why.to_owned() };
        if into.exists() {
            return Err(refuse("it is there already; a backup goes into a directory of its own"));
        }
        let Some(name) = into.file_name() else { return Err(refuse("it has no name")) };
        let mut partial_name = name.to_owned();
        partial_name.push(".partial");
        let partial = into.with_file_name(partial_name);
        // Left by a process that ended in the middle of the same backup.
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(|error| opening(&partial, &error))?;
        }
        let mut copy = EmbeddedStore::open(&partial, StoreOptions::default())?;
        copy.load(&mut |_, _| {})?;
        Ok(Self { into, partial, copy: Some(copy), reached: None })
    }

    /// Copies the next slice. True when it was the last.
    pub(super) fn step(&mut self, from: &mut dyn Store) -> Result<bool, StoreError> {
        let rows = from.scan(self.reached, SLICE)?;
        let last = rows.len() < SLICE;
        if let Some((key, _)) = rows.last() {
            self.reached = Some(*key);
        }
        let batch: Vec<_> = rows.into_iter().map(|(key, data)| RowChange::Put(key, data)).collect();
        self.commit(&batch)?;
        Ok(last)
    }

    /// The store has stored `batch`.
    pub(super) fn follow(&mut self, batch: &[RowChange]) -> Result<(), StoreError> {
        let Some(reached) = self.reached.map(|key| key.parts()) else { return Ok(()) };
        let behind = |change: &&RowChange| {
            let (RowChange::Put(key, _) | RowChange::Delete(key)) = change;
            key.parts() <= reached
        };
        let batch: Vec<_> = batch.iter().filter(behind).cloned().collect();
        self.commit(&batch)
    }

    /// Closes the copy and gives it its name. The number of rows in it.
    pub(super) fn finish(mut self) -> Result<u64, StoreError> {
        let Some(copy) = self.copy.take() else { return Ok(0) };
        let rows = copy.rows();
        copy.close()?;
        fs::rename(&self.partial, &self.into).map_err(|error| opening(&self.into, &error))?;
        let parent = self.into.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_dir(parent.unwrap_or(Path::new("."))).map_err(|error| opening(&self.into, &error))?;
        Ok(rows)
    }

    fn commit(&mut self, batch: &[RowChange]) -> Result<(), StoreError> {
        match &mut self.copy {
            Some(copy) if !batch.is_empty() => copy.commit(batch),
            _ => Ok(()),
        }
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        // Not finished: half a copy must not be taken for one. After `finish` it is no longer there.
        self.copy.take();
        fs::remove_dir_all(&self.partial).ok();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::store::MemoryStore;
    use crate::task::TaskId;

    fn key(number: u32) -> RowKey {
        RowKey::Task(TaskId(Uuid::from_u128(u128::from(number) << 64)))
    }

    fn payload(number: u32) -> RowKey {
        RowKey::Payload(TaskId(Uuid::from_u128(u128::from(number) << 64)))
    }

    /// Changes behind the place reached, at it and ahead of it, after every slice: of tasks, and of their payloads,
    /// which come after all tasks.
    #[test]
    fn the_copy_equals_the_store_at_its_end() {
        let root = tempfile::tempdir().unwrap();
        let into = root.path().join("backup");
        let mut store = MemoryStore::default();
        let put = |number: u32, data: &'static [u8]| RowChange::Put(key(number), Bytes::from_static(data));
        let rows: Vec<_> = (0..3_000).map(|number| put(number * 2, b"first")).collect();
        store.commit(&rows).unwrap();
        let put_payload = |number, data: Vec<u8>| RowChange::Put(payload(number), data.into());
        let payloads: Vec<_> =
            (0..3_000).map(|number| put_payload(number * 2, vec![1; number as usize % 1_000])).collect();
        store.commit(&payloads).unwrap();
        store.commit(&[RowChange::Put(RowKey::LeasesReserved, Bytes::from_static(b"9"))]).unwrap();
        let mut backup = Backup::begin(into.clone()).unwrap();
        for round in 0.. {
            let last = backup.step(&mut store).unwrap();
            let place = round * 2 * SLICE as u32 % 6_000;
            let batch: Vec<_> =
                [1, place.saturating_sub(3), place, place + 1, place + 2 * SLICE as u32 - 2, 5_999]
                    .into_iter()
                    .flat_map(|near| {
                        [
                            put(near, b"again"),
                            put(near + 7, b"new"),
                            put_payload(near + 7, vec![2; near as usize % 1_000]),
                            RowChange::Delete(key(near + 4)),
                            RowChange::Delete(payload(near + 2)),
                            RowChange::Delete(payload(near + 4)),
                        ]
                    })
                    .chain([RowChange::Put(RowKey::LeasesReserved, Bytes::from(round.to_string()))])
                    .collect();
            store.commit(&batch).unwrap();
            backup.follow(&batch).unwrap();
            if last {
                break;
            }
        }
        let rows = store.scan(None, usize::MAX).unwrap();
        assert_eq!(backup.finish().unwrap(), rows.len() as u64);
        let mut copy = EmbeddedStore::open(&into, StoreOptions::default()).unwrap();
        copy.load(&mut |_, _| {}).unwrap();
        assert_eq!(copy.scan(None, usize::MAX).unwrap(), rows);
    }
}

//! Rows in memory: for tests and `--ephemeral`.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::{Store, StoreError};
use crate::row::{RowChange, RowKey};

/// Survives nothing. The seam is the same as for a durable store: facts wait for it all the same.
#[derive(Debug, Default)]
pub struct MemoryStore {
    rows: BTreeMap<(u8, [u8; 16]), (RowKey, Bytes)>,
}

impl Store for MemoryStore {
    fn describe(&self) -> String {
        "memory (nothing survives a restart)".to_owned()
    }

    fn load(&mut self, take: &mut dyn FnMut(RowKey, Bytes)) -> Result<(), StoreError> {
        for (key, data) in self.rows.values().filter(|(key, _)| key.is_loaded_at_start()) {
            take(*key, data.clone());
        }
        Ok(())
    }

    fn read(&mut self, keys: &[RowKey]) -> Result<Vec<Option<Bytes>>, StoreError> {
        Ok(keys.iter().map(|key| self.rows.get(&key.parts()).map(|(_, data)| data.clone())).collect())
    }

    fn scan(&mut self, after: Option<RowKey>, most: usize) -> Result<Vec<(RowKey, Bytes)>, StoreError> {
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.parts()));
        Ok(self.rows.range((from, Bound::Unbounded)).map(|(_, row)| row.clone()).take(most).collect())
    }

    fn commit(&mut self, batch: &[RowChange]) -> Result<(), StoreError> {
        for change in batch {
            match change {
                RowChange::Put(key, data) => {
                    self.rows.insert(key.parts(), (*key, data.clone()));
                }
                RowChange::Delete(key) => {
                    self.rows.remove(&key.parts());
                }
            }
        }
        Ok(())
    }

    fn idle(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn size(&self) -> u64 {
        0
    }
}

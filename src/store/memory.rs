//! Rows in memory: for tests and `--ephemeral`.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Store, StoreError};
use crate::row::{RowChange, RowKey};

/// Survives nothing. The seam is the same as for a durable store: facts wait for it all the same.
#[derive(Debug, Default)]
pub struct MemoryStore {
    rows: BTreeMap<RowKey, Bytes>,
}

impl Store for MemoryStore {
    fn describe(&self) -> String {
        "memory (nothing survives a restart)".to_owned()
    }

    fn load(&mut self) -> Result<Vec<(RowKey, Bytes)>, StoreError> {
        Ok(self.rows.iter().map(|(key, data)| (*key, data.clone())).collect())
    }

    fn commit(&mut self, batch: &[RowChange]) -> Result<(), StoreError> {
        for change in batch {
            match change {
                RowChange::Put(key, data) => {
                    self.rows.insert(*key, data.clone());
                }
                RowChange::Delete(key) => {
                    self.rows.remove(key);
                }
            }
        }
        Ok(())
    }
}

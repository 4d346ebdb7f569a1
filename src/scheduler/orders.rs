//! The operators' orders among the durable facts. Each is a row of its own under a number: names are longer
//! than the key of a row.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::audit::ensure;
use crate::row::{Row, RowChange, RowKey};

/// What an order is stored as.
pub(crate) trait Order: Clone {
    /// The method or worker that it is about.
    fn name(&self) -> &Arc<str>;
    fn key(number: u64) -> RowKey;
    fn row(self, number: u64) -> Row;
}

impl Order for crate::order::Pause {
    fn name(&self) -> &Arc<str> {
        &self.method
    }
    fn key(number: u64) -> RowKey {
        RowKey::Pause(number)
    }
    fn row(self, number: u64) -> Row {
        Row::Pause(number, Box::new(self))
    }
}

impl Order for crate::order::Drain {
    fn name(&self) -> &Arc<str> {
        &self.worker_id
    }
    fn key(number: u64) -> RowKey {
        RowKey::Drain(number)
    }
    fn row(self, number: u64) -> Row {
        Row::Drain(number, Box::new(self))
    }
}

/// At most one order of a kind about each name.
#[derive(Debug)]
pub(crate) struct Orders<T> {
    by_name: BTreeMap<Arc<str>, (u64, T)>,
    /// The lowest number that was never used in this run.
    next: u64,
}

impl<T> Default for Orders<T> {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), next: 1 }
    }
}

impl<T: Order> Orders<T> {
    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        self.by_name.get(name).map(|(_, order)| order)
    }

    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// By name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.by_name.values().map(|(_, order)| order)
    }

    /// Takes the order, in place of an earlier one about the same name.
    pub(crate) fn put(&mut self, order: T, rows: &mut Vec<RowChange>) {
        let known = self.by_name.get(order.name()).map(|(number, _)| *number);
        let number = known.unwrap_or(self.next);
        self.next = self.next.max(number + 1);
        rows.push(RowChange::Put(T::key(number), order.clone().row(number).encode()));
        self.by_name.insert(Arc::clone(order.name()), (number, order));
    }

    /// Lifts the order about `name`, if there is one.
    pub(crate) fn lift(&mut self, name: &str, rows: &mut Vec<RowChange>) {
        if let Some((number, _)) = self.by_name.remove(name) {
            rows.push(RowChange::Delete(T::key(number)));
        }
    }

    /// Puts a stored order back.
    pub(crate) fn restore(&mut self, number: u64, order: T) {
        self.next = self.next.max(number + 1);
        self.by_name.insert(Arc::clone(order.name()), (number, order));
    }

    /// As rows.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (RowKey, Row)> {
        self.by_name.values().map(|(number, order)| (T::key(*number), order.clone().row(*number)))
    }

    pub(crate) fn audit(&self) -> Result<(), String> {
        for (name, (number, order)) in &self.by_name {
            ensure!(name == order.name(), "an order about {:?} stands under {name:?}", order.name());
            ensure!(*number < self.next, "order {number} about {name:?} has a number that was not given out");
        }
        Ok(())
    }
}

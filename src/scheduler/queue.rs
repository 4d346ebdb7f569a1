//! Tasks that wait for a worker, in the order in which they go.

use slab::Slab;

use super::ledger::Slot;
use super::live::{Chain, List, Live};

/// One first-in-first-out list for each priority. A task's rank is the time it became ready, less
/// `ageing_ms` for each step of priority; the lowest rank goes first. So a higher priority goes ahead of a
/// lower one unless the lower has waited `ageing_ms` longer for each step between them: nothing starves,
/// and nothing is ever re-sorted, because the rank does not change while time passes. Within a priority
/// the list is in order of rank by itself.
#[derive(Debug)]
pub(crate) struct Queue {
    lists: [List; 10],
    len: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self { lists: [List::new(Chain::Line); 10], len: 0 }
    }
}

impl Queue {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push_back(&mut self, lives: &mut Slab<Live>, slot: Slot, priority: u8) {
        self.list(priority).push_back(lives, slot);
        self.len += 1;
    }

    /// For work that came back: it keeps its place ahead of what arrived later.
    pub(crate) fn push_front(&mut self, lives: &mut Slab<Live>, slot: Slot, priority: u8) {
        self.list(priority).push_front(lives, slot);
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, lives: &mut Slab<Live>, slot: Slot, priority: u8) {
        self.list(priority).remove(lives, slot);
        self.len -= 1;
    }

    /// The task that goes next, taken out.
    pub(crate) fn pop(&mut self, lives: &mut Slab<Live>, ageing_ms: u64) -> Option<Slot> {
        let (_, priority, slot) = self
            .lists
            .iter()
            .enumerate()
            .filter_map(|(priority, list)| {
                let slot = list.head()?;
                let rank = lives[slot].ready_since.0 as i64 - priority as i64 * ageing_ms as i64;
                // Equal ranks: the higher priority first.
                Some((rank, std::cmp::Reverse(priority), slot))
            })
            .min()?;
        self.remove(lives, slot, priority.0 as u8);
        Some(slot)
    }

    /// Tasks ahead of one of this priority that became ready at `since`: those of its own list are
    /// counted by the caller's knowledge of order, so this is an upper bound used to explain.
    pub(crate) fn ahead_of(&self, priority: u8) -> usize {
        self.lists.iter().skip(usize::from(priority)).map(List::len).sum::<usize>().saturating_sub(1)
    }

    #[allow(
        clippy::indexing_slicing,
        reason = "priorities are checked to be at most 9 when a task is accepted"
    )]
    fn list(&mut self, priority: u8) -> &mut List {
        &mut self.lists[usize::from(priority)]
    }
}

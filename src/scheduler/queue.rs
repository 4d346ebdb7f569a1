//! Tasks that wait for a worker, in the order in which they go.

use std::cmp::{Ordering, Reverse};

use super::ledger::Slot;
use super::live::{Chain, List, Live};
use super::slots::Slots;

/// One first-in-first-out list for each priority. A task's rank is the time it became ready, less
/// `ageing_ms` for each step of priority; the lowest rank goes first. So a higher priority goes ahead of a
/// lower one unless the lower has waited `ageing_ms` longer for each step between them: nothing starves,
/// and nothing is ever re-sorted, because the rank does not change while time passes. Within a priority
/// the list is in order of rank by itself.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// `None` until something waits: most tasks never do.
    lists: Option<Box<[List; 10]>>,
    len: u32,
}

impl Queue {
    pub(crate) const fn len(&self) -> usize {
        self.len as usize
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push_back(&mut self, lives: &mut Slots<Live>, slot: Slot, priority: u8) {
        self.list(priority).push_back(lives, slot);
        self.len += 1;
    }

    /// For work that came back: it takes its old place, ahead of what arrived later. Looks past what came
    /// back before it and is older; give back the newest first, and it looks past nothing.
    pub(crate) fn put_back(&mut self, lives: &mut Slots<Live>, slot: Slot, priority: u8) {
        let place = lives[slot].place;
        let list = self.list(priority);
        let mut next = list.head();
        while let Some(other) = next.filter(|other| lives[*other].place < place) {
            next = list.after(lives, other);
        }
        list.insert_before(lives, slot, next);
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, lives: &mut Slots<Live>, slot: Slot, priority: u8) {
        self.list(priority).remove(lives, slot);
        self.len -= 1;
    }

    /// The task that goes next, taken out.
    pub(crate) fn pop(&mut self, lives: &mut Slots<Live>, ageing_ms: u64) -> Option<Slot> {
        let (_, priority, slot) = self
            .lists()
            .iter()
            .enumerate()
            .filter_map(|(priority, list)| {
                let slot = list.head()?;
                // Equal ranks: the higher priority first.
                Some((rank(&lives[slot], priority, ageing_ms), Reverse(priority), slot))
            })
            .min()?;
        self.remove(lives, slot, priority.0 as u8);
        Some(slot)
    }

    /// How many go before `slot`, a task of this queue; stops counting at `most`.
    pub(crate) fn ahead_of(
        &self,
        lives: &Slots<Live>,
        slot: Slot,
        priority: u8,
        ageing_ms: u64,
        most: usize,
    ) -> usize {
        let own = rank(&lives[slot], usize::from(priority), ageing_ms);
        let mut ahead = 0;
        for (other_priority, list) in self.lists().iter().enumerate() {
            let mut at = list.head();
            while let Some(other) = at.filter(|other| *other != slot && ahead < most) {
                let rank = rank(&lives[other], other_priority, ageing_ms);
                let first = match other_priority.cmp(&usize::from(priority)) {
                    Ordering::Less => rank < own,
                    Ordering::Equal => true,
                    Ordering::Greater => rank <= own,
                };
                if !first {
                    break;
                }
                ahead += 1;
                at = list.after(lives, other);
            }
        }
        ahead
    }

    /// The tasks of each priority, in order.
    pub(crate) fn lists(&self) -> &[List] {
        self.lists.as_deref().map_or(&[], |lists| lists)
    }

    #[allow(
        clippy::indexing_slicing,
        reason = "priorities are checked to be at most 9 when a task is accepted"
    )]
    fn list(&mut self, priority: u8) -> &mut List {
        &mut self.lists.get_or_insert_with(|| Box::new([List::new(Chain::Line); 10]))[usize::from(priority)]
    }
}

/// When it goes; the lowest goes first.
fn rank(live: &Live, priority: usize, ageing_ms: u64) -> i128 {
    i128::from(live.ready_since.0) - priority as i128 * i128::from(ageing_ms)
}

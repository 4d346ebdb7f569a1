//! The leases that a session holds, by number.

use super::ledger::{NO_SLOT, Slot};

/// No lease has it.
const VACANT: u64 = 0;
const NOBODY: Entry = Entry { lease: VACANT, slot: NO_SLOT };

/// A table with open addressing ("Robin Hood"), at most half full. Leases are numbers one after the other, and
/// neighbours stand side by side: so what is looked at next is at hand.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// As many as a power of two, or none.
    entries: Vec<Entry>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    lease: u64,
    slot: Slot,
}

impl Leases {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Slot)> {
        self.entries.iter().filter(|entry| entry.lease != VACANT).map(|entry| (entry.lease, entry.slot))
    }

    pub(crate) fn contains(&self, lease: u64) -> bool {
        self.get(lease).is_some()
    }

    #[inline]
    pub(crate) fn get(&self, lease: u64) -> Option<Slot> {
        self.find(lease).map(|at| self.entries[at].slot)
    }

    /// A lease that is not held yet.
    #[inline]
    pub(crate) fn insert(&mut self, lease: u64, slot: Slot) {
        if self.entries.len() <= 2 * self.len {
            self.grow();
        }
        self.len += 1;
        self.put(Entry { lease, slot });
    }

    #[inline]
    pub(crate) fn remove(&mut self, lease: u64) {
        let Some(mut gap) = self.find(lease) else { return };
        self.len -= 1;
        // Whatever was pushed aside moves up.
        loop {
            let next = self.next(gap);
            let entry = self.entries[next];
            if entry.lease == VACANT || self.home(entry.lease) == next {
                break;
            }
            self.entries[gap] = entry;
            gap = next;
        }
        self.entries[gap] = NOBODY;
    }

    #[inline]
    fn find(&self, lease: u64) -> Option<usize> {
        // A worker may name any number.
        if self.entries.is_empty() || lease == VACANT {
            return None;
        }
        let (mut at, mut aside) = (self.home(lease), 0);
        loop {
            let entry = self.entries[at];
            if entry.lease == lease {
                return Some(at);
            }
            if entry.lease == VACANT || self.aside(entry, at) < aside {
                return None;
            }
            (at, aside) = (self.next(at), aside + 1);
        }
    }

    #[inline]
    fn put(&mut self, mut new: Entry) {
        let mut at = self.home(new.lease);
        let mut aside = 0;
        while self.entries[at].lease != VACANT {
            let other = self.entries[at];
            // Whoever stands farther from home goes first: so a run of entries is in the order of their homes, and
            // one that stands at home ends what a removal has to move.
            let its = self.aside(other, at);
            if its < aside {
                self.entries[at] = std::mem::replace(&mut new, other);
                aside = its;
            }
            (at, aside) = (self.next(at), aside + 1);
        }
        self.entries[at] = new;
    }

    #[cold]
    fn grow(&mut self) {
        let size = (2 * self.entries.len()).max(16);
        let old = std::mem::replace(&mut self.entries, vec![NOBODY; size]);
        old.into_iter().filter(|entry| entry.lease != VACANT).for_each(|entry| self.put(entry));
    }

    /// Where a lease stands if nobody is in its way: neighbours side by side, and whatever lies a table apart
    /// elsewhere.
    fn home(&self, lease: u64) -> usize {
        let blocks = lease >> self.entries.len().trailing_zeros();
        let elsewhere = blocks.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        (lease ^ elsewhere) as usize & (self.entries.len() - 1)
    }

    /// How far from home an entry stands.
    fn aside(&self, entry: Entry, at: usize) -> usize {
        at.wrapping_sub(self.home(entry.lease)) & (self.entries.len() - 1)
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.entries.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Against a map, with leases in a row, far apart, and apart by powers of two.
    #[test]
    fn what_is_held_is_found_and_nothing_else() {
        for stride in [1_u64, 3, 16, 1_024, 1 << 40] {
            let (mut leases, mut model) = (Leases::default(), BTreeMap::new());
            let mut x = stride;
            for step in 1..4_000_u64 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if (x >> 33) % 100 < 52 {
                    leases.insert(step * stride, step as Slot);
                    model.insert(step * stride, step as Slot);
                } else if let Some(lease) = model.keys().nth((x >> 40) as usize % model.len().max(1)).copied()
                {
                    model.remove(&lease);
                    leases.remove(lease);
                    assert_eq!(leases.get(lease), None);
                }
                leases.remove(step * stride + 1_000_000);
                assert_eq!(leases.len(), model.len());
                if step % 50 == 0 {
                    assert_eq!(leases.iter().collect::<BTreeMap<_, _>>(), model);
                    assert!(model.iter().all(|(lease, slot)| leases.get(*lease) == Some(*slot)));
                }
            }
            assert!(!leases.contains(0) && !leases.contains(u64::MAX));
        }
    }
}

//! Where tasks lie: a slab that grows in chunks.
//!
//! As the slab of the library of that name: a place is taken and given back in constant time, the one given back last is
//! taken first, so what is busy stays together. But what is there is never moved. One vector of all tasks would have to
//! be copied whenever it is full, while everybody waits: 335 ms at half a million of them.

use std::mem;
use std::ops::{Index, IndexMut};

/// Entries in a chunk, as a power of two. A chunk of tasks is about a quarter of a megabyte.
const BITS: u32 = 10;
const CHUNK: usize = 1 << BITS;

/// Values by number; a number is valid until its value is removed.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    // Of a size that is known, so that a number needs no second check.
    chunks: Vec<Box<[Entry<T>; CHUNK]>>,
    len: usize,
    /// The first of the vacant entries, or the number of all there are.
    next: usize,
}

#[derive(Debug)]
enum Entry<T> {
    /// With the next one.
    Vacant(usize),
    Occupied(T),
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0, next: 0 }
    }
}

impl<T> Slots<T> {
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn contains(&self, key: usize) -> bool {
        self.get(key).is_some()
    }

    #[inline]
    pub(crate) fn get(&self, key: usize) -> Option<&T> {
        let chunk = self.chunks.get(key >> BITS)?;
        match chunk.get(key & (CHUNK - 1))? {
            Entry::Occupied(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: usize) -> Option<&mut T> {
        match self.entry(key)? {
            Entry::Occupied(value) => Some(value),
            Entry::Vacant(_) => None,
        }
    }

    #[inline]
    fn entry(&mut self, key: usize) -> Option<&mut Entry<T>> {
        self.chunks.get_mut(key >> BITS)?.get_mut(key & (CHUNK - 1))
    }

    /// In order of number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).enumerate().filter_map(|(key, entry)| match entry {
            Entry::Occupied(value) => Some((key, value)),
            Entry::Vacant(_) => None,
        })
    }

    /// Returns its number.
    #[inline]
    pub(crate) fn insert(&mut self, value: T) -> usize {
        let key = self.next;
        if key == self.chunks.len() << BITS {
            self.add_chunk();
        }
        if let Some(entry) = self.entry(key)
            && let Entry::Vacant(next) = mem::replace(entry, Entry::Occupied(value))
        {
            self.next = next;
        }
        self.len += 1;
        key
    }

    #[cold]
    fn add_chunk(&mut self) {
        let first = self.chunks.len() << BITS;
        let entries: Vec<Entry<T>> = (first..first + CHUNK).map(|key| Entry::Vacant(key + 1)).collect();
        // Not an array that is boxed, which would lie on the stack first.
        if let Ok(chunk) = entries.try_into() {
            self.chunks.push(chunk);
        }
    }

    /// # Panics
    /// When nothing has the number.
    #[inline]
    pub(crate) fn remove(&mut self, key: usize) -> T {
        let next = self.next;
        match self.entry(key) {
            Some(entry @ Entry::Occupied(_)) => match mem::replace(entry, Entry::Vacant(next)) {
                Entry::Occupied(value) => {
                    self.next = key;
                    self.len -= 1;
                    value
                }
                Entry::Vacant(_) => nothing_at(key),
            },
            _ => nothing_at(key),
        }
    }
}

#[cold]
#[allow(clippy::panic, reason = "as a slice does: whoever asks holds a number that it took out before")]
fn nothing_at(key: usize) -> ! {
    panic!("nothing has number {key}")
}

impl<T> Index<usize> for Slots<T> {
    type Output = T;

    #[inline]
    fn index(&self, key: usize) -> &T {
        match self.get(key) {
            Some(value) => value,
            None => nothing_at(key),
        }
    }
}

impl<T> IndexMut<usize> for Slots<T> {
    #[inline]
    fn index_mut(&mut self, key: usize) -> &mut T {
        match self.get_mut(key) {
            Some(value) => value,
            None => nothing_at(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use slab::Slab;

    use super::*;

    /// In step with the library's, numbers included, over several chunks.
    #[test]
    fn the_same_history_gives_the_same_numbers_as_a_slab() {
        let (mut slots, mut slab) = (Slots::default(), Slab::new());
        let mut x = 9_u64;
        for step in 0..60_000_u64 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = (x >> 33) as usize % (2 * CHUNK);
            // More come than go, then fewer.
            let comes = (x >> 20) % 100 < if step < 30_000 { 70 } else { 30 };
            if comes {
                assert_eq!(slots.insert(step), slab.insert(step));
            } else if slab.contains(key) {
                assert_eq!(slots.remove(key), slab.remove(key));
            }
            assert_eq!(slots.get(key), slab.get(key));
            if let Some(value) = slots.get_mut(key) {
                *value += 1;
                slab[key] += 1;
            }
            assert_eq!((slots.len(), slots.contains(key)), (slab.len(), slab.contains(key)));
            if step % 5_000 == 0 {
                assert!(slots.iter().eq(slab.iter()));
            }
        }
        assert!(slots.chunks.len() > 2);
    }

    #[test]
    fn a_number_that_nothing_has_is_nothing() {
        let mut slots = Slots::default();
        let key = slots.insert("a");
        assert_eq!(slots[key], "a");
        assert_eq!(slots.remove(key), "a");
        assert!(!slots.contains(key) && !slots.contains(CHUNK) && !slots.contains(usize::MAX));
    }

    #[test]
    #[should_panic(expected = "nothing has number 3")]
    fn to_remove_nothing_is_a_mistake() {
        Slots::<u8>::default().remove(3);
    }
}

//! A queue that is emptied a frame at a time.
use std::collections::VecDeque;

/// A frame is closed before it grows beyond this, unless a single entry is larger.
pub(crate) const FRAME_BYTES_MAX: usize = 1024 * 1024;
const FRAME_ENTRIES_MAX: usize = 8192;

/// Size of an entry on the wire; close enough is good enough, but it must not be 0 nor ever change.
pub(crate) trait Weigh {
    fn weight(&self) -> usize;
}

#[derive(Debug)]
pub(crate) struct Batch<T> {
    entries: VecDeque<T>,
    bytes: usize,
}

impl<T: Weigh> Batch<T> {
    pub(crate) fn push(&mut self, entry: T) {
        self.bytes += entry.weight();
        self.entries.push_back(entry);
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter()
    }

    /// Everything, or as much as a frame holds that has `used` bytes in it already. An empty frame takes
    /// at least one entry.
    pub(crate) fn take(&mut self, used: usize) -> Vec<T> {
        if used + self.bytes <= FRAME_BYTES_MAX && self.entries.len() <= FRAME_ENTRIES_MAX {
            self.bytes = 0;
            // Under load the next frame is about as long as this one.
            let room = VecDeque::with_capacity(self.entries.len());
            return std::mem::replace(&mut self.entries, room).into();
        }
        let mut total = used;
        let fits = |entry: &&T| {
            let first = total == 0;
            total += entry.weight();
            first || total <= FRAME_BYTES_MAX
        };
        let count = self.entries.iter().take(FRAME_ENTRIES_MAX).take_while(fits).count();
        let taken: Vec<T> = self.entries.drain(..count).collect();
        self.bytes -= taken.iter().map(Weigh::weight).sum::<usize>();
        taken
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        self.entries.retain(keep);
        self.bytes = self.entries.iter().map(Weigh::weight).sum();
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), bytes: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weigh for usize {
        fn weight(&self) -> usize {
            *self
        }
    }

    fn batch(entries: &[usize]) -> Batch<usize> {
        let mut batch = Batch::default();
        entries.iter().for_each(|entry| batch.push(*entry));
        batch
    }

    #[test]
    fn everything_that_fits_goes_at_once() {
        let mut batch = batch(&[1, 2, 3]);
        assert_eq!(batch.take(0), [1, 2, 3]);
        assert_eq!((batch.len(), batch.bytes()), (0, 0));
    }

    #[test]
    fn a_large_queue_is_split_and_a_giant_goes_alone() {
        let mut batch = batch(&[600_000, 300_000, 300_000, 3_000_000, 1]);
        assert_eq!(batch.take(0), [600_000, 300_000]);
        assert_eq!(batch.take(0), [300_000]);
        assert_eq!(batch.take(1), [0; 0], "does not fit beside anything else");
        assert_eq!(batch.take(0), [3_000_000]);
        assert_eq!(batch.take(0), [1]);
        assert_eq!(batch.bytes(), 0);
    }

    #[test]
    fn the_number_of_entries_is_limited_too() {
        let mut batch = batch(&vec![1; FRAME_ENTRIES_MAX + 1]);
        assert_eq!(batch.take(0).len(), FRAME_ENTRIES_MAX);
        assert_eq!(batch.take(0).len(), 1);
    }
}

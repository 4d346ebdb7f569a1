//! What time alone will bring about: one heap, no timers.

use super::ledger::Slot;
use crate::clock::Timestamp;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// A task: delay over, deadline or timeout passed, retention over.
    Task(Slot),
    /// A session: silent beyond its lease, or gone beyond its grace.
    Session(usize),
}

/// At most one entry for each task and session, each of which can be moved: sixteen bytes, and four for its place.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    /// Each entry is before the two at twice its place.
    heap: Vec<Entry>,
    /// Where the entries of tasks and sessions stand in the heap.
    tasks: Vec<u32>,
    sessions: Vec<u32>,
}

/// In order of time; of those due at the same time sessions last, so that the order is always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    at: Timestamp,
    session: bool,
    key: u32,
}

/// "No place".
const NONE: u32 = u32::MAX;

impl Entry {
    const fn due(self) -> Due {
        if self.session { Due::Session(self.key as usize) } else { Due::Task(self.key as Slot) }
    }
}

impl Deadlines {
    /// Moves the entry of `due` to `at`; `NEVER` takes it out.
    #[inline]
    pub(crate) fn set(&mut self, due: Due, at: Timestamp) {
        let place = self.place(due);
        // Most tasks never have an entry.
        if place.is_some() || at != Timestamp::NEVER {
            self.move_to(due, place, at);
        }
    }

    fn move_to(&mut self, due: Due, place: Option<usize>, at: Timestamp) {
        match place {
            None => {
                let (session, key) = match due {
                    Due::Task(slot) => (false, slot as u32),
                    Due::Session(key) => (true, key as u32),
                };
                self.heap.push(Entry { at, session, key });
                self.up(self.heap.len() - 1);
            }
            Some(place) if at == Timestamp::NEVER => self.remove(place),
            Some(place) => {
                let before = std::mem::replace(&mut self.heap[place].at, at);
                if at < before {
                    self.up(place);
                } else if at > before {
                    self.down(place);
                }
            }
        }
    }

    /// When the entry of `due` comes; `NEVER` when there is none.
    pub(crate) fn at(&self, due: Due) -> Timestamp {
        self.place(due).map_or(Timestamp::NEVER, |place| self.heap[place].at)
    }

    /// All entries, in no order, for the audit.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Timestamp, Due)> {
        self.heap.iter().map(|entry| (entry.at, entry.due()))
    }

    /// The earliest.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.heap.first().map(|entry| entry.at)
    }

    /// Takes out one entry that is due at `now`, and says since when.
    pub(crate) fn pop(&mut self, now: Timestamp) -> Option<(Timestamp, Due)> {
        let first = self.heap.first().copied().filter(|entry| entry.at <= now)?;
        self.remove(0);
        Some((first.at, first.due()))
    }

    fn place(&self, due: Due) -> Option<usize> {
        let place = match due {
            Due::Task(slot) => self.tasks.get(slot),
            Due::Session(key) => self.sessions.get(key),
        };
        place.copied().filter(|place| *place != NONE).map(|place| place as usize)
    }

    fn remove(&mut self, place: usize) {
        let gone = self.heap.swap_remove(place);
        self.put_down(gone, NONE);
        if place < self.heap.len() {
            if self.heap[place] < gone {
                self.up(place);
            } else {
                self.down(place);
            }
        }
    }

    /// Moves the entry at `place` towards the front as far as it belongs.
    fn up(&mut self, mut place: usize) {
        let entry = self.heap[place];
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.heap[parent] <= entry {
                break;
            }
            self.put(place, self.heap[parent]);
            place = parent;
        }
        self.put(place, entry);
    }

    /// Moves the entry at `place` towards the end as far as it belongs.
    fn down(&mut self, mut place: usize) {
        let entry = self.heap[place];
        loop {
            let mut child = 2 * place + 1;
            if child >= self.heap.len() {
                break;
            }
            if child + 1 < self.heap.len() && self.heap[child + 1] < self.heap[child] {
                child += 1;
            }
            if entry <= self.heap[child] {
                break;
            }
            self.put(place, self.heap[child]);
            place = child;
        }
        self.put(place, entry);
    }

    fn put(&mut self, place: usize, entry: Entry) {
        self.heap[place] = entry;
        self.put_down(entry, place as u32);
    }

    /// Notes where an entry stands.
    fn put_down(&mut self, entry: Entry, place: u32) {
        let places = if entry.session { &mut self.sessions } else { &mut self.tasks };
        let key = entry.key as usize;
        if places.len() <= key {
            places.resize(key + 1, NONE);
        }
        places[key] = place;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Against a sorted set: the same entries, in the same order.
    #[test]
    fn entries_are_moved_taken_out_and_come_in_order() {
        let (mut deadlines, mut model) = (Deadlines::default(), BTreeSet::new());
        let mut x = 7_u64;
        for step in 0..20_000 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = (x >> 40) as usize % 60;
            let due = if (x >> 33) & 3 == 0 { Due::Session(key) } else { Due::Task(key) };
            let at = match (x >> 50) & 7 {
                0 => Timestamp::NEVER,
                _ => Timestamp((x >> 20) & 0xff),
            };
            model.retain(|(_, other)| *other != due);
            if at != Timestamp::NEVER {
                model.insert((at, due));
            }
            deadlines.set(due, at);
            assert_eq!(deadlines.at(due), at);
            assert_eq!(deadlines.next(), model.first().map(|(at, _)| *at));
            if step % 7 == 0 {
                let now = Timestamp((x >> 10) & 0xff);
                let expected = model.first().filter(|(at, _)| *at <= now).copied();
                assert_eq!(deadlines.pop(now), expected);
                model.retain(|entry| Some(*entry) != expected);
            }
            assert_eq!(deadlines.entries().collect::<BTreeSet<_>>(), model);
        }
    }
}

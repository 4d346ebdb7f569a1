//! The pools of an offer that have credit, in order of choice: a heap, in which each can be moved.

use std::cmp::Ordering;

/// Where a pool stands: least loaded in proportion first, then the one idle longest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) in_flight: u32,
    pub(super) concurrency: u32,
    /// See `Pool::used`.
    pub(super) used: u64,
    pub(super) pool: u32,
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        let load = |one: &Self, other: &Self| u64::from(one.in_flight) * u64::from(other.concurrency);
        let by_load = load(self, other).cmp(&load(other, self));
        by_load.then(self.used.cmp(&other.used)).then(self.pool.cmp(&other.pool))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Place {}

/// Where the pools stand in the heaps of their offers, by pool.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<u32>);

/// "Not in a heap".
const NONE: u32 = u32::MAX;

impl Places {
    /// Whether the pool can be chosen.
    pub(super) fn is_open(&self, pool: usize) -> bool {
        self.of(pool).is_some()
    }

    fn of(&self, pool: usize) -> Option<usize> {
        self.0.get(pool).copied().filter(|at| *at != NONE).map(|at| at as usize)
    }

    fn set(&mut self, pool: u32, at: u32) {
        let pool = pool as usize;
        if self.0.len() <= pool {
            self.0.resize(pool + 1, NONE);
        }
        self.0[pool] = at;
    }
}

/// Each place is before the two at twice its index.
#[derive(Debug, Default)]
pub(super) struct Open(Vec<Place>);

impl Open {
    pub(super) fn first(&self) -> Option<&Place> {
        self.0.first()
    }

    /// Moves a pool to its place; `None`: it can not be chosen.
    #[inline]
    pub(super) fn set(&mut self, pool: usize, place: Option<Place>, places: &mut Places) {
        match (places.of(pool), place) {
            (None, None) => {}
            (None, Some(place)) => {
                self.0.push(place);
                self.up(self.0.len() - 1, place, places);
            }
            (Some(at), Some(place)) => self.settle(at, place, places),
            (Some(at), None) => {
                places.set(pool as u32, NONE);
                if let Some(last) = self.0.pop()
                    && at < self.0.len()
                {
                    self.settle(at, last, places);
                }
            }
        }
    }

    /// Puts `place` where it belongs, from `at` on.
    fn settle(&mut self, at: usize, place: Place, places: &mut Places) {
        if at > 0 && place < self.0[(at - 1) / 2] {
            self.up(at, place, places);
        } else {
            self.down(at, place, places);
        }
    }

    fn up(&mut self, mut at: usize, place: Place, places: &mut Places) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.0[parent] < place {
                break;
            }
            self.put(at, self.0[parent], places);
            at = parent;
        }
        self.put(at, place, places);
    }

    fn down(&mut self, mut at: usize, place: Place, places: &mut Places) {
        loop {
            let mut child = 2 * at + 1;
            if child >= self.0.len() {
                break;
            }
            if child + 1 < self.0.len() && self.0[child + 1] < self.0[child] {
                child += 1;
            }
            if place < self.0[child] {
                break;
            }
            self.put(at, self.0[child], places);
            at = child;
        }
        self.put(at, place, places);
    }

    fn put(&mut self, at: usize, place: Place, places: &mut Places) {
        self.0[at] = place;
        places.set(place.pool, at as u32);
    }

    /// All, in no order: for the audit.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Place> {
        self.0.iter()
    }

    /// Whether every place is where it should be.
    pub(super) fn is_in_order(&self, places: &Places) -> bool {
        self.0.iter().enumerate().all(|(at, place)| {
            let behind_parent = at == 0 || self.0[(at - 1) / 2] < *place;
            behind_parent && places.of(place.pool as usize) == Some(at)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Against a map, looked through: the same pools, the same first.
    #[test]
    fn the_least_loaded_is_first_wherever_pools_move() {
        let (mut open, mut places, mut model) = (Open::default(), Places::default(), BTreeMap::new());
        let mut x = 3_u64;
        for step in 0..20_000 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pool = (x >> 40) as u32 % 50;
            let place = ((x >> 33) & 3 > 0).then_some(Place {
                in_flight: (x >> 20) as u32 & 7,
                concurrency: 1 + ((x >> 50) as u32 & 3),
                used: if step % 2 == 0 { 0 } else { step },
                pool,
            });
            open.set(pool as usize, place, &mut places);
            match place {
                Some(place) => model.insert(pool, place),
                None => model.remove(&pool),
            };
            assert!(open.is_in_order(&places));
            assert_eq!(open.first(), model.values().min());
            assert_eq!(open.iter().count(), model.len());
            assert_eq!(places.is_open(pool as usize), place.is_some());
        }
    }
}

//! Chunks: neighbours in a burst that go to one worker together.
//!
//! The least loaded worker for each call costs a frame and two wake-ups for each call once there are many
//! workers. So of what becomes ready in one round, while nobody waits, the chosen pool gets some more, as long as
//!
//! * less than half of what it can run at once is in flight there: nothing waits inside it;
//! * it has credit, and has got fewer than `TASKS` in this chunk: no pool is ahead of the least loaded by more;
//! * it has got fewer than one `SPREAD`th of all that is in flight in its crew: few calls, and the workers of a
//!   small crew, are still chosen for one by one;
//! * all of the chunk, run one after another, takes no longer than `TIME`, judged by how long attempts took
//!   lately: work that takes long is spread, whatever the worker says of its concurrency.
//!
//! The next chunk begins at the least loaded, of equals at the one idle longest: everyone has a turn.

use super::{Choice, Roster};

/// Most tasks in a chunk.
const TASKS: u32 = 32;
/// How many pools share what is in flight, at least.
const SPREAD: u32 = 16;
/// What the tasks of a chunk may take together: 100 ms, in the unit of [`Runs`].
const TIME: u32 = 100 * PART;
/// Parts of a millisecond, and the weight of the past in the average.
const PART: u32 = 16;

/// How long attempts took lately: a moving average, in sixteenths of a millisecond.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs(u32);

impl Default for Runs {
    /// Nothing is known: long, until shown to be short.
    fn default() -> Self {
        Self(2 * TIME)
    }
}

impl Runs {
    /// An attempt took so many milliseconds, from the choice of its worker to its end.
    pub(crate) fn note(&mut self, took: u64) {
        // Beyond any chunk; so that one of an hour is not remembered for an hour.
        let took = took.min(1_000) as u32;
        self.0 = self.0 - self.0.div_ceil(PART) + took;
    }
}

/// The pool that was chosen last, and what may follow there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chunk {
    round: u64,
    pool: usize,
    /// How many more tasks.
    tasks: u32,
    /// How long they may take together, as [`Runs`] counts.
    time: u32,
}

impl Chunk {
    /// The pool is gone.
    pub(super) fn end(&mut self, pool: usize) {
        if self.pool == pool {
            self.tasks = 0;
        }
    }
}

impl Roster {
    /// A burst ends here.
    pub(crate) fn begin_round(&mut self) {
        self.round += 1;
    }

    /// The pool for a task for which nobody had to wait: where the chunk goes on, or the least loaded.
    pub(crate) fn choose_next(&mut self, route: usize) -> Option<Choice> {
        let runs = self.routes[route].runs.0;
        for (offer, version) in &self.routes[route].offers {
            let chunk = &mut self.offers[*offer].chunk;
            if chunk.tasks == 0 || chunk.round != self.round || chunk.time < runs {
                continue;
            }
            let pool = &self.pools[chunk.pool];
            if self.places.is_open(chunk.pool) && pool.in_flight < pool.concurrency / 2 {
                chunk.tasks -= 1;
                chunk.time -= runs;
                return Some(Choice { pool: chunk.pool, version: version.clone() });
            }
        }
        let choice = self.choose(route)?;
        let offer = &mut self.offers[self.pools[choice.pool].offer];
        let tasks = (offer.in_flight / SPREAD).min(TASKS).saturating_sub(1);
        offer.chunk = match TIME.checked_sub(runs) {
            Some(time) => Chunk { round: self.round, pool: choice.pool, tasks, time },
            None => Chunk::default(),
        };
        Some(choice)
    }
}

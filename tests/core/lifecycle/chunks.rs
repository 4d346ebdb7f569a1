//! Bursts go to workers in chunks: of short tasks, where there is room, and never far ahead of the least loaded.

use std::collections::{BTreeMap, BTreeSet};

use crewcall::scheduler::Limits;

use super::bench::{Bench, worker};

/// A crew that runs "add", and what its workers hold.
struct Crew {
    bench: Bench,
    workers: u32,
    holds: BTreeMap<String, Vec<u64>>,
}

impl Crew {
    fn new(workers: u32, concurrency: u32) -> Self {
        // Nobody beats here.
        let mut bench = Bench::with(Limits { lease_ms: 10_000_000, ..Limits::default() });
        let mut holds = BTreeMap::new();
        for number in 1..=workers {
            let name = format!("w{number}");
            bench.crew(worker(&format!("{name} add mul")).runs(concurrency), 10_000);
            holds.insert(name, Vec::new());
        }
        Self { bench, workers, holds }
    }

    /// Has each worker run some tasks, one at a time, each of which takes so long.
    fn has_run(mut self, tasks: u32, took_ms: u64) -> Self {
        for _ in 0..tasks {
            self.call();
            self.bench.after(took_ms).gives("");
            self.finish();
        }
        self
    }

    /// So many calls in one round: who got each.
    fn burst(&mut self, calls: u32) -> Vec<String> {
        self.bench.scheduler.begin_round();
        (0..calls).map(|_| self.call()).collect()
    }

    fn call(&mut self) -> String {
        self.call_of("add")
    }

    fn call_of(&mut self, method: &str) -> String {
        let seen = self.bench.call(method).0;
        let words: Vec<&str> = seen.split(' ').collect();
        let [name, "runs", _, "attempt", "1", "lease", lease] = words[..] else { panic!("{seen:?}") };
        self.holds.get_mut(name).unwrap().push(lease.parse().unwrap());
        name.to_owned()
    }

    /// All that is held succeeds.
    fn finish(&mut self) {
        for (name, leases) in &mut self.holds {
            for lease in leases.drain(..) {
                self.bench.succeed(name, lease).has("= ok");
            }
        }
    }

    fn most(&self) -> usize {
        self.holds.values().map(Vec::len).max().unwrap()
    }

    fn least(&self) -> usize {
        self.holds.values().map(Vec::len).min().unwrap()
    }
}

/// How many neighbours went to one worker, chunk by chunk.
fn chunks(given: &[String]) -> Vec<usize> {
    given.chunk_by(|one, next| one == next).map(<[String]>::len).collect()
}

#[test]
fn a_large_burst_of_short_tasks_goes_in_chunks() {
    let mut crew = Crew::new(40, 128).has_run(100, 0);
    crew.burst(512);
    let given = crew.burst(256);
    assert_eq!(chunks(&given), [32; 8]);
    // In the order of load, then of idleness: nobody twice while others wait for their turn.
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 8);
}

#[test]
fn nobody_is_more_than_a_chunk_ahead_of_anybody_and_nobody_starves() {
    let mut crew = Crew::new(20, 256).has_run(100, 0);
    for _ in 0..20 {
        crew.burst(64);
        assert!(crew.most() - crew.least() <= 32, "{:?}", crew.holds);
    }
    assert!(crew.least() > 0, "{:?}", crew.holds);
}

#[test]
fn few_calls_are_chosen_for_one_by_one() {
    let mut crew = Crew::new(40, 128).has_run(100, 0);
    assert_eq!(chunks(&crew.burst(31)), [1; 31]);
    crew.finish();
    // A small crew shares evenly as well: no worker gets more at once than a sixteenth of what is in flight.
    let mut crew = Crew::new(2, 1024).has_run(100, 0);
    for _ in 0..8 {
        let before: usize = crew.holds.values().map(Vec::len).sum();
        let given = crew.burst(32);
        assert!(chunks(&given).iter().all(|chunk| *chunk <= (before + 32).div_ceil(16)), "{given:?}");
    }
}

#[test]
fn a_chunk_fills_half_of_what_a_worker_runs_at_once() {
    let mut crew = Crew::new(200, 8).has_run(100, 0);
    crew.burst(400);
    assert!(crew.most() <= 4, "{:?}", crew.holds);
    // Beyond, and where one task is all that is run at once, each goes to the least loaded.
    let mut crew = Crew::new(100, 1).has_run(100, 0);
    assert_eq!(chunks(&crew.burst(100)), [1; 100]);
    assert_eq!(crew.most(), 1);
}

#[test]
fn what_takes_long_is_spread() {
    // Nobody knows how long it takes.
    let mut crew = Crew::new(40, 128);
    assert_eq!(chunks(&crew.burst(512)), [1; 512]);
    // A chunk takes 100 ms at most, one after the other.
    for (took_ms, at_most) in [(10, 10), (20, 5), (51, 1), (1_000, 1)] {
        let mut crew = Crew::new(40, 128).has_run(200, took_ms);
        crew.burst(512);
        assert_eq!(chunks(&crew.burst(100)).into_iter().max(), Some(at_most), "{took_ms} ms");
    }
    // Of short tasks that have become long, no more is given together.
    let mut crew = Crew::new(40, 128).has_run(100, 0).has_run(40, 1_000);
    crew.burst(512);
    assert_eq!(chunks(&crew.burst(100)), [1; 100]);
}

#[test]
fn a_chunk_ends_with_its_round() {
    let mut crew = Crew::new(40, 128).has_run(100, 0);
    crew.burst(512);
    let (one, other) = (crew.burst(3), crew.burst(3));
    assert_eq!((chunks(&one), chunks(&other)), (vec![3], vec![3]));
    assert_ne!(one[0], other[0]);
}

#[test]
fn methods_share_a_chunk_each_with_its_own_time() {
    let mut crew = Crew::new(40, 128).has_run(100, 0);
    crew.burst(512);
    let given = crew.burst(2);
    // How long "mul" takes is not known: it goes to the least loaded, where a chunk begins.
    assert_ne!(crew.call_of("mul"), given[0]);
}

#[test]
fn a_worker_that_leaves_takes_its_chunk_along() {
    let mut crew = Crew::new(40, 128).has_run(100, 0);
    crew.burst(512);
    let name = crew.burst(1).remove(0);
    crew.holds.remove(&name);
    crew.bench.bye(&name).whatever();
    assert_eq!(crew.workers as usize, crew.holds.len() + 1);
    crew.bench.scheduler.audit().unwrap();
    assert_ne!(crew.call(), name);
}

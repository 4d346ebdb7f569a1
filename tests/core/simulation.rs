//! The scheduler among failing workers, callers that leave, a disk that lags, fills up and is torn away. Every
//! race is a number:
//!
//! ```text
//! CREWCALL_SIM_SEED=42 ./test core -- simulation        one seed again
//! CREWCALL_SIM_SEEDS=100000 ./test core -- simulation    seeds 1 to 100000, not 1 to 250
//! CREWCALL_SIM_SECONDS=3600 ./test core -- simulation    seeds that no run has seen, as long as one likes
//! ```
//! A seed is a phase of faults, then calm in which everything must end. One file for each invariant.
//!
//! # Crash and replay
//! A crash leaves the batches that were stored, in order, and loses the rest with every effect that waited for
//! it. What is checked, and when:
//!
//! - **after every step**: every durable task, field by field, against the rows put out so far, decoded. So it
//!   is shown for each step that a crash behind it, once stored, restores what lived; and a crash that loses
//!   the last batches restores what lived a few steps earlier, which was checked then;
//! - **after every step of a small world** (every tenth seed): a second scheduler is restored from those rows,
//!   compared row by row and audited;
//! - **every 64 steps**: the live ledger as rows, against those rows; and everything that `audit` knows;
//! - **at each crash** (one to ten in a thousand actions): the live scheduler is thrown away, with all
//!   batches stored, or some, or some stored and nobody told, and the one restored from the rows goes on in
//!   its place, compared and audited. Workers come back with their work, or without.

//!
//! # Does it catch anything?
//! Tried by breaking the scheduler, each of these alone, with twenty seeds and with the cases of `model`: no row
//! written for a task that comes back, an attempt that is not counted, work that comes back put at the end of its
//! line (both caught each of them), the most loaded worker chosen (caught by the reference alone, which knows the
//! right one), an acceptance that does not wait for the disk (caught here alone, where the disk is).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use invariant::{Figures, Invariant};
use proof::{Proof, count};
use world::{Shape, World};

mod acknowledged_is_kept;
mod calls;
mod credit_respected;
mod deadlines;
mod fences;
mod idempotency;
mod invariant;
mod liveness;
mod network;
mod one_outcome;
mod order;
mod paused;
mod restored_equals_live;
mod rng;
mod stale_refused;
mod stopping;
mod store_full;
mod work_conserving;
mod worker;
mod world;

/// Steps in the phase of faults. Long enough for thousands of tasks and dozens of crashes.
const STEPS: u64 = 20_000;
/// As many as make five million steps.
const SEEDS: u64 = 250;

#[test]
fn every_invariant_holds_through_faults_and_calm() {
    if let Ok(seed) = std::env::var("CREWCALL_SIM_SEED") {
        let seed = seed.parse().expect("CREWCALL_SIM_SEED is a number");
        println!("seed {seed}: {:?}", run(seed));
        return;
    }
    let proof = Proof::begin("simulation", "./test core -- simulation");
    let seeds = match proof::size("CREWCALL_SIM_SECONDS", 0) {
        0 => Seeds { first: 1, last: proof::size("CREWCALL_SIM_SEEDS", SEEDS), until: None },
        seconds => {
            // An hour must not look at the same seeds as every other run.
            let first = uuid::Uuid::new_v4().as_u128() as u64 >> 16;
            let until = Instant::now() + Duration::from_secs(seconds);
            Seeds { first, last: u64::MAX, until: Some(until) }
        }
    };
    let (last, figures) = run_all(&seeds);
    println!("seeds {} to {last}: {figures:?}", seeds.first);
    proof.record(&[
        ("seeds", format!("{} to {last}", seeds.first)),
        ("steps", count(figures.steps)),
        ("crash points at which all rows were compared with all live tasks", count(figures.compared)),
        ("schedulers restored in full and compared", count(figures.restored)),
        ("crashes after which the restored scheduler went on", count(figures.crashes)),
        ("shutdowns", count(figures.stops)),
        ("times the disk was full", count(figures.full)),
        ("disagreements, acknowledged tasks lost, outcomes changed", count(0_u64)),
    ]);
}

#[test]
fn a_seed_always_goes_the_same_way() {
    for seed in 1..=3 {
        let trace = || {
            let mut world = World::new(seed, Shape::of(seed), Vec::new());
            world.trace = Some(0);
            world.faults(5_000).unwrap();
            world.trace
        };
        assert_eq!(trace(), trace(), "seed {seed}");
    }
}

/// From `first` to `last`, or for a time.
struct Seeds {
    first: u64,
    last: u64,
    until: Option<Instant>,
}

/// Runs the seeds on all cores. Returns the last one.
fn run_all(seeds: &Seeds) -> (u64, Figures) {
    let next = AtomicU64::new(seeds.first);
    let total = Mutex::new(Figures::default());
    let failed = Mutex::new(None);
    let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while lock().is_none() && seeds.until.is_none_or(|until| Instant::now() < until) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds.last {
                        break;
                    }
                    // What the scheduler itself panics at must be traced to its seed too.
                    match catch_unwind(AssertUnwindSafe(|| run(seed))) {
                        Ok(figures) => total.lock().unwrap().add(figures),
                        Err(_) => *lock() = Some(seed),
                    }
                }
            });
        }
    });
    let failed = *lock();
    if let Some(seed) = failed {
        panic!("seed {seed} failed, see above; again: CREWCALL_SIM_SEED={seed} ./test core -- simulation");
    }
    let last = seeds.last.min(next.into_inner() - 1);
    (last, total.into_inner().unwrap())
}

/// One seed, from the first fault to the last outcome.
fn run(seed: u64) -> Figures {
    let shape = Shape::of(seed);
    let mut world = World::new(seed, shape, invariants(shape));
    let result = world.faults(STEPS).and_then(|()| liveness::calm(&mut world));
    if let Err(problem) = result {
        panic!("seed {seed}, step {}: {problem}", world.steps);
    }
    world.figures()
}

fn invariants(shape: Shape) -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(acknowledged_is_kept::AcknowledgedIsKept::default()),
        Box::new(credit_respected::CreditRespected::default()),
        Box::new(deadlines::Deadlines::default()),
        Box::new(fences::Fences::default()),
        Box::new(idempotency::Idempotency::default()),
        Box::new(one_outcome::OneOutcome::default()),
        Box::new(order::Order::default()),
        Box::new(paused::Paused::default()),
        Box::new(restored_equals_live::RestoredEqualsLive::new(
            shape.restored_at_every_step().then(|| shape.limits()),
        )),
        Box::new(stale_refused::StaleRefused::default()),
        Box::new(stopping::Stopping::default()),
        Box::new(store_full::StoreFull::default()),
        Box::new(work_conserving::WorkConserving::default()),
    ]
}

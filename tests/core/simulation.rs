//! The scheduler among failing workers, callers that leave, and a disk that lags. Every race is a number:
//!
//! ```text
//! CREWCALL_SIM_SEED=42 cargo test -p crewcall --test core simulation     one seed again
//! CREWCALL_SIM_SECONDS=3600 cargo test -p crewcall --test core simulation    as long as one likes
//! ```
//! A run has a phase of faults, then calm in which everything must end. One file for each invariant.

use std::time::{Duration, Instant};

use invariant::Invariant;
use world::World;

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
mod restored_equals_live;
mod rng;
mod stale_refused;
mod work_conserving;
mod worker;
mod world;

/// Steps in the phase of faults. Long enough for thousands of tasks and dozens of crashes.
const STEPS: u64 = 20_000;
/// Steps in all when no time is given.
const STEPS_IN_ALL: u64 = 2_000_000;

#[test]
fn every_invariant_holds_through_faults_and_calm() {
    if let Ok(seed) = std::env::var("CREWCALL_SIM_SEED") {
        let seed = seed.parse().expect("CREWCALL_SIM_SEED is a number");
        println!("seed {seed}: {} steps", run(seed));
        return;
    }
    let seconds: Option<u64> = std::env::var("CREWCALL_SIM_SECONDS").ok().map(|text| text.parse().unwrap());
    // An hour must not look at the same seeds as every other run.
    let first = seconds.map_or(1, |_| uuid::Uuid::new_v4().as_u128() as u64 >> 16);
    let begun = Instant::now();
    let (mut steps, mut seeds) = (0, 0);
    while seconds.map_or(steps < STEPS_IN_ALL, |seconds| begun.elapsed() < Duration::from_secs(seconds)) {
        steps += run(first + seeds);
        seeds += 1;
    }
    println!("{seeds} seeds, {steps} steps, {:.1} s", begun.elapsed().as_secs_f64());
}

#[test]
fn a_seed_always_goes_the_same_way() {
    for seed in 1..=3 {
        let trace = || {
            let mut world = World::new(seed, Vec::new());
            world.trace = Some(0);
            world.faults(5_000).unwrap();
            world.trace
        };
        assert_eq!(trace(), trace(), "seed {seed}");
    }
}

/// One seed, from the first fault to the last outcome. Returns the steps of the scheduler.
fn run(seed: u64) -> u64 {
    let mut world = World::new(seed, invariants());
    let result = world.faults(STEPS).and_then(|()| liveness::calm(&mut world));
    if let Err(problem) = result {
        panic!("seed {seed}, step {}: {problem}\nagain: CREWCALL_SIM_SEED={seed}", world.steps);
    }
    world.steps
}

fn invariants() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(acknowledged_is_kept::AcknowledgedIsKept::default()),
        Box::new(credit_respected::CreditRespected::default()),
        Box::new(deadlines::Deadlines::default()),
        Box::new(fences::Fences::default()),
        Box::new(idempotency::Idempotency::default()),
        Box::new(one_outcome::OneOutcome::default()),
        Box::new(order::Order::default()),
        Box::new(restored_equals_live::RestoredEqualsLive),
        Box::new(stale_refused::StaleRefused::default()),
        Box::new(work_conserving::WorkConserving::default()),
    ]
}

//! Once nothing fails any more, everything ends and everybody is answered.

use crewcall::scheduler::{Command, Filter};
use crewcall::task::StateName;

use super::invariant::Held;
use super::world::World;

const ROUND_MS: u64 = 400;
/// Far beyond any backoff, delay and grace.
const ROUNDS: usize = 1_000;

pub(super) fn calm(world: &mut World) -> Held {
    world.repair()?;
    for _ in 0..ROUNDS {
        round(world)?;
        if unfinished(world) == 0 {
            return everybody_was_answered(world);
        }
    }
    let (left, why) = (unfinished(world), world.explain());
    Err(format!("{left} tasks have not ended after {ROUNDS} rounds of calm: {why}"))
}

fn round(world: &mut World) -> Held {
    for index in 0..world.workers.len() {
        let worker = &mut world.workers[index];
        if worker.draining && worker.running.is_empty() {
            world.leave(index);
        } else if worker.conn.is_none() {
            world.connect(index);
        } else if worker.welcomed {
            let leases: Vec<u64> = worker.running.keys().copied().collect();
            for lease in leases {
                let frame = world.workers[index].succeed(lease);
                world.send(index, frame);
            }
            let beat = world.workers[index].beat();
            world.send(index, beat);
        }
    }
    world.settle()?;
    world.now = world.now + ROUND_MS;
    world.tick_now()
}

/// Tasks that have not ended.
fn unfinished(world: &World) -> u64 {
    let counts = world.scheduler.counts();
    [StateName::Delayed, StateName::Ready, StateName::Leased].iter().map(|name| counts[*name as usize]).sum()
}

fn everybody_was_answered(world: &mut World) -> Held {
    world.settle()?;
    if !world.calls.waiting.is_empty() {
        return Err(format!("nobody answered {:?}", world.calls.waiting));
    }
    // Whatever is kept is kept for a time.
    world.now = world.now + 100 * 86_400_000;
    world.tick_now()?;
    let waiter = world.calls.waiter();
    let filter = Filter::default();
    world.command(Command::List { filter, after: None, limit: 1, waiter })?;
    let left: u64 = world.scheduler.counts().iter().sum();
    if left > 0 {
        return Err(format!("{left} tasks are kept for ever"));
    }
    world.scheduler.audit()
}

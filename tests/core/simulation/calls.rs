//! Callers that ask for everything, leave, come back, and remember whom they wait for.

use std::collections::BTreeMap;
use std::sync::Arc;

use crewcall::clock::Timestamp;
use crewcall::scheduler::{
    Command, ConnId, Cursor, DeadChange, DeadFilter, DeadSelection, Filter, Reply, Waiter,
};
use crewcall::task::{NewTask, Payload, RetryPolicy, StateName, Target, TaskId, TaskOptions};
use uuid::Uuid;

use super::rng::Rng;
use super::worker::METHODS;

/// `Waiter::conn` of callers. No stream has this number.
const CALLER: ConnId = 0;
/// Tasks that callers still talk about.
const REMEMBERED: usize = 60;

#[derive(Debug, Default)]
pub(super) struct Calls {
    next: u64,
    recent: Vec<TaskId>,
    /// Who waits, and for what; of Submit, nothing.
    pub(super) waiting: BTreeMap<u64, Option<TaskId>>,
    watches: Vec<ConnId>,
}

impl Calls {
    pub(super) fn ask(
        &mut self,
        rng: &mut Rng,
        now: Timestamp,
        workers: &[String],
        conns: &mut ConnId,
    ) -> Command {
        let id = self.some_task(rng);
        let waiter = self.waiter();
        match rng.below(106) {
            0..25 => {
                let task = self.new_task(rng, now, 20);
                self.waiting.insert(waiter.tag, Some(task.id));
                Command::Call { task, waiter }
            }
            25..50 => {
                let tasks = (0..1 + rng.below(3)).map(|_| self.new_task(rng, now, 80)).collect();
                self.waiting.insert(waiter.tag, None);
                Command::Submit { tasks, waiter }
            }
            50..58 => {
                self.waiting.insert(waiter.tag, Some(id));
                Command::Await { id, waiter }
            }
            58..64 => {
                let waiting: Vec<(u64, TaskId)> =
                    self.waiting.iter().filter_map(|(tag, id)| Some((*tag, (*id)?))).collect();
                if waiting.is_empty() {
                    return Command::Stats { waiter };
                }
                let (tag, id) = rng.pick(&waiting);
                self.waiting.remove(&tag);
                Command::Abandon { id, waiter: Waiter { conn: CALLER, tag }, cancel: rng.chance(20) }
            }
            64..72 => Command::Get { id, take: rng.chance(10), with_payload: rng.chance(30), waiter },
            72..75 => Command::List { filter: filter(rng), after: Some(id), limit: 5, waiter },
            75..80 => Command::Cancel { id, reason: "enough".into(), waiter },
            80..83 => Command::Retry { id, waiter },
            83..86 => Command::Explain { id, waiter },
            86..92 => {
                let conn = *conns;
                *conns += 1;
                self.watches.push(conn);
                let ids = if rng.chance(60) { vec![id, self.some_task(rng)] } else { Vec::new() };
                let cursor = rng.chance(50).then(|| Cursor { epoch: rng.next(), seq: rng.below(100) as u64 });
                Command::Watch { ids, filter: filter(rng), cursor, conn, waiter }
            }
            92..95 if !self.watches.is_empty() => {
                let conn = self.watches.remove(rng.below(self.watches.len()));
                Command::Unwatch { conn }
            }
            95 => Command::Workers { waiter },
            96 => Command::Methods { waiter },
            97 => {
                let worker_id = workers[rng.below(workers.len())].clone();
                Command::Drain { worker_id, reason: "please".into(), waiter }
            }
            98 => {
                let method = some_method(rng).to_owned();
                Command::Pause { method, reason: "for now".into(), by: String::new(), waiter }
            }
            99..102 => Command::Resume { method: some_method(rng).to_owned(), waiter },
            102 => Command::ListDead { filter: dead_filter(rng), after: None, limit: 5, waiter },
            103 | 104 => {
                let change = if rng.chance(70) { DeadChange::Retry } else { DeadChange::Discard };
                let selection = if rng.chance(50) {
                    DeadSelection::Ids(vec![id, self.some_task(rng)])
                } else {
                    DeadSelection::Matching { filter: dead_filter(rng), limit: 3, after: None }
                };
                Command::ChangeDead { change, selection, dry_run: rng.chance(20), waiter }
            }
            _ => Command::Stats { waiter },
        }
    }

    pub(super) fn waiter(&mut self) -> Waiter {
        self.next += 1;
        Waiter { conn: CALLER, tag: self.next }
    }

    pub(super) fn answered(&mut self, waiter: Waiter, _reply: Reply) {
        self.waiting.remove(&waiter.tag);
    }

    /// Connections are gone: whoever waited knows nothing.
    pub(super) fn server_crashed(&mut self) {
        self.waiting.clear();
        self.watches.clear();
    }

    pub(super) fn watch_ended(&mut self, conn: ConnId) {
        self.watches.retain(|other| *other != conn);
    }

    fn some_task(&self, rng: &mut Rng) -> TaskId {
        if self.recent.is_empty() { TaskId(Uuid::nil()) } else { rng.pick(&self.recent) }
    }

    fn new_task(&mut self, rng: &mut Rng, now: Timestamp, durable_percent: usize) -> NewTask {
        self.next += 1;
        // As UUIDv7: time, then something that rises.
        let id = TaskId(Uuid::from_u128(u128::from(now.0) << 80 | u128::from(self.next)));
        self.recent.push(id);
        if self.recent.len() > REMEMBERED {
            self.recent.remove(0);
        }
        let durable = rng.chance(durable_percent);
        let mut options = if durable { TaskOptions::submit() } else { TaskOptions::call() };
        let sometimes = |rng: &mut Rng, percent: usize, most: usize| {
            if rng.chance(percent) { 1 + rng.below(most) as u64 } else { 0 }
        };
        options.priority = rng.below(10) as u8;
        options.run_at = rng.chance(15).then(|| now + rng.below(5_000) as u64);
        options.queue_timeout_ms = sometimes(rng, 15, 5_000);
        options.run_timeout_ms = sometimes(rng, 20, 5_000);
        options.deadline_ms = sometimes(rng, 20, 20_000);
        options.retry = RetryPolicy {
            max_attempts: 1 + rng.below(4) as u32,
            initial_backoff_ms: rng.below(1_000) as u64,
            max_backoff_ms: 5_000,
        };
        options.retention_ms = rng.chance(10).then(|| rng.below(5_000) as u64);
        let mut idempotency_key = String::new();
        let mut data = vec![b'x'; rng.below(31)];
        if rng.chance(15) {
            idempotency_key = format!("key{}", rng.below(6));
            // Now and then another call under the same key.
            data = if rng.chance(90) { b"same".to_vec() } else { b"other".to_vec() };
        }
        if rng.chance(25) {
            options.target = Target {
                version: rng.pick(&["", "^1", "=1.2.0", ">=2"]).into(),
                group: rng.pick(&["", "", "g"]).into(),
                labels: if rng.chance(30) { [("zone".into(), "a".into())].into() } else { BTreeMap::new() },
            };
        }
        let method = if rng.chance(2) { "unknown" } else { rng.pick(&METHODS) };
        NewTask {
            id,
            method: method.into(),
            payload: Payload::json(data),
            options: Arc::new(options),
            idempotency_key,
            // Nobody serves it, so it would wait for ever.
            only_if_served: method == "unknown" || rng.chance(10),
        }
    }
}

fn some_method(rng: &mut Rng) -> &'static str {
    if rng.chance(5) { "unknown" } else { rng.pick(&METHODS) }
}

fn dead_filter(rng: &mut Rng) -> DeadFilter {
    let error_code = rng.pick(&["", "", "worker_lost"]).into();
    DeadFilter { method: rng.pick(&["", "add"]).into(), error_code, ..DeadFilter::default() }
}

fn filter(rng: &mut Rng) -> Filter {
    let states = if rng.chance(50) { vec![rng.pick(&StateName::ALL)] } else { Vec::new() };
    Filter { method: rng.pick(&["", "add"]).into(), states, worker_id: rng.pick(&["", "", "w1"]).into() }
}

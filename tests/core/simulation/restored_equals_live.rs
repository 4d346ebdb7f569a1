//! What would be restored from the rows put out so far is the ledger that put them out: after every step.
//!
//! The rows of each step are decoded and kept, as a store that has kept up would hold them. Then every durable
//! task there is, not only those of the step, is compared with its row, field by field: a wrong row is caught,
//! and so is a change without a row. A task that was found equal is kept as a copy of the live one, whose
//! large parts are shared and so compared by address; that is what makes it possible at every step.

use std::collections::HashMap;

use crewcall::clock::Timestamp;
use crewcall::row::{Row, RowKey};
use crewcall::scheduler::{Limits, Scheduler};
use crewcall::task::{Body, Outcome, Payload, State, Task, TaskId};
use slab::Slab;

use super::invariant::{Figures, Held, Invariant, Stored, Written};
use super::world::decode;

/// Steps between comparisons by way of [`Scheduler::rows`], which export and backup use.
const EVERY: u64 = 64;

pub(super) struct RestoredEqualsLive {
    /// A second scheduler is restored at every step.
    restart: Option<Limits>,
    /// What was put out so far.
    rows: Stored,
    /// The tasks among them.
    tasks: HashMap<TaskId, usize>,
    kept: Slab<Kept>,
    /// Where the live tasks were found last time, in their order: nearly always the same again.
    places: Vec<usize>,
    compared: u64,
    restored: u64,
}

struct Kept {
    task: Task,
    /// As decoded from its row.
    fresh: bool,
}

impl RestoredEqualsLive {
    pub(super) fn new(restart: Option<Limits>) -> Self {
        Self {
            restart,
            rows: Stored::new(),
            tasks: HashMap::new(),
            kept: Slab::new(),
            places: Vec::new(),
            compared: 0,
            restored: 0,
        }
    }

    fn put(&mut self, key: RowKey, row: Row) {
        if let (RowKey::Task(id), Row::Task(task)) = (key, row) {
            let kept = Kept { task: *task, fresh: true };
            match self.tasks.get(&id) {
                Some(place) => self.kept[*place] = kept,
                None => {
                    self.tasks.insert(id, self.kept.insert(kept));
                }
            }
        }
    }

    fn delete(&mut self, key: &RowKey) {
        self.rows.remove(key);
        if let RowKey::Task(id) = key
            && let Some(place) = self.tasks.remove(id)
        {
            self.kept.remove(place);
        }
    }

    fn compare(&mut self, scheduler: &Scheduler) -> Held {
        let mut found = 0;
        for task in scheduler.tasks().filter(|task| task.is_durable()) {
            let known = self.places.get(found).copied();
            let known =
                known.filter(|place| self.kept.get(*place).is_some_and(|kept| kept.task.id == task.id));
            let Some(place) = known.or_else(|| self.tasks.get(&task.id).copied()) else {
                return Err(format!("no row was put out for {task:?}"));
            };
            match self.places.get_mut(found) {
                Some(known) => *known = place,
                None => self.places.push(place),
            }
            let kept = &mut self.kept[place];
            if !equal(&kept.task, task) {
                return Err(format!("the live task is {task:?}, its row says {:?}", kept.task));
            }
            if kept.fresh {
                check_payload(task, &self.rows)?;
                *kept = Kept { task: task.clone(), fresh: false };
            }
            found += 1;
        }
        if found < self.tasks.len() {
            return Err(format!("{found} durable tasks live, {} have rows", self.tasks.len()));
        }
        Ok(())
    }
}

impl RestoredEqualsLive {
    /// What is no task.
    fn compare_others(&self, scheduler: &Scheduler) -> Held {
        let others = scheduler.rows().into_iter().filter(|(_, row)| !matches!(row, Row::Task(_)));
        let kept =
            self.rows.iter().filter(|(key, _)| key.is_loaded_at_start() && !matches!(key, RowKey::Task(_)));
        if others.eq(kept.map(|(key, data)| (*key, decode(*key, data)))) {
            return Ok(());
        }
        Err("the restored ledger differs in what is no task".to_owned())
    }
}

impl Invariant for RestoredEqualsLive {
    fn wrote(&mut self, rows: &[Written]) -> Held {
        for Written { key, put } in rows {
            match put {
                Some((data, row)) => {
                    self.put(*key, row.clone());
                    self.rows.insert(*key, data.clone());
                }
                None => self.delete(key),
            }
        }
        Ok(())
    }

    fn done(&mut self, now: Timestamp, _: bool, scheduler: &Scheduler) -> Held {
        self.compare(scheduler)?;
        self.compared += 1;
        if self.compared.is_multiple_of(EVERY) {
            same(&self.rows, scheduler, "the live ledger")?;
        }
        if let Some(limits) = &self.restart {
            let rows = self.rows.iter().map(|(key, data)| decode(*key, data));
            let restored = Scheduler::restore(limits.clone(), self.compared, now, rows);
            self.compare(&restored)?;
            self.compare_others(&restored)?;
            restored.audit()?;
            self.restored += 1;
        }
        Ok(())
    }

    fn synced(&mut self, stored: &Stored, scheduler: &Scheduler) -> Held {
        same(stored, scheduler, "the live ledger")
    }

    fn restored(&mut self, stored: &Stored, scheduler: &Scheduler) -> Held {
        self.rows.clone_from(stored);
        self.tasks.clear();
        self.kept.clear();
        for (key, data) in stored {
            self.put(*key, decode(*key, data));
        }
        self.compare(scheduler)?;
        self.compare_others(scheduler)?;
        self.restored += 1;
        scheduler.audit()
    }

    fn count(&self, figures: &mut Figures) {
        figures.compared += self.compared;
        figures.restored += self.restored;
    }
}

/// As `==`, which compares empty texts by reading from nowhere: that costs more than all the rest.
fn equal(a: &Task, b: &Task) -> bool {
    let Task {
        id,
        method,
        body,
        options,
        key,
        created_at,
        since,
        changed_at,
        state,
        attempt,
        attempts,
        forget_at,
    } = a;
    let states = match (state, &b.state) {
        (State::Ended(Outcome::Succeeded(a)), State::Ended(Outcome::Succeeded(b))) => equal_payloads(a, b),
        (a, b) => a == b,
    };
    states
        && *id == b.id
        && *method == b.method
        && body.stored() == b.body.stored()
        && *key == b.key
        && *options == b.options
        && (*created_at, *since, *changed_at) == (b.created_at, b.since, b.changed_at)
        && (*attempt, *forget_at) == (b.attempt, b.forget_at)
        && attempts.len() == b.attempts.len()
        && (attempts.is_empty() || *attempts == b.attempts)
}

fn equal_payloads(a: &Payload, b: &Payload) -> bool {
    let types = a.content_type.len() == b.content_type.len()
        && (a.content_type.is_empty() || a.content_type == b.content_type);
    types && a.data.len() == b.data.len() && (a.data.is_empty() || a.data == b.data)
}

/// The payload of a durable task lies in a row of its own, unless it is empty.
fn check_payload(task: &Task, stored: &Stored) -> Held {
    let key = RowKey::Payload(task.id);
    let row = stored.get(&key).map(|data| decode(key, data));
    let right = match (&row, &task.body) {
        (None, body) => body.size() == 0,
        (Some(Row::Payload(_, payload)), Body::Held(held)) => payload == held,
        (Some(Row::Payload(_, payload)), Body::Stored(size)) => payload.size() as u64 == *size,
        (Some(_), _) => false,
    };
    if right { Ok(()) } else { Err(format!("the payload of {task:?} is stored as {row:?}")) }
}

fn same(stored: &Stored, scheduler: &Scheduler, which: &str) -> Held {
    let rows = scheduler.rows();
    let (at_start, later): (Vec<_>, Vec<_>) = stored.iter().partition(|(key, _)| key.is_loaded_at_start());
    let payloads = scheduler.tasks().filter(|task| task.is_durable() && task.body.size() > 0).count();
    if rows.len() != at_start.len() || payloads != later.len() {
        let expected = (rows.len(), payloads);
        return Err(format!("{which} has {expected:?} rows, {:?} are stored", (at_start.len(), later.len())));
    }
    for ((key, row), (stored_key, data)) in rows.iter().zip(at_start) {
        if key != stored_key || *row != decode(*stored_key, data) {
            return Err(format!("{which} says {row:?}, stored is {:?}", decode(*stored_key, data)));
        }
    }
    Ok(())
}

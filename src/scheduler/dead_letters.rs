//! Tasks that have failed for good: looked through, run again, discarded, one or many.
//!
//! A request about many walks them in the order in which they died and goes no further than it may in one
//! step; where it stopped is a [`DeadPlace`], from which the next one goes on. The first fixes the moment
//! after which deaths are not looked at, so that a task that is run again and dies at once is not met twice.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::str::FromStr;

use super::audit::ensure;
use super::command::Waiter;
use super::effect::{EffectKind, Reply, TaskView};
use super::ledger::Slot;
use super::{Limits, Output, Place, Scheduler, not_found};

use crate::clock::Timestamp;
use crate::error::{Error, Reason, Result};
use crate::task::{Outcome, State, StateName, TaskId};

/// Dead letters looked at for one request; it may end early so that none looks at a million.
const EXAMINED: usize = 20_000;

/// Which dead letters. All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadFilter {
    /// Exact name of the method; empty is any.
    pub method: String,
    /// Exact code of the error; empty is any.
    pub error_code: String,
    /// They died before this.
    pub died_before: Option<Timestamp>,
    /// They died at this time or after it.
    pub died_after: Option<Timestamp>,
}

impl DeadFilter {
    /// Whether it has no condition.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn matches(&self, scheduler: &Scheduler, slot: Slot) -> bool {
        let task = scheduler.ledger.task(slot);
        (self.method.is_empty() || *task.method == *self.method)
            && (self.error_code.is_empty()
                || matches!(task.state.outcome(), Some(Outcome::Failed(error)) if error.code == self.error_code))
    }
}

/// Where a request stopped. As text it is opaque: hexadecimal numbers with points between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadPlace {
    /// When the last one looked at died,
    at: Timestamp,
    /// and which it was.
    id: TaskId,
    /// Later deaths are not looked at.
    until: Timestamp,
}

impl fmt::Display for DeadPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}.{:x}", self.until.0, self.at.0, self.id.0.as_u128())
    }
}

impl FromStr for DeadPlace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let mut parts = text.split('.');
            let until = u64::from_str_radix(parts.next()?, 16).ok()?;
            let at = u64::from_str_radix(parts.next()?, 16).ok()?;
            let id = u128::from_str_radix(parts.next()?, 16).ok()?;
            let place =
                Self { at: Timestamp(at), id: TaskId(uuid::Uuid::from_u128(id)), until: Timestamp(until) };
            parts.next().is_none().then_some(place)
        };
        parse().ok_or_else(|| {
            Error::invalid("page_token", "is not one that this server gave; leave it out to begin")
        })
    }
}

/// The dead letters that a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadSelection {
    /// These.
    Ids(Vec<TaskId>),
    /// All that match, in the order in which they died.
    Matching {
        /// Which.
        filter: DeadFilter,
        /// At most so many.
        limit: usize,
        /// Go on after this.
        after: Option<DeadPlace>,
    },
}

impl DeadSelection {
    /// The selection that a caller of any edge means: `ids`, or a `filter` that says something, or `all` in so many
    /// words. `limit` 0 is the default, which is the most.
    ///
    /// # Errors
    /// `invalid_field` when none or more than one of the three is given, for ids with a `limit` or a `page_token`,
    /// and for a token that is not ours; `too_many_items` for more than `dead_batch` ids, or such a limit.
    pub fn new(
        limits: &Limits,
        ids: &[String],
        filter: DeadFilter,
        all: bool,
        limit: u32,
        page_token: &str,
    ) -> Result<Self> {
        let given = usize::from(!ids.is_empty()) + usize::from(!filter.is_empty()) + usize::from(all);
        if given != 1 {
            let how = if given == 0 { "nothing says which" } else { "more than one of them is given" };
            let problem = format!(
                "{how}: give either task_ids, or a filter with a condition, or all = true for every dead letter"
            );
            return Err(Error::invalid("selection", problem));
        }
        let most = limits.dead_batch;
        let too_many = |field: &str, count: usize| {
            let message = format!("{field}: {count}; at most {most} in one request (limits.dead_batch)");
            Error::new(Reason::TooManyItems, message)
        };
        if ids.is_empty() {
            let limit = if limit == 0 { most } else { limit as usize };
            if limit > most {
                return Err(too_many("limit", limit));
            }
            let after = if page_token.is_empty() { None } else { Some(page_token.parse()?) };
            return Ok(Self::Matching { filter, limit, after });
        }
        if ids.len() > most {
            return Err(too_many("task_ids", ids.len()));
        }
        if limit != 0 || !page_token.is_empty() {
            return Err(Error::invalid(
                "limit",
                "limit and page_token belong to a filter or to all, not to task_ids",
            ));
        }
        Ok(Self::Ids(ids.iter().map(|id| id.parse()).collect::<Result<_>>()?))
    }
}

/// What is to become of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadChange {
    /// They run again, from attempt 1.
    Retry,
    /// They are forgotten.
    Discard,
}

/// What became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadChanged {
    /// One for each id given, in that order, or for each that was found.
    pub results: Vec<(TaskId, Result<()>)>,
    /// Where to go on; none when there is no more.
    pub next: Option<DeadPlace>,
}

impl DeadChanged {
    /// How many were changed, or would be.
    pub fn changed(&self) -> usize {
        self.results.iter().filter(|(_, result)| result.is_ok()).count()
    }
}

/// All tasks in the state dead, in the order in which they died, each with its size.
#[derive(Debug, Default)]
pub(super) struct DeadLetters {
    by_death: BTreeMap<(Timestamp, TaskId), usize>,
    bytes: usize,
}

impl DeadLetters {
    fn add(&mut self, died_at: Timestamp, id: TaskId, size: usize) {
        self.bytes += size;
        self.by_death.insert((died_at, id), size);
    }

    fn remove(&mut self, died_at: Timestamp, id: TaskId) {
        self.bytes -= self.by_death.remove(&(died_at, id)).unwrap_or_default();
    }
}

impl Scheduler {
    // --- kept -------------------------------------------------------------------------------------

    /// How long an ended task is known whose options do not say. A durable one that died waits for a person;
    /// beyond the room for such, it is kept as long as any other, so that they cannot fill the store.
    pub(super) fn default_retention_ms(&self, slot: Slot, outcome: &Outcome) -> u64 {
        let (task, live) = (self.ledger.task(slot), &self.lives[slot]);
        // The caller of a durable call may have gone long ago.
        let answers_caller = live.of_caller && !(task.is_durable() && live.waiters.is_empty());
        if answers_caller {
            return self.limits.answered_retention_ms;
        }
        let room =
            self.dead.by_death.len() < self.limits.dead_tasks && self.dead.bytes < self.limits.dead_bytes;
        if matches!(outcome, Outcome::Failed(_)) && task.is_durable() && room {
            return self.limits.dead_retention_ms;
        }
        self.limits.retention_ms
    }

    /// The task in this slot has ended, or is restored: takes it in if it is dead.
    pub(super) fn note_death(&mut self, slot: Slot) {
        let task = self.ledger.task(slot);
        if matches!(task.state, State::Ended(Outcome::Failed(_))) {
            self.dead.add(task.changed_at, task.id, task.size());
        }
    }

    /// It is about to be forgotten, or to run again.
    pub(super) fn leave_dead(&mut self, slot: Slot) {
        let task = self.ledger.task(slot);
        if matches!(task.state, State::Ended(Outcome::Failed(_))) {
            self.dead.remove(task.changed_at, task.id);
        }
    }

    // --- looked through ---------------------------------------------------------------------------

    pub(super) fn list_dead(
        &mut self,
        filter: &DeadFilter,
        after: Option<DeadPlace>,
        limit: usize,
        waiter: Waiter,
        out: &mut Output,
    ) {
        let from = self.dead_range_start(filter);
        let to = match after {
            Some(place) => Bound::Excluded((place.at, place.id)),
            None => died_before(filter.died_before),
        };
        let (mut tasks, mut last, mut more, mut gated): (Vec<TaskView>, _, _, _) =
            (Vec::new(), None, false, false);
        if in_order(&from, &to) {
            for (examined, (at, id)) in
                self.dead.by_death.range((from, to)).map(|(key, _)| *key).rev().enumerate()
            {
                if tasks.len() >= limit || examined == EXAMINED {
                    more = true;
                    break;
                }
                last = Some(DeadPlace { at, id, until: Timestamp::default() });
                if let Some(slot) = self.ledger.slot_of(id)
                    && filter.matches(self, slot)
                    && self.check_stored(Place::Ledger(slot)).is_ok()
                {
                    gated |= self.is_unstored(slot);
                    tasks.push(self.view(Place::Ledger(slot)));
                }
            }
        }
        out.tell(gated, EffectKind::Reply(waiter, Reply::DeadLetters(tasks, last.filter(|_| more))));
    }

    fn dead_range_start(&self, filter: &DeadFilter) -> Bound<(Timestamp, TaskId)> {
        Bound::Included((filter.died_after.unwrap_or_default(), TaskId(uuid::Uuid::nil())))
    }

    // --- changed ----------------------------------------------------------------------------------

    pub(super) fn change_dead(
        &mut self,
        change: DeadChange,
        selection: DeadSelection,
        dry_run: bool,
        waiter: Waiter,
        out: &mut Output,
    ) {
        if change == DeadChange::Retry && !dry_run {
            let refusal = match &self.store_full {
                _ if self.stopping => Some(Error::new(Reason::ShuttingDown, "the server is stopping")),
                // Nearly all are durable.
                Some(reason) => Some(Error::new(Reason::StoreUnavailable, reason.clone())),
                None => None,
            };
            if let Some(error) = refusal {
                return out.refuse(waiter, error);
            }
        }
        let mut changed = DeadChanged::default();
        let ids = match selection {
            DeadSelection::Ids(ids) => ids,
            DeadSelection::Matching { filter, limit, after } => {
                let (ids, next) = self.dead_matching(&filter, limit, after);
                changed.next = next;
                ids
            }
        };
        let elsewhere = ids.iter().copied().filter(|id| self.ledger.slot_of(*id).is_none());
        let answered = self.answered.find_all(elsewhere);
        for id in ids {
            // The same id may be there twice.
            let result = match answered.get(&id) {
                Some(_) => Err(not_dead(id, StateName::Finished)),
                None => self.dead_slot(id),
            };
            if let Ok(slot) = result
                && !dry_run
            {
                match change {
                    DeadChange::Retry => self.run_again(slot, out),
                    DeadChange::Discard => self.forget(slot, out),
                }
            }
            changed.results.push((id, result.map(|_| ())));
        }
        out.tell(true, EffectKind::Reply(waiter, Reply::DeadChanged(changed)));
    }

    fn dead_slot(&self, id: TaskId) -> Result<Slot> {
        let slot = self.ledger.slot_of(id).ok_or_else(|| not_found(id))?;
        match self.ledger.task(slot).state.name() {
            StateName::Dead => Ok(slot),
            other => Err(not_dead(id, other)),
        }
    }

    fn dead_matching(
        &self,
        filter: &DeadFilter,
        limit: usize,
        after: Option<DeadPlace>,
    ) -> (Vec<TaskId>, Option<DeadPlace>) {
        let until = after.map_or(self.now, |place| place.until);
        let from = match after {
            Some(place) => Bound::Excluded((place.at, place.id)),
            None => self.dead_range_start(filter),
        };
        let to = match filter.died_before {
            Some(before) if before <= until => died_before(Some(before)),
            _ => Bound::Included((until, TaskId(uuid::Uuid::max()))),
        };
        let (mut ids, mut last) = (Vec::new(), None);
        if !in_order(&from, &to) {
            return (ids, None);
        }
        for (examined, (at, id)) in self.dead.by_death.range((from, to)).map(|(key, _)| *key).enumerate() {
            if ids.len() >= limit || examined == EXAMINED {
                return (ids, last);
            }
            last = Some(DeadPlace { at, id, until });
            if self.ledger.slot_of(id).is_some_and(|slot| filter.matches(self, slot)) {
                ids.push(id);
            }
        }
        (ids, None)
    }

    pub(super) fn audit_dead(&self) -> Result<(), String> {
        let mut dead = BTreeMap::new();
        for (_, task) in self.ledger.iter() {
            if matches!(task.state, State::Ended(Outcome::Failed(_))) {
                dead.insert((task.changed_at, task.id), task.size());
            }
        }
        ensure!(dead == self.dead.by_death, "dead letters and dead tasks differ");
        let bytes: usize = dead.values().sum();
        ensure!(bytes == self.dead.bytes, "dead letters: {bytes} bytes, {} counted", self.dead.bytes);
        Ok(())
    }
}

fn not_dead(id: TaskId, state: StateName) -> Error {
    Error::new(Reason::TaskNotDead, format!("task {id} is not a dead letter: it is {}", state.as_str()))
}

fn died_before(before: Option<Timestamp>) -> Bound<(Timestamp, TaskId)> {
    before.map_or(Bound::Unbounded, |before| Bound::Excluded((before, TaskId(uuid::Uuid::nil()))))
}

/// Whether a range has anything in it at all; of one that has not, the standard library panics.
fn in_order(from: &Bound<(Timestamp, TaskId)>, to: &Bound<(Timestamp, TaskId)>) -> bool {
    match (from, to) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => true,
        (Bound::Included(from), Bound::Included(to)) => from <= to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
            from < to
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_as_text_and_nothing_else_is_one() {
        let place = DeadPlace { at: Timestamp(7), id: TaskId::generate(), until: Timestamp(u64::MAX) };
        assert_eq!(place.to_string().parse::<DeadPlace>().unwrap(), place);
        for text in ["", "1", "1.2", "1.2.x", "1.2.3.4", "1.2.fffffffffffffffffffffffffffffffff", "é.1.1"] {
            assert!(text.parse::<DeadPlace>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_selection_says_which_in_exactly_one_way() {
        let limits = Limits { dead_batch: 2, ..Limits::default() };
        let id = || TaskId::generate().to_string();
        let some = DeadFilter { method: "add".to_owned(), ..DeadFilter::default() };
        let none = DeadFilter::default;
        let new = |ids: &[String], filter, all, limit, token: &str| {
            DeadSelection::new(&limits, ids, filter, all, limit, token).map_err(|error| error.reason)
        };
        assert!(matches!(new(&[id()], none(), false, 0, ""), Ok(DeadSelection::Ids(ids)) if ids.len() == 1));
        assert!(matches!(new(&[], some.clone(), false, 0, ""), Ok(DeadSelection::Matching { limit: 2, .. })));
        assert!(matches!(
            new(&[], none(), true, 1, "1.2.3"),
            Ok(DeadSelection::Matching { limit: 1, after: Some(_), .. })
        ));
        for wrong in [
            new(&[], none(), false, 0, ""),
            new(&[], some.clone(), true, 0, ""),
            new(&[id()], some, false, 0, ""),
            new(&[id()], none(), true, 0, ""),
            new(&[id()], none(), false, 1, ""),
            new(&[id()], none(), false, 0, "1.2.3"),
            new(&["nonsense".to_owned()], none(), false, 0, ""),
            new(&[], none(), true, 0, "x"),
        ] {
            assert_eq!(wrong, Err(Reason::InvalidField));
        }
        assert_eq!(new(&[id(), id(), id()], none(), false, 0, ""), Err(Reason::TooManyItems));
        assert_eq!(new(&[], none(), true, 3, ""), Err(Reason::TooManyItems));
    }
}

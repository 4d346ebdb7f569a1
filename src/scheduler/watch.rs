//! Those who follow tasks. A watcher is told how a task stands, not every step on the way: states between
//! two looks may be folded into one, so a slow or returning watcher is never told something outdated.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::command::{ConnId, Cursor, Filter, Waiter};
use super::effect::{EffectKind, Event, EventKind, Reply};
use super::ledger::Slot;
use super::{Limits, Output, Place, Scheduler};
use crate::error::{Error, Reason};
use crate::task::{Chunk, Payload, Progress, StateName, Task, TaskId};

/// Tasks a filter watcher is shown at the start, and tasks looked at to find them.
const FIRST_LOOK: usize = 1_000;
const FIRST_LOOK_EXAMINED: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Watchers {
    by_conn: BTreeMap<ConnId, Watcher>,
    /// Those with a filter.
    filters: BTreeSet<ConnId>,
    /// The last event's number.
    seq: u64,
    /// Recent changes, for filter watchers that come back. Kept from the first filter watcher on: a
    /// server that nobody watches pays nothing.
    recent: VecDeque<(u64, TaskId)>,
    pub(super) keeping: bool,
}

#[derive(Debug)]
struct Watcher {
    ids: BTreeSet<TaskId>,
    filter: Filter,
    /// How many rows had been handed out with the last event that had to wait for the store: until as many are
    /// stored, every event waits, or it would overtake that one and the cursor would skip it.
    written: u64,
}

/// The cursor of events after which nobody can go on: the first look was not complete.
const NO_PLACE: u64 = u64::MAX;

impl Watchers {
    /// Who follows which task by its name: for the audit.
    pub(crate) fn named(&self) -> impl Iterator<Item = (ConnId, TaskId)> {
        self.by_conn.iter().flat_map(|(conn, watcher)| watcher.ids.iter().map(|id| (*conn, *id)))
    }

    /// Whether filter watchers are those without names, and nothing is over its limit.
    pub(crate) fn audit(&self, limits: &Limits) -> bool {
        let nameless =
            self.by_conn.iter().filter(|(_, watcher)| watcher.ids.is_empty()).map(|(conn, _)| conn);
        nameless.eq(self.filters.iter())
            && self.by_conn.len() <= limits.watchers
            && self.recent.len() <= limits.events_kept
    }
}

impl Filter {
    /// Whether calls that have succeeded can meet what it says of states and workers.
    pub(super) fn may_match_answered(&self) -> bool {
        self.worker_id.is_empty() && (self.states.is_empty() || self.states.contains(&StateName::Finished))
    }

    /// Whether the task meets all conditions.
    pub(crate) fn matches(&self, task: &Task) -> bool {
        let held_by = |worker: &str| matches!(&task.state, crate::task::State::Leased { worker_id, .. } if **worker_id == *worker);
        (self.method.is_empty() || *task.method == *self.method)
            && (self.states.is_empty() || self.states.contains(&task.state.name()))
            && (self.worker_id.is_empty() || held_by(&self.worker_id))
    }
}

impl Scheduler {
    pub(super) fn watch(
        &mut self,
        ids: Vec<TaskId>,
        filter: Filter,
        cursor: Option<Cursor>,
        conn: ConnId,
        waiter: Waiter,
        out: &mut Output,
    ) {
        self.unwatch(conn);
        if ids.len() > self.limits.watch_tasks {
            let message = format!("task_ids: {} given; at most {}", ids.len(), self.limits.watch_tasks);
            return out.refuse(waiter, Error::new(Reason::TooManyItems, message));
        }
        if self.watchers.by_conn.len() >= self.limits.watchers {
            let message =
                format!("{} watch streams are open, the limit (limits.watchers)", self.limits.watchers);
            return out.refuse(waiter, Error::new(Reason::TooManyWatchers, message));
        }
        let places: Result<BTreeMap<TaskId, Place>, Error> =
            self.find_each(&ids).into_iter().zip(ids).map(|(place, id)| Ok((id, place?))).collect();
        let places = match places {
            Ok(places) => places,
            Err(error) => return out.refuse(waiter, error),
        };
        out.now(EffectKind::Reply(waiter, Reply::Watching));
        // What a watcher saw of another run says nothing about this one.
        let seen = cursor.filter(|cursor| cursor.epoch == self.epoch).map(|cursor| cursor.seq);
        if places.is_empty() {
            self.watch_filter(filter, seen, conn, out);
        } else {
            let seen = seen.filter(|seen| *seen <= self.watchers.seq).unwrap_or(0);
            self.watch_tasks(&places, seen, conn, out);
        }
    }

    fn watch_tasks(&mut self, places: &BTreeMap<TaskId, Place>, seen: u64, conn: ConnId, out: &mut Output) {
        let watcher =
            Watcher { ids: places.keys().copied().collect(), filter: Filter::default(), written: 0 };
        self.watchers.by_conn.insert(conn, watcher);
        // In the order in which they came, each with its own place: whoever is cut off on the way goes on
        // from there and misses none.
        let mut missed: Vec<(u64, u64, TaskId, Chunk)> = Vec::new();
        for (id, place) in places {
            let Place::Ledger(slot) = place else { continue };
            let written = self.lives[*slot].written;
            let talk = self.lives[*slot].talk();
            talk.watchers.push(conn);
            let chunks = talk.chunks.iter().filter(|(seq, _)| *seq > seen);
            missed.extend(chunks.map(|(seq, chunk)| (*seq, written, *id, chunk.clone())));
        }
        missed.sort_unstable_by_key(|(seq, ..)| *seq);
        for (seq, written, id, chunk) in missed {
            self.tell_watcher(conn, seq, written, EventKind::Chunk(id, chunk), out);
        }
        for place in places.values() {
            self.show(conn, *place, out);
        }
    }

    fn watch_filter(&mut self, filter: Filter, seen: Option<u64>, conn: ConnId, out: &mut Output) {
        self.watchers.keeping = true;
        let resumable = |seen: &u64| {
            *seen <= self.watchers.seq
                && self
                    .watchers
                    .recent
                    .front()
                    .map_or(*seen == self.watchers.seq, |(first, _)| *first <= *seen + 1)
        };
        let places: Vec<(u64, Place)> = match seen.filter(resumable) {
            Some(seen) => {
                let recent = self.watchers.recent.iter().filter(|(seq, _)| *seq > seen);
                let latest: BTreeMap<TaskId, u64> = recent.map(|(seq, id)| (*id, *seq)).collect();
                let ids: Vec<TaskId> = latest.keys().copied().collect();
                let known = latest.into_values().zip(self.find_each(&ids));
                let mut places: Vec<(u64, Place)> =
                    known.filter_map(|(seq, place)| Some((seq, place.ok()?))).collect();
                places.sort_unstable_by_key(|(seq, _)| *seq);
                places
            }
            None => {
                let mut places = Vec::new();
                let mut newest = self.newest_first(None, FIRST_LOOK, &filter);
                for _ in 0..FIRST_LOOK_EXAMINED {
                    if places.len() == FIRST_LOOK {
                        break;
                    }
                    let Some(place) = newest.next(self) else { break };
                    if filter.matches(&self.task_at(place)) {
                        let seq = if places.is_empty() { self.watchers.seq } else { NO_PLACE };
                        places.push((seq, place));
                    }
                }
                places.reverse();
                places
            }
        };
        let matching: Vec<(u64, Place)> =
            places.into_iter().filter(|(_, place)| filter.matches(&self.task_at(*place))).collect();
        self.watchers.by_conn.insert(conn, Watcher { ids: BTreeSet::new(), filter, written: 0 });
        self.watchers.filters.insert(conn);
        for (seq, place) in matching {
            let (view, written) = (self.view(place), self.written_at(place));
            self.tell_watcher(conn, seq, written, EventKind::Task(view), out);
        }
    }

    /// See `Live::written`.
    fn written_at(&self, place: Place) -> u64 {
        match place {
            Place::Ledger(slot) => self.lives[slot].written,
            Place::Answered(_) => 0,
        }
    }

    pub(super) fn unwatch(&mut self, conn: ConnId) {
        let Some(watcher) = self.watchers.by_conn.remove(&conn) else { return };
        self.watchers.filters.remove(&conn);
        for id in watcher.ids {
            if let Some(slot) = self.ledger.slot_of(id)
                && let Some(talk) = &mut self.lives[slot].talk
            {
                talk.watchers.retain(|other| *other != conn);
            }
        }
    }

    /// The task has entered another state.
    #[inline(always)]
    pub(super) fn changed(&mut self, slot: Slot, out: &mut Output) {
        if self.watchers.keeping || self.lives[slot].talk.is_some() {
            self.tell_watchers(slot, out);
        }
    }

    #[cold]
    fn tell_watchers(&mut self, slot: Slot, out: &mut Output) {
        let followed = self.lives[slot].talk.as_ref().is_some_and(|talk| !talk.watchers.is_empty());
        if !followed && !self.watchers.keeping {
            return;
        }
        self.watchers.seq += 1;
        let seq = self.watchers.seq;
        if self.watchers.keeping {
            let id = self.ledger.task(slot).id;
            self.watchers.recent.push_back((self.watchers.seq, id));
            if self.watchers.recent.len() > self.limits.events_kept {
                self.watchers.recent.pop_front();
            }
            for conn in self.filter_watchers(slot) {
                let view = self.view(Place::Ledger(slot));
                self.tell_watcher(conn, seq, self.lives[slot].written, EventKind::Task(view), out);
            }
        }
        for conn in self.followers(slot) {
            self.show(conn, Place::Ledger(slot), out);
        }
    }

    pub(super) fn progressed(&mut self, slot: Slot, progress: Progress, out: &mut Output) {
        self.watchers.seq += 1;
        let id = self.ledger.task(slot).id;
        for conn in self.audience(slot) {
            let (seq, written) = (self.watchers.seq, self.lives[slot].written);
            self.tell_watcher(conn, seq, written, EventKind::Progress(id, progress.clone()), out);
        }
    }

    pub(super) fn chunked(&mut self, slot: Slot, data: Payload, out: &mut Output) {
        self.watchers.seq += 1;
        let (id, attempt) = (self.ledger.task(slot).id, self.ledger.task(slot).attempt);
        let talk = self.lives[slot].talk();
        let chunk = Chunk { attempt, index: talk.chunks_seen, data };
        talk.chunks_seen += 1;
        talk.chunk_bytes += chunk.data.size();
        talk.chunks.push_back((self.watchers.seq, chunk.clone()));
        while talk.chunks.len() > self.limits.chunks_per_task
            || talk.chunk_bytes > self.limits.chunk_bytes_per_task
        {
            let Some((_, oldest)) = talk.chunks.pop_front() else { break };
            talk.chunk_bytes -= oldest.data.size();
        }
        for conn in self.audience(slot) {
            let (seq, written) = (self.watchers.seq, self.lives[slot].written);
            self.tell_watcher(conn, seq, written, EventKind::Chunk(id, chunk.clone()), out);
        }
    }

    /// Everyone who sees what the task's handler says.
    fn audience(&self, slot: Slot) -> Vec<ConnId> {
        let mut conns = self.followers(slot);
        conns.extend(self.filter_watchers(slot));
        conns
    }

    fn filter_watchers(&self, slot: Slot) -> Vec<ConnId> {
        let task = self.ledger.task(slot);
        let matches = |conn: &ConnId| {
            self.watchers.by_conn.get(conn).is_some_and(|watcher| watcher.filter.matches(task))
        };
        self.watchers.filters.iter().copied().filter(matches).collect()
    }

    fn followers(&self, slot: Slot) -> Vec<ConnId> {
        self.lives[slot].talk.as_ref().map_or_else(Vec::new, |talk| talk.watchers.clone())
    }

    /// Shows a watcher the task as it stands. Once it has seen the end it follows the task no longer; once
    /// it follows none, its stream ends.
    fn show(&mut self, conn: ConnId, place: Place, out: &mut Output) {
        let (view, written) = (self.view(place), self.written_at(place));
        let (id, ended) = (view.id, view.state.outcome().is_some());
        self.tell_watcher(conn, self.watchers.seq, written, EventKind::Task(view), out);
        if !ended {
            return;
        }
        if let Place::Ledger(slot) = place
            && let Some(talk) = &mut self.lives[slot].talk
        {
            talk.watchers.retain(|other| *other != conn);
        }
        let Some(watcher) = self.watchers.by_conn.get_mut(&conn) else { return };
        watcher.ids.remove(&id);
        if watcher.ids.is_empty() {
            let gated = watcher.written > self.stored;
            self.watchers.by_conn.remove(&conn);
            out.tell(gated, EffectKind::Close(conn, None));
        }
    }

    /// `written`: how many rows must be stored before it may be told.
    fn tell_watcher(&mut self, conn: ConnId, seq: u64, written: u64, kind: EventKind, out: &mut Output) {
        let cursor = Cursor { epoch: self.epoch, seq };
        let Some(watcher) = self.watchers.by_conn.get_mut(&conn) else { return };
        let gated = watcher.written.max(written) > self.stored;
        if gated {
            watcher.written = self.ledger.written();
        }
        out.tell(gated, EffectKind::Event(conn, Box::new(Event { cursor, kind })));
    }
}

//! Ended calls whose caller got the outcome, kept for people to look at: a ring, oldest first.
//!
//! Nearly every call ends well, is answered and is never asked for again. Such a call leaves the ledger and becomes
//! *plain*: an entry of 64 bytes, its payload and outcome copied behind those of the one before. So what lives stays
//! together in memory however many calls are remembered, and no message stays whole because a call of it is
//! remembered. A call with anything unusual about it stays in the ledger, and its entry says where.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;

use super::audit::ensure;
use super::ledger::{Ledger, Slot};
use super::live::Live;
use super::slots::Slots;
use crate::clock::Timestamp;
use crate::task::{Attempts, Body, Outcome, Payload, State, Task, TaskId, TaskOptions};

/// Larger contents are not copied.
const COPIED: usize = 128;
/// Calls that have left early leave entries behind: at most as many as there are calls, and so many.
const SLACK: usize = 64;
/// In place of a slot: the call has left; it is plain.
const GONE: u32 = u32::MAX;
const PLAIN: u32 = u32::MAX - 1;

/// A call's number among all that were answered, valid until one leaves.
pub(crate) type Number = u64;

#[derive(Debug, Default)]
pub(crate) struct Answered {
    /// Beside the entries, so that a look for an id goes through nothing else.
    ids: VecDeque<TaskId>,
    entries: VecDeque<Entry>,
    /// The number of the first entry.
    first: Number,
    /// Calls that are here, and their bytes.
    all: Size,
    /// Those of them that are plain.
    plain: Size,
    /// What was copied, and the place of its first byte among all that ever was.
    contents: VecDeque<u8>,
    contents_first: u64,
    /// No id beyond it is here.
    highest: Option<TaskId>,
}

/// How many, and how large payloads and outcomes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) calls: usize,
    pub(crate) bytes: usize,
}

impl Size {
    fn add(&mut self, bytes: usize) {
        self.calls += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.calls -= 1;
        self.bytes -= bytes;
    }
}

#[derive(Debug)]
struct Entry {
    created_at: Timestamp,
    ended_at: Timestamp,
    /// See `Live::age`.
    age: u64,
    /// Where its copied contents begin.
    begins: u64,
    /// `None`: those of most calls, which are not counted.
    options: Option<Arc<TaskOptions>>,
    /// Payload and outcome, when they were not copied.
    large: Option<Box<(Payload, Payload)>>,
    route: u32,
    attempt: u32,
    slot: u32,
    /// Bytes of payload and outcome that were copied.
    payload: u8,
    outcome: u8,
}

impl Entry {
    /// What a plain call counts against limits, in bytes.
    fn size(&self) -> usize {
        match &self.large {
            Some(large) => large.0.size() + large.1.size(),
            None => self.copied(),
        }
    }

    fn copied(&self) -> usize {
        usize::from(self.payload) + usize::from(self.outcome)
    }
}

/// Where the oldest is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Oldest {
    Kept(Slot),
    Plain(Number),
}

impl Answered {
    pub(crate) const fn all(&self) -> Size {
        self.all
    }

    /// Those that are not in the ledger.
    pub(crate) const fn plain(&self) -> Size {
        self.plain
    }

    /// The oldest, and when it ended.
    pub(crate) fn oldest(&self) -> Option<(Oldest, Timestamp)> {
        // What has left is never first.
        let entry = self.entries.front()?;
        let oldest =
            if entry.slot == PLAIN { Oldest::Plain(self.first) } else { Oldest::Kept(entry.slot as Slot) };
        Some((oldest, entry.ended_at))
    }

    /// Which plain call has the id. The newest are looked at first.
    pub(crate) fn find(&self, id: TaskId) -> Option<Number> {
        if self.highest.is_none_or(|highest| id > highest) {
            return None;
        }
        let at = self.ids.iter().rposition(|other| *other == id)?;
        (self.entries[at].slot == PLAIN).then_some(self.first + at as u64)
    }

    /// Which plain calls have any of these ids: one look for all of them.
    pub(crate) fn find_all(
        &self,
        ids: impl IntoIterator<Item = TaskId>,
    ) -> HashMap<TaskId, Number, RandomState> {
        let ids: HashSet<TaskId, RandomState> = ids.into_iter().collect();
        if ids.is_empty() {
            return HashMap::default();
        }
        let plain = self.numbered().filter(|(_, id, entry)| entry.slot == PLAIN && ids.contains(id));
        plain.map(|(number, id, _)| (id, number)).collect()
    }

    /// The newest plain calls whose id, age and route are wanted, by age and number, the newest first; at most so
    /// many.
    pub(crate) fn newest(
        &self,
        most: usize,
        wanted: impl Fn(TaskId, u64, usize) -> bool,
    ) -> Vec<(u64, Number)> {
        let plain = self
            .numbered()
            .filter(|(_, id, entry)| entry.slot == PLAIN && wanted(*id, entry.age, entry.route as usize));
        let mut found: Vec<_> = plain.map(|(number, _, entry)| (entry.age, number)).collect();
        if found.len() > most {
            found.select_nth_unstable_by(most, |one, other| other.cmp(one));
            found.truncate(most);
        }
        found.sort_unstable_by(|one, other| other.cmp(one));
        found
    }

    /// The age of a plain call.
    pub(crate) fn age(&self, number: Number) -> u64 {
        self.entry(number).age
    }

    pub(crate) fn route(&self, number: Number) -> usize {
        self.entry(number).route as usize
    }

    /// The outcome of a plain call.
    pub(crate) fn outcome(&self, number: Number) -> Outcome {
        Outcome::Succeeded(self.payloads(self.entry(number)).1)
    }

    /// A plain call as it was when it ended. `method`: the one of its route; `kept_ms`: how long it is known.
    pub(crate) fn task(&self, number: Number, method: &Arc<str>, kept_ms: u64) -> Task {
        let entry = self.entry(number);
        let (payload, outcome) = self.payloads(entry);
        Task {
            id: self.ids[self.place(number)],
            method: Arc::clone(method),
            body: Body::Held(payload),
            options: entry.options.clone().unwrap_or_else(TaskOptions::shared_call),
            key: None,
            created_at: entry.created_at,
            since: entry.created_at,
            changed_at: entry.ended_at,
            state: State::Ended(Outcome::Succeeded(outcome)),
            attempt: entry.attempt,
            attempts: Attempts::default(),
            forget_at: entry.ended_at + kept_ms,
        }
    }

    /// The numbers of all plain calls.
    pub(crate) fn plain_numbers(&self) -> impl Iterator<Item = Number> {
        self.numbered().filter(|(_, _, entry)| entry.slot == PLAIN).map(|(number, ..)| number)
    }

    fn numbered(&self) -> impl Iterator<Item = (Number, TaskId, &Entry)> {
        let entries = self.ids.iter().zip(&self.entries);
        (self.first..).zip(entries).map(|(number, (id, entry))| (number, *id, entry))
    }

    fn place(&self, number: Number) -> usize {
        (number - self.first) as usize
    }

    fn entry(&self, number: Number) -> &Entry {
        &self.entries[self.place(number)]
    }

    fn payloads(&self, entry: &Entry) -> (Payload, Payload) {
        if let Some(large) = &entry.large {
            return (**large).clone();
        }
        let begins = (entry.begins - self.contents_first) as usize;
        let middle = begins + usize::from(entry.payload);
        let copy = |from, to| {
            let bytes: Vec<u8> = self.contents.range(from..to).copied().collect();
            Payload::json(Bytes::from(bytes))
        };
        (copy(begins, middle), copy(middle, begins + entry.copied()))
    }

    fn contents_end(&self) -> u64 {
        self.contents_first + self.contents.len() as u64
    }

    // --- come and go ------------------------------------------------------------------------------

    /// A call that stays in the ledger, where it has ended.
    pub(crate) fn keep(&mut self, task: &Task, slot: Slot, live: &mut Live) {
        live.place = self.first + self.entries.len() as u64;
        live.answered = true;
        self.all.add(task.size());
        self.ids.push_back(task.id);
        self.entries.push_back(Entry {
            created_at: task.created_at,
            ended_at: task.changed_at,
            age: live.age,
            begins: self.contents_end(),
            options: None,
            large: None,
            route: live.route() as u32,
            attempt: task.attempt,
            slot: slot as u32,
            payload: 0,
            outcome: 0,
        });
    }

    /// A call that has left the ledger, and succeeded: its first attempt, as far as anyone can tell.
    #[inline]
    pub(crate) fn take_in(&mut self, task: Task, live: &Live, now: Timestamp, outcome: &Payload) {
        let Body::Held(payload) = task.body else { return };
        let mut entry = Entry {
            created_at: task.created_at,
            ended_at: now,
            age: live.age,
            begins: self.contents_end(),
            options: (!Arc::ptr_eq(&task.options, TaskOptions::default_call())).then_some(task.options),
            large: None,
            route: live.route() as u32,
            attempt: task.attempt,
            slot: PLAIN,
            payload: payload.data.len() as u8,
            outcome: outcome.data.len() as u8,
        };
        if is_copied(&payload) && is_copied(outcome) {
            self.contents.extend(&payload.data[..]);
            self.contents.extend(&outcome.data[..]);
        } else {
            (entry.payload, entry.outcome) = (0, 0);
            entry.large = Some(Box::new((payload, outcome.clone())));
        }
        let size = entry.size();
        self.all.add(size);
        self.plain.add(size);
        self.highest = self.highest.max(Some(task.id));
        self.ids.push_back(task.id);
        self.entries.push_back(entry);
    }

    /// A call that is in the ledger is forgotten, or begins anew.
    pub(crate) fn leave(&mut self, slot: Slot, size: usize, lives: &mut Slots<Live>) {
        let live = &mut lives[slot];
        live.answered = false;
        let place = self.place(live.place);
        self.entries[place].slot = GONE;
        self.all.remove(size);
        self.drop_gone(lives);
    }

    /// A plain call is forgotten. Returns its route.
    pub(crate) fn forget(&mut self, number: Number, lives: &mut Slots<Live>) -> usize {
        let place = self.place(number);
        let entry = &mut self.entries[place];
        let (size, route) = (entry.size(), entry.route as usize);
        entry.slot = GONE;
        entry.options = None;
        entry.large = None;
        self.all.remove(size);
        self.plain.remove(size);
        self.drop_gone(lives);
        route
    }

    fn drop_gone(&mut self, lives: &mut Slots<Live>) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.slot == GONE) {
            self.ids.pop_front();
            self.first += 1;
            self.contents.drain(..entry.copied());
            self.contents_first += entry.copied() as u64;
        }
        if self.entries.len() > 2 * self.all.calls + SLACK {
            self.close_up(lives);
        }
    }

    /// Leaves out what has left; numbers begin anew.
    fn close_up(&mut self, lives: &mut Slots<Live>) {
        let old = std::mem::take(self);
        (self.all, self.plain, self.highest) = (old.all, old.plain, old.highest);
        for (id, mut entry) in old.ids.iter().zip(old.entries).filter(|(_, entry)| entry.slot != GONE) {
            let begins = (entry.begins - old.contents_first) as usize;
            entry.begins = self.contents_end();
            self.contents.extend(old.contents.range(begins..begins + entry.copied()));
            if entry.slot != PLAIN {
                lives[entry.slot as Slot].place = self.entries.len() as u64;
            }
            self.ids.push_back(*id);
            self.entries.push_back(entry);
        }
    }

    // --- audit ------------------------------------------------------------------------------------

    pub(crate) fn audit(&self, ledger: &Ledger, lives: &Slots<Live>) -> Result<(), String> {
        let (mut all, mut plain, mut last) = (Size::default(), Size::default(), Timestamp::default());
        let mut begins = self.contents_first;
        let mut names = HashSet::new();
        ensure!(self.ids.len() == self.entries.len(), "answered: ids and entries are out of step");
        ensure!(self.entries.front().is_none_or(|entry| entry.slot != GONE), "answered: a gap comes first");
        for (number, id, entry) in self.numbered() {
            ensure!(entry.begins == begins, "answered: contents of {id} begin elsewhere");
            begins += entry.copied() as u64;
            ensure!(entry.ended_at >= last, "answered is not in order at {id}");
            last = entry.ended_at;
            if entry.slot == GONE {
                continue;
            }
            ensure!(names.insert(id), "{id} was answered twice");
            if entry.slot == PLAIN {
                ensure!(ledger.slot_of(id).is_none(), "{id} is in the ledger, and plain");
                ensure!(self.find(id) == Some(number), "{id} is not found");
                plain.add(entry.size());
                all.add(entry.size());
                continue;
            }
            let slot = entry.slot as Slot;
            let live = lives.get(slot).filter(|live| live.answered && live.place == number);
            ensure!(live.is_some() && ledger.slot_of(id) == Some(slot), "{id} is answered, and not there");
            let task = ledger.task(slot);
            ensure!(task.state.outcome().is_some(), "{id} is answered, not ended");
            ensure!(task.changed_at == entry.ended_at, "{id} ended at another time");
            all.add(task.size());
        }
        ensure!(begins == self.contents_end(), "answered: contents of nobody");
        ensure!((all, plain) == (self.all, self.plain), "answered: {all:?}, {plain:?}; counted {self:?}");
        let marked = lives.iter().filter(|(_, live)| live.answered).count();
        ensure!(all.calls - plain.calls == marked, "{marked} marked as answered");
        ensure!(self.entries.len() <= 2 * all.calls + SLACK, "answered: too many gaps");
        Ok(())
    }
}

fn is_copied(payload: &Payload) -> bool {
    payload.data.len() <= COPIED && payload.content_type.is_empty()
}

const _: () = assert!(size_of::<Entry>() <= 64 && COPIED <= u8::MAX as usize);

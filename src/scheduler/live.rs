//! The volatile side of a task: who waits for it, who holds it, where it stands in line. Rebuilt or
//! gone after a restart.

use std::collections::VecDeque;

use super::command::{ConnId, Waiter};
use super::ledger::Slot;
use super::slots::Slots;
use crate::clock::Timestamp;
use crate::task::{Chunk, Progress};

/// "No slot": the ends of lists; "no pool".
const NONE: u32 = u32::MAX;

/// Volatile facts of the task in the same slot of the ledger.
#[derive(Debug)]
pub(crate) struct Live {
    /// Its queue.
    route: u32,
    /// The pool that holds it; `NONE` when there is none.
    pool: u32,
    /// The handler has begun.
    pub(crate) started: bool,
    /// It has been asked back.
    pub(crate) recalled: bool,
    /// Made by Call: its caller's leaving cancels it while nobody else has an interest.
    pub(crate) of_caller: bool,
    /// It is one of the ended calls whose caller got the outcome: see `answered.rs`.
    pub(crate) answered: bool,
    /// Its number among all that were accepted: the order of listings.
    pub(crate) age: u64,
    /// Since when it waits, for its place in line.
    pub(crate) ready_since: Timestamp,
    /// Its number among all that became ready: the order of a line. Many become ready in one millisecond. Once it is
    /// answered, its number among those.
    pub(crate) place: u64,
    /// How many rows had been handed out with its last change, if that was stored at all: once as many are
    /// stored, everything about the task is.
    pub(crate) written: u64,
    /// Who gets the outcome.
    pub(crate) waiters: Waiters,
    /// What handler and watchers say to each other; most tasks have neither.
    pub(crate) talk: Option<Box<Talk>>,
    /// Place in a queue.
    line: Link,
    /// Place among all tasks, by age.
    by_age: Link,
}

/// Who waits for a task: nearly always nobody or one.
#[derive(Debug, Default)]
pub(crate) enum Waiters {
    #[default]
    None,
    // Taken apart, so that the whole takes the room of one.
    One {
        conn: ConnId,
        tag: u64,
    },
    #[allow(clippy::box_collection, reason = "a third of a Vec's size")]
    Many(Box<Vec<Waiter>>),
}

impl Waiters {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One { .. } => 1,
            Self::Many(waiters) => waiters.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn push(&mut self, waiter: Waiter) {
        match self {
            Self::None => *self = Self::One { conn: waiter.conn, tag: waiter.tag },
            Self::One { conn, tag } => {
                *self = Self::Many(Box::new(vec![Waiter { conn: *conn, tag: *tag }, waiter]));
            }
            Self::Many(waiters) => waiters.push(waiter),
        }
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, waiter: Waiter) -> bool {
        match self {
            Self::One { conn, tag } if (Waiter { conn: *conn, tag: *tag }) == waiter => {
                *self = Self::None;
                true
            }
            Self::None | Self::One { .. } => false,
            Self::Many(waiters) => {
                let before = waiters.len();
                waiters.retain(|other| *other != waiter);
                waiters.len() < before
            }
        }
    }

    /// All of them, in the order in which they came; none are left.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Waiter> + use<> {
        let (one, many) = match std::mem::take(self) {
            Self::None => (None, Vec::new()),
            Self::One { conn, tag } => (Some(Waiter { conn, tag }), Vec::new()),
            Self::Many(waiters) => (None, *waiters),
        };
        one.into_iter().chain(many)
    }
}

/// Words of a running handler, and who listens.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    pub(crate) watchers: Vec<ConnId>,
    pub(crate) progress: Option<Progress>,
    /// With the sequence number of the event.
    pub(crate) chunks: VecDeque<(u64, Chunk)>,
    pub(crate) chunk_bytes: usize,
    pub(crate) chunks_seen: u64,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
}

const UNLINKED: Link = Link { prev: NONE, next: NONE };

impl Live {
    pub(crate) fn new(route: usize, age: u64, of_caller: bool, now: Timestamp) -> Self {
        Self {
            route: route as u32,
            pool: NONE,
            started: false,
            recalled: false,
            of_caller,
            answered: false,
            age,
            ready_since: now,
            place: 0,
            written: 0,
            waiters: Waiters::None,
            talk: None,
            line: UNLINKED,
            by_age: UNLINKED,
        }
    }

    pub(crate) const fn route(&self) -> usize {
        self.route as usize
    }

    pub(crate) fn set_route(&mut self, route: usize) {
        self.route = route as u32;
    }

    pub(crate) fn pool(&self) -> Option<usize> {
        (self.pool != NONE).then_some(self.pool as usize)
    }

    pub(crate) fn set_pool(&mut self, pool: Option<usize>) {
        self.pool = pool.map_or(NONE, |pool| pool as u32);
    }

    pub(crate) fn talk(&mut self) -> &mut Talk {
        self.talk.get_or_insert_default()
    }
}

/// Which of a task's links a list runs through.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chain {
    Line,
    Age,
}

/// A doubly linked list through the tasks themselves: adding, and taking any task from the middle, are
/// O(1) and allocate nothing (as in beanstalkd and the kernel's lists).
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    chain: Chain,
    head: u32,
    tail: u32,
    len: u32,
}

impl List {
    pub(crate) const fn new(chain: Chain) -> Self {
        Self { chain, head: NONE, tail: NONE, len: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len as usize
    }

    pub(crate) fn head(&self) -> Option<Slot> {
        as_slot(self.head)
    }

    pub(crate) fn tail(&self) -> Option<Slot> {
        as_slot(self.tail)
    }

    /// The one before `slot`, towards the head.
    pub(crate) fn before(&self, lives: &Slots<Live>, slot: Slot) -> Option<Slot> {
        as_slot(self.link(&lives[slot]).prev)
    }

    /// The one after `slot`, towards the tail.
    pub(crate) fn after(&self, lives: &Slots<Live>, slot: Slot) -> Option<Slot> {
        as_slot(self.link(&lives[slot]).next)
    }

    pub(crate) fn push_back(&mut self, lives: &mut Slots<Live>, slot: Slot) {
        *self.link_mut(&mut lives[slot]) = Link { prev: self.tail, next: NONE };
        match as_slot(self.tail) {
            Some(tail) => self.link_mut(&mut lives[tail]).next = slot as u32,
            None => self.head = slot as u32,
        }
        self.tail = slot as u32;
        self.len += 1;
    }

    /// Before `next`, which must be in this list; at the end when there is none.
    pub(crate) fn insert_before(&mut self, lives: &mut Slots<Live>, slot: Slot, next: Option<Slot>) {
        let Some(next) = next else { return self.push_back(lives, slot) };
        let prev = std::mem::replace(&mut self.link_mut(&mut lives[next]).prev, slot as u32);
        *self.link_mut(&mut lives[slot]) = Link { prev, next: next as u32 };
        match as_slot(prev) {
            Some(prev) => self.link_mut(&mut lives[prev]).next = slot as u32,
            None => self.head = slot as u32,
        }
        self.len += 1;
    }

    /// Takes `slot`, which must be in this list, out of it.
    pub(crate) fn remove(&mut self, lives: &mut Slots<Live>, slot: Slot) {
        let link = std::mem::replace(self.link_mut(&mut lives[slot]), UNLINKED);
        match as_slot(link.prev) {
            Some(prev) => self.link_mut(&mut lives[prev]).next = link.next,
            None => self.head = link.next,
        }
        match as_slot(link.next) {
            Some(next) => self.link_mut(&mut lives[next]).prev = link.prev,
            None => self.tail = link.prev,
        }
        self.len -= 1;
    }

    fn link<'a>(&self, live: &'a Live) -> &'a Link {
        match self.chain {
            Chain::Line => &live.line,
            Chain::Age => &live.by_age,
        }
    }

    fn link_mut<'a>(&self, live: &'a mut Live) -> &'a mut Link {
        match self.chain {
            Chain::Line => &mut live.line,
            Chain::Age => &mut live.by_age,
        }
    }
}

fn as_slot(raw: u32) -> Option<Slot> {
    (raw != NONE).then_some(raw as Slot)
}

// See the end of `task.rs`.
const _: () = assert!(size_of::<Live>() <= 88);

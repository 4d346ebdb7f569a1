//! Payloads on their way back from the store, and what waits for them.
//!
//! A task that is given to a worker may have its payload in the store only. The assignment then stands in its
//! session's line until the payload has been read:
//!
//! ```text
//! line of a session:   A1+Cancel(1)   A2   A3 │ A4   A5        what else is said to the worker goes past it
//!                      ── asked for ───────── │ ── later: so much as the stream takes ──
//! ```
//!
//! - Assignments of a line leave in its order; one of a durable task whose payload is at hand joins the line, for
//!   queues are first in, first out. Whatever names one's lease leaves behind it; a drain or a move leaves behind all
//!   of them. Everything else goes past: ephemeral work never waits for the disk, not even at a worker that waits for
//!   durable work.
//! - Rows are asked for before the batch is handed over that may delete them, so a row that is not found is
//!   damage. The assignment of a task that ends meanwhile is asked for at once, because its rows may be deleted next.
//! - What was read and not taken by its stream is bounded for each session, however large its credit.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;

use crate::outbox::Taken;
use crate::row::{Row, RowKey};
use crate::scheduler::{Assign, ConnId, TaskView, Tell, Waiter};
use crate::store::{Committer, StoreError};
use crate::task::{Durability, Payload};

use super::EngineError;

/// Rows in one request: a batch that is handed over behind it waits a millisecond or so.
const AT_ONCE: usize = 64;
/// Bytes read for a session and not taken by its stream; one payload may always be.
const AHEAD: u64 = 8 << 20;

#[derive(Default)]
pub(super) struct Reads {
    lines: HashMap<ConnId, Line, FixedState>,
    /// To be asked for before the next batch is handed over.
    wanted: Vec<(RowKey, Reader)>,
    /// Who waits for the rows of each request, in the order of its keys.
    asked: VecDeque<Vec<Reader>>,
    /// Streams that have taken what was there.
    pub(super) taken: Arc<Taken>,
}

/// Who waits for a payload.
enum Reader {
    /// The first in the line of this session.
    Session(ConnId),
    Asker(Box<Answer>),
}

/// An answer that lacks its payload.
pub(super) struct Answer {
    pub(super) waiter: Waiter,
    pub(super) view: Box<TaskView>,
    /// The batch that it must wait for too, if any.
    pub(super) batch: Option<u64>,
}

#[derive(Default)]
struct Line {
    queue: VecDeque<Pending>,
    /// How many of them, from the first, were asked for, and their bytes.
    asked: usize,
    asked_bytes: u64,
    /// Bytes that were read and that the stream has not taken.
    unread_bytes: u64,
}

struct Pending {
    assign: Box<Assign>,
    /// It has its payload, and waits for those before it.
    at_hand: bool,
    /// To be read.
    bytes: u64,
    /// To be said right behind it.
    then: Vec<Tell>,
}

/// Something that has its payload now.
pub(super) enum Ready {
    Assign(ConnId, Box<Assign>, Vec<Tell>),
    Answer(Answer),
}

impl Reads {
    /// Whether rows were asked for that are not back.
    pub(super) fn are_under_way(&self) -> bool {
        !self.asked.is_empty()
    }

    pub(super) fn add_assign(&mut self, conn: ConnId, assign: Box<Assign>, bytes: u64) {
        let line = self.lines.entry(conn).or_default();
        line.queue.push_back(Pending { assign, at_hand: false, bytes, then: Vec::new() });
        line.ask(conn, &mut self.wanted);
    }

    /// Keeps a durable task in line behind those whose payload is on its way; hands back anything else.
    pub(super) fn line_up(&mut self, conn: ConnId, assign: Box<Assign>) -> Option<Box<Assign>> {
        if self.lines.is_empty() || assign.options.durability != Durability::Durable {
            return Some(assign);
        }
        match self.lines.get_mut(&conn) {
            Some(line) if !line.queue.is_empty() => {
                line.queue.push_back(Pending { assign, at_hand: true, bytes: 0, then: Vec::new() });
                None
            }
            _ => Some(assign),
        }
    }

    pub(super) fn add_answer(&mut self, answer: Answer) {
        self.wanted.push((RowKey::Payload(answer.view.id), Reader::Asker(Box::new(answer))));
    }

    /// Keeps what must not overtake an assignment in the session's line; hands back anything else.
    pub(super) fn hold_back(&mut self, conn: ConnId, tell: Tell) -> Option<Tell> {
        if self.lines.is_empty() {
            return Some(tell);
        }
        let Some(line) = self.lines.get_mut(&conn) else { return Some(tell) };
        let place = match &tell {
            Tell::Cancel(lease, _) | Tell::Recall(lease) => {
                line.queue.iter().position(|pending| pending.assign.lease == *lease)
            }
            Tell::Drain(_) | Tell::Move(_) => line.queue.len().checked_sub(1),
            Tell::DurableSeq(_) | Tell::Beat(..) | Tell::Refused(..) => None,
        };
        let Some(place) = place else { return Some(tell) };
        if matches!(tell, Tell::Cancel(..)) {
            line.ask_up_to(place + 1, conn, &mut self.wanted);
        }
        if let Some(pending) = line.queue.get_mut(place) {
            pending.then.push(tell);
        }
        None
    }

    /// The stream has ended: what it was to run is lost with it.
    pub(super) fn forget(&mut self, conn: ConnId) {
        self.lines.remove(&conn);
    }

    /// Asks for what is wanted. To be called before a batch is handed over.
    pub(super) fn ask(&mut self, committer: &Committer) {
        while !self.wanted.is_empty() {
            let count = self.wanted.len().min(AT_ONCE);
            let (keys, readers) = self.wanted.drain(..count).unzip();
            self.asked.push_back(readers);
            committer.read(keys);
        }
    }

    /// Rows are back, in the order in which they were asked for.
    ///
    /// # Errors
    /// When one is missing or cannot be read. Everything that was asked for was stored: that is damage.
    pub(super) fn back(
        &mut self,
        keys: Vec<RowKey>,
        rows: Result<Vec<Option<Bytes>>, StoreError>,
        ready: &mut Vec<Ready>,
    ) -> Result<(), EngineError> {
        let readers = self.asked.pop_front().unwrap_or_default();
        for ((key, row), reader) in keys.into_iter().zip(rows?).zip(readers) {
            let payload = payload(key, row)?;
            match reader {
                Reader::Session(conn) => {
                    // None when the stream has ended meanwhile.
                    let Some(line) = self.lines.get_mut(&conn) else { continue };
                    let Some(Pending { mut assign, bytes, then, .. }) = line.next() else { continue };
                    line.asked_bytes -= bytes;
                    line.unread_bytes += bytes;
                    assign.payload = payload;
                    ready.push(Ready::Assign(conn, assign, then));
                    while line.queue.front().is_some_and(|pending| pending.at_hand)
                        && let Some(Pending { assign, then, .. }) = line.next()
                    {
                        ready.push(Ready::Assign(conn, assign, then));
                    }
                }
                Reader::Asker(mut answer) => {
                    answer.view.payload = Some(payload);
                    ready.push(Ready::Answer(*answer));
                }
            }
        }
        Ok(())
    }

    /// Whether somebody must be told when the stream takes what it was given.
    pub(super) fn wait_for(&self, conn: ConnId) -> bool {
        !self.lines.is_empty() && self.lines.contains_key(&conn)
    }

    /// Streams have taken all that was there: more is asked for.
    pub(super) fn go_on(&mut self) {
        for conn in self.taken.streams() {
            let Some(line) = self.lines.get_mut(&conn) else { continue };
            line.unread_bytes = 0;
            line.ask(conn, &mut self.wanted);
            if line.queue.is_empty() {
                self.lines.remove(&conn);
            }
        }
    }
}

impl Line {
    fn next(&mut self) -> Option<Pending> {
        self.asked = self.asked.saturating_sub(1);
        self.queue.pop_front()
    }

    /// Asks for as much as the stream may have.
    fn ask(&mut self, conn: ConnId, wanted: &mut Vec<(RowKey, Reader)>) {
        while let Some(next) = self.queue.get(self.asked) {
            let ahead = self.asked_bytes + self.unread_bytes;
            if ahead > 0 && ahead + next.bytes > AHEAD {
                break;
            }
            self.ask_up_to(self.asked + 1, conn, wanted);
        }
    }

    fn ask_up_to(&mut self, count: usize, conn: ConnId, wanted: &mut Vec<(RowKey, Reader)>) {
        for pending in self.queue.iter().take(count).skip(self.asked).filter(|pending| !pending.at_hand) {
            wanted.push((RowKey::Payload(pending.assign.id), Reader::Session(conn)));
            self.asked_bytes += pending.bytes;
        }
        self.asked = self.asked.max(count);
    }
}

fn payload(key: RowKey, row: Option<Bytes>) -> Result<Payload, EngineError> {
    let damaged = |what: String| StoreError::Corrupt { what, place: format!("row {key:?}") };
    let Some(data) = row else {
        return Err(damaged("the payload of a task is missing".to_owned()).into());
    };
    match Row::decode(key, data) {
        Ok(Row::Payload(_, payload)) => Ok(payload),
        Ok(_) => Err(damaged("it is no payload".to_owned()).into()),
        Err(error) => Err(damaged(error.to_string()).into()),
    }
}

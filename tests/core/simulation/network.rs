//! Streams between workers and the server: ordered, slow, and sometimes torn with what was on its way.

use std::collections::VecDeque;

use crewcall::scheduler::{Assign, Frame, Hello, SessionId, Tell, Welcome};

/// Worker to server.
#[derive(Debug)]
pub(super) enum Up {
    Hello(Box<Hello>),
    Frame(Box<Frame>),
    Broken,
}

/// Server to worker.
#[derive(Debug)]
pub(super) enum Down {
    Welcome(Box<Welcome>),
    Refused,
    Assign(Box<Assign>),
    Tell(Tell),
    Close,
}

/// One stream. The server's end lives on when the worker's is gone, until the server notices.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) session: Option<SessionId>,
    pub(super) up: VecDeque<Up>,
    pub(super) down: VecDeque<Down>,
    /// The worker still reads it.
    pub(super) read: bool,
}

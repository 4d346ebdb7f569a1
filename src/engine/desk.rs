//! The place where the engine's state lies, and the rule by which somebody always works it off.
//!
//! Whoever puts a message into the inbox then tries the lock. Free: it takes all that waits, its own included. Taken: the
//! one who has it looks at `pending` again after letting go, so nothing is left lying (flat combining: Hendler, Incze,
//! Shavit, Tzafrir 2010). So a lone call costs no wake-up of an engine, and under load neighbours are taken together by
//! one thread while the others read and write sockets. Nobody works for others for long: after [`ROUNDS`] the keeper,
//! a task of the engine's own, goes on.

use std::sync::atomic::{AtomicBool, Ordering, fence};
// Not parking_lot's: a state in whose middle somebody panicked must not be used again, which is what poison says.
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::state::State;
use super::{EngineError, Message};
use crate::store::Done;

/// Rounds that one who brought a message does for others.
const ROUNDS: u32 = 4;

/// The way in. When the last one is dropped the engine ends.
#[derive(Debug)]
pub(crate) struct Inbox {
    // Dropped before the bell, which so rings when nothing more can come.
    sender: mpsc::Sender<Message>,
    bell: Bell,
}

/// Calls the keeper when it is dropped.
#[derive(Debug)]
struct Bell(Arc<Desk>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.call_keeper();
    }
}

/// The engine is no more.
#[derive(Debug)]
pub(crate) struct Gone;

impl Inbox {
    pub(super) fn new(sender: mpsc::Sender<Message>, desk: Arc<Desk>) -> Self {
        Self { sender, bell: Bell(desk) }
    }

    /// Hands in a message if there is room, and works it off unless somebody else does. Gives it back when there is
    /// none.
    pub(crate) fn try_put(&self, message: Message) -> Result<Option<Message>, Gone> {
        match self.sender.try_send(message) {
            Ok(()) => {
                self.bell.0.work();
                Ok(None)
            }
            Err(mpsc::error::TrySendError::Full(message)) => Ok(Some(message)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Gone),
        }
    }

    /// As `try_put`, once there is room.
    pub(crate) async fn put(&self, message: Message) -> Result<(), Gone> {
        self.sender.send(message).await.map_err(|_| Gone)?;
        self.bell.0.work();
        Ok(())
    }
}

/// The state, and who is to look at it.
pub(super) struct Desk {
    state: Mutex<Option<State>>,
    /// There may be messages that nobody has seen.
    pending: AtomicBool,
    keeper: Notify,
}

/// What the keeper brings.
pub(super) enum Brought {
    /// Something asked of the store has ended.
    Done(Done),
    /// Streams have taken what was there for them.
    Taken,
    /// It is time to try a batch again that found no room.
    Retry,
}

/// What the keeper is to wait for.
pub(super) struct Next {
    pub(super) due: Option<Instant>,
    pub(super) retry_at: Option<Instant>,
    /// Others bring so much that it is not worth waiting.
    pub(super) more: bool,
    pub(super) halted: bool,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("pending", &self.pending).finish_non_exhaustive()
    }
}

impl Desk {
    pub(super) fn new(state: State) -> Self {
        Self { state: Mutex::new(Some(state)), pending: AtomicBool::new(false), keeper: Notify::new() }
    }

    /// Ends when the keeper is wanted. Cancel-safe.
    pub(super) async fn called(&self) {
        self.keeper.notified().await;
    }

    fn call_keeper(&self) {
        self.keeper.notify_one();
    }

    /// Works off what waits, unless somebody else does.
    fn work(&self) {
        self.pending.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let _alarm = Alarm(self);
        for _ in 0..ROUNDS {
            let Ok(guard) = self.state.try_lock() else { return };
            let (pending, call) = self.round(guard, State::has_news_for_keeper);
            if call == Some(true) {
                self.call_keeper();
            }
            if !pending {
                return;
            }
        }
        self.call_keeper();
    }

    /// The keeper's turn: what it brings, and what waits.
    ///
    /// # Errors
    /// When what it brings is damaged, or the scheduler has panicked in somebody's hands.
    pub(super) fn keep(&self, brought: Option<Brought>) -> Result<Next, EngineError> {
        let mut guard = self.state.lock().map_err(|poisoned| {
            // Whoever waits for an answer learns that there will be none.
            drop(poisoned.into_inner().take());
            EngineError::Panicked
        })?;
        if let Some(state) = guard.as_mut() {
            match brought {
                Some(Brought::Done(done)) => state.done(done)?,
                Some(Brought::Taken) => state.go_on(),
                Some(Brought::Retry) => state.retry(),
                None => {}
            }
        }
        let (more, next) = self.round(guard, State::next_for_keeper);
        let Some((due, retry_at, halted)) = next else { return Err(EngineError::Panicked) };
        Ok(Next { due, retry_at, more, halted })
    }

    /// One round. Returns whether there may be more to do, and what `then` says of the state at the end.
    fn round<T>(
        &self,
        mut guard: MutexGuard<'_, Option<State>>,
        then: impl FnOnce(&mut State) -> T,
    ) -> (bool, Option<T>) {
        let Some(state) = guard.as_mut() else { return (false, None) };
        self.pending.store(false, Ordering::SeqCst);
        if state.round() {
            self.pending.store(true, Ordering::SeqCst);
        }
        let said = then(state);
        let halted = state.halted;
        drop(guard);
        // Between letting go and looking, as in `work` between telling and trying: one of the two sees the other.
        fence(Ordering::SeqCst);
        (!halted && self.pending.load(Ordering::SeqCst), Some(said))
    }

    /// Takes the state away: nothing is worked off any more.
    pub(super) fn clear(&self) -> Option<State> {
        self.state.lock().ok()?.take()
    }
}

/// Calls the keeper when the scheduler panics in somebody's hands.
struct Alarm<'a>(&'a Desk);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.call_keeper();
        }
    }
}

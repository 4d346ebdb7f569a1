//! Methods whose tasks wait until an operator says otherwise.

use std::sync::Arc;

use super::command::Waiter;
use super::effect::{EffectKind, Reply, Tell};
use super::ledger::{Record, Slot};
use super::lifecycle::REASON_BYTES;
use super::sessions::{NAME_BYTES, check_bytes, check_text};
use super::{Output, Scheduler};
use crate::error::{Error, Reason, Result};
use crate::order::Pause;
use crate::task::{State, check_method_name};

/// The answer to a Pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paused {
    /// As it stands now.
    pub pause: Pause,
    /// The method was paused before.
    pub was_paused: bool,
    /// A worker serves the method, or tasks of it are known. If not, its name may be misspelt.
    pub known: bool,
}

impl Scheduler {
    /// Tasks of the method are taken and wait. What a handler has begun goes on; what was sent to a worker and has
    /// not begun is asked back.
    pub(super) fn pause(
        &mut self,
        method: String,
        reason: String,
        by: String,
        waiter: Waiter,
        out: &mut Output,
    ) {
        if let Err(error) = self.check_pause(&method, &reason, &by) {
            return out.refuse(waiter, error);
        }
        let earlier = self.ledger.pauses().get(&method).cloned();
        let since = earlier.as_ref().map_or(self.now, |pause| pause.since);
        let name = self.roster.name_of(&method);
        let (known, name) = (name.is_some(), name.unwrap_or_else(|| Arc::from(method)));
        let pause = Pause { method: Arc::clone(&name), reason, by, since };
        if earlier.as_ref() != Some(&pause) {
            self.commit(Record::Paused(pause.clone()), out);
        }
        if earlier.is_none() {
            self.roster.set_paused(&name, true);
            self.recall_unstarted(&name, out);
        }
        let paused = Paused { pause, was_paused: earlier.is_some(), known };
        out.tell(true, EffectKind::Reply(waiter, Reply::Paused(Box::new(paused))));
    }

    pub(super) fn resume_method(&mut self, method: &str, waiter: Waiter, out: &mut Output) {
        let checked = check_method_name(method).and_then(|()| self.check_store(true));
        if let Err(error) = checked {
            return out.refuse(waiter, error);
        }
        let name = self.ledger.pauses().get(method).map(|pause| Arc::clone(&pause.method));
        let was_paused = name.is_some();
        if let Some(name) = name {
            self.commit(Record::Resumed { method: Arc::clone(&name) }, out);
            let routes = self.roster.set_paused(&name, false);
            self.serve(&routes, out);
        }
        out.tell(true, EffectKind::Reply(waiter, Reply::Resumed { was_paused }));
    }

    fn check_pause(&self, method: &str, reason: &str, by: &str) -> Result<()> {
        check_method_name(method)?;
        check_bytes("reason", reason, REASON_BYTES)?;
        check_text("by", by, NAME_BYTES)?;
        self.check_store(true)?;
        let pauses = self.ledger.pauses();
        if pauses.len() >= self.limits.pauses && pauses.get(method).is_none() {
            let message = format!("{} methods are paused, the limit (limits.pauses)", pauses.len());
            return Err(Error::new(Reason::ServerFull, message));
        }
        Ok(())
    }

    fn recall_unstarted(&mut self, method: &str, out: &mut Output) {
        let sessions: Vec<usize> = self.roster.sessions.iter().map(|(key, _)| key).collect();
        for key in sessions {
            let Some(conn) = self.roster.sessions[key].conn else { continue };
            for (lease, slot) in self.leases_of(key) {
                let live = &mut self.lives[slot];
                if !live.started && !live.recalled && *self.ledger.task(slot).method == *method {
                    live.recalled = true;
                    out.now(EffectKind::Tell(conn, Tell::Recall(lease)));
                }
            }
        }
    }

    /// The pause that keeps the task from running, if one does.
    pub(super) fn pause_of(&self, slot: Slot) -> Option<&Pause> {
        let task = self.ledger.task(slot);
        match task.state {
            State::Ready | State::Delayed { .. } => self.ledger.pauses().get(&task.method),
            State::Leased { .. } | State::Ended(_) => None,
        }
    }

    /// For people: why, by whom and since when.
    pub(super) fn pause_in_words(&self, pause: &Pause) -> String {
        let by = if pause.by.is_empty() { String::new() } else { format!(" by {}", pause.by) };
        let why = if pause.reason.is_empty() { String::new() } else { format!(": {}", pause.reason) };
        format!("its method was paused {} ms ago{by}{why}", self.now.since(pause.since))
    }
}

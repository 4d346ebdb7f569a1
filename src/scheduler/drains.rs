//! Workers that are asked to leave, and stay asked: also when their stream breaks or the server is restarted,
//! until they leave, are started anew, or are not seen for `drain_ms`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::audit::ensure;
use super::command::{Waiter, WorkerId};
use super::effect::{EffectKind, Reply, Tell};
use super::ledger::Record;
use super::lifecycle::{REASON_BYTES, cut};
use super::{Output, Scheduler};
use crate::clock::Timestamp;
use crate::error::{Error, Reason};
use crate::order::Drain;

/// Drained workers without a session, and until when each is remembered.
#[derive(Debug, Default)]
pub(super) struct Absent {
    by_worker: BTreeMap<WorkerId, Timestamp>,
    by_time: BTreeSet<(Timestamp, WorkerId)>,
}

impl Absent {
    fn add(&mut self, worker: WorkerId, until: Timestamp) {
        self.remove(&worker);
        self.by_time.insert((until, Arc::clone(&worker)));
        self.by_worker.insert(worker, until);
    }

    fn remove(&mut self, worker: &str) {
        if let Some((worker, until)) = self.by_worker.remove_entry(worker) {
            self.by_time.remove(&(until, worker));
        }
    }

    pub(super) fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(until, _)| *until)
    }
}

impl Scheduler {
    pub(super) fn drain(&mut self, worker_id: &str, mut reason: String, waiter: Waiter, out: &mut Output) {
        let Some(key) = self.roster.session_of_worker(worker_id) else {
            let message = format!("no worker {worker_id:?} is connected");
            return out.refuse(waiter, Error::new(Reason::WorkerNotFound, message));
        };
        cut(&mut reason, REASON_BYTES);
        let session = &self.roster.sessions[key];
        let (worker_id, boot_id) = (Arc::clone(&session.worker_id), session.hello.boot_id.clone());
        // A process without a name cannot be told from the next one, which is not meant.
        if !boot_id.is_empty() {
            let known = self.ledger.drains().get(&worker_id);
            if known.is_none() && self.ledger.drains().len() >= self.limits.drains {
                let message = format!(
                    "{} workers are asked to leave and have not left, the limit (limits.drains)",
                    self.limits.drains
                );
                return out.refuse(waiter, Error::new(Reason::ServerFull, message));
            }
            let since = known.map_or(self.now, |drain| drain.since);
            let drain = Drain { worker_id, boot_id, reason: reason.clone(), since };
            if known != Some(&drain) {
                if let Err(error) = self.check_store(true) {
                    return out.refuse(waiter, error);
                }
                self.commit(Record::Drained(drain), out);
            }
        }
        self.roster.sessions[key].draining = true;
        self.stop_serving(key, Tell::Drain(reason), out);
        out.tell(true, EffectKind::Reply(waiter, Reply::Draining));
    }

    /// A worker opens a new session: whether this process was asked to leave before.
    pub(super) fn stays_drained(&mut self, worker_id: &str, boot_id: &str, out: &mut Output) -> bool {
        let Some(drain) = self.ledger.drains().get(worker_id) else { return false };
        if drain.boot_id == boot_id {
            self.absent.remove(worker_id);
            return true;
        }
        self.drain_over(worker_id, out);
        false
    }

    /// What a worker that was asked to leave is told when it comes back.
    pub(super) fn drain_reason(&self, worker_id: &str) -> String {
        let known = self.ledger.drains().get(worker_id).map(|drain| drain.reason.clone());
        known.unwrap_or_else(|| "asked to leave before the stream broke".to_owned())
    }

    /// Its session has ended without its having left.
    pub(super) fn remember_drain(&mut self, worker_id: &WorkerId) {
        if self.ledger.drains().get(worker_id).is_some() {
            self.absent.add(Arc::clone(worker_id), self.now + self.limits.drain_ms);
        }
    }

    /// It has left, or another process has its name.
    pub(super) fn drain_over(&mut self, worker_id: &str, out: &mut Output) {
        self.absent.remove(worker_id);
        if let Some(drain) = self.ledger.drains().get(worker_id) {
            let worker_id = Arc::clone(&drain.worker_id);
            self.commit(Record::DrainOver { worker_id }, out);
        }
    }

    /// Nobody has a session after a restart.
    pub(super) fn expect_drained_workers(&mut self) {
        let until = self.now + self.limits.drain_ms;
        for drain in self.ledger.drains().iter() {
            self.absent.add(Arc::clone(&drain.worker_id), until);
        }
    }

    /// Forgets those that were not seen for long enough.
    pub(super) fn drains_due(&mut self, out: &mut Output) {
        while let Some((until, worker_id)) = self.absent.by_time.first().cloned()
            && until <= self.now
        {
            self.drain_over(&worker_id, out);
        }
    }

    pub(super) fn audit_drains(&self) -> Result<(), String> {
        ensure!(self.absent.by_worker.len() == self.absent.by_time.len(), "absent workers: indexes differ");
        for (worker, until) in &self.absent.by_worker {
            let known = self.absent.by_time.contains(&(*until, Arc::clone(worker)));
            ensure!(known && self.ledger.drains().get(worker).is_some(), "{worker} is absent, not drained");
        }
        for drain in self.ledger.drains().iter() {
            let name = &drain.worker_id;
            let session = self.roster.session_of_worker(name).map(|key| &self.roster.sessions[key]);
            let here =
                session.is_some_and(|session| session.draining && session.hello.boot_id == drain.boot_id);
            let absent = self.absent.by_worker.contains_key(name);
            ensure!(here != absent, "{name} is drained: here {here}, absent {absent}");
        }
        ensure!(self.ledger.drains().len() <= self.limits.drains, "more drains than may be");
        Ok(())
    }
}

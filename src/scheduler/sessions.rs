//! A worker's session: joins, says things, falls silent, comes back, leaves.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::command::{AttemptEnd, AttemptResult, ConnId, Frame, Hello, PoolSpec, SessionId, Update, Waiter};
use super::deadlines::Due;
use super::effect::{EffectKind, Reply, Tell, Welcome};
use super::leases::Leases;
use super::ledger::Slot;
use super::lifecycle::cut;
use super::roster::Session;
use super::{Output, Scheduler};
use crate::clock::Timestamp;
use crate::error::{Error, Reason, Result};
use crate::task::{Method, Outcome, Payload, Progress, State, TaskError, check_method_name};

/// The one version of the session protocol.
const PROTOCOL: u32 = 1;
pub(super) const NAME_BYTES: usize = 128;
const SUMMARY_BYTES: usize = 256;
/// Enough to read what lies in the sockets, when a deadline is noticed late by however little.
const UNREAD_MS: u64 = 50;
const PROGRESS_BYTES: usize = 1 << 10;
/// Leases a worker does not hold, in one frame, for which it is found out whether another worker holds them;
/// of more it is told only that they do not stand.
const STRAYS_LOOKED_FOR: u32 = 64;
/// Results acknowledged at the latest after this many; a beat acknowledges too. Workers keep results until
/// then, so it bounds their memory; a frame of its own for every result would double their traffic.
const RESULTS_UNACKED: u64 = 256;

impl Scheduler {
    // --- joins ------------------------------------------------------------------------------------

    pub(super) fn join(
        &mut self,
        mut hello: Hello,
        conn: ConnId,
        token: u128,
        waiter: Waiter,
        out: &mut Output,
    ) {
        if hello.pools.is_empty() {
            hello.pools.push(PoolSpec { name: String::new(), concurrency: 1 });
        }
        if hello.worker_id.is_empty() {
            hello.worker_id = format!("worker-{:08x}", token as u32);
        }
        if let Err(error) = self.check_hello(&hello) {
            return out.refuse(waiter, error);
        }
        let known = self.roster.session_of_worker(&hello.worker_id);
        let resumed = known.filter(|key| {
            let session = &self.roster.sessions[*key];
            // The edge compared nothing yet; a guess of 128 random bits cannot be timed into being right.
            hello.resume_token == Some(session.token) && hello.boot_id == session.hello.boot_id
        });
        if let (Some(old), None) = (known, resumed) {
            let error = Error::new(Reason::SessionReplaced, "the same worker opened a newer stream");
            self.end_session(old, Some(error), "its worker was started anew", out);
        }
        // While the server stops, a worker may still come back to deliver what it runs.
        if resumed.is_none() && self.stopping {
            let error = Error::new(Reason::ShuttingDown, "the server is stopping; come back later");
            return out.refuse(waiter, error);
        }
        if resumed.is_none() && self.roster.sessions.len() >= self.limits.sessions {
            let message =
                format!("{} workers are connected, the limit (limits.sessions)", self.limits.sessions);
            return out.refuse(waiter, Error::new(Reason::TooManyWorkers, message));
        }
        let listed = hello.in_flight.clone();
        let key = match resumed {
            Some(key) => {
                self.resume(key, hello, conn, out);
                key
            }
            None => {
                let drained = self.stays_drained(&hello.worker_id, &hello.boot_id, out);
                self.open_session(hello, conn, token, drained)
            }
        };
        let (keep, drop) = self.settle_leases(key, listed, out);
        let session = &self.roster.sessions[key];
        let (id, worker_id, token) = (session.id, Arc::clone(&session.worker_id), session.token);
        let welcome = Welcome { session: id, worker_id, token, keep, drop };
        out.now(EffectKind::Reply(waiter, Reply::Joined(Box::new(welcome))));
        if self.roster.sessions[key].draining {
            let reason = self.drain_reason(&self.roster.sessions[key].worker_id);
            out.now(EffectKind::Tell(conn, Tell::Drain(reason)));
        }
    }

    fn open_session(&mut self, hello: Hello, conn: ConnId, token: u128, drained: bool) -> usize {
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let key = self.roster.add_session(Session {
            id,
            worker_id: Arc::from(hello.worker_id.as_str()),
            token,
            hello,
            conn: Some(conn),
            serving: !drained,
            draining: drained,
            joined_at: self.now,
            seen_at: self.now,
            doubted: None,
            pools: Vec::new(),
            leases: Leases::default(),
            digest: 0,
            finished: 0,
            result_seq: 0,
            result_acked: 0,
            result_written: 0,
            changes: 0,
            counts_leases: false,
            disagreed_at: None,
        });
        // Nobody can be served yet: a new stream has no credit.
        self.roster.set_pools(key, self.limits.credit_per_pool);
        self.watch_silence(key);
        key
    }

    /// A known session goes on over a new stream. Its pools begin again with no credit.
    fn resume(&mut self, key: usize, hello: Hello, conn: ConnId, out: &mut Output) {
        let routes = self.deactivate(key);
        let session = &mut self.roster.sessions[key];
        if let Some(old) = session.conn.replace(conn) {
            let error = Error::new(Reason::SessionReplaced, "the same worker opened a newer stream");
            out.now(EffectKind::Close(old, Some(error)));
        }
        // The token stays: a new one could be lost with the welcome, and the worker with it.
        session.hello = hello;
        // What was acknowledged over the old stream may not have arrived.
        session.result_acked = 0;
        session.seen_at = self.now;
        session.disagreed_at = None;
        for pool in session.pools.clone() {
            let pool = &mut self.roster.pools[pool];
            pool.granted = 0;
            pool.assigned = 0;
        }
        let mut touched = self.roster.set_pools(key, self.limits.credit_per_pool);
        let session = &mut self.roster.sessions[key];
        // A worker that was asked to leave stays asked.
        session.serving = !session.draining && !self.stopping;
        touched.extend(self.roster.activity_changed(key, false));
        self.watch_silence(key);
        self.serve(&routes, out);
        self.serve(&touched, out);
    }

    /// Compares the leases a worker lists with those that stand: what both know is kept, what only we know
    /// is lost, what only the worker knows it must drop.
    fn settle_leases(&mut self, key: usize, listed: Vec<u64>, out: &mut Output) -> (Vec<u64>, Vec<u64>) {
        let named: HashSet<u64> = listed.iter().copied().collect();
        let mut routes = Vec::new();
        for (lease, slot) in self.leases_of(key).into_iter().rev() {
            if !named.contains(&lease) {
                routes.extend(self.lose(slot, "the worker came back without it", out));
            }
        }
        self.serve(&routes, out);
        let (mut keep, mut drop) = (Vec::new(), Vec::new());
        for lease in listed {
            let stands = self.roster.sessions[key].leases.contains(lease) || self.adopt_orphan(key, lease);
            if stands { &mut keep } else { &mut drop }.push(lease);
        }
        (keep, drop)
    }

    /// After a restart of the server: the worker that held the lease names it, and goes on.
    fn adopt_orphan(&mut self, key: usize, lease: u64) -> bool {
        let Some(slot) = self.orphans.get(&lease).copied() else { return false };
        let task = self.ledger.task(slot);
        let session = &mut self.roster.sessions[key];
        let theirs =
            matches!(&task.state, State::Leased { worker_id, .. } if *worker_id == session.worker_id);
        let pool_name = session.hello.methods.iter().find(|m| m.name == task.method).map(|m| m.pool.as_str());
        let pool = session
            .pools
            .iter()
            .copied()
            .find(|pool| Some(&*self.roster.pools[*pool].name) == pool_name)
            .filter(|_| theirs);
        let Some(pool) = pool else { return false };
        self.orphans.remove(&lease);
        session.leases.insert(lease, slot);
        session.digest ^= lease;
        session.changes += 1;
        self.roster.adopt(pool);
        let live = &mut self.lives[slot];
        live.set_pool(Some(pool));
        live.started = true;
        self.reschedule(slot);
        true
    }

    fn check_hello(&self, hello: &Hello) -> Result<()> {
        let (min, max) = (hello.protocol.0.max(1), hello.protocol.1.max(1));
        if !(min..=max).contains(&PROTOCOL) {
            let message = format!("hello.protocol: the worker speaks {min} to {max}, the server {PROTOCOL}");
            return Err(Error::new(Reason::ProtocolUnsupported, message));
        }
        let texts = [
            ("hello.worker_id", &hello.worker_id),
            ("hello.boot_id", &hello.boot_id),
            ("hello.group", &hello.group),
            ("hello.version", &hello.version),
            ("hello.sdk", &hello.sdk),
            ("hello.host", &hello.host),
        ];
        for (field, text) in texts.into_iter().chain(
            hello.labels.iter().flat_map(|(key, value)| [("hello.labels", key), ("hello.labels", value)]),
        ) {
            check_text(field, text, NAME_BYTES)?;
        }
        check_count("hello.labels", hello.labels.len(), self.limits.labels)?;
        check_count("hello.in_flight", hello.in_flight.len(), self.limits.frame_entries)?;
        self.check_service(&hello.pools, &hello.methods)
    }

    /// Pools and methods of a hello or an update.
    fn check_service(&self, pools: &[PoolSpec], methods: &[Method]) -> Result<()> {
        check_count("pools", pools.len(), self.limits.pools_per_worker)?;
        check_count("methods", methods.len(), self.limits.methods_per_worker)?;
        let mut names = HashSet::new();
        for pool in pools {
            check_text("pools.name", &pool.name, NAME_BYTES)?;
            if !names.insert(pool.name.as_str()) {
                return Err(Error::invalid("pools.name", format_args!("{:?} is there twice", pool.name)));
            }
            if pool.concurrency == 0 || pool.concurrency > self.limits.credit_per_pool {
                let problem = format!("is {}; 1 to {}", pool.concurrency, self.limits.credit_per_pool);
                return Err(Error::invalid("pools.concurrency", problem));
            }
        }
        for method in methods {
            check_method_name(&method.name)?;
            let field = |what: &str| format!("methods[{:?}].{what}", method.name);
            check_text(&field("summary"), &method.summary, SUMMARY_BYTES)?;
            check_bytes(&field("docs"), &method.docs, self.limits.docs_bytes)?;
            check_bytes(&field("input_schema"), &method.input_schema, self.limits.docs_bytes)?;
            check_bytes(&field("output_schema"), &method.output_schema, self.limits.docs_bytes)?;
            check_count(&field("examples"), method.examples.len(), self.limits.examples)?;
            for example in &method.examples {
                check_bytes(&field("examples"), example, self.limits.docs_bytes)?;
            }
            if !names.contains(method.pool.as_str()) {
                let problem = format!("{:?} is not one of the pools", method.pool);
                return Err(Error::invalid(&field("pool"), problem));
            }
        }
        Ok(())
    }

    // --- says things ------------------------------------------------------------------------------

    pub(super) fn frame(&mut self, id: SessionId, conn: ConnId, frame: Frame, out: &mut Output) {
        let Some(key) = self.roster.session_of_id(id) else { return };
        if self.roster.sessions[key].conn != Some(conn) {
            return;
        }
        let entries = frame.started.len()
            + frame.progress.len()
            + frame.chunks.len()
            + frame.results.len()
            + frame.released.len()
            + frame.credits.len();
        if entries > self.limits.frame_entries {
            let message = format!("a frame of {entries} entries; at most {}", self.limits.frame_entries);
            let error = Error::new(Reason::TooManyItems, message);
            return self.end_session(key, Some(error), "its worker broke the protocol", out);
        }
        self.strays_left = STRAYS_LOOKED_FOR;
        self.roster.sessions[key].seen_at = self.now;
        if let Some(update) = frame.update
            && let Err(error) = self.update(key, update, out)
        {
            return self.end_session(key, Some(error), "its worker broke the protocol", out);
        }
        for lease in frame.started {
            if let Some(slot) = self.held(key, conn, lease, out) {
                self.lives[slot].started = true;
            }
        }
        for (lease, progress) in frame.progress {
            self.progress(key, conn, lease, progress, out);
        }
        for (lease, data) in frame.chunks {
            self.chunk(key, conn, lease, data, out);
        }
        for result in frame.results {
            self.result(key, conn, result, out);
        }
        // Newest first: each takes its old place in line, before those that came back a moment ago.
        let mut released = frame.released;
        released.sort_unstable_by(|a, b| b.cmp(a));
        let mut routes = Vec::new();
        for lease in released {
            if let Some(slot) = self.held(key, conn, lease, out) {
                routes.push(self.requeue(slot, out));
            }
        }
        self.serve(&routes, out);
        for (pool, total) in frame.credits {
            if let Err(error) = self.credit(key, &pool, total, out) {
                return self.end_session(key, Some(error), "its worker broke the protocol", out);
            }
        }
        if let Some((count, digest)) = frame.beat
            && !self.beat(key, conn, count, digest, out)
        {
            return;
        }
        if let Some(reason) = frame.bye {
            let why = if reason.is_empty() {
                "its worker left".into()
            } else {
                format!("its worker left: {reason}")
            };
            let worker_id = Arc::clone(&self.roster.sessions[key].worker_id);
            self.end_session(key, None, &why, out);
            self.drain_over(&worker_id, out);
        }
    }

    /// The task under a lease of this session. Any other lease is refused, and the worker told.
    fn held(&mut self, key: usize, conn: ConnId, lease: u64, out: &mut Output) -> Option<Slot> {
        if let Some(slot) = self.roster.sessions[key].leases.get(lease) {
            return Some(slot);
        }
        // Looked for in every session, which only a confused or hostile worker causes: so many times a frame.
        let looked_for = self.strays_left.checked_sub(1);
        self.strays_left = looked_for.unwrap_or_default();
        let foreign = looked_for.is_some()
            && self.roster.sessions.iter().any(|(_, other)| other.leases.contains(lease));
        let error = if foreign {
            Error::new(Reason::NotYourLease, format!("lease {lease} belongs to another worker"))
        } else {
            Error::new(Reason::StaleLease, format!("lease {lease} no longer stands"))
        };
        self.totals.refused += 1;
        out.now(EffectKind::Tell(conn, Tell::Refused(lease, error)));
        None
    }

    fn progress(&mut self, key: usize, conn: ConnId, lease: u64, mut progress: Progress, out: &mut Output) {
        let Some(slot) = self.held(key, conn, lease, out) else { return };
        cut(&mut progress.message, PROGRESS_BYTES);
        let live = &mut self.lives[slot];
        live.started = true;
        live.talk().progress = Some(progress.clone());
        self.progressed(slot, progress, out);
    }

    fn chunk(&mut self, key: usize, conn: ConnId, lease: u64, data: Payload, out: &mut Output) {
        let Some(slot) = self.held(key, conn, lease, out) else { return };
        self.lives[slot].started = true;
        if let Err(error) = self.limits.check_payload("chunk", &data) {
            self.totals.refused += 1;
            return out.now(EffectKind::Tell(conn, Tell::Refused(lease, error)));
        }
        self.chunked(slot, data, out);
    }

    fn result(&mut self, key: usize, conn: ConnId, result: AttemptResult, out: &mut Output) {
        let AttemptResult { lease, seq, end } = result;
        let session = &mut self.roster.sessions[key];
        if seq > 0 && seq <= session.result_seq && !session.leases.contains(lease) {
            // Sent again after a broken connection; it was accepted the first time.
            return;
        }
        session.result_seq = session.result_seq.max(seq);
        let (acked, before) = (session.result_acked, self.ledger.written());
        if let Some(slot) = self.held(key, conn, lease, out) {
            self.roster.sessions[key].finished += 1;
            let took = self.now.since(self.ledger.task(slot).changed_at);
            self.roster.routes[self.lives[slot].route()].runs.note(took);
            match end {
                AttemptEnd::Succeeded(payload) => match self.limits.check_payload("result", &payload) {
                    Ok(()) => self.end(slot, Outcome::Succeeded(payload), None, out),
                    Err(error) => {
                        let task_error = TaskError::new(error.reason.as_str(), error.message.clone());
                        out.now(EffectKind::Tell(conn, Tell::Refused(lease, error)));
                        self.fail(slot, task_error, Some(false), 0, out);
                    }
                },
                AttemptEnd::Failed { mut error, retryable, retry_after_ms } => {
                    if error.code.is_empty() {
                        error.code = TaskError::HANDLER_ERROR.to_owned();
                    }
                    cut(&mut error.code, NAME_BYTES);
                    // The failure counts even when what came along with it cannot be kept.
                    error.details = error.details.filter(|d| self.limits.check_payload("details", d).is_ok());
                    self.fail(slot, error, retryable, retry_after_ms, out);
                }
            }
        }
        let written = self.ledger.written();
        let session = &mut self.roster.sessions[key];
        if written > before {
            session.result_written = written;
        }
        if seq.saturating_sub(acked) >= RESULTS_UNACKED {
            self.acknowledge(key, conn, out);
        }
    }

    /// Tells the worker which results it may forget, once they are stored.
    fn acknowledge(&mut self, key: usize, conn: ConnId, out: &mut Output) {
        let session = &mut self.roster.sessions[key];
        if session.result_acked < session.result_seq {
            session.result_acked = session.result_seq;
            let seq = session.result_seq;
            let gated = self.results_are_unstored(key);
            out.tell(gated, EffectKind::Tell(conn, Tell::DurableSeq(seq)));
        }
    }

    /// Whether an acknowledgement of the session's results has to wait for the store. One that waits makes the
    /// next wait too: it must not be overtaken.
    fn results_are_unstored(&mut self, key: usize) -> bool {
        let session = &mut self.roster.sessions[key];
        let unstored = session.result_written > self.stored;
        if unstored {
            session.result_written = self.ledger.written();
        }
        unstored
    }

    fn credit(&mut self, key: usize, name: &str, total: u64, out: &mut Output) -> Result<()> {
        let pool = self.roster.sessions[key]
            .pools
            .iter()
            .copied()
            .find(|pool| &*self.roster.pools[*pool].name == name)
            .ok_or_else(|| {
                Error::invalid("credits.pool", format_args!("{name:?} is not one of its pools"))
            })?;
        let entry = &mut self.roster.pools[pool];
        let most = entry.assigned + u64::from(self.limits.credit_per_pool);
        let granted = total.min(most);
        if granted > entry.granted {
            entry.granted = granted;
            self.roster.reposition(pool);
            self.fill(pool, out);
        }
        Ok(())
    }

    /// Answers a beat. Returns false when the session had to be ended.
    fn beat(&mut self, key: usize, conn: ConnId, count: u32, digest: u64, out: &mut Output) -> bool {
        let session = &mut self.roster.sessions[key];
        // A worker that has never said more than zeros leaves the check out; from any other, zeros are a
        // statement like any number.
        session.counts_leases |= count != 0 || digest != 0;
        let agree =
            !session.counts_leases || (count as usize == session.leases.len() && digest == session.digest);
        // Work that is under way in either direction makes one beat disagree. Two in a row with nothing
        // assigned or ended between them mean that one side has lost something for good.
        let zombie = !agree && session.disagreed_at == Some(session.changes);
        session.disagreed_at = (!agree).then_some(session.changes);
        if zombie {
            let message = format!(
                "the worker says it runs {count} leases, the server knows of {}; reconnect to settle it",
                session.leases.len()
            );
            // The stream ends, the session stays: the worker lists its leases when it resumes.
            out.now(EffectKind::Close(conn, Some(Error::new(Reason::SessionOutOfStep, message))));
            self.go_away(key, out);
            return false;
        }
        let answer = Tell::Beat(session.leases.len() as u32, session.digest);
        out.now(EffectKind::Tell(conn, answer));
        self.acknowledge(key, conn, out);
        true
    }

    fn update(&mut self, key: usize, update: Update, out: &mut Output) -> Result<()> {
        let hello = &self.roster.sessions[key].hello;
        let pools = if update.pools.is_empty() { hello.pools.clone() } else { update.pools };
        let methods = if update.methods.is_empty() { hello.methods.clone() } else { update.methods };
        self.check_service(&pools, &methods)?;
        let hello = &mut self.roster.sessions[key].hello;
        hello.pools = pools;
        hello.methods = methods;
        let touched = self.roster.set_pools(key, self.limits.credit_per_pool);
        self.serve(&touched, out);
        for pool in self.roster.sessions[key].pools.clone() {
            self.fill(pool, out);
        }
        Ok(())
    }

    // --- falls silent, leaves ---------------------------------------------------------------------

    pub(super) fn broken(&mut self, id: SessionId, conn: ConnId, out: &mut Output) {
        let Some(key) = self.roster.session_of_id(id) else { return };
        if self.roster.sessions[key].conn == Some(conn) {
            self.go_away(key, out);
        }
    }

    /// The stream is gone. What had not started goes to others at once; what had waits one grace for the
    /// worker to come back.
    fn go_away(&mut self, key: usize, out: &mut Output) {
        let mut routes = self.deactivate(key);
        self.roster.sessions[key].conn = None;
        for (_, slot) in self.leases_of(key).into_iter().rev() {
            if !self.lives[slot].started {
                routes.push(self.requeue(slot, out));
            }
        }
        self.serve(&routes, out);
        if self.roster.sessions[key].leases.is_empty() {
            return self.end_session(key, None, "", out);
        }
        self.deadlines.set(Due::Session(key), self.now + self.limits.resume_ms);
    }

    /// `due`: when it was to be looked at.
    pub(super) fn session_due(&mut self, key: usize, due: Timestamp, out: &mut Output) {
        let session = &self.roster.sessions[key];
        let late = self.now.since(due);
        let silent = self.now.since(session.seen_at);
        if session.conn.is_some() && silent < self.limits.lease_ms {
            return self.watch_silence(key);
        }
        if self.may_have_been_missed(key, late) {
            return;
        }
        let session = &self.roster.sessions[key];
        if session.conn.is_none() {
            return self.end_session(key, None, "its worker did not come back", out);
        }
        let message = format!("nothing was heard from the worker for {silent} ms; its leases have ended");
        let error = Error::new(Reason::SessionExpired, message);
        self.end_session(key, Some(error), "its worker fell silent", out);
    }

    /// Someone who finds everybody silent has slept himself: after a pause of the process or its machine, what
    /// workers have said meanwhile lies unread. Once for each silence, whoever is due then is given the time to
    /// read it.
    fn may_have_been_missed(&mut self, key: usize, late: u64) -> bool {
        if late > 0 {
            let most = self.limits.beat_ms.max(UNREAD_MS);
            self.hearing_until = self.hearing_until.max(self.now + late.clamp(UNREAD_MS, most));
        }
        let session = &mut self.roster.sessions[key];
        if self.now >= self.hearing_until || session.doubted == Some(session.seen_at) {
            return false;
        }
        session.doubted = Some(session.seen_at);
        self.deadlines.set(Due::Session(key), self.hearing_until);
        true
    }

    /// The deadline is not moved with every frame: when it comes, it looks when the worker was last heard.
    fn watch_silence(&mut self, key: usize) {
        let at = self.roster.sessions[key].seen_at + self.limits.lease_ms;
        self.deadlines.set(Due::Session(key), at);
    }

    /// The session is over: its leases are lost, its stream is closed, it is forgotten.
    fn end_session(&mut self, key: usize, error: Option<Error>, why: &str, out: &mut Output) {
        let mut routes = self.deactivate(key);
        if let Some(conn) = self.roster.sessions[key].conn.take() {
            self.acknowledge(key, conn, out);
            // Not before the acknowledgement.
            let gated = self.results_are_unstored(key);
            out.tell(gated, EffectKind::Close(conn, error));
        }
        for (_, slot) in self.leases_of(key).into_iter().rev() {
            routes.extend(self.lose(slot, why, out));
        }
        self.deadlines.set(Due::Session(key), Timestamp::NEVER);
        let mut touched = self.roster.remove_pools(key);
        touched.extend(routes);
        let worker_id = Arc::clone(&self.roster.sessions[key].worker_id);
        self.roster.remove_session(key);
        self.remember_drain(&worker_id);
        touched.retain(|route| self.roster.routes.contains(*route));
        self.serve(&touched, out);
    }

    /// Takes the session's pools out of the choice. Returns the routes whose offers changed.
    fn deactivate(&mut self, key: usize) -> Vec<usize> {
        let was_serving = std::mem::take(&mut self.roster.sessions[key].serving);
        self.roster.activity_changed(key, was_serving)
    }

    /// In order, so that the same history always goes the same way.
    pub(super) fn leases_of(&self, key: usize) -> BTreeMap<u64, Slot> {
        self.roster.sessions[key].leases.iter().collect()
    }

    // --- is asked to leave: see also drains.rs ----------------------------------------------------

    pub(super) fn shutdown(&mut self, out: &mut Output) {
        self.stopping = true;
        let keys: Vec<usize> = self.roster.sessions.iter().map(|(key, _)| key).collect();
        // All first, so that nobody is given what another hands back.
        for key in &keys {
            self.deactivate(*key);
        }
        for key in keys {
            self.stop_serving(key, Tell::Move("the server is stopping".to_owned()), out);
        }
        let waiting: Vec<Slot> = self
            .ledger
            .iter()
            .filter(|(_, task)| matches!(task.state, State::Ready | State::Delayed { .. }))
            .map(|(slot, _)| slot)
            .collect();
        for slot in waiting {
            self.turn_away(slot, out);
        }
    }

    /// Gives the session no more work, tells its worker so, and asks back what has not started.
    pub(super) fn stop_serving(&mut self, key: usize, tell: Tell, out: &mut Output) {
        let routes = self.deactivate(key);
        if let Some(conn) = self.roster.sessions[key].conn {
            out.now(EffectKind::Tell(conn, tell));
            for (lease, slot) in self.leases_of(key) {
                let live = &mut self.lives[slot];
                if !live.started && !live.recalled {
                    live.recalled = true;
                    out.now(EffectKind::Tell(conn, Tell::Recall(lease)));
                }
            }
        }
        self.serve(&routes, out);
    }
}

pub(super) fn check_text(field: &str, text: &str, max: usize) -> Result<()> {
    check_bytes(field, text, max)?;
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(field, format_args!("{text:?} has control characters")));
    }
    Ok(())
}

pub(super) fn check_bytes(field: &str, text: &str, max: usize) -> Result<()> {
    if text.len() > max {
        return Err(Error::invalid(field, format_args!("{} bytes; at most {max}", text.len())));
    }
    Ok(())
}

fn check_count(field: &str, count: usize, max: usize) -> Result<()> {
    if count > max {
        return Err(Error::new(Reason::TooManyItems, format!("{field}: {count} entries; at most {max}")));
    }
    Ok(())
}

//! What a worker holds and what it has yet to say. Pure: no clock, no I/O, no tasks.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::context::Attempt;
use crate::batch::{Batch, Weigh};
use crate::proto::{
    Assign, Beat, Bye, Chunk, Credit, Failure, Hello, Pool, Progress, ProgressReport, Released,
    Result as AttemptResult, SessionRequest, Started, result,
};

/// Results kept until the server has them safe; beyond it no new work is asked for.
const RESULTS_KEPT_MAX: usize = 65_536;
const RESULT_BYTES_KEPT_MAX: usize = 64 * 1024 * 1024;
/// Chunks queued; beyond it the handlers that send them wait.
const CHUNKS_QUEUED_MAX: usize = 1024;
const CHUNK_BYTES_QUEUED_MAX: usize = 8 * 1024 * 1024;

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum End {
    Result(result::Kind),
    Released,
}

/// An attempt that ended, and the pool it ran in.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) lease: u64,
    pub(crate) pool: usize,
    pub(crate) end: End,
}

/// A handler that outlived its first poll.
pub(crate) struct Running {
    pub(crate) attempt: Arc<Attempt>,
    pub(crate) pool: usize,
    pub(crate) abort: tokio::task::AbortHandle,
    // Its lease is gone; what it returns is of no use.
    cancelled: bool,
}

impl Running {
    pub(crate) fn new(attempt: Arc<Attempt>, pool: usize, abort: tokio::task::AbortHandle) -> Self {
        Self { attempt, pool, abort, cancelled: false }
    }
}

/// Leases that the server believes this worker holds, as far as the frames sent tell it.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Held {
    count: u32,
    digest: u64,
}

impl Held {
    fn add(&mut self, lease: u64) {
        self.count += 1;
        self.digest ^= lease;
    }

    fn remove(&mut self, lease: u64) {
        self.count = self.count.saturating_sub(1);
        self.digest ^= lease;
    }
}

/// Capacity of one pool and the credit given out for it.
#[derive(Debug)]
struct PoolCredit {
    name: String,
    concurrency: u32,
    running: u32,
    total: u64,
    told: u64,
}

#[derive(Default)]
pub(crate) struct Outbox {
    // Number of the connection now in use; a writer of an earlier one is told to end.
    pub(crate) connection: u64,
    // The server has welcomed this connection; until then only `hello` may go out.
    welcomed: bool,
    pub(crate) draining: bool,
    hello: Option<Hello>,
    bye: Option<Bye>,
    beat: bool,
    pools: Vec<PoolCredit>,
    running: HashMap<u64, Running>,
    held: Held,
    started: Vec<Started>,
    progress: HashMap<u64, Progress>,
    chunks: Batch<Chunk>,
    released: Vec<Released>,
    // Sent or not, all results the server has not confirmed, by rising seq.
    kept: VecDeque<AttemptResult>,
    kept_bytes: usize,
    // Those of `kept` that this connection has not carried yet.
    fresh: Batch<AttemptResult>,
    last_seq: u64,
    // Slots, by pool, whose credit waits until results are confirmed.
    owed: VecDeque<usize>,
}

impl Outbox {
    pub(crate) fn new(pools: &[Pool]) -> Self {
        let pools = pools
            .iter()
            .map(|pool| PoolCredit {
                name: pool.name.clone(),
                concurrency: pool.concurrency,
                running: 0,
                total: 0,
                told: 0,
            })
            .collect();
        Self { pools, ..Self::default() }
    }

    /// A new connection begins: `hello` is all it may carry until the welcome. Returns its number.
    pub(crate) fn connect(&mut self, mut hello: Hello) -> u64 {
        hello.in_flight = self.leases();
        self.disconnect();
        self.hello = Some(hello);
        self.connection
    }

    /// The connection is gone; what it had not carried is worked out anew at the next welcome.
    pub(crate) fn disconnect(&mut self) {
        self.connection += 1;
        self.welcomed = false;
        self.beat = false;
        self.bye = None;
        self.hello = None;
        self.started.clear();
        self.released.clear();
        self.fresh.clear();
    }

    /// Leases that a resumed session may go on with: running, or ended and not confirmed.
    fn leases(&self) -> Vec<u64> {
        let running = self.running.iter().filter(|(_, running)| !running.cancelled).map(|(lease, _)| *lease);
        running.chain(self.kept.iter().map(|result| result.lease)).collect()
    }

    /// The server has said which leases stand. Returns the attempts that must stop.
    pub(crate) fn welcome(&mut self, keep: &[u64]) -> Vec<Arc<Attempt>> {
        let keep: HashSet<u64> = keep.iter().copied().collect();
        let mut stopped = Vec::new();
        self.held = Held::default();
        for (lease, running) in &mut self.running {
            if running.cancelled {
                continue;
            }
            if keep.contains(lease) {
                self.held.add(*lease);
                self.started.push(Started { lease: *lease });
            } else {
                running.cancelled = true;
                stopped.push(running.attempt.clone());
            }
        }
        self.progress.retain(|lease, _| keep.contains(lease));
        self.chunks.retain(|chunk| keep.contains(&chunk.lease));
        self.kept.retain(|result| keep.contains(&result.lease));
        self.kept_bytes = self.kept.iter().map(Weigh::weight).sum();
        self.released.retain(|released| keep.contains(&released.lease));
        // Not held any more: the results go out before the next beat does.
        for result in &self.kept {
            self.fresh.push(result.clone());
        }
        // The totals count from zero on every connection.
        for pool in &mut self.pools {
            pool.told = 0;
            pool.total = u64::from(pool.concurrency.saturating_sub(pool.running));
        }
        let owed: Vec<usize> = self.owed.drain(..).collect();
        for pool in owed {
            if let Some(credit) = self.pools.get_mut(pool) {
                credit.total = credit.total.saturating_sub(1);
                self.owed.push_back(pool);
            }
        }
        self.pay_owed();
        self.welcomed = true;
        stopped
    }

    /// Nothing this worker holds can stand any longer. Returns the attempts that must stop.
    pub(crate) fn lose_all(&mut self) -> Vec<Arc<Attempt>> {
        let running = self.running.values_mut().filter(|running| !running.cancelled);
        let stop = |running: &mut Running| {
            running.cancelled = true;
            running.attempt.clone()
        };
        let stopped = running.map(stop).collect();
        self.held = Held::default();
        self.released.clear();
        self.kept.clear();
        self.kept_bytes = 0;
        self.fresh.clear();
        self.progress.clear();
        self.chunks.clear();
        stopped
    }

    /// Takes an assignment and returns its pool, or hands it back: while draining, beyond the pool's
    /// concurrency, or for a pool that is not there.
    pub(crate) fn accept(&mut self, assign: &Assign) -> Option<usize> {
        let pool = self.pools.iter().position(|pool| pool.name == assign.pool);
        let slot = pool.and_then(|pool| self.pools.get_mut(pool));
        match (pool, slot) {
            (Some(pool), Some(slot)) if !self.draining && slot.running < slot.concurrency => {
                slot.running += 1;
                self.held.add(assign.lease);
                Some(pool)
            }
            _ => {
                self.released.push(Released { lease: assign.lease });
                None
            }
        }
    }

    /// A handler did not end at its first poll.
    pub(crate) fn started(&mut self, running: Running) {
        let lease = running.attempt.lease;
        self.started.push(Started { lease });
        self.running.insert(lease, running);
    }

    /// A handler that was reported as started has ended.
    pub(crate) fn finished(&mut self, lease: u64, end: End) {
        let Some(running) = self.running.remove(&lease) else { return };
        if running.cancelled {
            self.progress.remove(&lease);
            self.free(running.pool);
        } else {
            self.ended(Ended { lease, pool: running.pool, end });
        }
    }

    /// An attempt whose lease stands has ended.
    pub(crate) fn ended(&mut self, Ended { lease, pool, end }: Ended) {
        self.held.remove(lease);
        match end {
            End::Released => {
                self.progress.remove(&lease);
                self.released.push(Released { lease });
            }
            End::Result(kind) => {
                self.last_seq += 1;
                let result = AttemptResult { lease, seq: self.last_seq, kind: Some(kind) };
                if self.welcomed {
                    self.fresh.push(result.clone());
                }
                self.kept_bytes += result.weight();
                self.kept.push_back(result);
            }
        }
        self.free(pool);
    }

    fn free(&mut self, pool: usize) {
        if let Some(slot) = self.pools.get_mut(pool) {
            slot.running = slot.running.saturating_sub(1);
        }
        self.owed.push_back(pool);
        self.pay_owed();
    }

    /// Gives credit for free slots, unless too many results wait for confirmation.
    fn pay_owed(&mut self) {
        if self.draining || self.kept.len() >= RESULTS_KEPT_MAX || self.kept_bytes >= RESULT_BYTES_KEPT_MAX {
            return;
        }
        while let Some(pool) = self.owed.pop_front() {
            if let Some(slot) = self.pools.get_mut(pool) {
                slot.total += 1;
            }
        }
    }

    /// Results up to `seq` are safe.
    pub(crate) fn confirmed(&mut self, seq: u64) {
        while let Some(result) = self.kept.front().filter(|result| result.seq <= seq) {
            self.kept_bytes = self.kept_bytes.saturating_sub(result.weight());
            self.kept.pop_front();
        }
        self.pay_owed();
    }

    /// The server refused results under these leases: to send them again would change nothing.
    pub(crate) fn refused(&mut self, leases: &HashSet<u64>) {
        self.kept.retain(|result| !leases.contains(&result.lease));
        self.kept_bytes = self.kept.iter().map(Weigh::weight).sum();
        self.pay_owed();
    }

    /// The lease is gone. Returns the attempt that must stop, if it still runs.
    pub(crate) fn cancel(&mut self, lease: u64) -> Option<Arc<Attempt>> {
        let running = self.running.get_mut(&lease).filter(|running| !running.cancelled)?;
        running.cancelled = true;
        self.held.remove(lease);
        self.progress.remove(&lease);
        Some(running.attempt.clone())
    }

    pub(crate) fn progress(&mut self, lease: u64, progress: Progress) {
        self.progress.insert(lease, progress);
    }

    /// Gives the chunk back when there is no room for it.
    pub(crate) fn chunk(&mut self, chunk: Chunk) -> Option<Chunk> {
        if self.chunks.len() >= CHUNKS_QUEUED_MAX || self.chunks.bytes() >= CHUNK_BYTES_QUEUED_MAX {
            return Some(chunk);
        }
        self.chunks.push(chunk);
        None
    }

    /// The number of the latest result.
    pub(crate) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    pub(crate) fn beat(&mut self) {
        self.beat = self.welcomed;
    }

    pub(crate) fn bye(&mut self, reason: &str) {
        self.bye = Some(Bye { reason: reason.to_owned() });
    }

    /// Nothing runs and every result is safe.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_idle() && self.kept.is_empty()
    }

    /// Nothing runs.
    pub(crate) fn is_idle(&self) -> bool {
        self.pools.iter().all(|pool| pool.running == 0)
    }

    pub(crate) fn abort_all(&mut self) {
        for running in self.running.values() {
            running.abort.abort();
        }
    }

    /// Whether there is anything to say.
    pub(crate) fn has_news(&self) -> bool {
        self.hello.is_some()
            || self.welcomed
                && (!self.fresh.is_empty()
                    || !self.chunks.is_empty()
                    || !self.started.is_empty()
                    || !self.released.is_empty()
                    || !self.progress.is_empty()
                    || self.beat
                    || self.bye.is_some()
                    || self.pools.iter().any(|pool| pool.total != pool.told))
    }

    /// Everything there is to say, up to the size of a frame; `None` when there is nothing.
    pub(crate) fn next_frame(&mut self) -> Option<SessionRequest> {
        if let Some(hello) = self.hello.take() {
            return Some(SessionRequest { hello: Some(hello), ..SessionRequest::default() });
        }
        if !self.has_news() {
            return None;
        }
        let mut frame = SessionRequest { chunks: self.chunks.take(0), ..SessionRequest::default() };
        // A result must not overtake the chunks of its attempt.
        if self.chunks.is_empty() {
            frame.results = self.fresh.take(frame.chunks.iter().map(Weigh::weight).sum());
        }
        frame.started = std::mem::take(&mut self.started);
        frame.released = std::mem::take(&mut self.released);
        if !self.progress.is_empty() {
            let reports = self.progress.drain();
            frame.progress =
                reports.map(|(lease, progress)| ProgressReport { lease, progress: Some(progress) }).collect();
        }
        for pool in self.pools.iter_mut().filter(|pool| pool.total != pool.told) {
            pool.told = pool.total;
            frame.credits.push(Credit { pool: pool.name.clone(), total: pool.total });
        }
        if self.chunks.is_empty() && self.fresh.is_empty() {
            // The digest covers what was said before it, so it waits for the last frame of a row.
            if std::mem::take(&mut self.beat) {
                frame.beat = Some(Beat { in_flight: self.held.count, digest: self.held.digest });
            }
            frame.bye = self.bye.take();
        }
        Some(frame)
    }
}

const OVERHEAD: usize = 32;

impl Weigh for AttemptResult {
    fn weight(&self) -> usize {
        let content = match &self.kind {
            Some(result::Kind::Succeeded(payload)) => payload.data.len() + payload.content_type.len(),
            Some(result::Kind::Failed(Failure { error: Some(error), .. })) => {
                let details = error.details.as_ref().map_or(0, |details| details.data.len());
                error.code.len() + error.message.len() + details
            }
            _ => 0,
        };
        OVERHEAD + content
    }
}

impl Weigh for Chunk {
    fn weight(&self) -> usize {
        OVERHEAD + self.data.as_ref().map_or(0, |data| data.data.len() + data.content_type.len())
    }
}

#[cfg(test)]
mod tests;

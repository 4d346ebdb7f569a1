//! The legacy workers that are here, and what they hold.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crewcall::clock::Timestamp;
use crewcall::handle::Session;
use crewcall::scheduler::{AttemptEnd, AttemptResult, Frame};
use crewcall::task::{TaskError, TaskId};
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Entries of one frame to the scheduler; far below its limit.
const FRAME_ENTRIES: usize = 4_096;
/// Tasks are spread over so many maps by their id, so that connections rarely meet at a lock.
const SHARDS: usize = 16;

/// All legacy workers, and the tasks that they hold.
#[derive(Debug)]
pub(crate) struct Crew {
    workers: Mutex<HashMap<String, Arc<Listed>, RandomState>>,
    held: [Mutex<HashMap<TaskId, Held, RandomState>>; SHARDS],
}

/// What the status page shows of a worker.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) group: String,
    /// As JSON.
    pub(crate) methods: String,
    pub(crate) method_count: usize,
    pub(crate) ip: String,
    /// Milliseconds since the epoch.
    seen_at: AtomicU64,
}

impl Listed {
    pub(crate) fn new(group: String, methods: String, method_count: usize, ip: String) -> Self {
        Self { group, methods, method_count, ip, seen_at: AtomicU64::new(wall_clock()) }
    }

    /// When anything was last heard.
    pub(crate) fn seen_at(&self) -> Timestamp {
        Timestamp(self.seen_at.load(Ordering::Relaxed))
    }

    pub(crate) fn seen(&self) {
        self.seen_at.store(wall_clock(), Ordering::Relaxed);
    }
}

fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A task in the hands of a worker.
#[derive(Debug)]
struct Held {
    member: Arc<Member>,
    lease: u64,
}

/// A worker that has joined.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) session: Session,
    leases: Mutex<HashMap<u64, TaskId, RandomState>>,
    /// Told whenever `leases` shrinks.
    pub(crate) freed: Notify,
}

impl Member {
    pub(crate) fn new(id: String, session: Session) -> Arc<Self> {
        Arc::new(Self { id, session, leases: Mutex::default(), freed: Notify::new() })
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.leases.lock().is_empty()
    }

    async fn hand_in(&self, results: Vec<AttemptResult>) {
        let leases: Vec<u64> = results.iter().map(|result| result.lease).collect();
        // An error means that the engine has stopped; the connection learns that by itself. Said first and awaited then,
        // so that the frame does not stay in this future.
        let said = self.session.say(Frame { results, ..Frame::default() });
        said.await.ok();
        // Only now: a worker without leases may be let go.
        let mut held = self.leases.lock();
        for lease in &leases {
            held.remove(lease);
        }
        drop(held);
        self.freed.notify_one();
    }
}

impl Default for Crew {
    fn default() -> Self {
        Self { workers: Mutex::default(), held: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl Crew {
    /// What is shown of the worker, if it is one of ours.
    pub(crate) fn listed(&self, worker_id: &str) -> Option<Arc<Listed>> {
        self.workers.lock().get(worker_id).cloned()
    }

    pub(crate) fn enter(&self, worker_id: String, listed: Arc<Listed>) {
        self.workers.lock().insert(worker_id, listed);
    }

    /// A worker that was entered did not join.
    pub(crate) fn strike(&self, worker_id: &str) {
        self.workers.lock().remove(worker_id);
    }

    /// A task was given to the worker.
    pub(crate) fn hold(&self, member: &Arc<Member>, id: TaskId, lease: u64) {
        member.leases.lock().insert(lease, id);
        self.shard(id).lock().insert(id, Held { member: Arc::clone(member), lease });
    }

    /// The scheduler has taken the task back.
    pub(crate) fn withdraw(&self, member: &Member, lease: u64) {
        let id = member.leases.lock().remove(&lease);
        member.freed.notify_one();
        if let Some(id) = id {
            self.forget(id, lease);
        }
    }

    /// Answers to tasks, from whomever; the first one to each counts. The scheduler hears of those together that stand
    /// together and are of one worker.
    pub(crate) async fn finish(&self, answers: impl Iterator<Item = (TaskId, AttemptEnd)>) {
        for (member, results) in self.gathered(answers) {
            member.hand_in(results).await;
        }
    }

    fn gathered(
        &self,
        answers: impl Iterator<Item = (TaskId, AttemptEnd)>,
    ) -> Vec<(Arc<Member>, Vec<AttemptResult>)> {
        let mut gathered: Vec<(Arc<Member>, Vec<AttemptResult>)> = Vec::new();
        for (id, end) in answers {
            let held = self.shard(id).lock().remove(&id);
            let Some(Held { member, lease }) = held else { continue };
            let result = AttemptResult { lease, seq: 0, end };
            match gathered.last_mut() {
                Some((last, results)) if Arc::ptr_eq(last, &member) => results.push(result),
                _ => gathered.push((member, vec![result])),
            }
        }
        gathered
    }

    /// The worker has gone: what it holds fails with `why`, its session ends.
    pub(crate) async fn leave(&self, member: &Member, why: &str) {
        self.workers.lock().remove(&member.id);
        let leases: Vec<(u64, TaskId)> = member.leases.lock().drain().collect();
        for (lease, id) in &leases {
            self.forget(*id, *lease);
        }
        for leases in leases.chunks(FRAME_ENTRIES) {
            let lost = |lease| {
                let error = TaskError::new(TaskError::WORKER_LOST, why);
                AttemptResult {
                    lease,
                    seq: 0,
                    end: AttemptEnd::Failed { error, retryable: None, retry_after_ms: 0 },
                }
            };
            let results = leases.iter().map(|(lease, _)| lost(*lease)).collect();
            member.session.say(Frame { results, ..Frame::default() }).await.ok();
        }
        member.session.say(Frame { bye: Some(why.to_owned()), ..Frame::default() }).await.ok();
    }

    /// A later attempt of the same task may be held by another worker: then it stays.
    fn forget(&self, id: TaskId, lease: u64) {
        let mut held = self.shard(id).lock();
        if held.get(&id).is_some_and(|held| held.lease == lease) {
            held.remove(&id);
        }
    }

    fn shard(&self, id: TaskId) -> &Mutex<HashMap<TaskId, Held, RandomState>> {
        let [first, rest @ ..] = &self.held;
        // The low bits of a UUIDv7 are random.
        match (id.0.as_u128() as usize) % SHARDS {
            0 => first,
            index => rest.get(index - 1).unwrap_or(first),
        }
    }
}

//! What the legacy protocol remembers of its calls beside the tasks themselves: which of its two id spaces
//! each belongs to, the calls that no worker could take (they are no tasks, but their id can be fetched
//! once), and the counts of its status page.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crewcall::task::TaskId;
use parking_lot::Mutex;

/// How long an ended call can be fetched.
pub(crate) const RETENTION: Duration = Duration::from_secs(300);
/// Refused calls kept to be fetched; beyond it the oldest is forgotten before its time.
const MAX_REFUSED: usize = 100_000;

/// The id space of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Plain,
    Encrypted,
}

/// One call that can be fetched.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) space: Space,
    /// The edge opened the parameters; results are sealed with this for whoever asks for them sealed.
    pub(crate) secret: Option<Arc<str>>,
    /// Why it never became a task.
    pub(crate) refused: Option<&'static str>,
    ended: bool,
}

impl Call {
    pub(crate) fn plain() -> Self {
        Self { space: Space::Plain, secret: None, refused: None, ended: false }
    }

    pub(crate) fn encrypted() -> Self {
        Self { space: Space::Encrypted, ..Self::plain() }
    }

    pub(crate) fn opened(secret: &str) -> Self {
        Self { secret: Some(secret.into()), ..Self::encrypted() }
    }
}

/// Calls of one id space, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) active: u64,
    pub(crate) completed: u64,
}

/// All calls that can be fetched. One short lock: nothing in it waits.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    calls: HashMap<TaskId, Call, foldhash::fast::RandomState>,
    plain: Counts,
    encrypted: Counts,
    /// In the order of ending. May name calls that were fetched since.
    ended: VecDeque<(Instant, TaskId)>,
    refused: VecDeque<(Instant, TaskId)>,
}

impl Calls {
    /// A call that became a task.
    pub(crate) fn begin(&self, id: TaskId, call: Call) {
        let mut inner = self.inner.lock();
        inner.prune(Instant::now());
        inner.counts(call.space).active += 1;
        inner.calls.insert(id, call);
    }

    /// A call that did not.
    pub(crate) fn refuse(&self, id: TaskId, call: Call, why: &'static str) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        inner.prune(now);
        if inner.refused.len() >= MAX_REFUSED
            && let Some((_, oldest)) = inner.refused.pop_front()
        {
            inner.remove(oldest);
        }
        inner.counts(call.space).completed += 1;
        inner.calls.insert(id, Call { refused: Some(why), ended: true, ..call });
        inner.refused.push_back((now, id));
    }

    /// The task behind a call has ended.
    pub(crate) fn ended(&self, id: TaskId) {
        let mut inner = self.inner.lock();
        let Some(call) = inner.calls.get_mut(&id) else { return };
        if !std::mem::replace(&mut call.ended, true) {
            let space = call.space;
            let counts = inner.counts(space);
            counts.active -= 1;
            counts.completed += 1;
            inner.ended.push_back((Instant::now(), id));
        }
    }

    /// The call as it stands.
    pub(crate) fn get(&self, id: TaskId) -> Option<Call> {
        self.inner.lock().calls.get(&id).cloned()
    }

    /// Forgets the call. Of many who try, one gets it.
    pub(crate) fn take(&self, id: TaskId) -> Option<Call> {
        self.inner.lock().remove(id)
    }

    /// Plain and encrypted calls.
    pub(crate) fn count(&self) -> (Counts, Counts) {
        let mut inner = self.inner.lock();
        inner.prune(Instant::now());
        (inner.plain, inner.encrypted)
    }
}

impl Inner {
    fn counts(&mut self, space: Space) -> &mut Counts {
        match space {
            Space::Plain => &mut self.plain,
            Space::Encrypted => &mut self.encrypted,
        }
    }

    fn remove(&mut self, id: TaskId) -> Option<Call> {
        let call = self.calls.remove(&id)?;
        let counts = self.counts(call.space);
        if call.ended {
            counts.completed -= 1;
        } else {
            counts.active -= 1;
        }
        Some(call)
    }

    /// Forgets what has been there for its time, as the scheduler forgets the tasks.
    fn prune(&mut self, now: Instant) {
        let due = |queue: &mut VecDeque<(Instant, TaskId)>| {
            queue.pop_front_if(|(at, _)| now.saturating_duration_since(*at) > RETENTION)
        };
        while let Some((_, id)) = due(&mut self.ended).or_else(|| due(&mut self.refused)) {
            self.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHY: &str = "no worker";

    #[test]
    fn counts_follow_calls_and_fetched_ones_leave_them() {
        let calls = Calls::default();
        let (plain, sealed, refused) = (TaskId::generate(), TaskId::generate(), TaskId::generate());
        calls.begin(plain, Call::plain());
        calls.begin(sealed, Call::opened("k"));
        calls.refuse(refused, Call::plain(), WHY);
        let counts = |active, completed| Counts { active, completed };
        assert_eq!(calls.count(), (counts(1, 1), counts(1, 0)));
        calls.ended(plain);
        calls.ended(plain);
        calls.ended(TaskId::generate());
        assert_eq!(calls.count(), (counts(0, 2), counts(1, 0)));
        assert!(calls.take(plain).is_some() && calls.take(plain).is_none());
        assert_eq!(calls.take(refused).unwrap().refused, Some(WHY));
        assert!(calls.take(sealed).unwrap().secret.is_some());
        calls.ended(sealed);
        assert_eq!(calls.count(), (counts(0, 0), counts(0, 0)));
    }

    #[test]
    fn what_nobody_fetches_is_forgotten_in_time() {
        let calls = Calls::default();
        let (ended, refused, running) = (TaskId::generate(), TaskId::generate(), TaskId::generate());
        calls.begin(ended, Call::plain());
        calls.ended(ended);
        calls.begin(running, Call::encrypted());
        calls.refuse(refused, Call::plain(), WHY);
        let now = Instant::now();
        calls.inner.lock().prune(now + RETENTION - Duration::from_secs(1));
        assert!(calls.get(ended).is_some() && calls.get(refused).is_some());
        calls.inner.lock().prune(now + RETENTION + Duration::from_secs(1));
        assert!(calls.get(ended).is_none() && calls.get(refused).is_none());
        assert!(calls.get(running).is_some(), "a running call has no end");
    }

    #[test]
    fn refused_calls_have_a_limit() {
        let calls = Calls::default();
        let first = TaskId::generate();
        calls.refuse(first, Call::plain(), WHY);
        for _ in 0..MAX_REFUSED {
            calls.refuse(TaskId::generate(), Call::plain(), WHY);
        }
        assert!(calls.get(first).is_none());
        assert_eq!(calls.count().0.completed, MAX_REFUSED as u64);
    }
}

//! What the legacy protocol remembers of its calls beside the tasks themselves: which of its two id spaces
//! each belongs to, the outcomes that nobody has fetched yet, the calls that no worker could take (they are no
//! tasks, but their id can be fetched once), and the counts of its status page.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crewcall::error::Reason;
use crewcall::scheduler::Reply;
use crewcall::task::{Outcome, TaskId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// How long an ended call can be fetched.
pub(crate) const RETENTION: Duration = Duration::from_secs(300);
/// Refused calls kept to be fetched; beyond it the oldest is forgotten before its time.
const MAX_REFUSED: usize = 100_000;
/// Ends of calls that were fetched since may be kept up to this number, and to that of all calls.
const SLACK: usize = 1_024;

/// The id space of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Plain,
    Encrypted,
}

/// A call, by how it was handed in.
#[derive(Debug)]
pub(crate) struct Call {
    space: Space,
    /// The edge opened the parameters; results are sealed with this for whoever asks for them sealed.
    secret: Option<Arc<str>>,
}

impl Call {
    pub(crate) fn plain() -> Self {
        Self { space: Space::Plain, secret: None }
    }

    pub(crate) fn encrypted() -> Self {
        Self { space: Space::Encrypted, secret: None }
    }

    pub(crate) fn opened(secret: &str) -> Self {
        Self { space: Space::Encrypted, secret: Some(secret.into()) }
    }
}

/// One call that can be fetched.
#[derive(Debug)]
struct Known {
    call: Call,
    /// Under which its end is told.
    number: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// With those who wait for the end.
    Runs(Vec<oneshot::Sender<()>>),
    /// It never became a task.
    Refused(&'static str),
    Ended(Outcome),
}

/// What whoever asks for a call wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// To see how it stands.
    Look,
    /// The outcome, which is forgotten with that.
    Take,
    /// The same, or to be told when to try again.
    TakeOrWait,
}

/// What there is.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// The receiver ends when there is something new; for `Want::TakeOrWait`.
    Runs(Option<oneshot::Receiver<()>>),
    Refused(&'static str),
    Ended {
        outcome: Outcome,
        /// To seal the outcome with.
        secret: Option<Arc<str>>,
        /// It was sealed, and is asked for in clear.
        opened: bool,
    },
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
    calls: HashMap<TaskId, Known, foldhash::fast::RandomState>,
    next_number: u64,
    plain: Counts,
    encrypted: Counts,
    /// In the order of ending. May name calls that were fetched since.
    ended: VecDeque<(Instant, TaskId)>,
    refused: VecDeque<(Instant, TaskId)>,
}

/// A call that is being handed in. Dropped, it never was: nobody has been told its id.
#[derive(Debug)]
pub(crate) struct Begun<'a> {
    calls: &'a Calls,
    id: TaskId,
    pub(crate) number: u64,
}

impl Begun<'_> {
    /// It became a task.
    pub(crate) fn keep(self) {
        std::mem::forget(self);
    }

    /// It did not, but can be fetched.
    pub(crate) fn refuse(self, why: &'static str) {
        self.calls.inner.lock().refuse(self.id, why);
        std::mem::forget(self);
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.calls.inner.lock().remove(self.id);
    }
}

impl Calls {
    /// A call that is about to be handed in: its end may be told before its acceptance.
    pub(crate) fn begin(&self, id: TaskId, call: Call) -> Begun<'_> {
        let mut inner = self.inner.lock();
        inner.prune(Instant::now());
        inner.counts(call.space).active += 1;
        inner.next_number += 1;
        let number = inner.next_number;
        inner.calls.insert(id, Known { call, number, stage: Stage::Runs(Vec::new()) });
        Begun { calls: self, id, number }
    }

    /// What the stream of ends tells. Whoever waits for one of them is told.
    pub(crate) fn hear(&self, told: impl Iterator<Item = (u64, Reply)>) {
        let now = Instant::now();
        let mut without_end = HashSet::new();
        let mut inner = self.inner.lock();
        for (number, reply) in told {
            match reply {
                Reply::Ended(id, outcome) => inner.end(id, outcome, now),
                // What was not accepted is known to be refused already.
                Reply::Refused(error) if error.reason != Reason::TaskNotFound => {
                    without_end.insert(number);
                }
                _ => {}
            }
        }
        if !without_end.is_empty() {
            inner.let_go(|call| without_end.contains(&call.number));
        }
    }

    /// Nothing more will be told: whoever waits is told so.
    pub(crate) fn let_all_go(&self) {
        self.inner.lock().let_go(|_| true);
    }

    /// The call as it stands, for whoever asks in `space`. Of many who try to take one, one gets it.
    pub(crate) fn find(&self, id: TaskId, space: Space, want: Want) -> Found {
        let mut inner = self.inner.lock();
        inner.prune(Instant::now());
        let Some(Known { call, stage, .. }) = inner.calls.get_mut(&id) else { return Found::Nothing };
        let opened = call.space == Space::Encrypted && space == Space::Plain;
        // An opened call can be had in clear, as some SDKs ask for it.
        if call.space != space && !(opened && call.secret.is_some()) {
            return Found::Nothing;
        }
        if let Stage::Runs(waiting) = stage {
            let told = (want == Want::TakeOrWait).then(|| {
                // Those who hung up.
                waiting.retain(|waiting| !waiting.is_closed());
                let (tell, told) = oneshot::channel();
                waiting.push(tell);
                told
            });
            return Found::Runs(told);
        }
        let found = match stage {
            Stage::Refused(why) => Found::Refused(why),
            Stage::Ended(outcome) => Found::Ended {
                outcome: outcome.clone(),
                secret: call.secret.clone().filter(|_| space == Space::Encrypted),
                opened,
            },
            Stage::Runs(_) => Found::Runs(None),
        };
        if want != Want::Look {
            inner.remove(id);
        }
        found
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

    /// The first end counts.
    fn end(&mut self, id: TaskId, outcome: Outcome, now: Instant) {
        let Some(known) = self.calls.get_mut(&id) else { return };
        if matches!(known.stage, Stage::Runs(_)) {
            // Drops the senders, which tells those who wait.
            known.stage = Stage::Ended(outcome);
            let space = known.call.space;
            self.completed(space);
            self.ended.push_back((now, id));
        }
    }

    fn refuse(&mut self, id: TaskId, why: &'static str) {
        if self.refused.len() >= MAX_REFUSED
            && let Some((_, oldest)) = self.refused.pop_front()
        {
            self.remove(oldest);
        }
        let Some(known) = self.calls.get_mut(&id) else { return };
        known.stage = Stage::Refused(why);
        let space = known.call.space;
        self.completed(space);
        self.refused.push_back((Instant::now(), id));
    }

    fn completed(&mut self, space: Space) {
        let counts = self.counts(space);
        counts.active -= 1;
        counts.completed += 1;
    }

    fn let_go(&mut self, who: impl Fn(&Known) -> bool) {
        for known in self.calls.values_mut() {
            if matches!(known.stage, Stage::Runs(_)) && who(known) {
                known.stage = Stage::Runs(Vec::new());
            }
        }
    }

    fn remove(&mut self, id: TaskId) {
        let Some(known) = self.calls.remove(&id) else { return };
        let counts = self.counts(known.call.space);
        match known.stage {
            Stage::Runs(_) => counts.active -= 1,
            Stage::Refused(_) | Stage::Ended(_) => counts.completed -= 1,
        }
    }

    /// Forgets what has been there for its time, as the scheduler forgets the tasks.
    fn prune(&mut self, now: Instant) {
        let due = |queue: &mut VecDeque<(Instant, TaskId)>| {
            queue.pop_front_if(|(at, _)| now.saturating_duration_since(*at) > RETENTION)
        };
        while let Some((_, id)) = due(&mut self.ended).or_else(|| due(&mut self.refused)) {
            self.remove(id);
        }
        // Most are fetched long before their time.
        if self.ended.len() > 2 * self.calls.len() + SLACK {
            self.ended.retain(|(_, id)| self.calls.contains_key(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use crewcall::error::Error;
    use crewcall::task::Payload;

    use super::*;

    const WHY: &str = "no worker";

    fn counts(active: u64, completed: u64) -> Counts {
        Counts { active, completed }
    }

    fn begin(calls: &Calls, call: Call) -> (TaskId, u64) {
        let id = TaskId::generate();
        let begun = calls.begin(id, call);
        let number = begun.number;
        begun.keep();
        (id, number)
    }

    fn end(calls: &Calls, id: TaskId) {
        calls.hear(std::iter::once((0, Reply::Ended(id, Outcome::Succeeded(Payload::json("1"))))));
    }

    fn refuse(calls: &Calls) -> TaskId {
        let id = TaskId::generate();
        calls.begin(id, Call::plain()).refuse(WHY);
        id
    }

    #[test]
    fn counts_follow_calls_and_fetched_ones_leave_them() {
        let calls = Calls::default();
        let (plain, _) = begin(&calls, Call::plain());
        let (sealed, _) = begin(&calls, Call::opened("k"));
        let refused = refuse(&calls);
        drop(calls.begin(TaskId::generate(), Call::plain()));
        assert_eq!(calls.count(), (counts(1, 1), counts(1, 0)));
        end(&calls, plain);
        end(&calls, plain);
        end(&calls, TaskId::generate());
        assert_eq!(calls.count(), (counts(0, 2), counts(1, 0)));
        assert!(matches!(calls.find(plain, Space::Plain, Want::Look), Found::Ended { .. }));
        assert!(matches!(calls.find(plain, Space::Encrypted, Want::Take), Found::Nothing));
        assert!(matches!(calls.find(plain, Space::Plain, Want::Take), Found::Ended { .. }));
        assert!(matches!(calls.find(plain, Space::Plain, Want::Take), Found::Nothing));
        assert!(matches!(calls.find(refused, Space::Plain, Want::Take), Found::Refused(WHY)));
        end(&calls, sealed);
        let Found::Ended { secret, opened, .. } = calls.find(sealed, Space::Plain, Want::Look) else {
            panic!("an opened call cannot be had in clear");
        };
        assert_eq!((secret, opened), (None, true));
        let Found::Ended { secret, opened, .. } = calls.find(sealed, Space::Encrypted, Want::Take) else {
            panic!("a sealed call cannot be had");
        };
        assert_eq!((secret.as_deref(), opened), (Some("k"), false));
        assert_eq!(calls.count(), (counts(0, 0), counts(0, 0)));
    }

    #[test]
    fn whoever_waits_is_told_of_the_end_and_that_there_will_be_none() {
        let calls = Calls::default();
        let ((ends, _), (stays, number)) = (begin(&calls, Call::plain()), begin(&calls, Call::plain()));
        let wait = |id| match calls.find(id, Space::Plain, Want::TakeOrWait) {
            Found::Runs(Some(told)) => told,
            other => panic!("{other:?}"),
        };
        let (mut end_1, mut end_2, mut stay) = (wait(ends), wait(ends), wait(stays));
        assert_eq!(end_1.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        end(&calls, ends);
        let is_told = |told: &mut oneshot::Receiver<()>| {
            told.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed)
        };
        assert!(is_told(&mut end_1) && is_told(&mut end_2));
        let refusal = |reason| std::iter::once((number, Reply::Refused(Error::new(reason, ""))));
        calls.hear(refusal(Reason::TaskNotFound));
        assert_eq!(stay.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        calls.hear(refusal(Reason::ShuttingDown));
        assert!(is_told(&mut stay));
        let mut stay = wait(stays);
        calls.let_all_go();
        assert!(is_told(&mut stay));
    }

    #[test]
    fn who_hung_up_is_not_kept() {
        let calls = Calls::default();
        let (id, _) = begin(&calls, Call::plain());
        for _ in 0..100 {
            drop(calls.find(id, Space::Plain, Want::TakeOrWait));
        }
        let inner = calls.inner.lock();
        assert!(matches!(&inner.calls[&id].stage, Stage::Runs(waiting) if waiting.len() == 1));
    }

    #[test]
    fn what_nobody_fetches_is_forgotten_in_time() {
        let calls = Calls::default();
        let (ended, _) = begin(&calls, Call::plain());
        end(&calls, ended);
        let (running, _) = begin(&calls, Call::encrypted());
        let refused = refuse(&calls);
        let is_known = |id| calls.inner.lock().calls.contains_key(&id);
        let now = Instant::now();
        calls.inner.lock().prune(now + RETENTION - Duration::from_secs(1));
        assert!(is_known(ended) && is_known(refused));
        calls.inner.lock().prune(now + RETENTION + Duration::from_secs(1));
        assert!(!is_known(ended) && !is_known(refused));
        assert!(is_known(running), "a running call has no end");
    }

    #[test]
    fn fetched_calls_leave_nothing_behind() {
        let calls = Calls::default();
        let (unfetched, _) = begin(&calls, Call::plain());
        end(&calls, unfetched);
        for _ in 0..10 * SLACK {
            let (id, _) = begin(&calls, Call::plain());
            end(&calls, id);
            calls.find(id, Space::Plain, Want::Take);
        }
        assert!(calls.inner.lock().ended.len() <= SLACK + 4);
    }

    #[test]
    fn refused_calls_have_a_limit() {
        let calls = Calls::default();
        let first = refuse(&calls);
        for _ in 0..MAX_REFUSED {
            refuse(&calls);
        }
        assert!(matches!(calls.find(first, Space::Plain, Want::Look), Found::Nothing));
        assert_eq!(calls.count().0.completed, MAX_REFUSED as u64);
    }
}

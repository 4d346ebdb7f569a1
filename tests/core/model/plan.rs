//! What may be asked: the transitions, and as much of the state as is needed to make sensible ones.
//!
//! Who runs what is for the scheduler to choose, so transitions speak of "the second of what this worker holds",
//! and who holds what is found out when they are carried out.

use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::{BoxedStrategy, Union};
use proptest_state_machine::ReferenceStateMachine;

use super::naive::{Aim, CREW, METHODS, Spec};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Transition {
    Submit(Spec),
    Call(Spec),
    /// Tasks are counted from the newest.
    Await(usize),
    /// The one who waits longest for the task leaves; or withdraws the call.
    Abandon(usize, bool),
    Cancel(usize),
    Retry(usize),
    Pause(usize),
    Resume(usize),
    /// Every dead letter is discarded.
    Discard,
    /// A worker connects: as the same process again, naming all it holds or all but the oldest; or as a new one.
    Join(usize, Comes),
    /// It can take so many more.
    Credit(usize, u64),
    /// The handler of the oldest that it holds, or of a younger one, begins.
    Start(usize, usize),
    Finish(usize, usize, End),
    Release(usize, usize),
    /// It sends a result under a lease that is not its own.
    Stray(usize, u64),
    Beat(usize),
    Break(usize),
    Leave(usize),
    Drain(usize),
    Wait(u64),
    Stop,
    /// Everything is stored; everything else is gone.
    Crash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comes {
    Back,
    WithoutOldest,
    Anew,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Succeeded,
    Failed { retryable: Option<bool>, after: u64 },
}

/// What makes a transition sensible.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    tasks: usize,
    joined: [bool; CREW.len()],
    stopping: bool,
}

impl ReferenceStateMachine for Plan {
    type State = Self;
    type Transition = Transition;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(plan: &Self) -> BoxedStrategy<Transition> {
        let anyone = 0..CREW.len();
        let come =
            prop_oneof![2 => Just(Comes::Back), 1 => Just(Comes::WithoutOldest), 1 => Just(Comes::Anew)];
        let mut all = vec![
            (14, spec().prop_map(Transition::Submit).boxed()),
            (12, spec().prop_map(Transition::Call).boxed()),
            (1, (0..METHODS.len()).prop_map(Transition::Pause).boxed()),
            (2, (0..METHODS.len()).prop_map(Transition::Resume).boxed()),
            (1, Just(Transition::Discard).boxed()),
            (10, (anyone.clone(), come).prop_map(|(worker, come)| Transition::Join(worker, come)).boxed()),
            (1, anyone.prop_map(Transition::Drain).boxed()),
            (8, (0..500_u64).prop_map(Transition::Wait).boxed()),
            (2, (0..12_000_u64).prop_map(Transition::Wait).boxed()),
            (3, Just(Transition::Crash).boxed()),
        ];
        if !plan.stopping {
            all.push((1, Just(Transition::Stop).boxed()));
        }
        if plan.tasks > 0 {
            let task = 0..plan.tasks.min(6);
            let abandon = (task.clone(), any::<bool>());
            all.push((3, task.clone().prop_map(Transition::Await).boxed()));
            all.push((3, task.clone().prop_map(Transition::Cancel).boxed()));
            all.push((3, task.prop_map(Transition::Retry).boxed()));
            all.push((3, abandon.prop_map(|(task, cancel)| Transition::Abandon(task, cancel)).boxed()));
        }
        let here: Vec<usize> = (0..CREW.len()).filter(|worker| plan.joined[*worker]).collect();
        if !here.is_empty() {
            let worker = select(here);
            let held = (worker.clone(), 0..3_usize);
            let finish = (worker.clone(), 0..3_usize, end());
            let credit = (worker.clone(), 1..4_u64);
            let stray = (worker.clone(), 1..9_u64);
            all.push((16, credit.prop_map(|(worker, more)| Transition::Credit(worker, more)).boxed()));
            all.push((7, held.clone().prop_map(|(worker, nth)| Transition::Start(worker, nth)).boxed()));
            all.push((
                16,
                finish.prop_map(|(worker, nth, end)| Transition::Finish(worker, nth, end)).boxed(),
            ));
            all.push((3, held.prop_map(|(worker, nth)| Transition::Release(worker, nth)).boxed()));
            all.push((1, stray.prop_map(|(worker, lease)| Transition::Stray(worker, lease)).boxed()));
            all.push((4, worker.clone().prop_map(Transition::Beat).boxed()));
            all.push((4, worker.clone().prop_map(Transition::Break).boxed()));
            all.push((1, worker.prop_map(Transition::Leave).boxed()));
        }
        Union::new_weighted(all).boxed()
    }

    fn preconditions(plan: &Self, transition: &Transition) -> bool {
        match transition {
            Transition::Await(task)
            | Transition::Abandon(task, _)
            | Transition::Cancel(task)
            | Transition::Retry(task) => *task < plan.tasks,
            Transition::Credit(worker, _)
            | Transition::Start(worker, _)
            | Transition::Finish(worker, ..)
            | Transition::Release(worker, _)
            | Transition::Stray(worker, _)
            | Transition::Beat(worker)
            | Transition::Break(worker)
            | Transition::Leave(worker) => plan.joined[*worker],
            Transition::Stop => !plan.stopping,
            _ => true,
        }
    }

    fn apply(mut plan: Self, transition: &Transition) -> Self {
        match transition {
            Transition::Submit(_) | Transition::Call(_) => plan.tasks += 1,
            Transition::Join(worker, _) => plan.joined[*worker] = true,
            Transition::Break(worker) | Transition::Leave(worker) => plan.joined[*worker] = false,
            Transition::Stop => plan.stopping = true,
            Transition::Crash => {
                plan.joined = Default::default();
                plan.stopping = false;
            }
            _ => {}
        }
        plan
    }
}

fn spec() -> impl Strategy<Value = Spec> {
    let aim = prop_oneof![4 => Just(Aim::Any), 1 => Just(Aim::First), 1 => Just(Aim::Group)];
    let rarely = |most: u64| prop_oneof![4 => Just(0), 1 => 1..most];
    let what = (0..2_usize, aim, 0..10_u8, any::<bool>(), option::weighted(0.15, (0..3_u8, 0..2_u8)));
    let times = (rarely(2_000), rarely(3_000), rarely(3_000), rarely(8_000));
    let tries = (1..4_u32, prop_oneof![Just(0), Just(100), Just(1_000)], option::weighted(0.1, 0..3_000_u64));
    (what, times, tries).prop_map(|(what, times, tries)| Spec {
        method: what.0,
        aim: what.1,
        priority: what.2,
        durable: what.3,
        key: what.4,
        delay: times.0,
        queue_timeout: times.1,
        run_timeout: times.2,
        deadline: times.3,
        max_attempts: tries.0,
        backoff: tries.1,
        retention: tries.2,
    })
}

fn end() -> impl Strategy<Value = End> {
    let retryable = prop_oneof![4 => Just(None), 1 => Just(Some(true)), 1 => Just(Some(false))];
    let after = prop_oneof![3 => Just(0), 1 => 1..500_u64];
    prop_oneof![
        2 => Just(End::Succeeded),
        1 => (retryable, after).prop_map(|(retryable, after)| End::Failed { retryable, after }),
    ]
}

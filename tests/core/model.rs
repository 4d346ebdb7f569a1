//! The scheduler against a reference that is too simple to be wrong: see `model/naive.rs`.
//!
//! ```text
//! CREWCALL_MODEL_CASES=100000 ./test core -- model::    as many cases as one likes
//! ```
//! A case is a hundred transitions at most. After each, both must have said the same to everyone, and know the
//! same tasks: state, holder and lease, attempt, failures, outcome, and how long it is kept. Which worker gets
//! which task is the scheduler's choice: the reference says which choices the rules leave, refuses any other,
//! and that none was made where one had to be. What fails is shrunk to the fewest transitions that still do.

use proof::{Proof, count};
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use naive::Legal;
use pair::Pair;
use plan::{Plan, Transition};

mod naive;
mod pair;
mod plan;

const CASES: u64 = 2_000;
const TRANSITIONS: usize = 100;

struct Model;

impl StateMachineTest for Model {
    type SystemUnderTest = Pair;
    type Reference = Plan;

    fn init_test(_: &Plan) -> Pair {
        Pair::new()
    }

    fn apply(mut pair: Pair, _: &Plan, transition: Transition) -> Pair {
        must(pair.apply(transition));
        pair
    }

    fn check_invariants(pair: &Pair, _: &Plan) {
        must(pair.compare());
    }
}

#[track_caller]
fn must(legal: Legal) {
    if let Err(problem) = legal {
        panic!("{problem}");
    }
}

#[test]
fn the_scheduler_does_what_the_reference_allows() {
    let proof = Proof::begin("model", "./test core -- model::");
    let cases = proof::size("CREWCALL_MODEL_CASES", CASES);
    let config = Config {
        cases: u32::try_from(cases).expect("CREWCALL_MODEL_CASES is a number of cases"),
        max_shrink_iters: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(file!()),
        ..Config::default()
    };
    let mut transitions = 0;
    let counted = std::cell::RefCell::new(&mut transitions);
    let strategy = Plan::sequential_strategy(1..=TRANSITIONS);
    let result = TestRunner::new(config.clone()).run(&strategy, |(plan, steps, seen)| {
        **counted.borrow_mut() += steps.len() as u64;
        Model::test_sequential(config.clone(), plan, steps, seen);
        Ok::<(), TestCaseError>(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    proof.record(&[
        ("cases", count(cases)),
        ("transitions, each compared with the reference", count(transitions)),
        ("disagreements", count(0_u64)),
    ]);
}

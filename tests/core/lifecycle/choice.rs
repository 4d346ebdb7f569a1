//! Which worker gets which task: credit, load, versions, groups, labels, priority.

use crewcall::scheduler::{Frame, PoolSpec, Update};
use crewcall::task::RetryPolicy;

use super::bench::{Bench, method, worker};

#[test]
fn credit_is_a_running_total() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.call("add").gives("");
    // The same again, and an older one: nothing new.
    b.credit("w1", 1).gives("");
    b.credit("w1", 0).gives("");
    b.credit("w1", 2).gives("w1 runs t2 attempt 1 lease 2");
}

#[test]
fn load_is_compared_in_proportion() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    b.crew(worker("w2 add").runs(3), 9);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.call("add").gives("w2 runs t2 attempt 1 lease 2");
    b.call("add").gives("w2 runs t3 attempt 1 lease 3");
    b.call("add").gives("w2 runs t4 attempt 1 lease 4");
    // Both are full: the one idle longest.
    b.call("add").gives("w1 runs t5 attempt 1 lease 5");
    b.call("add").gives("w2 runs t6 attempt 1 lease 6");
}

#[test]
fn of_equals_the_one_idle_longest() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    b.crew(worker("w2 add"), 9);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.succeed("w1", 1).gives("t1 = ok");
    b.call("add").gives("w2 runs t2 attempt 1 lease 2");
    b.succeed("w2", 2).gives("t2 = ok");
    b.call("add").gives("w1 runs t3 attempt 1 lease 3");
}

#[test]
fn unspecified_is_the_newest_version_alive() {
    let mut b = Bench::new();
    b.crew(worker("w1 add@1.0.0"), 9);
    b.call("add").gives("w1 runs t1@1.0.0 attempt 1 lease 1");
    b.join(worker("w2 add@2.0.0")).whatever();
    // The newest has no credit yet, and is waited for.
    b.call("add").gives("");
    b.credit("w2", 1).gives("w2 runs t2@2.0.0 attempt 1 lease 2");
    b.call("add").gives("");
    // It leaves: the next newest takes over.
    b.drain("w2").gives("w2 drain (please); w2 recall 2; w1 runs t3@1.0.0 attempt 1 lease 3; ~draining");
}

#[test]
fn ranges_and_prereleases() {
    let mut b = Bench::new();
    b.crew(worker("w1 add@1.2.0"), 9);
    b.crew(worker("w2 add@2.0.0-beta.1"), 9);
    b.call_with("add", |o| o.target.version = "^1".into()).gives("w1 runs t1@1.2.0 attempt 1 lease 1");
    b.call_with("add", |o| o.target.version = ">=2.0.0-beta".into())
        .gives("w2 runs t2@2.0.0-beta.1 attempt 1 lease 2");
    // A range takes a prerelease only when it names one.
    b.call_with("add", |o| o.target.version = ">=2".into()).gives("");
    b.call_with("add", |o| o.target.version = "many".into()).gives("refused: invalid_field");
}

#[test]
fn groups_and_labels() {
    let mut b = Bench::new();
    b.crew(worker("w1 add").group("cpu").label("zone", "a"), 9);
    b.crew(worker("w2 add").group("gpu").label("zone", "b"), 9);
    b.call_with("add", |o| o.target.group = "gpu".into()).gives("w2 runs t1 attempt 1 lease 1");
    b.call_with("add", |o| drop(o.target.labels.insert("zone".into(), "a".into())))
        .gives("w1 runs t2 attempt 1 lease 2");
    b.call_with("add", |o| {
        o.target.group = "gpu".into();
        o.target.labels.insert("zone".into(), "a".into());
    })
    .gives("");
}

#[test]
fn priority_goes_first_until_the_other_has_waited_long_enough() {
    for (waited, first) in [(29_999, "t2"), (30_000, "t2"), (30_001, "t1")] {
        let mut b = Bench::new();
        b.call_with("add", |o| o.priority = 4).gives("");
        b.after(waited).gives("");
        b.call_with("add", |o| o.priority = 5).gives("");
        b.join(worker("w1 add")).whatever();
        b.credit("w1", 1).gives(&format!("w1 runs {first} attempt 1 lease 1"));
    }
}

#[test]
fn methods_of_one_worker_take_turns() {
    let mut b = Bench::new();
    for method in ["add", "add", "mul", "mul"] {
        b.call(method).gives("");
    }
    b.join(worker("w1 add mul")).whatever();
    b.credit("w1", 3)
        .gives("w1 runs t1 attempt 1 lease 1; w1 runs t3 attempt 1 lease 2; w1 runs t2 attempt 1 lease 3");
}

#[test]
fn an_idle_peer_takes_over_what_waits_unstarted() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 4);
    for task in 1..=4 {
        b.call("add").gives(&format!("w1 runs t{task} attempt 1 lease {task}"));
    }
    b.started("w1", 1).gives("");
    b.join(worker("w2 add")).whatever();
    b.credit("w2", 2).gives("w1 recall 4; w1 recall 3");
    // More credit does not ask again for what is on its way.
    b.credit("w2", 3).gives("w1 recall 2");
    b.credit("w2", 9).gives("");
    b.release("w1", &[4]).gives("w2 runs t4 attempt 1 lease 5");
}

#[test]
fn what_comes_back_keeps_its_place() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 3);
    for task in 1..=3 {
        b.call("add").gives(&format!("w1 runs t{task} attempt 1 lease {task}"));
    }
    b.call("add").gives("");
    // In whatever order it comes back; the attempt is not counted.
    b.release("w1", &[1]).gives("");
    b.release("w1", &[3, 2]).gives("");
    b.join(worker("w2 add")).whatever();
    b.credit("w2", 4).gives(
        "w2 runs t1 attempt 1 lease 4; w2 runs t2 attempt 1 lease 5; w2 runs t3 attempt 1 lease 6; \
         w2 runs t4 attempt 1 lease 7",
    );
}

#[test]
fn an_update_changes_methods_and_pools() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 2);
    b.call("mul").gives("");
    let methods = vec![method("mul", "")];
    b.update("w1", Update { pools: Vec::new(), methods }).gives("w1 runs t1 attempt 1 lease 1");
    b.call("add").gives("");
    let pools = vec![PoolSpec { name: "big".into(), concurrency: 2 }];
    b.update("w1", Update { pools, methods: vec![method("add", "big")] }).gives("");
    let credits = vec![("big".into(), 1)];
    b.frame("w1", Frame { credits, ..Frame::default() }).gives("w1 runs t2 attempt 1 lease 2");
    // The old pool runs what it holds to its end.
    b.succeed("w1", 1).gives("t1 = ok");
    let methods = vec![method("add", "nowhere")];
    b.update("w1", Update { pools: Vec::new(), methods }).has("w1 closed: invalid_field");
}

#[test]
fn pools_have_credit_of_their_own() {
    let mut b = Bench::new();
    let two = worker("w1").with(|hello| {
        hello.pools.push(PoolSpec { name: "big".into(), concurrency: 1 });
        hello.methods = vec![method("add", ""), method("mul", "big")];
    });
    b.crew(two, 1);
    b.call("mul").gives("");
    b.call("add").gives("w1 runs t2 attempt 1 lease 1");
    let credits = vec![("big".into(), 1)];
    b.frame("w1", Frame { credits, ..Frame::default() }).gives("w1 runs t1 attempt 1 lease 2");
    let credits = vec![("none".into(), 1)];
    b.frame("w1", Frame { credits, ..Frame::default() }).has("w1 closed: invalid_field");
}

#[test]
fn backoff_doubles_within_its_bounds() {
    let policy = RetryPolicy { max_attempts: 9, initial_backoff_ms: 1_000, max_backoff_ms: 5_000 };
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        for (attempt, full) in [(1, 1_000), (2, 2_000), (3, 4_000), (4, 5_000), (900, 5_000)] {
            let wait = policy.backoff_ms(attempt, seed);
            assert!((full / 2..=full).contains(&wait), "{wait} of {full}");
            assert_eq!(wait, policy.backoff_ms(attempt, seed));
            seen.insert(wait);
        }
    }
    assert!(seen.len() > 500, "jitter spreads");
}

#[test]
fn of_what_comes_back_together_the_oldest_goes_first() {
    for loses in [
        |b: &mut Bench| b.broken("w1"),
        |b: &mut Bench| b.bye("w1"),
        |b: &mut Bench| b.release("w1", &[1, 2]),
    ] {
        let mut b = Bench::new();
        b.crew(worker("w1 add").runs(9), 2);
        b.call("add").gives("w1 runs t1 attempt 1 lease 1");
        b.call("add").gives("w1 runs t2 attempt 1 lease 2");
        b.crew(worker("w2 add"), 1);
        loses(&mut b).has("w2 runs t1 attempt 1 lease 3");
        b.get(2).gives("[t2 ready]");
    }
}

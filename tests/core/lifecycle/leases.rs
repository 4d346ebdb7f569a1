//! Who may say something about an attempt.

use super::bench::{Bench, worker};

#[test]
fn stale_foreign_and_repeated_results_change_nothing() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    b.crew(worker("w2 mul"), 9);
    b.call_with("add", |o| o.retry.max_attempts = 2).gives("w1 runs t1 attempt 1 lease 1");
    b.succeed("w2", 1).gives("w2 refused 1: not_your_lease");
    b.started("w2", 1).gives("w2 refused 1: not_your_lease");
    b.progress("w2", 1, 5).gives("w2 refused 1: not_your_lease");
    b.release("w2", &[1]).gives("w2 refused 1: not_your_lease");
    b.fail_with("w1", 1, None, 1).gives("");
    b.after(1).gives("w1 runs t1 attempt 2 lease 2");
    // The first attempt is late.
    b.succeed("w1", 1).gives("w1 refused 1: stale_lease");
    b.get(1).gives("[t1 leased]");
    b.succeed_as("w1", 2, 1).gives("t1 = ok");
    b.succeed_as("w1", 2, 1).gives("");
    b.fail("w1", 2).gives("w1 refused 2: stale_lease");
    b.succeed("w1", 77).gives("w1 refused 77: stale_lease");
    b.get(1).gives("[t1 = ok]");
}

#[test]
fn a_released_attempt_is_not_counted() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.release("w1", &[1]).gives("");
    b.credit("w1", 2).gives("w1 runs t1 attempt 1 lease 2");
    b.succeed("w1", 1).gives("w1 refused 1: stale_lease");
    b.succeed("w1", 2).gives("t1 = ok");
}

#[test]
fn frames_of_a_stream_that_was_replaced_are_dropped() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    let old = b.session("w1");
    b.resume(worker("w1 add").holds(&[1])).has("keep [1]");
    b.succeed_over(old, 1).gives("");
    b.succeed("w1", 1).gives("t1 = ok");
}

#[test]
fn leases_only_rise() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.restart();
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t2 attempt 1 lease 1048577");
}

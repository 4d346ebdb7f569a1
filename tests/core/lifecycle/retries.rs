//! What follows a failed attempt, and Retry of an ended task.

use super::bench::{Bench, worker};

fn bench() -> Bench {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    b
}

#[test]
fn attempts_follow_until_none_is_left() {
    let mut b = bench();
    b.call_with("add", |o| o.retry.max_attempts = 2).gives("w1 runs t1 attempt 1 lease 1");
    b.fail("w1", 1).gives("");
    b.get(1).gives("[t1 delayed]");
    // Half of the wait is certain, the other half is chance.
    b.after(499).gives("");
    b.after(501).gives("w1 runs t1 attempt 2 lease 2");
    b.fail("w1", 2).gives("t1 failed handler_error");
}

#[test]
fn the_worker_may_say_when_and_whether() {
    let mut b = bench();
    b.call_with("add", |o| o.retry.max_attempts = 9).gives("w1 runs t1 attempt 1 lease 1");
    b.fail_with("w1", 1, None, 7_000).gives("");
    b.after(6_999).gives("");
    b.beat("w1", &[]).gives("w1 beat 0 0");
    b.after(1).gives("w1 runs t1 attempt 2 lease 2");
    b.fail_with("w1", 2, Some(false), 0).gives("t1 failed handler_error");
}

#[test]
fn retryable_does_not_add_attempts() {
    let mut b = bench();
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.fail_with("w1", 1, Some(true), 5).gives("t1 failed handler_error");
}

#[test]
fn cancel_between_attempts() {
    let mut b = bench();
    b.call_with("add", |o| o.retry.max_attempts = 2).gives("w1 runs t1 attempt 1 lease 1");
    b.fail("w1", 1).gives("");
    b.cancel(1).gives("t1 cancelled (enough); [t1 cancelled (enough)]");
    b.after(5_000).gives("");
}

#[test]
fn an_ended_task_runs_again_from_attempt_one() {
    let mut b = bench();
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.retry(1).gives("refused: task_not_ended");
    b.fail("w1", 1).gives("t1 failed handler_error");
    b.retry(1).gives("w1 runs t1 attempt 1 lease 2; [t1 leased]");
    b.await_end(1).gives("");
    b.succeed("w1", 2).gives("t1 = ok");
    b.retry(9).gives("refused: task_not_found");
}

#[test]
fn the_deadline_counts_anew_after_a_retry() {
    let mut b = Bench::new();
    b.call_with("add", |o| o.deadline_ms = 100).gives("");
    b.after(100).gives("t1 expired Deadline");
    b.after(1_000).gives("");
    b.retry(1).gives("[t1 ready]");
    b.await_end(1).gives("");
    b.after(99).gives("");
    b.after(1).gives("t1 expired Deadline");
}

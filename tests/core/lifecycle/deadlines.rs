//! What time alone brings about.

use crewcall::clock::Timestamp;
use crewcall::scheduler::Command;

use super::bench::{Bench, START, worker};

#[test]
fn a_delayed_task_waits_for_its_time() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call_with("add", |o| o.run_at = Some(Timestamp(START + 500))).gives("");
    b.get(1).gives("[t1 delayed]");
    b.after(499).gives("");
    b.after(1).gives("w1 runs t1 attempt 1 lease 1");
}

#[test]
fn queue_timeout_counts_from_each_time_it_becomes_ready() {
    let mut b = Bench::new();
    b.call_with("add", |o| o.queue_timeout_ms = 100).gives("");
    b.after(99).gives("");
    b.join(worker("w1 add")).whatever();
    b.credit("w1", 1).gives("w1 runs t1 attempt 1 lease 1");
    // Not while it runs.
    b.after(5_000).gives("");
    b.release("w1", &[1]).gives("");
    b.after(99).gives("");
    b.after(1).gives("t1 expired QueueTimeout");
}

#[test]
fn run_timeout_fails_the_attempt() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call_with("add", |o| o.run_timeout_ms = 100).gives("w1 runs t1 attempt 1 lease 1");
    b.after(99).gives("");
    b.after(1).gives("w1 cancel 1 (ran for 100 ms; its run timeout is 100 ms); t1 failed run_timeout");
    b.succeed("w1", 1).gives("w1 refused 1: stale_lease");
}

#[test]
fn the_deadline_holds_in_every_state() {
    let mut b = Bench::new();
    let later = Some(Timestamp(START + 50_000));
    b.call_with("add", |o| (o.deadline_ms, o.run_at) = (100, later)).gives("");
    b.call_with("add", |o| o.deadline_ms = 100).gives("");
    b.crew(worker("w1 mul"), 1);
    b.call_with("mul", |o| o.deadline_ms = 100).gives("w1 runs t3 attempt 1 lease 1");
    b.after(99).gives("");
    b.after(1).gives(
        "t1 expired Deadline; t2 expired Deadline; \
         w1 cancel 1 (the task's deadline has passed); t3 expired Deadline",
    );
}

#[test]
fn time_does_not_go_back() {
    let mut b = Bench::new();
    b.call_with("add", |o| o.queue_timeout_ms = 100).gives("");
    b.after(99).gives("");
    b.now = START;
    b.after(0).gives("");
    b.now = START + 100;
    b.after(0).gives("t1 expired QueueTimeout");
    assert_eq!(b.scheduler.due(), Some(Timestamp(START + 100 + b.limits.answered_retention_ms)));
}

#[test]
fn a_tick_with_nothing_due_does_nothing() {
    let mut b = Bench::new();
    assert_eq!(b.scheduler.due(), None);
    b.after(1_000_000).gives("");
    b.ask(|waiter| Command::Stats { waiter }).has("[0, 0, 0, 0, 0, 0, 0]");
}

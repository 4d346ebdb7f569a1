//! One key, one task.

use crewcall::scheduler::Command;
use crewcall::task::{Payload, TaskOptions};

use super::bench::{Bench, worker};

fn key(options: &mut TaskOptions) {
    options.idempotency_key = "k".into();
}

#[test]
fn a_second_caller_gets_the_first_ones_outcome() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    b.submit_with("add", key).gives("w1 runs t1 attempt 1 lease 1; ~accepted t1");
    b.submit_with("add", key).gives("~attached to t1");
    b.call_with("add", key).gives("");
    b.succeed("w1", 1).gives("~t1 = ok");
    // After the end too, while it is known.
    b.call_with("add", key).gives("~t1 = ok");
    b.after(b.limits.retention_ms).whatever();
    b.crew(worker("w2 add"), 9);
    b.call_with("add", key).gives("w2 runs t5 attempt 1 lease 2");
}

#[test]
fn another_payload_under_the_key_is_refused() {
    let mut b = Bench::new();
    b.call_with("add", key).gives("");
    let mut options = TaskOptions::call();
    key(&mut options);
    let mut task = b.new_task("add", options);
    task.payload = Payload::json("2");
    let again = task.clone();
    b.ask(|waiter| Command::Call { task, waiter }).gives("~refused: idempotency_conflict");
    b.ask(|waiter| Command::Submit { tasks: vec![again], waiter }).gives("~refused: idempotency_conflict");
    // Another method is another call.
    b.call_with("mul", key).gives("");
}

#[test]
fn attached_callers_leave_one_by_one() {
    let mut b = Bench::new();
    b.call_with("add", key).gives("");
    b.call_with("add", key).gives("");
    b.abandon(1, 1).gives("");
    b.get(1).gives("[t1 ready]");
    b.abandon(1, 2).gives("");
    b.get(1).gives("[t1 cancelled (the caller went away)]");
}

#[test]
fn who_submits_keeps_it_alive() {
    let mut b = Bench::new();
    b.call_with("add", key).gives("");
    b.submit_with("add", key).gives("attached to t1");
    b.abandon(1, 1).gives("");
    b.get(1).gives("[t1 ready]");
}

//! One key, one task.

use crewcall::scheduler::Command;
use crewcall::task::{Payload, TaskOptions};

use super::bench::{Bench, worker};

fn keyed() -> Bench {
    let mut b = Bench::new();
    b.key = "k".into();
    b
}

#[test]
fn a_second_caller_gets_the_first_ones_outcome() {
    let mut b = keyed();
    b.crew(worker("w1 add"), 9);
    b.submit("add").gives("w1 runs t1 attempt 1 lease 1; ~accepted t1");
    b.submit("add").gives("~attached to t1");
    b.call("add").gives("");
    b.succeed("w1", 1).gives("~t1 = ok");
    // After the end too, while it is known.
    b.call("add").gives("~t1 = ok");
    b.after(b.limits.retention_ms).whatever();
    b.crew(worker("w2 add"), 9);
    b.call("add").gives("w2 runs t5 attempt 1 lease 2");
}

#[test]
fn another_payload_under_the_key_is_refused() {
    let mut b = keyed();
    b.call("add").gives("");
    let mut task = b.new_task("add", TaskOptions::call());
    task.payload = Payload::json("2");
    let again = task.clone();
    b.ask(|waiter| Command::Call { task, waiter }).gives("refused: idempotency_conflict");
    b.ask(|waiter| Command::Submit { tasks: vec![again], waiter }).gives("refused: idempotency_conflict");
    // Another method is another call.
    b.call("mul").gives("");
}

#[test]
fn attached_callers_leave_one_by_one() {
    let mut b = keyed();
    b.call("add").gives("");
    b.call("add").gives("");
    b.abandon(1, 1).gives("");
    b.get(1).gives("[t1 ready]");
    b.abandon(1, 2).gives("");
    b.get(1).gives("[t1 cancelled (the caller went away)]");
}

#[test]
fn who_submits_keeps_it_alive() {
    let mut b = keyed();
    b.call("add").gives("");
    b.submit("add").gives("attached to t1");
    b.abandon(1, 1).gives("");
    b.get(1).gives("[t1 ready]");
}

//! After a crash: the same ledger, and one grace for workers to come back with their work.

use crewcall::clock::Timestamp;

use super::bench::{Bench, START, worker};

fn leased() -> Bench {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.submit_with("add", |o| o.retry.max_attempts = 2).has("w1 runs t1 attempt 1 lease 1");
    b.restart();
    b
}

#[test]
fn tasks_in_every_state_are_restored() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    b.submit("add").whatever();
    b.submit("add").whatever();
    b.succeed("w1", 1).whatever();
    b.fail_with("w1", 2, None, 400).whatever();
    b.submit("mul").whatever();
    b.submit("add").whatever();
    b.submit_with("add", |o| o.run_at = Some(Timestamp(START + 300))).whatever();
    b.call("mul").gives("");
    b.restart();
    b.get(1).gives("[t1 = ok]");
    b.get(2).gives("[t2 delayed]");
    b.get(3).gives("[t3 ready]");
    b.get(4).gives("[t4 leased]");
    b.get(5).gives("[t5 delayed]");
    // Ephemeral tasks are gone.
    b.get(6).gives("refused: task_not_found");
    b.crew(worker("w2 add"), 9);
    b.after(300).gives("w2 runs t5 attempt 1 lease 1048577 (read)");
    b.after(100).gives("w2 runs t2 attempt 2 lease 1048578 (read)");
}

#[test]
fn the_worker_that_names_the_lease_goes_on() {
    let mut b = leased();
    b.after(9_999).gives("");
    b.join(worker("w1 add").holds(&[1, 5])).gives("w1 joined 1 keep [1] drop [5]");
    b.await_end(1).gives("");
    b.succeed("w1", 1).gives("~t1 = ok");
}

#[test]
fn another_worker_does_not() {
    let mut b = leased();
    b.join(worker("w2 add").holds(&[1])).gives("w2 joined 1 keep [] drop [1]");
    b.succeed("w2", 1).gives("w2 refused 1: stale_lease");
}

#[test]
fn nobody_comes_back() {
    let mut b = leased();
    b.after(9_999).gives("");
    b.after(1).gives("");
    b.get(1).gives("~[t1 delayed]");
    b.explain(1).has("worker_lost: its worker did not come back after the server's restart");
}

#[test]
fn lines_are_restored_in_order() {
    let mut b = Bench::new();
    b.submit_with("add", |o| o.run_at = Some(Timestamp(START + 200))).whatever();
    b.after(100).gives("");
    b.submit("add").whatever();
    b.after(100).gives("");
    b.restart();
    b.join(worker("w1 add")).whatever();
    b.credit("w1", 2)
        .gives("w1 runs t2 attempt 1 lease 1048577 (read); w1 runs t1 attempt 1 lease 1048578 (read)");
}

#[test]
fn a_clock_set_back_between_two_runs() {
    let mut b = Bench::new();
    b.after(5_000).gives("");
    b.submit_with("add", |o| o.queue_timeout_ms = 100).whatever();
    b.now = START;
    b.restart();
    b.after(5_099).gives("");
    b.after(1).gives("");
    b.get(1).gives("~[t1 expired QueueTimeout]");
}

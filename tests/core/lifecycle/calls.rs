//! From a call to its outcome, and the ways in which a caller ends it.

use super::bench::{Bench, worker};

#[test]
fn a_call_runs_and_is_answered() {
    let mut b = Bench::new();
    b.join(worker("w1 add")).gives("w1 joined 1 keep [] drop []");
    b.credit("w1", 1).gives("");
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.started("w1", 1).gives("");
    b.succeed("w1", 1).gives("t1 = ok");
    b.get(1).gives("[t1 = ok]");
}

#[test]
fn a_durable_outcome_waits_for_the_store() {
    let mut b = Bench::new();
    b.submit("add").gives("~accepted t1");
    b.crew(worker("w1 add"), 1);
    b.await_end(1).gives("");
    b.succeed("w1", 1).gives("~t1 = ok");
    b.get(1).gives("~[t1 = ok]");
}

#[test]
fn a_call_waits_for_credit_in_order() {
    let mut b = Bench::new();
    b.call("add").gives("");
    b.call("add").gives("");
    b.join(worker("w1 add")).gives("w1 joined 1 keep [] drop []");
    b.credit("w1", 1).gives("w1 runs t1 attempt 1 lease 1");
    b.succeed("w1", 1).gives("t1 = ok");
    b.credit("w1", 2).gives("w1 runs t2 attempt 1 lease 2");
}

#[test]
fn cancel_in_every_state() {
    let mut b = Bench::new();
    b.call("add").gives("");
    b.cancel(1).gives("t1 cancelled (enough); [t1 cancelled (enough)]");
    let later = crewcall::clock::Timestamp(b.now + 500);
    b.call_with("add", |o| o.run_at = Some(later)).gives("");
    b.cancel(2).gives("t2 cancelled (enough); [t2 cancelled (enough)]");
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t3 attempt 1 lease 1");
    b.cancel(3).gives("w1 cancel 1 (enough); t3 cancelled (enough); [t3 cancelled (enough)]");
    b.cancel(3).gives("[t3 cancelled (enough)]");
    b.succeed("w1", 1).gives("w1 refused 1: stale_lease");
    b.credit("w1", 2).gives("");
    b.call("add").gives("w1 runs t4 attempt 1 lease 2");
    b.succeed("w1", 2).gives("t4 = ok");
    b.cancel(4).gives("refused: task_ended");
    b.cancel(99).gives("refused: task_not_found");
}

#[test]
fn refusals_about_durable_tasks_wait_for_the_store() {
    let mut b = Bench::new();
    b.submit("add").gives("~accepted t1");
    b.retry(1).gives("~refused: task_not_ended");
    b.crew(worker("w1 add"), 1);
    b.succeed("w1", 1).gives("");
    b.cancel(1).gives("~refused: task_ended");
}

#[test]
fn a_caller_that_leaves_cancels_what_only_it_waits_for() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 2);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.abandon(1, 2).gives("w1 cancel 1 (the caller went away)");
    b.call("add").gives("w1 runs t2 attempt 1 lease 2");
    b.await_end(2).gives("");
    b.abandon(2, 3).gives("");
    b.succeed("w1", 2).gives("t2 = ok");
}

#[test]
fn a_durable_call_outlives_its_caller() {
    let mut b = Bench::new();
    b.call_with("add", |o| o.durability = crewcall::task::Durability::Durable).gives("");
    b.abandon(1, 1).gives("");
    b.crew(worker("w1 add"), 1);
    b.succeed("w1", 1).gives("");
    b.get(1).gives("~[t1 = ok]");
}

#[test]
fn only_if_served_does_not_wait() {
    let mut b = Bench::new();
    let mut task = b.new_task("add", crewcall::task::TaskOptions::call());
    task.only_if_served = true;
    let again = task.clone();
    b.ask(|waiter| crewcall::scheduler::Command::Call { task, waiter }).gives("refused: method_not_served");
    b.join(worker("w1 add")).whatever();
    b.ask(|waiter| crewcall::scheduler::Command::Call { task: again, waiter }).gives("");
    b.credit("w1", 1).gives("w1 runs t1 attempt 1 lease 1");
}

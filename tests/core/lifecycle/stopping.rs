//! Workers are asked to leave; the server stops.

use crewcall::scheduler::Command;

use super::bench::{Bench, worker};

#[test]
fn a_draining_worker_finishes_and_gets_no_more() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.call("add").gives("w1 runs t2 attempt 1 lease 2");
    b.started("w1", 1).gives("");
    b.drain("w1").gives("w1 drain (please); w1 recall 2; ~draining");
    b.release("w1", &[2]).gives("");
    b.credit("w1", 99).gives("");
    b.ask(|waiter| Command::Workers { waiter }).gives("w1 Draining");
    b.succeed("w1", 1).gives("t1 = ok");
    b.bye("w1").gives("w1 closed");
    b.drain("w1").gives("refused: worker_not_found");
}

#[test]
fn a_draining_worker_that_resumes_is_told_again() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.started("w1", 1).gives("");
    b.drain("w1").gives("w1 drain (please); ~draining");
    b.broken("w1").gives("");
    b.ask(|waiter| Command::Workers { waiter }).gives("w1 Away");
    b.resume(worker("w1 add").holds(&[1])).gives("w1 joined 1 keep [1] drop []; w1 drain (please)");
}

#[test]
fn a_stopping_server_takes_nothing_new_and_lets_work_end() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.started("w1", 1).gives("");
    b.call("add").gives("");
    b.submit("add").gives("~accepted t3");
    // What will not begin any more is answered; what is durable waits for the next start.
    b.command(Command::Shutdown).has("refused: shutting_down");
    b.get(3).gives("~[t3 ready]");
    // Nor does anyone begin to wait for it.
    b.await_end(3).gives("refused: shutting_down");
    b.await_end(1).gives("");
    b.call("add").gives("refused: shutting_down");
    b.submit("add").gives("refused: shutting_down");
    b.join(worker("w2 add")).gives("refused: shutting_down");
    b.retry(2).gives("refused: shutting_down");
    b.credit("w1", 9).gives("");
    b.succeed("w1", 1).gives("t1 = ok; t1 = ok");
    assert_eq!(b.scheduler.leased(), 0);
}

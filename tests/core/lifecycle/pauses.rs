//! Methods whose tasks wait until an operator says otherwise.

use crewcall::clock::Timestamp;
use crewcall::scheduler::{Command, Frame, Limits};
use crewcall::task::NewTask;

use super::bench::{Bench, START, Seen, worker};

fn pause(b: &mut Bench, method: &str) -> Seen {
    pause_as(b, method, "", "")
}

fn pause_as(b: &mut Bench, method: &str, reason: &str, by: &str) -> Seen {
    let (method, reason, by) = (method.to_owned(), reason.to_owned(), by.to_owned());
    b.ask(|waiter| Command::Pause { method, reason, by, waiter })
}

fn resume(b: &mut Bench, method: &str) -> Seen {
    let method = method.to_owned();
    b.ask(|waiter| Command::Resume { method, waiter })
}

#[test]
fn tasks_are_taken_and_wait_in_order() {
    let mut b = Bench::new();
    b.crew(worker("w1 add mul"), 9);
    pause(&mut b, "add").gives("~paused add");
    b.submit("add").gives("~accepted t1");
    b.call("add").gives("");
    b.submit("mul").has("w1 runs t3");
    b.submit_with("add", |o| o.run_at = Some(Timestamp(START + 5))).gives("~accepted t4");
    b.after(5).gives("");
    b.get(4).gives("~[t4 ready]");
    resume(&mut b, "add").gives(
        "w1 runs t1 attempt 1 lease 2; w1 runs t2 attempt 1 lease 3; w1 runs t4 attempt 1 lease 4; ~resumed true",
    );
    b.call("add").has("w1 runs t5");
}

#[test]
fn what_has_begun_goes_on_and_what_has_not_comes_back() {
    let mut b = Bench::new();
    b.crew(worker("w1 add mul"), 9);
    for method in ["add", "add", "mul"] {
        b.submit(method).whatever();
    }
    b.started("w1", 1).gives("");
    pause(&mut b, "add").gives("w1 recall 2; ~paused add");
    b.release("w1", &[2]).gives("");
    b.fail_with("w1", 1, None, 10).whatever();
    b.after(10).gives("");
    b.get(1).gives("~[t1 ready]");
    // In their old places: t2 came back, t1 became ready anew.
    resume(&mut b, "add").gives("w1 runs t2 attempt 1 lease 4; w1 runs t1 attempt 2 lease 5; ~resumed true");
}

#[test]
fn deadlines_go_on_and_a_legacy_caller_is_not_sent_away() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    pause(&mut b, "add").gives("~paused add");
    b.submit_with("add", |o| o.queue_timeout_ms = 5).whatever();
    b.after(5).gives("");
    b.get(1).gives("~[t1 expired QueueTimeout]");
    let task = b.new_task("add", crewcall::task::TaskOptions::call());
    b.ask(|waiter| Command::Call { task: NewTask { only_if_served: true, ..task }, waiter }).gives("");
    let task = b.new_task("mul", crewcall::task::TaskOptions::call());
    b.ask(|waiter| Command::Call { task: NewTask { only_if_served: true, ..task }, waiter })
        .gives("refused: method_not_served");
}

#[test]
fn it_is_the_same_said_twice_and_undone_twice() {
    let mut b = Bench::new();
    pause_as(&mut b, "add", "broken", "ann").gives("~paused add, unknown");
    let rows = b.rows.clone();
    pause_as(&mut b, "add", "broken", "ann").gives("~paused add again, unknown");
    assert_eq!(b.rows, rows, "nothing was stored");
    pause_as(&mut b, "add", "still broken", "ann").gives("~paused add again, unknown");
    assert_eq!(b.rows.len(), rows.len(), "one order about a method");
    resume(&mut b, "add").gives("~resumed true");
    resume(&mut b, "add").gives("~resumed false");
    assert_eq!(b.rows.len(), 1, "only the leases are left");
}

#[test]
fn a_restart_keeps_it() {
    let mut b = Bench::new();
    pause_as(&mut b, "add", "broken", "ann").whatever();
    pause(&mut b, "mul").whatever();
    b.submit("add").whatever();
    resume(&mut b, "mul").whatever();
    b.after(7).gives("");
    b.restart();
    b.crew(worker("w1 add"), 9);
    b.get(1).gives("[t1 ready]");
    b.explain(1).has(
        "Method \"add\" is paused; the task has waited 7 ms. (its method was paused 7 ms ago by ann: broken;",
    );
    // A number is not given twice, whatever was lifted.
    pause(&mut b, "sub").gives("~paused sub, unknown");
    b.restart();
    b.crew(worker("w2 add"), 9);
    resume(&mut b, "add").has("w2 runs t1");
}

#[test]
fn people_see_it() {
    let mut b = Bench::new();
    b.join(worker("w1 add@1.0.0")).whatever();
    pause(&mut b, "add").whatever();
    pause(&mut b, "zip").whatever();
    pause(&mut b, "abs").whatever();
    b.submit("mul").whatever();
    b.ask(|waiter| Command::Methods { waiter }).gives(
        "abs@? workers 0 ready 0 paused, add@1.0.0 workers 1 ready 0 paused, mul@? workers 0 ready 1, zip@? workers 0 \
         ready 0 paused",
    );
    b.submit_with("add", |o| o.run_at = Some(Timestamp(START + 5))).whatever();
    b.explain(2).gives("~It is to run in 5 ms, as asked for. (its method was paused 0 ms ago)");
}

#[test]
fn nonsense_and_too_many_are_refused() {
    let mut b = Bench::with(Limits { pauses: 1, ..Limits::default() });
    pause(&mut b, " add").gives("refused: invalid_field");
    pause(&mut b, "").gives("refused: invalid_field");
    resume(&mut b, "").gives("refused: invalid_field");
    pause_as(&mut b, "add", &"x".repeat(1025), "").gives("refused: invalid_field");
    pause_as(&mut b, "add", "", &"x".repeat(129)).gives("refused: invalid_field");
    pause_as(&mut b, "add", "", "a\nb").gives("refused: invalid_field");
    pause(&mut b, "add").gives("~paused add, unknown");
    pause(&mut b, "mul").gives("refused: server_full");
    pause_as(&mut b, "add", "another reason", "").gives("~paused add again, unknown");
    b.scheduler.store_is_full(Some("full".into()));
    pause(&mut b, "add").gives("refused: store_unavailable");
    resume(&mut b, "add").gives("refused: store_unavailable");
}

#[test]
fn work_released_by_another_hand_waits_too() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 2);
    b.submit("add").whatever();
    b.submit("add").whatever();
    pause(&mut b, "add").has("recall");
    b.crew(worker("w2 add"), 9);
    b.bye("w1").whatever();
    b.get(1).gives("~[t1 ready]");
    b.frame("w2", Frame::default()).gives("");
    resume(&mut b, "add").has("w2 runs t1");
}

//! Where payloads of durable tasks are: in memory up to a limit, else only in the store.

use crewcall::scheduler::{Command, Limits};
use crewcall::task::{Payload, TaskId, TaskOptions};

use super::bench::{Bench, t, worker};

/// Room for two payloads of one byte.
fn bench() -> Bench {
    Bench::with(Limits { resident_payload_bytes: 2, ..Limits::default() })
}

fn body(b: &Bench, number: u64) -> String {
    let id: TaskId = t(number);
    let task = b.scheduler.tasks().find(|task| task.id == id).unwrap();
    match &task.body {
        crewcall::task::Body::Held(_) => "held".to_owned(),
        crewcall::task::Body::Stored(bytes) => format!("stored {bytes}"),
    }
}

#[test]
fn beyond_the_limit_a_waiting_task_lets_go_once_it_is_stored() {
    let mut b = bench();
    for number in 1..=4 {
        b.submit("add").gives(&format!("~accepted t{number}"));
    }
    assert_eq!([1, 2, 3, 4].map(|number| body(&b, number)), ["held"; 4]);
    b.stored();
    assert_eq!([1, 2, 3, 4].map(|number| body(&b, number)), ["held", "held", "stored 1", "stored 1"]);
    b.crew(worker("w1 add").runs(4), 3);
    b.get(3).gives("~[t3 leased]");
    b.credit("w1", 4).gives("w1 runs t4 attempt 1 lease 4 (read)");
}

#[test]
fn in_the_order_of_the_queue_whether_held_or_not() {
    let mut b = bench();
    for _ in 0..3 {
        b.submit("add").whatever();
    }
    b.stored();
    b.join(worker("w1 add")).whatever();
    b.credit("w1", 3).gives(
        "w1 runs t1 attempt 1 lease 1; w1 runs t2 attempt 1 lease 2; w1 runs t3 attempt 1 lease 3 (read)",
    );
}

#[test]
fn whoever_goes_to_a_worker_at_once_keeps_it() {
    let mut b = bench();
    b.crew(worker("w1 add"), 9);
    for _ in 0..4 {
        b.submit("add").has("w1 runs");
    }
    b.stored();
    assert_eq!(body(&b, 4), "held");
    // Its next try has it at hand.
    b.fail("w1", 4).whatever();
    b.after(1_000).has("w1 runs t4 attempt 2 lease 5");
}

#[test]
fn an_ended_task_makes_room() {
    let mut b = bench();
    b.crew(worker("w1 add"), 2);
    b.submit("add").whatever();
    b.submit("add").whatever();
    b.succeed("w1", 1).whatever();
    b.submit("add").whatever();
    b.stored();
    assert_eq!([1, 2, 3].map(|number| body(&b, number)), ["stored 1", "held", "stored 1"]);
    b.submit("add").whatever();
    b.stored();
    assert_eq!(body(&b, 4), "held");
    // It can be run again all the same.
    b.retry(1).gives("~[t1 ready]");
    b.stored();
    b.credit("w1", 3).gives("w1 runs t3 attempt 1 lease 3 (read)");
    b.credit("w1", 5).gives("w1 runs t4 attempt 1 lease 4; w1 runs t1 attempt 1 lease 5 (read)");
}

#[test]
fn nothing_is_let_go_of_that_ended_before_it_was_stored() {
    let mut b = bench();
    for _ in 0..3 {
        b.submit("add").whatever();
    }
    b.ask(|waiter| Command::Cancel { id: t(3), reason: String::new(), waiter }).whatever();
    b.ask(|waiter| Command::Get { id: t(3), take: true, with_payload: true, waiter })
        .gives("~[t3 cancelled ()]");
    // Its slot is another's by now.
    b.call("add").gives("");
    b.stored();
    assert_eq!([1, 2, 4].map(|number| body(&b, number)), ["held"; 3]);
}

#[test]
fn empty_payloads_and_ephemeral_ones_are_never_only_stored() {
    let mut b = bench();
    for _ in 0..3 {
        b.submit("add").whatever();
        b.call("add").gives("");
        let mut task = b.new_task("add", TaskOptions::submit());
        task.payload = Payload::default();
        b.ask(|waiter| Command::Submit { tasks: vec![task], waiter }).whatever();
    }
    b.stored();
    assert_eq!([2, 3, 5, 6, 8, 9].map(|number| body(&b, number)), ["held"; 6]);
    assert_eq!(body(&b, 7), "stored 1");
    b.restart();
    assert_eq!([1, 3].map(|number| body(&b, number)), ["stored 1", "held"]);
}

#[test]
fn a_view_shows_the_payload_to_who_asks_for_it() {
    let mut b = bench();
    for _ in 0..3 {
        b.submit("add").whatever();
    }
    b.get_with_payload(3).gives("~[t3 ready]");
    b.stored();
    b.get_with_payload(1).gives("[t1 ready]");
    b.get_with_payload(3).gives("[t3 ready] (read)");
    b.get(3).gives("[t3 ready]");
}

#[test]
fn a_key_stands_for_the_same_call_when_only_the_store_has_its_payload() {
    let mut b = bench();
    b.key = "k".into();
    b.submit("add").gives("~accepted t1");
    b.restart();
    assert_eq!(body(&b, 1), "stored 1");
    b.submit("add").gives("attached to t1");
    let mut task = b.new_task("add", TaskOptions::submit());
    task.payload = Payload::json("2");
    b.ask(|waiter| Command::Submit { tasks: vec![task], waiter }).gives("refused: idempotency_conflict");
}

#[test]
fn what_is_stored_can_be_looked_at_while_the_store_is_full() {
    let mut b = bench();
    b.submit("add").whatever();
    b.submit("mul").whatever();
    b.stored();
    b.scheduler.store_is_full(Some("no room".into()));
    b.crew(worker("w1 mul"), 1);
    b.get(1).gives("[t1 ready]");
    b.explain(1).has("No live worker serves");
    // It runs, which the store does not know.
    b.get(2).gives("refused: store_unavailable");
    b.explain(2).gives("refused: store_unavailable");
    b.ask(|waiter| Command::List { filter: Default::default(), after: None, limit: 9, waiter }).gives("[t1]");
    b.scheduler.store_is_full(None);
    b.get(2).gives("~[t2 leased]");
    b.stored();
    b.get(2).gives("[t2 leased]");
}

//! How long an ended task is known.

use crewcall::scheduler::{Command, Limits};

use super::bench::{Bench, t, worker};

#[test]
fn by_verb_and_by_wish() {
    let mut b = Bench::new();
    b.call("add").gives("");
    b.submit("add").whatever();
    b.call_with("add", |o| o.retention_ms = Some(5)).gives("");
    for task in 1..=3 {
        b.cancel(task).whatever();
    }
    b.after(4).gives("");
    b.get(3).gives("[t3 cancelled (enough)]");
    b.after(1).gives("");
    b.get(3).gives("refused: task_not_found");
    b.after(59_994).gives("");
    b.get(1).gives("[t1 cancelled (enough)]");
    b.after(1).gives("");
    b.get(1).gives("refused: task_not_found");
    b.after(3_540_000 - 1).gives("");
    b.get(2).gives("~[t2 cancelled (enough)]");
    b.after(1).gives("");
    b.get(2).gives("refused: task_not_found");
    assert_eq!(b.rows.len(), 1, "only the leases are left");
}

#[test]
fn the_oldest_answered_call_makes_room() {
    let mut b = Bench::with(Limits { answered_tasks: 2, ..Limits::default() });
    b.crew(worker("w1 add"), 9);
    for task in 1..=3 {
        b.call("add").whatever();
        b.succeed("w1", task).whatever();
    }
    b.get(1).gives("refused: task_not_found");
    b.get(2).gives("[t2 = ok]");
    let mut b = Bench::with(Limits { answered_bytes: 6, ..Limits::default() });
    b.crew(worker("w1 add"), 9);
    for task in 1..=3 {
        b.call("add").whatever();
        b.succeed("w1", task).whatever();
    }
    // Each is one byte of payload and two of outcome.
    b.get(1).gives("refused: task_not_found");
    b.get(2).gives("[t2 = ok]");
}

#[test]
fn taken_once() {
    let mut b = Bench::new();
    b.call("add").gives("");
    let take =
        |b: &mut Bench| b.ask(|waiter| Command::Get { id: t(1), take: true, with_payload: false, waiter });
    take(&mut b).gives("[t1 ready]");
    b.cancel(1).whatever();
    take(&mut b).gives("[t1 cancelled (enough)]");
    take(&mut b).gives("refused: task_not_found");
}

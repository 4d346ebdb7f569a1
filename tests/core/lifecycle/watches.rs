//! Those who follow tasks.

use crewcall::scheduler::{Command, Cursor, Filter};
use crewcall::task::StateName;

use super::bench::{Bench, t, worker};

#[test]
fn a_watcher_sees_the_task_and_every_change_until_its_end() {
    let mut b = Bench::new();
    b.call("add").gives("");
    b.watch(1, &[1], None).gives("watching; watch1: t1 ready");
    b.join(worker("w1 add")).whatever();
    b.credit("w1", 1).gives("w1 runs t1 attempt 1 lease 1; watch1: t1 leased");
    b.progress("w1", 1, 5).gives("watch1: t1 at 5");
    b.chunk("w1", 1, "x").gives("watch1: t1 chunk 1.0");
    b.succeed("w1", 1).gives("t1 = ok; watch1: t1 = ok; watch1 closed");
    b.watch(2, &[1], None).gives("watching; watch2: t1 chunk 1.0; watch2: t1 = ok; watch2 closed");
    b.watch(3, &[9], None).gives("refused: task_not_found");
}

#[test]
fn it_goes_on_from_its_cursor() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.watch(1, &[1], None).gives("watching; watch1: t1 leased");
    b.chunk("w1", 1, "x").gives("watch1: t1 chunk 1.0");
    let seen = b.cursor;
    b.command(Command::Unwatch { conn: 1 }).gives("");
    b.chunk("w1", 1, "y").gives("");
    b.watch(2, &[1], seen).gives("watching; watch2: t1 chunk 1.1; watch2: t1 leased");
    // A cursor of another run says nothing here.
    let other = seen.map(|cursor| Cursor { epoch: 99, ..cursor });
    b.watch(3, &[1], other).gives("watching; watch3: t1 chunk 1.0; watch3: t1 chunk 1.1; watch3: t1 leased");
}

#[test]
fn a_watch_that_is_cut_off_while_it_catches_up_misses_nothing() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 2);
    b.call("add").whatever();
    b.call("add").whatever();
    b.chunk("w1", 2, "first").gives("");
    b.chunk("w1", 1, "second").gives("");
    b.watch(1, &[1, 2], None)
        .gives("watching; watch1: t2 chunk 1.0; watch1: t1 chunk 1.0; watch1: t1 leased; watch1: t2 leased");
    let after_first = Some(Cursor { epoch: 7, seq: 1 });
    b.watch(2, &[1, 2], after_first)
        .gives("watching; watch2: t1 chunk 1.0; watch2: t1 leased; watch2: t2 leased");
}

#[test]
fn a_filter_watcher_stays_and_resumes() {
    let mut b = Bench::new();
    b.call("add").gives("");
    b.call("mul").gives("");
    let filter = Filter { method: "add".into(), ..Filter::default() };
    let watch = |b: &mut Bench, conn, cursor| {
        b.watch(conn, &[1], None).whatever();
        b.command(Command::Unwatch { conn }).gives("");
        let filter = filter.clone();
        b.ask(|waiter| Command::Watch { ids: Vec::new(), filter, cursor, conn, waiter })
    };
    watch(&mut b, 1, None).gives("watching; watch1: t1 ready");
    b.call("add").gives("watch1: t3 ready");
    let seen = b.cursor;
    b.call("mul").gives("");
    b.command(Command::Unwatch { conn: 1 }).gives("");
    b.cancel(1).gives("t1 cancelled (enough); [t1 cancelled (enough)]");
    watch(&mut b, 2, seen).gives("watching; watch2: t1 cancelled (enough)");
}

#[test]
fn a_filter_of_states() {
    let mut b = Bench::new();
    b.call("add").gives("");
    b.cancel(1).whatever();
    b.call("add").gives("");
    let filter = Filter { states: vec![StateName::Cancelled], ..Filter::default() };
    b.watch(1, &[1], None).whatever();
    b.ask(|waiter| Command::Watch { ids: Vec::new(), filter, cursor: None, conn: 1, waiter })
        .gives("watching; watch1: t1 cancelled (enough)");
    b.cancel(2).gives("t2 cancelled (enough); watch1: t2 cancelled (enough); [t2 cancelled (enough)]");
}

#[test]
fn a_watcher_of_durable_and_ephemeral_tasks_is_told_in_order() {
    let mut b = Bench::new();
    b.submit("add").whatever();
    b.call("add").gives("");
    b.watch(1, &[1, 2], None).gives("watching; ~watch1: t1 ready; ~watch1: t2 ready");
    b.cancel(2).has("~watch1: t2 cancelled (enough)");
}

#[test]
fn chunks_count_from_zero_in_each_attempt() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    b.call_with("add", |o| o.retry.max_attempts = 2).whatever();
    b.watch(1, &[1], None).whatever();
    b.chunk("w1", 1, "x").gives("watch1: t1 chunk 1.0");
    b.release("w1", &[1]).has("w1 runs t1 attempt 1 lease 2");
    b.chunk("w1", 2, "x").gives("watch1: t1 chunk 1.0");
    b.chunk("w1", 2, "x").gives("watch1: t1 chunk 1.1");
    b.fail_with("w1", 2, None, 1).whatever();
    b.after(1).whatever();
    b.chunk("w1", 3, "x").gives("watch1: t1 chunk 2.0");
    b.ask(|waiter| Command::Get { id: t(1), take: false, with_payload: false, waiter }).gives("[t1 leased]");
}

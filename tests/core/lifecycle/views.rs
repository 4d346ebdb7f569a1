//! Pages, counts, and why a task waits.

use crewcall::clock::Timestamp;
use crewcall::scheduler::{Command, Filter};
use crewcall::task::StateName;

use super::bench::{Bench, START, t, worker};

#[test]
fn pages_are_newest_first() {
    let mut b = Bench::new();
    for method in ["add", "mul", "add", "add"] {
        b.call(method).gives("");
    }
    let list = |b: &mut Bench, filter: Filter, after: Option<u64>| {
        b.ask(|waiter| Command::List { filter, after: after.map(t), limit: 2, waiter })
    };
    list(&mut b, Filter::default(), None).gives("[t4 t3] next t3");
    list(&mut b, Filter::default(), Some(3)).gives("[t2 t1]");
    list(&mut b, Filter { method: "mul".into(), ..Filter::default() }, None).gives("[t2]");
    b.crew(worker("w1 add"), 1);
    list(&mut b, Filter { worker_id: "w1".into(), ..Filter::default() }, None).gives("[t1]");
    list(&mut b, Filter { states: vec![StateName::Leased], ..Filter::default() }, None).gives("[t1]");
    // The page's last task is forgotten before the next page.
    b.cancel(3).whatever();
    b.after(b.limits.answered_retention_ms).whatever();
    list(&mut b, Filter::default(), Some(3)).gives("[t2 t1]");
}

#[test]
fn explain_says_why_a_task_waits() {
    let mut b = Bench::new();
    b.call("add").gives("");
    b.after(5).gives("");
    b.explain(1).has("No live worker serves \"add\"; it has waited 5 ms.");
    b.join(worker("w1 add@1.0.0").group("cpu")).whatever();
    b.explain(1).has("All 1 worker pools that may run it are full");
    b.explain(1).has("worker w1 runs 0 of 1 with credit for 0 more");
    b.call_with("add", |o| {
        (o.target.version, o.target.group) = ("^2".into(), "gpu".into());
        o.target.labels.insert("zone".into(), "a".into());
    })
    .gives("");
    b.explain(2).has("1 live worker pools serve \"add\", but none fits its target.");
    b.explain(2).has(
        "it asks for version ^2; served are: 1.0.0; it asks for group \"gpu\"; it asks for label zone=a",
    );
    b.explain(9).gives("refused: task_not_found");
}

#[test]
fn explain_counts_who_goes_first() {
    let mut b = Bench::new();
    for priority in [4, 4, 9, 0] {
        b.call_with("add", |o| o.priority = priority).gives("");
    }
    b.explain(1).has("4 tasks wait in its queue, 1 of them ahead of it");
    b.explain(2).has("4 tasks wait in its queue, 2 of them ahead of it");
    b.explain(3).has("4 tasks wait in its queue, 0 of them ahead of it");
    b.explain(4).has("4 tasks wait in its queue, 3 of them ahead of it");
}

#[test]
fn explain_in_the_other_states() {
    let mut b = Bench::new();
    b.call_with("add", |o| o.run_at = Some(Timestamp(START + 100))).gives("");
    b.explain(1).gives("It is to run in 100 ms, as asked for. ()");
    b.crew(worker("w1 mul"), 9);
    b.call_with("mul", |o| o.retry.max_attempts = 2).whatever();
    b.explain(2).gives(
        "Worker w1 has held it for 0 ms (attempt 1). (the worker has not said that the handler has begun; lease 1)",
    );
    b.started("w1", 1).gives("");
    b.explain(2).has("the handler has begun");
    b.broken("w1").gives("");
    b.explain(2).has("the worker's connection is broken");
    b.resume(worker("w1 mul").holds(&[1])).whatever();
    b.fail_with("w1", 1, None, 50).gives("");
    b.explain(2)
        .gives("It waits 50 ms more before attempt 2. (attempt 1 on w1 failed: handler_error: no luck)");
    b.cancel(2).whatever();
    b.explain(2).gives("It has ended: cancelled, 0 ms ago. (attempt 1 on w1: handler_error: no luck)");
}

#[test]
fn methods_and_workers() {
    let mut b = Bench::new();
    b.call("mul").gives("");
    b.join(worker("w1 add@1.0.0 add@2.0.0")).whatever();
    b.join(worker("w2 add@2.0.0")).whatever();
    b.ask(|waiter| Command::Methods { waiter })
        .gives("add@1.0.0 workers 1 ready 0, add@2.0.0 workers 2 ready 0, mul@? workers 0 ready 1");
    b.ask(|waiter| Command::Workers { waiter }).gives("w1 Active, w2 Active");
}

//! Each limit, at it and one over it.

use crewcall::scheduler::{AttemptEnd, AttemptResult, Command, Frame, Limits, PoolSpec};
use crewcall::task::{Payload, TaskOptions};

use super::bench::{Bench, Seen, worker};

fn bench(change: impl FnOnce(&mut Limits)) -> Bench {
    let mut limits = Limits::default();
    change(&mut limits);
    Bench::with(limits)
}

fn call_bytes(b: &mut Bench, bytes: usize) -> Seen {
    let mut task = b.new_task("add", TaskOptions::call());
    task.payload = Payload::json(vec![b'x'; bytes]);
    b.ask(|waiter| Command::Call { task, waiter })
}

#[test]
fn payload_bytes() {
    let mut b = bench(|l| l.payload_bytes = 8);
    b.crew(worker("w1 add"), 9);
    call_bytes(&mut b, 8).gives("w1 runs t1 attempt 1 lease 1");
    call_bytes(&mut b, 9).gives("refused: payload_too_large");
    b.chunk("w1", 1, "12345678").gives("");
    b.chunk("w1", 1, "123456789").gives("w1 refused 1: payload_too_large");
    let result = |bytes: usize, lease| {
        let end = AttemptEnd::Succeeded(Payload::json(vec![b'x'; bytes]));
        Frame { results: vec![AttemptResult { lease, seq: 0, end }], ..Frame::default() }
    };
    b.frame("w1", result(8, 1)).gives("t1 = xxxxxxxx");
    call_bytes(&mut b, 1).gives("w1 runs t3 attempt 1 lease 2");
    b.frame("w1", result(9, 2)).gives("w1 refused 2: payload_too_large; t3 failed payload_too_large");
}

#[test]
fn tasks() {
    let mut b = bench(|l| l.tasks = 2);
    b.call("add").gives("");
    b.call("add").gives("");
    b.call("add").gives("refused: server_full");
}

#[test]
fn total_bytes() {
    let mut b = bench(|l| l.total_bytes = 10);
    call_bytes(&mut b, 4).gives("");
    call_bytes(&mut b, 6).gives("");
    call_bytes(&mut b, 1).gives("refused: server_full");
    call_bytes(&mut b, 0).gives("");
}

#[test]
fn queue_tasks() {
    let mut b = bench(|l| l.queue_tasks = 2);
    b.call("add").gives("");
    b.call("add").gives("");
    b.call("add").gives("refused: queue_full");
    b.call("mul").gives("");
}

#[test]
fn queues() {
    let mut b = bench(|l| l.queues = 2);
    b.call("one").gives("");
    b.call("two").gives("");
    b.call("three").gives("refused: server_full");
    b.call("two").gives("");
    // A queue goes with its last task.
    b.cancel(1).whatever();
    b.after(b.limits.answered_retention_ms).gives("");
    b.call("three").gives("");
}

#[test]
fn submit_tasks() {
    let mut b = bench(|l| l.submit_tasks = 2);
    let submit = |b: &mut Bench, count: usize| {
        let tasks = (0..count).map(|_| b.new_task("add", TaskOptions::call())).collect();
        b.ask(|waiter| Command::Submit { tasks, waiter })
    };
    submit(&mut b, 2).gives("accepted t1, accepted t2");
    submit(&mut b, 3).gives("refused: too_many_items");
    submit(&mut b, 0).gives("refused: too_many_items");
}

#[test]
fn waiters_per_task() {
    let mut b = bench(|l| l.waiters_per_task = 2);
    b.call("add").gives("");
    b.await_end(1).gives("");
    b.await_end(1).gives("refused: server_full");
}

#[test]
fn watchers_and_their_tasks() {
    let mut b = bench(|l| (l.watchers, l.watch_tasks) = (2, 2));
    for _ in 0..3 {
        b.call("add").gives("");
    }
    b.watch(1, &[1, 2, 3], None).gives("refused: too_many_items");
    b.watch(1, &[1, 2], None).has("watching");
    b.watch(2, &[1], None).has("watching");
    b.watch(3, &[1], None).gives("refused: too_many_watchers");
}

#[test]
fn events_kept() {
    let mut b = bench(|l| l.events_kept = 2);
    let watch = |b: &mut Bench, conn, cursor| {
        b.watch(conn, &[1], None).whatever();
        b.command(Command::Unwatch { conn }).gives("");
        let filter = crewcall::scheduler::Filter::default();
        b.ask(|waiter| Command::Watch { ids: Vec::new(), filter, cursor, conn, waiter })
    };
    b.call("add").gives("");
    watch(&mut b, 1, None).gives("watching; watch1: t1 ready");
    b.call("add").has("t2 ready");
    let seen = b.cursor;
    b.call("add").has("t3 ready");
    b.call("add").has("t4 ready");
    watch(&mut b, 2, seen).gives("watching; watch2: t3 ready; watch2: t4 ready");
    b.call("add").whatever();
    // One is lost: it is shown everything.
    watch(&mut b, 3, seen).has("watch3: t1 ready");
}

#[test]
fn chunks() {
    let mut b = bench(|l| (l.chunks_per_task, l.chunk_bytes_per_task) = (2, 5));
    b.crew(worker("w1 add"), 1);
    b.call("add").whatever();
    b.chunk("w1", 1, "a").gives("");
    b.chunk("w1", 1, "b").gives("");
    b.watch(1, &[1], None).gives("watching; watch1: t1 chunk 1.0; watch1: t1 chunk 1.1; watch1: t1 leased");
    b.chunk("w1", 1, "c").whatever();
    b.watch(2, &[1], None).gives("watching; watch2: t1 chunk 1.1; watch2: t1 chunk 1.2; watch2: t1 leased");
    b.chunk("w1", 1, "five").whatever();
    b.watch(3, &[1], None).has("watch3: t1 chunk 1.2; watch3: t1 chunk 1.3");
    b.chunk("w1", 1, "fives").whatever();
    b.watch(4, &[1], None).gives("watching; watch4: t1 chunk 1.4; watch4: t1 leased");
}

#[test]
fn sessions() {
    let mut b = bench(|l| l.sessions = 2);
    b.join(worker("w1 add")).has("joined");
    b.join(worker("w2 add")).has("joined");
    b.join(worker("w3 add")).gives("refused: too_many_workers");
    // A worker that comes back needs no second place.
    b.join(worker("w2 add")).has("w2 joined 3");
}

#[test]
fn methods_pools_labels_and_texts() {
    let mut b = bench(|l| {
        (l.methods_per_worker, l.pools_per_worker, l.labels, l.docs_bytes, l.examples) = (2, 2, 1, 3, 1);
    });
    b.join(worker("w1 a b")).has("joined");
    b.join(worker("w1 a b c")).gives("refused: too_many_items");
    let pool = |name: &str| PoolSpec { name: name.into(), concurrency: 1 };
    b.join(worker("w1 a").with(|h| h.pools.push(pool("x")))).has("joined");
    b.join(worker("w1 a").with(|h| h.pools.extend([pool("x"), pool("y")]))).gives("refused: too_many_items");
    b.join(worker("w1 a").with(|h| h.pools.push(pool("")))).gives("refused: invalid_field");
    b.join(worker("w1 a").label("k", "v")).has("joined");
    b.join(worker("w1 a").label("k", "v").label("l", "v")).gives("refused: too_many_items");
    b.join(worker("w1 a").with(|h| h.methods[0].docs = "doc".into())).has("joined");
    b.join(worker("w1 a").with(|h| h.methods[0].docs = "docs".into())).gives("refused: invalid_field");
    b.join(worker("w1 a").with(|h| h.methods[0].examples = vec!["1".into()])).has("joined");
    b.join(worker("w1 a").with(|h| h.methods[0].examples = vec!["1".into(); 2]))
        .gives("refused: too_many_items");
    b.join(worker("w1 a").with(|h| h.methods[0].pool = "none".into())).gives("refused: invalid_field");
    b.join(worker("w1 a").with(|h| h.methods[0].summary = "s".repeat(256))).has("joined");
    b.join(worker("w1 a").with(|h| h.methods[0].summary = "s".repeat(257))).gives("refused: invalid_field");
    b.join(worker("w1 a").with(|h| h.host = "h".repeat(128))).has("joined");
    b.join(worker("w1 a").with(|h| h.host = "h".repeat(129))).gives("refused: invalid_field");
    b.call_with("a", |o| drop(o.target.labels.insert("k".into(), "v".into()))).gives("");
    b.call_with("a", |o| o.target.labels = [("k".into(), "v".into()), ("l".into(), "v".into())].into())
        .gives("refused: invalid_field");
}

#[test]
fn credit_and_concurrency() {
    let mut b = bench(|l| l.credit_per_pool = 2);
    b.join(worker("w0 add").runs(3)).gives("refused: invalid_field");
    b.join(worker("w0 add").runs(0)).gives("refused: invalid_field");
    b.join(worker("w1 add").runs(2)).has("joined");
    b.credit("w1", 1_000).gives("");
    b.call("add").has("w1 runs t1");
    b.call("add").has("w1 runs t2");
    // Cut to two beyond what was assigned then.
    b.call("add").gives("");
    b.credit("w1", 1_000).gives("w1 runs t3 attempt 1 lease 3");
}

#[test]
fn frame_entries() {
    let mut b = bench(|l| l.frame_entries = 2);
    b.crew(worker("w1 add"), 1);
    b.frame("w1", Frame { started: vec![7, 8], ..Frame::default() }).has("w1 refused 8: stale_lease");
    b.frame("w1", Frame { started: vec![7, 8, 9], ..Frame::default() }).gives("w1 closed: too_many_items");
}

#[test]
fn options() {
    const DAY_MS: u64 = 86_400_000;
    type Change = fn(&mut TaskOptions, u64);
    let bounds: [(u64, Change); 7] = [
        (9, |o, n| o.priority = n as u8),
        (366 * DAY_MS, |o, n| o.queue_timeout_ms = n),
        (366 * DAY_MS, |o, n| o.run_timeout_ms = n),
        (366 * DAY_MS, |o, n| o.deadline_ms = n),
        (1_000, |o, n| o.retry.max_attempts = n as u32),
        (DAY_MS, |o, n| o.retry.max_backoff_ms = n),
        (30 * DAY_MS, |o, n| o.retention_ms = Some(n)),
    ];
    for (most, change) in bounds {
        let mut b = Bench::new();
        b.call_with("add", |o| change(o, most)).gives("");
        b.call_with("add", |o| change(o, most + 1)).gives("refused: invalid_field");
    }
}

#[test]
fn idempotency_keys() {
    let mut b = Bench::new();
    b.key = "k".repeat(256);
    b.call("add").gives("");
    b.key = "k".repeat(257);
    b.call("add").gives("refused: invalid_field");
}

#[test]
fn names_of_methods() {
    let mut b = Bench::new();
    b.call(&"m".repeat(256)).gives("");
    b.call("sum of ünïcode").gives("");
    for bad in ["", " add", "add ", "a\nb", &"m".repeat(257)] {
        b.call(bad).gives("refused: invalid_field");
    }
}

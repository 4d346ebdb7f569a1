//! Calls that have succeeded leave the ledger; people see them as before.

use crewcall::clock::Timestamp;
use crewcall::scheduler::{
    Command, DeadChange, DeadSelection, EffectKind, Filter, Limits, Output, Reply, Waiter,
};
use crewcall::task::{Payload, StateName};

use super::bench::{Bench, t, worker};

fn answered(calls: u64) -> Bench {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 99);
    for lease in 1..=calls {
        b.call("add").whatever();
        b.succeed("w1", lease).whatever();
    }
    assert_eq!(b.scheduler.answered().count() as u64, calls);
    b
}

fn list(b: &mut Bench, filter: Filter, after: Option<u64>, limit: usize) -> super::bench::Seen {
    b.ask(|waiter| Command::List { filter, after: after.map(t), limit, waiter })
}

#[test]
fn whoever_asks_gets_the_answer() {
    let mut b = answered(1);
    b.after(7).gives("");
    b.get(1).gives("[t1 = ok]");
    b.await_end(1).gives("t1 = ok");
    b.cancel(1).gives("refused: task_ended");
    b.abandon(1, 1).gives("");
    b.explain(1).gives("It has ended: finished, 7 ms ago. ()");
    b.watch(1, &[1], None).gives("watching; watch1: t1 = ok; watch1 closed");
    b.ask(|waiter| Command::Stats { waiter }).has("[0, 0, 0, 1, 0, 0, 0]");
    let (change, selection) = (DeadChange::Retry, DeadSelection::Ids(vec![t(1), t(9)]));
    b.ask(|waiter| Command::ChangeDead { change, selection, dry_run: false, waiter })
        .gives("~changed [t1 task_not_dead, t9 task_not_found]");
}

#[test]
fn nothing_of_it_is_lost() {
    let large = "x".repeat(300);
    for (payload, result) in [("", ""), ("1", "22"), ("1", &large), (&large, "22")] {
        for content_type in ["", "text/plain"] {
            let mut b = Bench::new();
            b.crew(worker("w1 add"), 9);
            let payload = Payload { data: payload.to_owned().into(), content_type: content_type.to_owned() };
            let mut task = b.new_task("add", crewcall::task::TaskOptions::call());
            task.payload = payload.clone();
            b.ask(|waiter| Command::Call { task, waiter }).whatever();
            let before = b.scheduler.tasks().next().cloned().unwrap();
            b.after(5).gives("");
            b.succeed_with("w1", 1, result).whatever();
            let after = b.scheduler.answered().next().unwrap();
            let outcome = crewcall::task::Outcome::Succeeded(Payload::json(result.to_owned()));
            let expected = crewcall::task::Task {
                state: crewcall::task::State::Ended(outcome),
                changed_at: Timestamp(b.now),
                forget_at: Timestamp(b.now + b.limits.answered_retention_ms),
                ..before
            };
            assert_eq!(after, expected);
            let mut out = Output::default();
            let waiter = Waiter::default();
            let get = Command::Get { id: t(1), take: true, with_payload: true, waiter };
            b.scheduler.handle(Timestamp(b.now), get, &mut out);
            let Some(EffectKind::Reply(_, Reply::Task(view))) = out.effects.pop().map(|effect| effect.kind)
            else {
                panic!("no task");
            };
            assert_eq!(view.payload, Some(payload));
            b.get(1).gives("refused: task_not_found");
        }
    }
}

#[test]
fn it_can_be_run_again() {
    let mut b = answered(3);
    b.submit("mul").whatever();
    b.retry(2).gives("w1 runs t2 attempt 1 lease 4; [t2 leased]");
    list(&mut b, Filter::default(), None, 9).gives("~[t4 t3 t2 t1]");
    b.succeed("w1", 4).gives("");
    b.get(2).gives("[t2 = ok]");
    // It is nobody's call any more, and known for as long as what was submitted.
    b.after(b.limits.answered_retention_ms).whatever();
    b.get(1).gives("refused: task_not_found");
    b.get(2).gives("[t2 = ok]");
}

#[test]
fn what_is_unusual_stays_beside_them_in_order() {
    let mut b = Bench::with(Limits { answered_tasks: 3, ..Limits::default() });
    b.crew(worker("w1 add"), 99);
    b.call("add").whatever();
    b.fail("w1", 1).gives("t1 failed handler_error");
    b.call("add").whatever();
    b.succeed("w1", 2).gives("t2 = ok");
    b.call("add").whatever();
    b.cancel(3).whatever();
    b.call("add").whatever();
    b.chunk("w1", 4, "x").gives("");
    b.succeed("w1", 4).gives("t4 = ok");
    list(&mut b, Filter::default(), None, 9).gives("[t4 t3 t2]");
    b.call("add").whatever();
    b.succeed("w1", 5).gives("t5 = ok");
    list(&mut b, Filter::default(), None, 9).gives("[t5 t4 t3]");
    list(&mut b, Filter { states: vec![StateName::Finished], ..Filter::default() }, None, 9).gives("[t5 t4]");
    b.watch(1, &[4], None).gives("watching; watch1: t4 chunk 1.0; watch1: t4 = ok; watch1 closed");
}

#[test]
fn the_method_of_one_is_known() {
    let mut b = answered(1);
    b.bye("w1").gives("w1 closed");
    let pause = |b: &mut Bench| {
        b.ask(|waiter| Command::Pause {
            method: "add".into(),
            reason: String::new(),
            by: String::new(),
            waiter,
        })
    };
    pause(&mut b).gives("~paused add");
    b.after(b.limits.answered_retention_ms).gives("");
    pause(&mut b).gives("~paused add again, unknown");
}

#[test]
fn a_filter_watcher_is_told_of_them() {
    let mut b = answered(2);
    let all = |b: &mut Bench, conn, cursor| {
        b.watch(conn, &[1], None).whatever();
        b.ask(|waiter| Command::Watch { ids: vec![], filter: Filter::default(), cursor, conn, waiter })
    };
    all(&mut b, 1, None).gives("watching; watch1: t1 = ok; watch1: t2 = ok");
    b.call("add").gives("watch1: t3 ready; w1 runs t3 attempt 1 lease 3; watch1: t3 leased");
    let seen = b.cursor;
    b.succeed("w1", 3).gives("t3 = ok; watch1: t3 = ok");
    assert_eq!(b.scheduler.answered().count(), 3);
    all(&mut b, 2, seen).gives("watching; watch2: t3 = ok");
}

#[test]
fn those_that_are_taken_leave_no_gaps_behind() {
    let mut b = answered(2);
    b.call("add").whatever();
    b.progress("w1", 3, 1).gives("");
    b.succeed("w1", 3).gives("t3 = ok");
    for task in 4..300 {
        b.call("add").whatever();
        b.succeed("w1", task).whatever();
        b.ask(|waiter| Command::Get { id: t(task), take: true, with_payload: false, waiter }).whatever();
    }
    for task in 1..=3 {
        b.get(task).gives(&format!("[t{task} = ok]"));
        b.ask(|waiter| Command::Get { id: t(task), take: true, with_payload: false, waiter }).whatever();
        b.get(task).gives("refused: task_not_found");
    }
}

/// The same history twice: in one, handlers say a word before they end, which keeps their calls in the ledger.
#[test]
fn nobody_can_tell_the_difference() {
    let limits = Limits { answered_tasks: 150, answered_bytes: 420, ..Limits::default() };
    let mut x = 1_u64;
    let mut draw = |below: u64| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) % below
    };
    let mut benches = [Bench::with(limits.clone()), Bench::with(limits)];
    for b in &mut benches {
        b.crew(worker("w1 add mul"), 100_000);
    }
    let (mut made, mut leases, mut plain) = (0, Vec::new(), 0);
    for _ in 0..6_000 {
        let what = draw(16);
        let (id, after) = (1 + draw(made + 1), draw(2) == 0);
        let recent = made.saturating_sub(draw(200));
        let method = if draw(3) == 0 { "mul" } else { "add" };
        let lease =
            if leases.is_empty() { None } else { Some(leases.remove(draw(leases.len() as u64) as usize)) };
        let ends = lease.filter(|_| what < 8);
        leases.extend(lease.filter(|_| what >= 8));
        let limit = 1 + draw(7) as usize;
        let filter = match draw(4) {
            0 => Filter { method: "mul".into(), ..Filter::default() },
            1 => Filter { states: vec![StateName::Finished, StateName::Leased], ..Filter::default() },
            2 => Filter { worker_id: "w1".into(), ..Filter::default() },
            _ => Filter::default(),
        };
        made += u64::from(what < 8);
        let seen = [false, true].map(|speaks| {
            let b = &mut benches[usize::from(speaks)];
            if let Some(lease) = ends {
                if speaks {
                    b.progress("w1", lease, 1).whatever();
                }
                let said = b.succeed("w1", lease).0;
                return format!("{said}; {}", b.call(method).0);
            }
            match what {
                0..8 => b.call(method).0,
                8 => list(b, filter.clone(), after.then_some(recent), limit).0,
                9 => {
                    b.ask(|waiter| Command::Get { id: t(recent), take: true, with_payload: false, waiter }).0
                }
                10 => b.get(recent).0,
                11 => b.explain(recent).0,
                12 => b.retry(id).0,
                13 => b.await_end(recent).0,
                14 => b.cancel(id).0,
                _ => b.after(limit as u64 * 50).0,
            }
        });
        assert_eq!(seen[0], seen[1]);
        let given = seen[0].split("lease ").nth(1).and_then(|rest| rest.split([';', ' ']).next());
        leases.extend(given.and_then(|lease| lease.parse::<u64>().ok()));
        assert_eq!(benches[0].scheduler.counts(), benches[1].scheduler.counts());
        plain = plain.max(benches[0].scheduler.answered().count());
        assert_eq!(benches[1].scheduler.answered().count(), 0);
    }
    assert!(plain > 100, "{plain} calls were plain");
}

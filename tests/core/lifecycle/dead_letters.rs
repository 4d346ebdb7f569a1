//! Tasks that failed for good: kept, looked through, run again, discarded.

use crewcall::clock::Timestamp;
use crewcall::scheduler::{Command, DeadChange, DeadFilter, DeadPlace, DeadSelection, Limits};

use super::bench::{Bench, START, Seen, t, worker};

const DAY: u64 = 86_400_000;

/// `t1`… dead, a millisecond after each other; the even ones are of `mul`.
fn dead(count: u64) -> Bench {
    dead_with(count, Limits::default())
}

fn dead_with(count: u64, limits: Limits) -> Bench {
    let mut b = Bench::with(limits);
    b.crew(worker("w1 add mul"), count);
    for task in 1..=count {
        let method = if task % 2 == 0 { "mul" } else { "add" };
        b.submit_with(method, |o| o.retry.max_attempts = 1).whatever();
        b.after(1).whatever();
        b.fail("w1", task).whatever();
    }
    b
}

fn list(b: &mut Bench, filter: DeadFilter, after: Option<DeadPlace>) -> Seen {
    b.ask(|waiter| Command::ListDead { filter, after, limit: 2, waiter })
}

fn change(b: &mut Bench, change: DeadChange, selection: DeadSelection, dry_run: bool) -> Seen {
    b.ask(|waiter| Command::ChangeDead { change, selection, dry_run, waiter })
}

fn ids(ids: &[u64]) -> DeadSelection {
    DeadSelection::Ids(ids.iter().map(|id| t(*id)).collect())
}

fn all(limit: usize, after: Option<DeadPlace>) -> DeadSelection {
    DeadSelection::Matching { filter: DeadFilter::default(), limit, after }
}

fn matching(filter: DeadFilter) -> DeadSelection {
    DeadSelection::Matching { filter, limit: 100, after: None }
}

#[test]
fn pages_begin_with_the_last_death() {
    let mut b = dead(3);
    b.submit("add").whatever();
    list(&mut b, DeadFilter::default(), None).gives("~[t3 t2] and more");
    let place = b.place;
    // What the page ended with may be gone by the next.
    change(&mut b, DeadChange::Discard, ids(&[2]), false).gives("~changed [t2]");
    list(&mut b, DeadFilter::default(), place).gives("~[t1]");
    list(&mut b, DeadFilter { method: "mul".into(), ..DeadFilter::default() }, None).gives("[]");
    b.restart();
    list(&mut b, DeadFilter::default(), None).gives("[t3 t1]");
}

#[test]
fn filters_look_at_method_code_and_age() {
    let mut b = dead(3);
    let by = |change: fn(&mut DeadFilter)| {
        let mut filter = DeadFilter::default();
        change(&mut filter);
        filter
    };
    list(&mut b, by(|f| f.method = "add".into()), None).gives("~[t3 t1]");
    list(&mut b, by(|f| f.error_code = "handler_error".into()), None).gives("~[t3 t2] and more");
    list(&mut b, by(|f| f.error_code = "other".into()), None).gives("[]");
    list(&mut b, by(|f| f.died_before = Some(Timestamp(START + 2))), None).gives("~[t1]");
    list(&mut b, by(|f| f.died_after = Some(Timestamp(START + 2))), None).gives("~[t3 t2]");
    let between = |f: &mut DeadFilter| {
        (f.died_after, f.died_before) = (Some(Timestamp(START + 2)), Some(Timestamp(START + 3)));
    };
    list(&mut b, by(between), None).gives("~[t2]");
    let none = |f: &mut DeadFilter| {
        (f.died_after, f.died_before) = (Some(Timestamp(START + 9)), Some(Timestamp(START)));
    };
    list(&mut b, by(none), None).gives("[]");
    let discard = |b: &mut Bench, filter| change(b, DeadChange::Discard, matching(filter), false);
    discard(&mut b, by(none)).gives("~changed []");
    discard(&mut b, by(|f| f.died_before = Some(Timestamp(START + 3)))).gives("~changed [t1, t2]");
    discard(&mut b, by(|f| f.method = "add".into())).gives("~changed [t3]");
}

#[test]
fn each_of_several_ids_has_its_own_result() {
    let mut b = dead(2);
    b.submit("other").whatever();
    change(&mut b, DeadChange::Retry, ids(&[1, 9, 3, 1]), true)
        .gives("~changed [t1, t9 task_not_found, t3 task_not_dead, t1]");
    b.get(1).gives("~[t1 failed handler_error]");
    change(&mut b, DeadChange::Retry, ids(&[1, 9, 3, 1]), false)
        .gives("~changed [t1, t9 task_not_found, t3 task_not_dead, t1 task_not_dead]");
    // Again: nothing runs twice.
    change(&mut b, DeadChange::Retry, ids(&[1]), false).gives("~changed [t1 task_not_dead]");
    b.credit("w1", 3).gives("w1 runs t1 attempt 1 lease 3");
    change(&mut b, DeadChange::Discard, ids(&[2]), false).gives("~changed [t2]");
    change(&mut b, DeadChange::Discard, ids(&[2]), false).gives("~changed [t2 task_not_found]");
}

#[test]
fn many_go_in_the_order_of_their_deaths_a_part_at_a_time() {
    let mut b = dead(3);
    change(&mut b, DeadChange::Retry, all(2, None), true).gives("~changed [t1, t2] and more");
    change(&mut b, DeadChange::Retry, all(2, None), false).gives("~changed [t1, t2] and more");
    let place = b.place;
    // One dies again at once, and is not met a second time.
    b.after(1).whatever();
    b.credit("w1", 5).has("w1 runs t1 attempt 1 lease 4");
    b.fail("w1", 4).whatever();
    change(&mut b, DeadChange::Retry, all(2, place), false).has("~changed [t3]");
    list(&mut b, DeadFilter::default(), None).gives("~[t1]");
}

#[test]
fn a_dead_letter_is_kept_for_a_month_a_wish_is_a_wish() {
    let mut b = dead(1);
    b.credit("w1", 3).whatever();
    b.submit_with("add", |o| (o.retry.max_attempts, o.retention_ms) = (1, Some(5))).whatever();
    b.fail("w1", 2).whatever();
    b.after(5).gives("");
    b.get(2).gives("refused: task_not_found");
    b.after(30 * DAY - 6).whatever();
    b.get(1).gives("~[t1 failed handler_error]");
    b.after(1).gives("");
    b.get(1).gives("refused: task_not_found");
    list(&mut b, DeadFilter::default(), None).gives("[]");
}

#[test]
fn beyond_the_room_for_them_they_are_kept_as_any_other_task() {
    for limits in
        [Limits { dead_tasks: 1, ..Limits::default() }, Limits { dead_bytes: 1, ..Limits::default() }]
    {
        let mut b = dead_with(2, limits);
        b.after(3_600_000).whatever();
        list(&mut b, DeadFilter::default(), None).gives("~[t1]");
    }
}

#[test]
fn what_touches_no_disk_and_what_its_caller_saw_is_not_kept_for_long() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    b.submit_with("add", |o| {
        (o.retry.max_attempts, o.durability) = (1, crewcall::task::Durability::Ephemeral);
    })
    .whatever();
    b.call_with("add", |o| o.durability = crewcall::task::Durability::Durable).whatever();
    b.call_with("add", |o| o.durability = crewcall::task::Durability::Durable).whatever();
    b.abandon(3, 4).whatever();
    for lease in 1..=3 {
        b.fail("w1", lease).whatever();
    }
    list(&mut b, DeadFilter::default(), None).gives("~[t3 t2] and more");
    b.after(60_000).whatever();
    list(&mut b, DeadFilter::default(), None).gives("~[t3 t1]");
    b.after(3_540_000).whatever();
    // Nobody was there to get its outcome.
    list(&mut b, DeadFilter::default(), None).gives("~[t3]");
}

#[test]
fn a_full_store_takes_discards_and_no_retries() {
    let mut b = dead(2);
    b.scheduler.store_is_full(Some("full".into()));
    change(&mut b, DeadChange::Retry, all(9, None), false).gives("refused: store_unavailable");
    change(&mut b, DeadChange::Retry, ids(&[1]), true).gives("~changed [t1]");
    change(&mut b, DeadChange::Discard, all(9, None), false).gives("~changed [t1, t2]");
}

//! A worker that was asked to leave stays asked, whatever happens in between.

use crewcall::scheduler::{Command, Limits};

use super::bench::{Bench, worker};

fn drained() -> Bench {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.drain("w1").gives("w1 drain (please); ~draining");
    b
}

fn states(b: &mut Bench, expected: &str) {
    b.ask(|waiter| Command::Workers { waiter }).gives(expected);
}

#[test]
fn across_a_restart_the_same_process_stays_drained() {
    let mut b = drained();
    b.restart();
    b.join(worker("w1 add")).gives("w1 joined 1 keep [] drop []; w1 drain (please)");
    states(&mut b, "w1 Draining");
    b.credit("w1", 1).gives("");
    b.submit("add").gives("~accepted t1");
    // It leaves, and that is that.
    b.bye("w1").whatever();
    assert_eq!(b.rows.len(), 3, "leases, the task and its payload");
    b.join(worker("w1 add")).whatever();
    b.credit("w1", 1).has("w1 runs t1");
}

#[test]
fn a_new_process_of_the_name_is_active() {
    let mut b = drained();
    b.restart();
    b.join(worker("w1 add").boot("b2")).gives("w1 joined 1 keep [] drop []");
    states(&mut b, "w1 Active");
    assert_eq!(b.rows.len(), 1, "only the leases are left");
    b.restart();
    b.join(worker("w1 add")).whatever();
    states(&mut b, "w1 Active");
}

#[test]
fn an_idle_worker_whose_stream_breaks_stays_drained() {
    let mut b = drained();
    b.broken("w1").whatever();
    states(&mut b, "");
    b.join(worker("w1 add")).gives("w1 joined 2 keep [] drop []; w1 drain (please)");
}

#[test]
fn it_is_forgotten_in_time() {
    let mut b = drained();
    // Connected, it is not forgotten.
    for _ in 0..400 {
        b.after(9_999).gives("");
        b.beat("w1", &[]).whatever();
    }
    b.restart();
    b.after(3_599_999).gives("");
    assert_eq!(b.rows.len(), 2);
    b.after(1).gives("");
    assert_eq!(b.rows.len(), 1, "only the leases are left");
    b.join(worker("w1 add")).gives("w1 joined 1 keep [] drop []");
}

#[test]
fn a_worker_that_names_no_process_is_drained_while_it_is_connected() {
    let mut b = Bench::new();
    b.crew(worker("w1 add").boot(""), 1);
    b.drain("w1").gives("w1 drain (please); ~draining");
    b.restart();
    b.join(worker("w1 add").boot("")).gives("w1 joined 1 keep [] drop []");
}

#[test]
fn said_twice_it_is_told_twice_and_stored_once() {
    let mut b = drained();
    let rows = b.rows.clone();
    b.drain("w1").gives("w1 drain (please); ~draining");
    assert_eq!(b.rows, rows);
}

#[test]
fn too_many_are_refused() {
    let mut b = Bench::with(Limits { drains: 1, ..Limits::default() });
    b.crew(worker("w1 add"), 1);
    b.crew(worker("w2 add"), 1);
    b.drain("w1").has("draining");
    b.drain("w2").gives("refused: server_full");
    b.scheduler.store_is_full(Some("full".into()));
    b.drain("w1").has("draining");
    b.bye("w1").whatever();
    b.drain("w2").gives("refused: store_unavailable");
    states(&mut b, "w2 Active");
}

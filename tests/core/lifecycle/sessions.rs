//! A worker joins, breaks off, comes back, falls silent, is replaced, leaves.

use super::bench::{Bench, worker};

#[test]
fn a_broken_stream_is_resumed_with_its_leases() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 3);
    for task in 1..=3 {
        b.call_with("add", |o| o.retry.max_attempts = 2)
            .gives(&format!("w1 runs t{task} attempt 1 lease {task}"));
    }
    b.started("w1", 1).gives("");
    b.started("w1", 2).gives("");
    // What had not started goes to others at once.
    b.broken("w1").gives("");
    b.get(3).gives("[t3 ready]");
    b.get(1).gives("[t1 leased]");
    b.after(9_999).gives("");
    // It has lost one, and names one that is not its own.
    b.resume(worker("w1 add").holds(&[1, 3])).gives("w1 joined 1 keep [1] drop [3]");
    b.get(2).gives("[t2 delayed]");
    b.succeed("w1", 1).gives("t1 = ok");
}

#[test]
fn grace_ends() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.started("w1", 1).gives("");
    b.broken("w1").gives("");
    b.after(9_999).gives("");
    b.after(1).gives("t1 failed worker_lost");
    b.resume(worker("w1 add").holds(&[1])).gives("w1 joined 2 keep [] drop [1]");
}

#[test]
fn without_leases_nothing_is_kept() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.broken("w1").gives("");
    b.resume(worker("w1 add")).gives("w1 joined 2 keep [] drop []");
}

#[test]
fn a_newer_stream_takes_over() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 2);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.started("w1", 1).gives("");
    b.resume(worker("w1 add").holds(&[1])).gives("w1 closed: session_replaced; w1 joined 1 keep [1] drop []");
    // Its old credit is gone with the old stream.
    b.call("add").gives("");
    b.credit("w1", 1).gives("w1 runs t2 attempt 1 lease 2");
}

#[test]
fn another_process_loses_what_the_old_one_held() {
    for newcomer in [worker("w1 add").boot("b2"), worker("w1 add").with(|hello| hello.resume_token = Some(1))]
    {
        let mut b = Bench::new();
        b.crew(worker("w1 add"), 1);
        b.call("add").gives("w1 runs t1 attempt 1 lease 1");
        b.started("w1", 1).gives("");
        b.join(newcomer)
            .gives("w1 closed: session_replaced; t1 failed worker_lost; w1 joined 2 keep [] drop []");
    }
}

#[test]
fn a_resumed_worker_that_serves_something_else() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.succeed("w1", 1).gives("t1 = ok");
    b.after(b.limits.answered_retention_ms / 10).gives("");
    b.resume(worker("w1 mul")).gives("w1 closed: session_replaced; w1 joined 1 keep [] drop []");
    b.after(b.limits.answered_retention_ms).whatever();
}

#[test]
fn silence_ends_all_leases() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 2);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.call("add").gives("w1 runs t2 attempt 1 lease 2");
    b.started("w1", 1).gives("");
    b.after(9_000).gives("");
    b.beat("w1", &[1, 2]).gives("w1 beat 2 3");
    b.after(9_999).gives("");
    b.after(1).gives("w1 closed: session_expired; t1 failed worker_lost");
    b.get(2).gives("[t2 ready]");
}

/// What workers say while the server, or its machine, stands still lies unread until it goes on.
#[test]
fn a_server_that_stood_still_listens_before_it_calls_anyone_silent() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.crew(worker("w2 add"), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.call("add").gives("w2 runs t2 attempt 1 lease 2");
    b.started("w1", 1).gives("");
    b.started("w2", 2).gives("");
    b.after(60_000).gives("");
    b.beat("w1", &[1]).gives("w1 beat 1 1");
    // No longer than a beat, and once.
    b.after(2_999).gives("");
    b.after(1).gives("w2 closed: session_expired; t2 failed worker_lost");
    b.succeed("w1", 1).gives("t1 = ok");
    // Late by a little: a little.
    b.after(7_000).gives("");
    b.after(3_005).gives("");
    b.after(49).gives("");
    b.after(1).has("w1 closed: session_expired");
}

#[test]
fn two_beats_that_disagree_about_a_still_set_end_the_stream() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 9);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.call("add").gives("w1 runs t2 attempt 1 lease 2");
    b.started("w1", 2).gives("");
    b.beat("w1", &[2]).gives("w1 beat 2 3");
    // Something changed in between: it may be on its way.
    b.call("add").gives("w1 runs t3 attempt 1 lease 3");
    b.beat("w1", &[2]).gives("w1 beat 3 0");
    b.beat("w1", &[2]).gives("w1 closed: session_out_of_step");
    b.get(1).gives("[t1 ready]");
    b.resume(worker("w1 add").holds(&[2])).gives("w1 joined 1 keep [2] drop []");
}

#[test]
fn zeros_leave_the_check_out() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.beat("w1", &[]).gives("w1 beat 1 1");
    b.beat("w1", &[]).gives("w1 beat 1 1");
}

#[test]
fn results_are_acknowledged_again_after_a_break() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 3);
    for lease in 1..=2 {
        b.call("add").gives(&format!("w1 runs t{lease} attempt 1 lease {lease}"));
    }
    b.started("w1", 2).gives("");
    b.succeed_as("w1", 1, 1).gives("t1 = ok");
    b.beat("w1", &[2]).gives("w1 beat 1 2; w1 durable 1");
    b.beat("w1", &[2]).gives("w1 beat 1 2");
    b.broken("w1").gives("");
    b.resume(worker("w1 add").holds(&[2])).gives("w1 joined 1 keep [2] drop []");
    // Sent again: accepted before, so neither refused nor taken twice.
    b.succeed_as("w1", 1, 1).gives("");
    b.beat("w1", &[2]).gives("w1 beat 1 2; w1 durable 1");
}

#[test]
fn the_token_stays_so_a_lost_welcome_costs_nothing() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.started("w1", 1).gives("");
    // Welcomes that never arrive leave the worker with the token of the first.
    let token = b.token("w1");
    let again = || worker("w1 add").holds(&[1]).with(|hello| hello.resume_token = Some(token));
    b.broken("w1").gives("");
    b.join(again()).gives("w1 joined 1 keep [1] drop []");
    b.broken("w1").gives("");
    b.join(again()).gives("w1 joined 1 keep [1] drop []");
}

#[test]
fn goodbye_hands_over_what_is_left() {
    let mut b = Bench::new();
    b.crew(worker("w1 add"), 2);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.call("add").gives("w1 runs t2 attempt 1 lease 2");
    b.started("w1", 1).gives("");
    b.crew(worker("w2 add"), 0);
    b.credit("w2", 0).gives("");
    b.bye("w1").gives("w1 closed; t1 failed worker_lost");
    b.credit("w2", 1).gives("w2 runs t2 attempt 1 lease 3");
}

#[test]
fn a_worker_that_starts_on_receipt() {
    let mut b = Bench::new();
    b.crew(worker("w1 add").starts_on_receipt(), 1);
    b.call("add").gives("w1 runs t1 attempt 1 lease 1");
    b.bye("w1").gives("w1 closed; t1 failed worker_lost");
}

#[test]
fn protocol_versions() {
    let mut b = Bench::new();
    b.join(worker("w1 add").with(|hello| hello.protocol = (2, 3))).gives("refused: protocol_unsupported");
    b.join(worker("w1 add").with(|hello| hello.protocol = (1, 3))).gives("w1 joined 1 keep [] drop []");
}

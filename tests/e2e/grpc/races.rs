//! Two that want different things at the same moment.

use std::{cell::Cell, collections::HashMap, time::Duration};

use crewcall_sdk::{
    CallError,
    proto::{SessionRequest, SessionResponse, TaskState},
};
use futures_util::{StreamExt as _, stream};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use super::{
    Hand,
    by_hand::{hello, result},
    client, soon,
};
use crate::harness::Server;

/// RELIABILITY: a cancel races with the result. One of the two counts, and the caller, whoever cancels and
/// the worker are all told the same one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_and_a_result_have_one_winner_and_all_are_told_the_same() {
    let races = proof::size("CREWCALL_RACES", 10_000);
    let proof = proof::Proof::begin("cancel racing complete", "./test e2e -- races");
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let server = Server::start();
    let client = client(&server).await;
    let pipe = client.pipe();
    let mut hand = Hand::join(&server.url(), hello("h", "race", 4096)).await.unwrap();
    hand.credit(races);
    let task = || crewcall_sdk::TaskBuilder::new("race").payload(&()).build().unwrap();
    let calls: Vec<_> = (0..races).map(|_| tokio::spawn(pipe.call_raw(task()).outcome())).collect();
    let mut assigned = Vec::new();
    while (assigned.len() as u64) < races {
        assigned.extend(hand.until(|frame| !frame.assign.is_empty()).await.assign);
    }
    let mut random = StdRng::seed_from_u64(seed);
    // Results count up in the order in which they are sent.
    let seq = Cell::new(0);
    let attempts = assigned.iter().map(|assign| {
        let (cancel_waits, result_waits) = (random.random_range(0..4), random.random_range(0..4));
        let (client, hand, seq) = (&client, &hand, &seq);
        async move {
            let cancel = async {
                turns(cancel_waits).await;
                client.cancel(&assign.task_id, "no longer needed").await
            };
            let complete = async {
                turns(result_waits).await;
                seq.set(seq.get() + 1);
                hand.results(vec![result(assign.lease, seq.get(), "\"done\"")]);
            };
            (assign.lease, assign.task_id.clone(), tokio::join!(cancel, complete).0)
        }
    });
    let cancels: Vec<_> = soon(stream::iter(attempts).buffer_unordered(32).collect()).await;

    let (mut told_to_stop, mut refused) = (HashMap::new(), HashMap::new());
    // The answer to the beat comes after everything there is to say about what came before it.
    hand.say(SessionRequest { beat: Some(Default::default()), ..SessionRequest::default() });
    loop {
        let frame: SessionResponse = hand.hear().await.unwrap().expect("the session ended");
        for cancel in frame.cancel {
            *told_to_stop.entry(cancel.lease).or_insert(0) += 1;
        }
        for error in frame.errors {
            assert_eq!(error.reason, "stale_lease");
            *refused.entry(error.lease).or_insert(0) += 1;
        }
        if frame.beat.is_some() {
            break;
        }
    }
    let mut outcomes = HashMap::new();
    for call in calls {
        let outcome = soon(call).await.unwrap().unwrap();
        let id = outcome.task_id.clone();
        let kind = outcome.kind.unwrap();
        let crewcall_sdk::proto::pipe_outcome::Kind::Outcome(outcome) = kind else { panic!("{kind:?}") };
        outcomes.insert(id, crewcall_sdk::error::outcome_result(Some(outcome)));
    }
    let mut cancelled = 0;
    for (lease, id, cancel) in cancels {
        let state = client.get_wait(&id, Duration::from_secs(5)).await.unwrap().state();
        match (&outcomes[&id], cancel) {
            (Ok(payload), Err(CallError::Refused(refusal))) => {
                assert_eq!(payload.decode::<Value>().unwrap(), "done");
                assert_eq!((refusal.reason.as_str(), state), ("task_ended", TaskState::Finished));
                assert_eq!((told_to_stop.get(&lease), refused.get(&lease)), (None, None));
            }
            (Err(CallError::Cancelled(reason)), Ok(task)) => {
                assert_eq!(reason, "no longer needed");
                assert_eq!((task.state(), state), (TaskState::Cancelled, TaskState::Cancelled));
                assert_eq!((told_to_stop.get(&lease), refused.get(&lease)), (Some(&1), Some(&1)));
                cancelled += 1;
            }
            (outcome, cancel) => panic!("{id}: the caller got {outcome:?}, who cancelled {cancel:?}"),
        }
    }
    println!("{cancelled} of {races} were cancelled");
    let stats = client.stats().await.unwrap();
    assert_eq!((stats.cancelled_total, stats.finished_total), (cancelled, races - cancelled));
    assert_eq!((stats.refused_total, stats.leased), (cancelled, 0));
    assert!((1..races).contains(&cancelled), "no race at all: {cancelled}");
    proof.record(&[
        ("cancels, each racing the result of its task", proof::count(races)),
        ("the cancel came first", proof::count(cancelled)),
        ("the result came first", proof::count(races - cancelled)),
        ("caller, canceller and worker were told different outcomes", proof::count(0_u64)),
    ]);
}

async fn turns(count: u32) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

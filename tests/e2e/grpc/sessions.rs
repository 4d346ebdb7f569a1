//! A worker's session: the key, the lease, the broken and the stolen stream.

use std::time::Duration;

use crewcall_sdk::{
    Worker, WorkerError,
    proto::{Beat, Bye, Released, SessionRequest, Started, TaskState, WorkerState},
};
use serde_json::{Value, json};
use tonic::Code;

use super::{
    Hand, Proxy, adder,
    by_hand::{hello, reason, result},
    client, hold, soon, start, until_begun,
};
use crate::harness::Server;

#[tokio::test]
async fn only_the_worker_key_opens_the_door_and_nothing_shows_it() {
    let server = Server::builder()
        .env("CREWCALL_WORKER_KEY", "canary-7351")
        .env("CREWCALL_LOG", "trace,h2=trace,hyper=trace,tonic=trace,tower=trace")
        .start();
    for key in [None, Some("wrong"), Some("canary-735"), Some("canary-73511")] {
        let worker = adder(&server);
        let worker = if let Some(key) = key { worker.key(key) } else { worker };
        let error = soon(worker.build().unwrap().start().ended()).await.unwrap_err();
        let WorkerError::Refused(refusal) = error else { panic!("{key:?}: {error}") };
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unauthenticated, "worker_key_required"));
        assert!(!refusal.message.contains("canary"), "{}", refusal.message);
    }
    let _worker = start(adder(&server).key("canary-7351")).await;
    let client = client(&server).await;
    assert_eq!(client.call::<_, i64>("add", &json!({"a": 1, "b": 2})).await.unwrap(), 3);
    let log = server.log();
    assert!(log.contains("TRACE"), "the log is as talkative as it gets");
    assert!(!log.contains("canary"), "the key is in the log");
    // The two keys that only differ in length from the right one are worth hiding, too.
    assert!(!log.contains("Bearer"), "credentials are in the log");
}

#[tokio::test]
async fn the_same_worker_from_another_process_takes_over() {
    let server = Server::start();
    let (first, mut held) = hold(adder(&server).worker_id("w"), "held");
    let mut first = start(first).await;
    let client = client(&server).await;
    let call = tokio::spawn(client.task("held").payload(&()).max_attempts(2).call::<Value>());
    let lost = held.next().await;
    let (second, mut taken) = hold(adder(&server).worker_id("w"), "held");
    let _second = start(second).await;
    assert!(matches!(soon(first.ended()).await, Err(WorkerError::Replaced)));
    let run = taken.next().await;
    assert_eq!((run.context.task_id(), run.context.attempt()), (lost.context.task_id(), 2));
    run.succeed("second");
    assert_eq!(call.await.unwrap().unwrap(), "second");
    assert_eq!(client.workers().await.unwrap().len(), 1);
}

/// RELIABILITY: the network breaks while work is under way and while its result is being sent.
#[tokio::test]
async fn work_goes_on_over_a_broken_connection_and_its_result_counts_once() {
    let server = Server::start();
    let wire = Proxy::to(server.address()).await;
    let (worker, mut held) = hold(Worker::builder(wire.url()).worker_id("w"), "held");
    let worker = start(worker).await;
    let session = worker.status().borrow().session_id.clone();
    let client = client(&server).await;
    for round in 0..10 {
        let id = client.task("held").payload(&round).submit().await.unwrap().task_id;
        let run = held.next().await;
        // From here on a broken connection does not send it to another worker at once.
        until_begun(&client, &id).await;
        let connections = worker.status().borrow().connections;
        // Now before the result is sent, now after it, and so perhaps while it is under way.
        if round % 2 == 0 {
            wire.cut();
            run.succeed(round);
        } else {
            run.succeed(round);
            tokio::task::yield_now().await;
            wire.cut();
        }
        soon(worker.wait_for(|status| status.connections > connections)).await.unwrap();
        let task = soon(client.get_wait(id, Duration::from_secs(30))).await.unwrap();
        assert_eq!((task.state(), task.attempt), (TaskState::Finished, 1), "round {round}");
    }
    let stats = client.stats().await.unwrap();
    assert_eq!((stats.finished_total, stats.retried_total, stats.leased), (10, 0, 0));
    assert!(held.running.try_recv().is_err(), "nothing ran twice");
    let status = worker.status().borrow().clone();
    // A session that holds nothing ends with its stream; the worker then joins anew under its name.
    assert!(status.connections > 10 && !session.is_empty(), "{status:?}");
    soon(worker.stop()).await.unwrap();
}

#[tokio::test]
async fn a_resumed_session_keeps_what_runs_and_drops_what_does_not_stand() {
    let server = Server::start();
    let client = client(&server).await;
    let mut hand = Hand::join(&server.url(), hello("h", "m", 2)).await.unwrap();
    hand.credit(2);
    let submit = || client.task("m").payload(&()).submit();
    let (kept, cancelled) = (submit().await.unwrap(), submit().await.unwrap());
    let mut assigned = Vec::new();
    while assigned.len() < 2 {
        assigned.extend(hand.until(|frame| !frame.assign.is_empty()).await.assign);
    }
    let ids: Vec<_> = assigned.iter().map(|assign| assign.task_id.as_str()).collect();
    assert_eq!(ids, [&kept.task_id, &cancelled.task_id]);
    let leases = [assigned[0].lease, assigned[1].lease];
    let started = leases.map(|lease| Started { lease }).to_vec();
    let beat = Some(Beat { in_flight: 2, digest: leases[0] ^ leases[1] });
    hand.say(SessionRequest { started, beat, ..SessionRequest::default() });
    hand.until(|frame| frame.beat.is_some()).await;
    let welcome = hand.welcome.clone();
    drop(hand);
    soon(async { while client.workers().await.unwrap()[0].state() != WorkerState::Away {} }).await;
    client.cancel(&cancelled.task_id, "meanwhile").await.unwrap();

    let again = crewcall_sdk::proto::Hello {
        resume_token: welcome.resume_token,
        in_flight: vec![leases[0], leases[1], 999],
        ..hello("h", "m", 2)
    };
    let mut hand = Hand::join(&server.url(), again).await.unwrap();
    assert_eq!(hand.welcome.session_id, welcome.session_id);
    assert_eq!((&hand.welcome.keep[..], &hand.welcome.drop[..]), (&leases[..1], &[leases[1], 999][..]));
    hand.results(vec![result(leases[0], 1, "\"kept\"")]);
    let task = soon(client.get_wait(&kept.task_id, Duration::from_secs(30))).await.unwrap();
    assert_eq!((task.state(), task.attempt), (TaskState::Finished, 1));
    // Sent once more, because the first time might have been lost: accepted in silence, counted once.
    hand.results(vec![result(leases[0], 1, "\"kept\"")]);
    hand.say(SessionRequest { beat: Some(Beat::default()), ..SessionRequest::default() });
    let frame = hand.until(|frame| frame.beat.is_some()).await;
    assert_eq!(frame.errors, []);
    assert_eq!(client.stats().await.unwrap().finished_total, 1);
}

#[tokio::test]
async fn a_wrong_resume_token_resumes_nothing() {
    let server = Server::start();
    let client = client(&server).await;
    let mut hand = Hand::join(&server.url(), hello("h", "m", 1)).await.unwrap();
    hand.credit(1);
    let id = client.task("m").payload(&()).submit().await.unwrap().task_id;
    let assign = hand.assigned().await;
    hand.say(SessionRequest { started: vec![Started { lease: assign.lease }], ..SessionRequest::default() });
    let guess = crewcall_sdk::proto::Hello {
        resume_token: "00000000000000000000000000000000".into(),
        in_flight: vec![assign.lease],
        ..hello("h", "m", 1)
    };
    let thief = Hand::join(&server.url(), guess).await.unwrap();
    assert_eq!((&thief.welcome.keep[..], &thief.welcome.drop[..]), (&[][..], &[assign.lease][..]));
    assert_ne!(thief.welcome.session_id, hand.welcome.session_id);
    assert_eq!(reason(&hand.ended().await.unwrap_err()), "session_replaced");
    assert_ne!(client.get(id).await.unwrap().state(), TaskState::Finished);
}

/// RELIABILITY: a worker completes another's task, or one that it no longer holds.
#[tokio::test]
async fn a_lease_of_another_a_past_or_an_invented_one_changes_nothing() {
    let server = Server::start();
    let client = client(&server).await;
    let mut owner = Hand::join(&server.url(), hello("owner", "m", 1)).await.unwrap();
    owner.credit(1);
    let id = client.task("m").payload(&()).submit().await.unwrap().task_id;
    let lease = owner.assigned().await.lease;
    owner.say(SessionRequest { started: vec![Started { lease }], ..SessionRequest::default() });

    let mut other = Hand::join(&server.url(), hello("other", "n", 1)).await.unwrap();
    for (seq, lease, expected) in
        [(1, lease, "not_your_lease"), (2, lease + 1, "stale_lease"), (3, u64::MAX, "stale_lease")]
    {
        other.results(vec![result(lease, seq, "\"forged\"")]);
        let frame = other.until(|frame| !frame.errors.is_empty()).await;
        assert_eq!((frame.errors[0].lease, frame.errors[0].reason.as_str()), (lease, expected));
        other.say(SessionRequest { released: vec![Released { lease }], ..SessionRequest::default() });
        let frame = other.until(|frame| !frame.errors.is_empty()).await;
        assert_eq!(frame.errors[0].reason, expected, "it cannot be given away either");
    }
    let task = client.get(&id).await.unwrap();
    assert_eq!((task.state(), task.worker_id.as_str()), (TaskState::Leased, "owner"));
    assert_eq!(client.stats().await.unwrap().refused_total, 6);

    owner.results(vec![result(lease, 1, "\"genuine\"")]);
    let task = soon(client.get_wait(&id, Duration::from_secs(30))).await.unwrap();
    assert_eq!(task.state(), TaskState::Finished);
    owner.results(vec![result(lease, 2, "\"changed my mind\"")]);
    let frame = owner.until(|frame| !frame.errors.is_empty()).await;
    assert_eq!(frame.errors[0].reason, "stale_lease");
    let outcome = client.get(&id).await.unwrap().outcome;
    let value = crewcall_sdk::error::outcome_result(outcome).unwrap();
    assert_eq!(value.decode::<String>().unwrap(), "genuine");
    assert_eq!(client.stats().await.unwrap().refused_total, 7);
}

#[tokio::test]
async fn a_worker_silent_beyond_its_lease_loses_it_and_its_late_result_is_refused() {
    let server = Server::builder().args(["--limits", "lease_ms = 300, beat_ms = 100"]).start();
    let client = client(&server).await;
    let mut silent = Hand::join(&server.url(), hello("silent", "m", 1)).await.unwrap();
    assert_eq!((silent.welcome.lease_ms, silent.welcome.beat_ms), (300, 100));
    silent.credit(1);
    let id = client.task("m").payload(&()).submit().await.unwrap().task_id;
    let lease = silent.assigned().await.lease;
    silent.say(SessionRequest { started: vec![Started { lease }], ..SessionRequest::default() });
    let status = silent.ended().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, "session_expired"));
    let task = client.get(&id).await.unwrap();
    assert_eq!((task.state(), task.attempts.len()), (TaskState::Delayed, 1));
    assert_eq!(task.attempts[0].error.clone().unwrap().code, "worker_lost");

    let mut again = Hand::join(&server.url(), hello("silent", "m", 1)).await.unwrap();
    again.results(vec![result(lease, 1, "\"late\"")]);
    let frame = again.until(|frame| !frame.errors.is_empty()).await;
    assert_eq!((frame.errors[0].lease, frame.errors[0].reason.as_str()), (lease, "stale_lease"));
    assert_eq!(client.get(&id).await.unwrap().attempts.len(), 1);
}

#[tokio::test]
async fn a_worker_that_lost_count_is_sent_to_reconnect() {
    let server = Server::start();
    let mut hand = Hand::join(&server.url(), hello("h", "m", 1)).await.unwrap();
    let wrong =
        || SessionRequest { beat: Some(Beat { in_flight: 1, digest: 42 }), ..SessionRequest::default() };
    hand.say(wrong());
    let beat = hand.until(|frame| frame.beat.is_some()).await.beat.unwrap();
    assert_eq!(
        (beat.in_flight, beat.digest),
        (0, 0),
        "once is no proof: it could have crossed an assignment"
    );
    hand.say(wrong());
    let status = hand.ended().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, "session_out_of_step"));
}

#[tokio::test]
async fn a_goodbye_ends_the_session_and_hands_on_what_it_held() {
    let server = Server::start();
    let client = client(&server).await;
    let mut hand = Hand::join(&server.url(), hello("h", "held", 1)).await.unwrap();
    hand.credit(1);
    let id = client.task("held").payload(&()).submit().await.unwrap().task_id;
    hand.assigned().await;
    hand.say(SessionRequest { bye: Some(Bye { reason: "home".into() }), ..SessionRequest::default() });
    hand.ended().await.unwrap();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let run = held.next().await;
    assert_eq!((run.context.task_id(), run.context.attempt()), (id.as_str(), 1), "it had not begun");
    run.succeed(());
}

#[tokio::test]
async fn a_worker_that_breaks_a_rule_is_told_which() {
    let server = Server::start();
    let credit = |pool: &str| SessionRequest {
        credits: vec![crewcall_sdk::proto::Credit { pool: pool.into(), total: 1 }],
        ..SessionRequest::default()
    };
    let mut hand = Hand::join(&server.url(), hello("h", "m", 1)).await.unwrap();
    hand.say(credit("nowhere"));
    let status = hand.ended().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "invalid_field"));
    assert!(status.message().contains("\"nowhere\""), "{}", status.message());
    let many = Hand::join(&server.url(), hello("h", "m", 70_000)).await.unwrap_err();
    assert_eq!((many.code(), reason(&many).as_str()), (Code::InvalidArgument, "invalid_field"));
    let error = start_error(adder(&server).version("bell\u{7}")).await;
    assert_eq!(error.reason, "invalid_field");
}

async fn start_error(builder: crewcall_sdk::WorkerBuilder) -> crewcall_sdk::Refusal {
    match soon(builder.build().unwrap().start().ended()).await.unwrap_err() {
        WorkerError::Refused(refusal) => refusal,
        other => panic!("{other}"),
    }
}

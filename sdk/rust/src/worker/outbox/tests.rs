use super::*;
use crate::proto::Payload;
use crate::worker::context::Context;
use crate::worker::link::Link;

fn pool(name: &str, concurrency: u32) -> Pool {
    Pool { name: name.into(), concurrency }
}

/// An outbox with one pool, welcomed, its first credit already sent.
fn joined(concurrency: u32) -> Outbox {
    let mut outbox = Outbox::new(&[pool("", concurrency)]);
    outbox.connect(Hello::default());
    assert!(outbox.next_frame().unwrap().hello.is_some());
    outbox.welcome(&[]);
    assert_eq!(credits(&outbox.next_frame().unwrap()), [("".into(), u64::from(concurrency))]);
    outbox
}

fn assign(lease: u64) -> Assign {
    Assign { lease, ..Assign::default() }
}

fn accept(outbox: &mut Outbox, leases: &[u64]) {
    for lease in leases {
        assert_eq!(outbox.accept(&assign(*lease)), Some(0));
    }
}

fn succeeded(text: &str) -> End {
    End::Result(result::Kind::Succeeded(Payload::raw(text.to_owned(), "")))
}

fn end(outbox: &mut Outbox, lease: u64, end: End) {
    outbox.ended(Ended { lease, pool: 0, end });
}

fn credits(frame: &SessionRequest) -> Vec<(String, u64)> {
    frame.credits.iter().map(|credit| (credit.pool.clone(), credit.total)).collect()
}

fn results(frame: &SessionRequest) -> Vec<(u64, u64)> {
    frame.results.iter().map(|result| (result.lease, result.seq)).collect()
}

/// A handler that runs for ever.
fn start(outbox: &mut Outbox, runtime: &tokio::runtime::Runtime, lease: u64) -> Arc<Attempt> {
    accept(outbox, &[lease]);
    let (context, _) = Context::new(assign(lease), Arc::new(Link::new(&[])));
    let abort = runtime.spawn(std::future::pending::<()>()).abort_handle();
    outbox.started(Running::new(context.attempt.clone(), 0, abort));
    context.attempt
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

#[test]
fn nothing_but_hello_goes_out_before_the_welcome() {
    let mut outbox = Outbox::new(&[pool("", 2)]);
    outbox.connect(Hello::default());
    outbox.beat();
    let frame = outbox.next_frame().unwrap();
    assert!(frame.hello.is_some() && frame.credits.is_empty());
    assert!(outbox.next_frame().is_none());
    outbox.welcome(&[]);
    let frame = outbox.next_frame().unwrap();
    assert_eq!(credits(&frame), [("".into(), 2)]);
    assert!(frame.beat.is_none(), "asked for before there was anyone to hear it");
    assert!(outbox.next_frame().is_none());
}

#[test]
fn each_end_raises_the_credit_and_everything_ready_shares_a_frame() {
    let mut outbox = joined(2);
    accept(&mut outbox, &[7, 9]);
    end(&mut outbox, 9, succeeded("a"));
    end(&mut outbox, 7, End::Released);
    outbox.beat();
    let frame = outbox.next_frame().unwrap();
    assert_eq!(results(&frame), [(9, 1)]);
    assert_eq!(frame.released, [Released { lease: 7 }]);
    assert_eq!(credits(&frame), [("".into(), 4)]);
    assert_eq!(frame.beat, Some(Beat { in_flight: 0, digest: 0 }));
    assert!(outbox.next_frame().is_none());
}

#[test]
fn pools_have_credit_of_their_own() {
    let mut outbox = Outbox::new(&[pool("", 1), pool("gpu", 3)]);
    outbox.connect(Hello::default());
    outbox.next_frame().unwrap();
    outbox.welcome(&[]);
    assert_eq!(credits(&outbox.next_frame().unwrap()), [("".into(), 1), ("gpu".into(), 3)]);
    let slot = outbox.accept(&Assign { lease: 1, pool: "gpu".into(), ..Assign::default() }).unwrap();
    outbox.ended(Ended { lease: 1, pool: slot, end: succeeded("") });
    assert_eq!(credits(&outbox.next_frame().unwrap()), [("gpu".into(), 4)]);
}

#[test]
fn what_cannot_be_taken_is_handed_back() {
    let mut outbox = joined(1);
    accept(&mut outbox, &[1]);
    assert_eq!(outbox.accept(&assign(2)), None, "beyond the concurrency");
    assert_eq!(outbox.accept(&Assign { pool: "gpu".into(), ..assign(3) }), None, "no such pool");
    end(&mut outbox, 1, succeeded(""));
    outbox.draining = true;
    assert_eq!(outbox.accept(&assign(4)), None, "draining");
    let frame = outbox.next_frame().unwrap();
    assert_eq!(frame.released, [2, 3, 4].map(|lease| Released { lease }));
}

#[test]
fn a_draining_worker_asks_for_no_more() {
    let mut outbox = joined(1);
    accept(&mut outbox, &[1]);
    outbox.draining = true;
    end(&mut outbox, 1, succeeded(""));
    assert_eq!(credits(&outbox.next_frame().unwrap()), []);
    assert!(!outbox.is_quiet(), "the result is not confirmed");
    outbox.confirmed(1);
    assert!(outbox.is_quiet());
}

#[test]
fn the_digest_is_that_of_the_leases_held() {
    let runtime = runtime();
    let mut outbox = joined(3);
    start(&mut outbox, &runtime, 5);
    start(&mut outbox, &runtime, 12);
    outbox.beat();
    let frame = outbox.next_frame().unwrap();
    assert_eq!(frame.started, [Started { lease: 5 }, Started { lease: 12 }]);
    assert_eq!(frame.beat, Some(Beat { in_flight: 2, digest: 5 ^ 12 }));
    outbox.cancel(5).unwrap();
    outbox.beat();
    assert_eq!(outbox.next_frame().unwrap().beat, Some(Beat { in_flight: 1, digest: 12 }));
}

#[test]
fn a_cancelled_handler_gives_credit_when_it_ends_but_no_result() {
    let runtime = runtime();
    let mut outbox = joined(1);
    start(&mut outbox, &runtime, 5);
    outbox.next_frame().unwrap();
    assert!(outbox.cancel(5).is_some());
    assert!(outbox.cancel(5).is_none(), "once");
    assert!(outbox.next_frame().is_none(), "it still takes up its place");
    outbox.finished(5, succeeded("late"));
    let frame = outbox.next_frame().unwrap();
    assert_eq!(results(&frame), []);
    assert_eq!(credits(&frame), [("".into(), 2)]);
}

#[test]
fn a_resumed_connection_goes_on_with_what_stands() {
    let runtime = runtime();
    let mut outbox = joined(4);
    let kept = start(&mut outbox, &runtime, 1);
    start(&mut outbox, &runtime, 2);
    accept(&mut outbox, &[3, 4]);
    end(&mut outbox, 3, succeeded("kept"));
    end(&mut outbox, 4, succeeded("dropped"));
    outbox.next_frame().unwrap();
    outbox.disconnect();
    outbox.connect(Hello::default());
    let mut listed = outbox.next_frame().unwrap().hello.unwrap().in_flight;
    listed.sort_unstable();
    assert_eq!(listed, [1, 2, 3, 4]);
    let stopped = outbox.welcome(&[1, 3]);
    assert_eq!(stopped.iter().map(|attempt| attempt.lease).collect::<Vec<_>>(), [2]);
    outbox.beat();
    let frame = outbox.next_frame().unwrap();
    assert_eq!(results(&frame), [(3, 1)], "sent again under its number");
    assert_eq!(frame.started, [Started { lease: 1 }]);
    assert_eq!(credits(&frame), [("".into(), 2)], "from zero: 4 less the 2 that run");
    assert_eq!(frame.beat, Some(Beat { in_flight: 1, digest: kept.lease }));
    outbox.finished(2, succeeded("too late"));
    let frame = outbox.next_frame().unwrap();
    assert_eq!((results(&frame), credits(&frame)), (vec![], vec![("".into(), 3)]));
}

#[test]
fn a_result_that_comes_while_disconnected_waits_for_the_welcome() {
    let runtime = runtime();
    let mut outbox = joined(1);
    start(&mut outbox, &runtime, 1);
    outbox.disconnect();
    outbox.finished(1, succeeded("x"));
    outbox.connect(Hello::default());
    assert_eq!(outbox.next_frame().unwrap().hello.unwrap().in_flight, [1]);
    outbox.welcome(&[1]);
    let frame = outbox.next_frame().unwrap();
    assert_eq!((results(&frame), credits(&frame)), (vec![(1, 1)], vec![("".into(), 1)]));
}

#[test]
fn results_are_kept_until_confirmed_or_refused() {
    let mut outbox = joined(4);
    accept(&mut outbox, &[1, 2, 3]);
    for lease in [1, 2, 3] {
        end(&mut outbox, lease, succeeded("x"));
    }
    outbox.confirmed(2);
    outbox.confirmed(1);
    assert_eq!(outbox.leases(), [3]);
    outbox.refused(&HashSet::from([3]));
    assert_eq!((outbox.leases().len(), outbox.kept_bytes), (0, 0));
}

#[test]
fn unconfirmed_results_hold_back_credit() {
    let mut outbox = joined(2);
    let large = || End::Result(result::Kind::Succeeded(Payload::raw(vec![0; RESULT_BYTES_KEPT_MAX], "")));
    accept(&mut outbox, &[1, 2]);
    end(&mut outbox, 1, large());
    end(&mut outbox, 2, succeeded(""));
    let frame = outbox.next_frame().unwrap();
    assert_eq!((results(&frame), credits(&frame)), (vec![(1, 1)], vec![]));
    assert_eq!(results(&outbox.next_frame().unwrap()), [(2, 2)]);
    outbox.confirmed(1);
    assert_eq!(credits(&outbox.next_frame().unwrap()), [("".into(), 4)]);
}

#[test]
fn credit_held_back_is_not_given_by_a_reconnection() {
    let mut outbox = joined(2);
    accept(&mut outbox, &[1]);
    end(
        &mut outbox,
        1,
        End::Result(result::Kind::Succeeded(Payload::raw(vec![0; RESULT_BYTES_KEPT_MAX], ""))),
    );
    outbox.connect(Hello::default());
    outbox.next_frame().unwrap();
    outbox.welcome(&[1]);
    assert_eq!(credits(&outbox.next_frame().unwrap()), [("".into(), 1)]);
    outbox.confirmed(1);
    assert_eq!(credits(&outbox.next_frame().unwrap()), [("".into(), 2)]);
}

#[test]
fn a_result_does_not_overtake_the_chunks_of_its_attempt() {
    let mut outbox = joined(1);
    accept(&mut outbox, &[1]);
    let chunk = || Chunk { lease: 1, data: Some(Payload::raw(vec![0; 700_000], "")) };
    assert!(outbox.chunk(chunk()).is_none() && outbox.chunk(chunk()).is_none());
    end(&mut outbox, 1, succeeded("done"));
    outbox.beat();
    let frame = outbox.next_frame().unwrap();
    assert_eq!((frame.chunks.len(), frame.results.len(), frame.beat), (1, 0, None));
    let frame = outbox.next_frame().unwrap();
    assert_eq!((frame.chunks.len(), frame.results.len()), (1, 1));
    assert!(frame.beat.is_some());
}

#[test]
fn chunks_queue_up_to_their_limit() {
    let mut outbox = joined(1);
    for _ in 0..CHUNKS_QUEUED_MAX {
        assert!(outbox.chunk(Chunk::default()).is_none());
    }
    assert!(outbox.chunk(Chunk::default()).is_some());
    outbox.next_frame().unwrap();
    assert!(outbox.chunk(Chunk::default()).is_none());
}

#[test]
fn only_the_latest_progress_is_sent() {
    let mut outbox = joined(1);
    for current in 1..=3 {
        outbox.progress(1, Progress { current, ..Progress::default() });
    }
    let frame = outbox.next_frame().unwrap();
    assert_eq!(frame.progress.len(), 1);
    assert_eq!(frame.progress[0].progress.as_ref().unwrap().current, 3);
}

use std::sync::Arc;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::clock::Timestamp;
use crate::rpc::convert::payload_out;
use crate::scheduler::Accepted;
use crate::task::{ExpiredReason, TaskError, TaskOptions};

fn written(frame: impl Frame) -> Vec<u8> {
    let (estimate, mut bytes) = (frame.size(), Vec::new());
    frame.write(&mut bytes);
    assert!(
        bytes.is_empty() || bytes.len() <= 2 * estimate,
        "{} bytes where {estimate} were expected",
        bytes.len()
    );
    bytes
}

fn payloads() -> impl Strategy<Value = Payload> {
    (vec(any::<u8>(), 0..300), prop_oneof![Just(String::new()), "[a-z/]{1,40}"])
        .prop_map(|(data, content_type)| Payload { data: data.into(), content_type })
}

/// At most one entry: the generated message writes a map in no certain order.
fn assigns() -> impl Strategy<Value = Assign> {
    let names = ("\\PC{0,200}", "[0-9.]{0,8}", "[a-z]{0,8}");
    let metadata = btree_map("[a-z]{0,5}", "\\PC{0,5}", 0..2);
    (any::<(u128, u64, u32, u64)>(), names, payloads(), metadata).prop_map(
        |((id, lease, attempt, deadline), (method, version, pool), payload, metadata)| Assign {
            id: TaskId(uuid::Uuid::from_u128(id)),
            lease,
            attempt,
            method: method.into(),
            version: version.into(),
            payload,
            deadline: Timestamp(deadline),
            options: Arc::new(TaskOptions { metadata, ..TaskOptions::call() }).into(),
            pool: pool.into(),
        },
    )
}

fn assign_out(assign: &Assign) -> proto::Assign {
    proto::Assign {
        task_id: assign.id.to_string(),
        lease: assign.lease,
        attempt: assign.attempt,
        method: assign.method.to_string(),
        version: assign.version.to_string(),
        payload: Some(payload_out(assign.payload.clone())),
        deadline_unix_ms: time_out(assign.deadline),
        metadata: assign.options.metadata.clone().into_iter().collect(),
        pool: assign.pool.to_string(),
    }
}

fn tells() -> impl Strategy<Value = Tell> {
    prop_oneof![
        (any::<u64>(), "\\PC{0,9}").prop_map(|(lease, reason)| Tell::Cancel(lease, reason)),
        any::<u64>().prop_map(Tell::Recall),
        any::<u64>().prop_map(Tell::DurableSeq),
        any::<(u32, u64)>().prop_map(|(in_flight, digest)| Tell::Beat(in_flight, digest)),
        "\\PC{0,9}".prop_map(Tell::Drain),
        "\\PC{0,9}".prop_map(Tell::Move),
        any::<u64>().prop_map(|lease| Tell::Refused(lease, Error::new(Reason::Internal, "why"))),
    ]
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => payloads().prop_map(Outcome::Succeeded),
        1 => payloads().prop_map(|details| {
            Outcome::Failed(Box::new(TaskError { details: Some(details), ..TaskError::new("code", "message") }))
        }),
        1 => "\\PC{0,9}".prop_map(Outcome::Cancelled),
        1 => Just(Outcome::Expired(ExpiredReason::Deadline)),
        1 => Just(Outcome::Expired(ExpiredReason::QueueTimeout)),
    ]
}

proptest! {
    #[test]
    fn a_worker_reads_what_the_generated_message_says(
        assigns in vec(assigns(), 0..5),
        tells in vec(tells(), 0..5),
    ) {
        let assign = assigns.iter().map(assign_out).collect();
        let mut expected = proto::SessionResponse { assign, ..proto::SessionResponse::default() };
        tells.iter().cloned().for_each(|tell| add(&mut expected, tell));
        let told = tells.into_iter().map(SessionItem::Tell);
        let items = told.chain(assigns.into_iter().map(|assign| SessionItem::Assign(Box::new(assign))));
        let bytes = written(SessionFrame::Items(items.collect()));
        prop_assert_eq!(bytes, expected.encode_to_vec());
    }

    #[test]
    fn a_caller_reads_what_the_generated_message_says(
        answers in vec((any::<u64>(), any::<u128>(), outcomes()), 0..5),
        refused in vec(any::<u64>(), 0..3),
    ) {
        let refusal = || Error::new(Reason::ServerFull, "why");
        let id = |id: u128| TaskId(uuid::Uuid::from_u128(id));
        let refusals = refused.iter().map(|call_id| refusal_out(*call_id, refusal()));
        let ended = answers.iter().cloned().map(|(call_id, task, outcome)| proto::PipeOutcome {
            call_id,
            task_id: id(task).to_string(),
            kind: Some(pipe_outcome::Kind::Outcome(outcome_out(outcome))),
        });
        let expected = proto::PipeResponse { outcomes: refusals.chain(ended).collect() };
        let frame = PipeFrame {
            refused: refused.into_iter().map(|call_id| (call_id, refusal())).collect(),
            answers: answers
                .into_iter()
                .map(|(call_id, task, outcome)| (call_id, Reply::Ended(id(task), outcome)))
                .collect(),
        };
        prop_assert_eq!(written(frame), expected.encode_to_vec());
    }
}

#[test]
fn small_numbers_and_empty_texts_are_left_out() {
    let frame = PipeFrame {
        refused: Vec::new(),
        answers: vec![
            (0, Reply::Ended(TaskId(uuid::Uuid::nil()), Outcome::Succeeded(Payload::default()))),
            (300, Reply::Refused(Error::new(Reason::ServerFull, "why"))),
            (7, Reply::Submitted(vec![Ok(Accepted { id: TaskId(uuid::Uuid::nil()), attached: false })])),
        ],
    };
    let read = proto::PipeResponse::decode(written(frame).as_slice()).expect("what was written can be read");
    let [ended, refused, internal] = read.outcomes.as_slice() else { panic!("three answers") };
    assert_eq!((ended.call_id, ended.task_id.len()), (0, 36));
    assert_eq!(refused.call_id, 300);
    // What does not fit is no secret, and no lost call either.
    let Some(pipe_outcome::Kind::Refusal(refusal)) = &internal.kind else { panic!("a refusal") };
    assert_eq!((internal.call_id, refusal.reason.as_str()), (7, Reason::Internal.as_str()));
}

#[test]
fn a_frame_is_closed_when_it_is_full() {
    let sizes = |items: Vec<usize>| {
        let (mut items, mut frames) = (VecDeque::from(items), Vec::new());
        while !items.is_empty() {
            frames.push(next_frame(&mut items, |size| *size).len());
        }
        frames
    };
    assert!(next_frame(&mut VecDeque::<usize>::new(), |size| *size).is_empty());
    // One that is too large for any frame goes alone.
    assert_eq!(sizes(vec![1, 2 * FRAME_BYTES, FRAME_BYTES, 1, FRAME_BYTES - 1]), [1, 1, 1, 2]);
}

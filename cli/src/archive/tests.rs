//! What is written is read back, and nothing else.

use super::*;

fn through(task: &Task, payload: &Payload) -> (Task, Payload) {
    let line = Line::Task(Box::new(TaskLine::new(task, payload)));
    let text = serde_json::to_string(&line).unwrap();
    assert!(!text.contains('\n'), "{text}");
    let Line::Task(line) = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
    line.into_task().unwrap()
}

#[test]
fn a_task_in_any_state_with_any_payload_survives() {
    let error = || TaskError { details: Some(Payload::json("[1e400]")), ..TaskError::new("code", "a\nb") };
    let states = [
        State::Ready,
        State::Delayed { until: Timestamp(77) },
        State::Leased { lease: 9, worker_id: Arc::from("w") },
        State::Ended(Outcome::Succeeded(Payload::json("9007199254740993"))),
        State::Ended(Outcome::Succeeded(Payload::default())),
        State::Ended(Outcome::Failed(Box::new(error()))),
        State::Ended(Outcome::Cancelled("why".to_owned())),
        State::Ended(Outcome::Expired(ExpiredReason::QueueTimeout)),
        State::Ended(Outcome::Expired(ExpiredReason::Deadline)),
    ];
    let bytes = |content_type: &str, data: &'static [u8]| Payload {
        data: bytes::Bytes::from_static(data),
        content_type: content_type.to_owned(),
    };
    let payloads = [
        Payload::default(),
        Payload::json("null"),
        Payload::json("{\"b\":1e400,\"a\":-0,\"b\":2}"),
        Payload::json("{\n}"),
        Payload::json(" 1 "),
        Payload::json("no JSON"),
        bytes("application/json; charset=x", b"1"),
        bytes("image/png", b"\x00\xff"),
    ];
    let mut options = TaskOptions::submit();
    options.target =
        Target { version: "^1".into(), group: "g".into(), labels: [("k".into(), "v".into())].into() };
    (options.run_at, options.retention_ms) = (Some(Timestamp(5)), Some(0));
    (options.queue_timeout_ms, options.run_timeout_ms, options.deadline_ms) = (1, 2, 3);
    options.metadata.insert("m".to_owned(), "n".to_owned());
    for state in states {
        for payload in &payloads {
            let ended = state.outcome().is_some();
            let task = Task {
                id: TaskId::generate(),
                method: Arc::from("a/b"),
                body: Body::Held(payload.clone()),
                options: Arc::new(options.clone()),
                key: Some(Box::new(IdempotencyKey { text: "key".to_owned(), digest: payload.digest() })),
                created_at: Timestamp(10),
                since: Timestamp(20),
                changed_at: Timestamp(30),
                state: state.clone(),
                attempt: 3,
                attempts: std::iter::once(Attempt {
                    number: 2,
                    worker_id: Arc::from("w"),
                    started_at: Timestamp(21),
                    ended_at: Timestamp(22),
                    error: TaskError { details: None, ..error() },
                })
                .collect(),
                forget_at: if ended { Timestamp(99) } else { Timestamp::NEVER },
            };
            assert_eq!(through(&task, payload), (task, payload.clone()));
        }
    }
}

#[test]
fn what_cannot_be_a_task_is_refused_with_the_reason() {
    let id = TaskId::generate();
    let line = |change: &str| {
        let text = format!(
            "{{\"task\":{{\"id\":\"{id}\",\"method\":\"m\",\"state\":\"ready\",\"created_at_unix_ms\":1,\
             \"changed_at_unix_ms\":1,\"options\":{{\"priority\":4,\"max_attempts\":1}}}}}}"
        );
        let (from, to) = change.split_once(" => ").unwrap();
        assert!(text.contains(from), "{from}");
        let line: Result<Line, _> = serde_json::from_str(&text.replace(from, to));
        match line.map_err(|error| error.to_string())? {
            Line::Task(line) => line.into_task().map(|_| ()),
            other => panic!("{other:?}"),
        }
    };
    for (change, says) in [
        ("\"ready\" => \"asleep\"", "asleep"),
        ("\"ready\" => \"dead\"", "lacks its outcome"),
        ("\"ready\" => \"leased\"", "a leased task"),
        ("\"priority\":4 => \"priority\":10", "priority is 10"),
        ("\"max_attempts\":1 => \"max_attempts\":0", "max_attempts"),
        ("\"method\":\"m\" => \"method\":\" m\"", "method"),
        ("\"method\" => \"methd\"", "methd"),
        ("\"changed_at_unix_ms\":1 => \"changed_at_unix_ms\":0", "not in order"),
        ("\"state\" => \"payload_bytes\":{\"content_type\":\"\",\"base64\":\"?\"},\"state\"", "base64"),
    ] {
        let error = line(change).unwrap_err();
        assert!(error.contains(says), "{change}: {error}");
    }
}

//! Who gets an outcome, when, and what is in it.

use super::*;

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_use_up_the_outcome() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    for round in 0..20 {
        let id = submit(&server, "m", "1").await;
        assert_eq!(worker.task().await, id);
        let mut caller = server.connect().await;
        let request = server.request("GET", &format!("/api/result/{id}"), &[], "");
        caller.write_all(request.as_bytes()).await.unwrap();
        caller.shutdown().await.unwrap();
        // The server has seen that it is gone when it closes in turn.
        let mut rest = Vec::new();
        caller.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
        worker.answer(&id, &round.to_string()).await;
        assert_eq!(result(&server, &id).await, done(&id, json!(round)));
    }
}

#[tokio::test]
async fn of_many_readers_exactly_one_gets_the_outcome() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    for held in [true, false] {
        let id = submit(&server, "m", "1").await;
        assert_eq!(worker.task().await, id);
        if !held {
            worker.answer(&id, "3").await;
        }
        let path = format!("/api/result/{id}");
        let mut readers: Vec<_> = (0..64).map(|_| Box::pin(server.get(&path))).collect();
        if held {
            // All of them are on their way before the answer is.
            for reader in &mut readers {
                tokio::select! {
                    biased;
                    _ = reader => panic!("answered before its worker"),
                    () = tokio::task::yield_now() => {}
                }
            }
            worker.answer(&id, "3").await;
        }
        let mut served = 0;
        for answer in futures_util::future::join_all(readers).await {
            match answer {
                (200, body) => {
                    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), done(&id, json!(3)));
                    served += 1;
                }
                (status, body) => assert_eq!((status, &*body), (404, "task not found\n")),
            }
        }
        assert_eq!(served, 1, "held: {held}");
    }
}

#[tokio::test]
async fn of_many_readers_one_reads_that_there_was_no_worker() {
    let server = Server::start(|_| {}).await;
    let id = id_of(server.post("/api/execute", r#"{"method":"nobody"}"#).await, "error");
    let path = format!("/api/result/{id}");
    let answers = futures_util::future::join_all((0..64).map(|_| server.get(&path))).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == 200).count(), 1);
    assert!(answers.iter().any(|(_, body)| body.contains(NO_WORKER)));
}

#[tokio::test]
async fn without_a_hold_a_request_never_waits() {
    let server = Server::start(|settings| settings.legacy_result_hold = Duration::ZERO).await;
    let _worker = Worker::join(&server, "m").await;
    let id = submit(&server, "m", "1").await;
    let expected = json!({"status": "processing", "taskId": id, "result": null});
    assert_eq!(result(&server, &id).await, expected);
}

#[tokio::test]
async fn a_hold_ends_with_processing() {
    let hold = Duration::from_millis(150);
    let server = Server::start(|settings| settings.legacy_result_hold = hold).await;
    let _worker = Worker::join(&server, "m").await;
    let id = submit(&server, "m", "1").await;
    let began = Instant::now();
    assert_eq!(result(&server, &id).await["status"], "processing");
    assert!(began.elapsed() >= hold, "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_first_answer_counts_from_whomever_it_comes() {
    let server = Server::start(|_| {}).await;
    let mut owner = Worker::join(&server, "m").await;
    let mut other = Worker::join(&server, "other").await;
    let id = submit(&server, "m", "1").await;
    assert_eq!(owner.task().await, id);
    other.answer(&id, "1").await;
    other.answer(&id, "2").await;
    // In order behind both: the same socket.
    let after = submit(&server, "other", "1").await;
    assert_eq!(other.task().await, after);
    other.answer(&after, "0").await;
    assert_eq!(result(&server, &after).await, done(&after, json!(0)));
    owner.answer(&id, "3").await;
    assert_eq!(result(&server, &id).await, done(&id, json!(1)));
}

#[tokio::test]
async fn an_unreadable_message_fails_its_task_and_not_its_worker() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    let (first, second) = (submit(&server, "m", "1").await, submit(&server, "m", "2").await);
    worker.say("not json").await;
    worker.say("[1]").await;
    worker
        .say(&format!(r#"{{"type": "result", "taskId": "{first}", "status": "success", "result": NaN}}"#))
        .await;
    worker.answer(&second, "2").await;
    let outcome = result(&server, &first).await;
    assert_eq!(outcome["status"], "error");
    assert!(outcome["result"].as_str().unwrap().contains("invalid character 'N'"), "{outcome}");
    assert_eq!(result(&server, &second).await, done(&second, json!(2)));
}

#[tokio::test]
async fn values_pass_as_they_are_spelled_however_deep() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    // The body itself is one level.
    let deep = format!("{}1e400,9007199254740993{}", "[".repeat(9_999), "]".repeat(9_999));
    for value in [&*deep, r#"{"z":1.0,"a":-0,"a":"\ud800","":[]}"#] {
        let id = submit(&server, "m", value).await;
        let message = worker.hear().await.unwrap();
        assert_eq!(
            message,
            format!("{{\"method\":\"m\",\"params\":{value},\"taskId\":\"{id}\",\"type\":\"task\"}}\n")
        );
        let answer = value.strip_prefix('[').and_then(|value| value.strip_suffix(']')).unwrap_or(value);
        worker.answer(&id, answer).await;
        let (_, body) = server.get(&format!("/api/result/{id}")).await;
        assert_eq!(body, format!("{{\"result\":{answer},\"status\":\"done\",\"taskId\":\"{id}\"}}\n"));
    }
    for depth in [10_000, 100_000] {
        let body = format!(r#"{{"method":"m","params":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        let refused = (400, "invalid character '[' exceeded max depth\n".to_owned());
        assert_eq!(server.post("/api/execute", &body).await, refused);
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_in_clear_words() {
    let server = Server::start(|_| {}).await;
    let _worker = Worker::join(&server, "m").await;
    let body = format!(r#"{{"method":"m","params":"{}"}}"#, "x".repeat(5 << 20));
    let (status, text) = server.post("/api/execute", &body).await;
    assert_eq!(status, 413, "{text}");
    // Within the body's limit, over the payload's.
    let body = format!(r#"{{"method":"m","params":"{}"}}"#, "x".repeat((4 << 20) + 10));
    let (status, text) = server.post("/api/execute", &body).await;
    assert_eq!(status, 413);
    assert!(text.contains("limits.payload_bytes"), "{text}");
}

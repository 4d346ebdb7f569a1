//! When a worker counts as gone, and what that does to others.

use super::*;

#[tokio::test]
async fn a_truly_silent_worker_is_cut_and_its_callers_are_told() {
    let every = Duration::from_millis(100);
    let server = Server::start(|settings| settings.legacy_ping_interval = every).await;
    let mut mute = mute_worker(&server, &["m"], server.connect().await).await;
    let joined = Instant::now();
    let id = submit(&server, "m", "1").await;
    assert_eq!(result(&server, &id).await, failed(&id, "Worker timeout"));
    assert!(joined.elapsed() >= every * 2, "cut after {:?}", joined.elapsed());
    server.workers(0).await;

    let mut told = Vec::new();
    mute.read_to_end(&mut told).await.unwrap();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(told.contains("\"type\":\"task\"") && told.contains("{\"type\":\"ping\"}\n"), "{told}");
    assert!(told.contains("nothing was heard"), "{told}");
    let body = r#"{"method":"m"}"#;
    id_of(server.post("/api/execute", body).await, "error");
}

#[tokio::test]
async fn an_unregistered_silent_socket_is_cut_too() {
    let server = Server::start(|settings| settings.legacy_ping_interval = Duration::from_millis(50)).await;
    let mut socket = server.connect().await;
    let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut told = Vec::new();
    tokio::time::timeout(PATIENCE, socket.read_to_end(&mut told)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&told).contains("nothing was heard"));
}

#[tokio::test]
async fn websocket_pongs_and_any_message_are_life() {
    let server = Server::start(|settings| settings.legacy_ping_interval = Duration::from_millis(60)).await;
    // The library answers WebSocket pings while it is read; nothing answers the JSON ones.
    let mut ponging = Worker::join(&server, "ponging").await;
    let talking = mute_worker(&server, &["talking"], server.connect().await).await;
    let (mut pings, (mut said, mut saying)) = (0, talking.into_split());
    let reading = tokio::spawn(async move { said.read_to_end(&mut Vec::new()).await });
    while pings < 8 {
        let message = ponging.socket.next().await.unwrap().unwrap();
        if matches!(&message, Message::Text(text) if text.as_str() == "{\"type\":\"ping\"}\n") {
            pings += 1;
            saying.write_all(&text_frame(r#"{"type":"anything"}"#)).await.unwrap();
        }
    }
    assert_eq!(server.handle.workers().await.unwrap().len(), 2);
    reading.abort();
}

/// A worker that does not read, and the task that waits for it: more than the kernel takes for a client like this.
async fn stuck_worker(server: &Server) -> (TcpStream, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let socket = socket.connect(server.address).await.unwrap();
    let stuck = mute_worker(server, &["m", "only"], socket).await;
    let params = format!("\"{}\"", "x".repeat(4_000_000));
    (stuck, submit(server, "only", &params).await)
}

#[tokio::test]
async fn a_worker_that_stops_reading_hurts_nobody_else() {
    // Nothing is cut in this test, however slow the machine is.
    let port = ListenerSettings { write_timeout: PATIENCE * 100, ..ListenerSettings::default() };
    let server = Server::start_on(port, |settings| settings.legacy_ping_interval = PATIENCE * 100).await;
    let (_stuck, _task) = stuck_worker(&server).await;
    let mut reader = Worker::join(&server, "m").await;
    let answering = tokio::spawn(async move {
        loop {
            let id = reader.task().await;
            reader.answer(&id, "1").await;
        }
    });
    for _ in 0..10 {
        let id = submit(&server, "m", "1").await;
        assert_eq!(result(&server, &id).await, done(&id, json!(1)));
    }
    assert_eq!(server.handle.workers().await.unwrap().len(), 2);
    answering.abort();
}

#[tokio::test]
async fn a_worker_that_stops_reading_is_cut() {
    let port = ListenerSettings { write_timeout: Duration::from_millis(500), ..ListenerSettings::default() };
    let server = Server::start_on(port, |_| {}).await;
    let (_stuck, id) = stuck_worker(&server).await;
    assert_eq!(result(&server, &id).await, failed(&id, "Worker timeout"));
    server.workers(0).await;
}

#[tokio::test]
async fn a_stopping_server_lets_a_worker_finish_first() {
    let server = Server::start(|_| {}).await;
    let mut worker = Worker::join(&server, "m").await;
    let mut unregistered = Worker::knock(&server, "/").await;
    let mut call = Box::pin(server.handle.call(NewTask::call("m", Payload::json("1"))));
    let id = tokio::select! {
        _ = &mut call => panic!("answered before its worker"),
        id = worker.task() => id,
    };
    server.shutdown.stop();
    let mut stopping = Box::pin(server.handle.shutdown());
    tokio::select! {
        biased;
        () = &mut stopping => panic!("stopped with a task running"),
        _ = &mut call => panic!("answered before its worker"),
        // It had nothing to do.
        told = unregistered.hear() => assert_eq!(told, None),
    }
    worker.answer(&id, "7").await;
    let ((), outcome, told) = tokio::join!(stopping, call, worker.hear());
    assert_eq!(outcome.unwrap().1, Outcome::Succeeded(Payload::json("7")));
    assert_eq!(told, None);
    let closed = tokio::time::timeout(PATIENCE, server.edges).await.unwrap().unwrap();
    assert_eq!(closed.cut, 0);
}

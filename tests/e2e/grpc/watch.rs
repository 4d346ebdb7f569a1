//! Following tasks, also across a broken connection.

use crewcall_sdk::{
    Client, Payload, Watch, WatchEvent,
    proto::{ChunkEvent, TaskFilter, TaskState},
};

use super::{Proxy, adder, client, hold, refusal, soon, start};
use crate::harness::Server;

async fn next(watch: &mut Watch) -> Option<WatchEvent> {
    soon(watch.next()).await.map(Result::unwrap)
}

/// The next state shown, whatever progress and chunks come before it.
async fn state(watch: &mut Watch) -> TaskState {
    loop {
        if let WatchEvent::Task(task) = next(watch).await.expect("the watch ended") {
            return task.state();
        }
    }
}

async fn chunk(watch: &mut Watch) -> ChunkEvent {
    loop {
        if let WatchEvent::Chunk(chunk) = next(watch).await.expect("the watch ended") {
            return chunk;
        }
    }
}

fn piece(text: &str) -> Payload {
    Payload::raw(text.to_owned(), "text/plain")
}

#[tokio::test]
async fn a_watcher_sees_states_progress_chunks_and_the_end() {
    let server = Server::start();
    let client = client(&server).await;
    let id = client.task("held").payload(&()).submit().await.unwrap().task_id;
    let mut watch = client.watch(id.as_str(), "").await.unwrap();
    assert_eq!(state(&mut watch).await, TaskState::Ready);
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let run = held.next().await;
    assert_eq!(state(&mut watch).await, TaskState::Leased);
    run.context.progress(3, 10, "three");
    let Some(WatchEvent::Progress(event)) = next(&mut watch).await else { panic!("no progress") };
    let progress = event.progress.unwrap();
    assert_eq!((event.task_id.as_str(), progress.current, progress.total), (id.as_str(), 3, 10));
    for index in 0..3 {
        run.context.chunk(piece(&format!("piece {index}"))).await.unwrap();
        let chunk = chunk(&mut watch).await;
        assert_eq!((chunk.attempt, chunk.index), (1, index));
        assert_eq!(&chunk.data.unwrap().data[..], format!("piece {index}").as_bytes());
    }
    run.succeed("done");
    assert_eq!(state(&mut watch).await, TaskState::Finished);
    assert_eq!(next(&mut watch).await, None, "the watch ends with its task");
}

#[tokio::test]
async fn a_cursor_goes_on_where_an_earlier_watch_stood() {
    let server = Server::start();
    let client = client(&server).await;
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let id = client.task("held").payload(&()).submit().await.unwrap().task_id;
    let run = held.next().await;
    let mut first = client.watch(id.as_str(), "").await.unwrap();
    for text in ["a", "b", "c"] {
        run.context.chunk(piece(text)).await.unwrap();
    }
    assert_eq!(chunk(&mut first).await.index, 0);
    assert_eq!(chunk(&mut first).await.index, 1);
    let cursor = first.cursor().to_owned();
    drop(first);
    let mut second = client.watch(id.as_str(), cursor).await.unwrap();
    assert_eq!(chunk(&mut second).await.index, 2, "neither again nor left out");
    let mut anew = client.watch(id.as_str(), "").await.unwrap();
    for index in 0..3 {
        assert_eq!(chunk(&mut anew).await.index, index, "without a cursor from the beginning");
    }
    run.succeed(());
    for watch in [&mut second, &mut anew] {
        while next(watch).await.is_some() {}
    }
    let refused = refusal(client.watch(id.as_str(), "not a cursor").await.unwrap_err());
    assert_eq!(refused.reason, "invalid_field");
}

#[tokio::test]
async fn a_watch_survives_its_connection_and_misses_no_chunk() {
    let server = Server::start();
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let near = client(&server).await;
    let id = near.task("held").payload(&()).submit().await.unwrap().task_id;
    let run = held.next().await;
    let wire = Proxy::to(server.address()).await;
    let mut watch = Client::connect(wire.url()).await.unwrap().watch(id.as_str(), "").await.unwrap();
    let mut indexes = Vec::new();
    for round in 0..5 {
        wire.cut();
        for text in ["x", "y"] {
            run.context.chunk(piece(text)).await.unwrap();
        }
        while indexes.len() < (round + 1) * 2 {
            indexes.push(chunk(&mut watch).await.index);
        }
    }
    assert_eq!(indexes, (0..10).collect::<Vec<_>>());
    wire.cut();
    run.succeed(());
    assert_eq!(state_that_ends(&mut watch).await, TaskState::Finished);
    assert_eq!(next(&mut watch).await, None);
}

async fn state_that_ends(watch: &mut Watch) -> TaskState {
    loop {
        let state = state(watch).await;
        if state != TaskState::Leased {
            return state;
        }
    }
}

#[tokio::test]
async fn a_filter_shows_what_matches_now_and_later_and_goes_on_from_its_cursor() {
    let server = Server::start();
    let client = client(&server).await;
    let submit = |method: &'static str| client.task(method).payload(&()).submit();
    let first = submit("wanted").await.unwrap().task_id;
    submit("other").await.unwrap();
    let filter = TaskFilter { method: "wanted".into(), ..TaskFilter::default() };
    let mut watch = client.watch(filter.clone(), "").await.unwrap();
    let seen = async |watch: &mut Watch| match next(watch).await {
        Some(WatchEvent::Task(task)) => task.id,
        other => panic!("{other:?}"),
    };
    assert_eq!(seen(&mut watch).await, first);
    let second = submit("wanted").await.unwrap().task_id;
    submit("other").await.unwrap();
    assert_eq!(seen(&mut watch).await, second);
    let cursor = watch.cursor().to_owned();
    drop(watch);
    let third = submit("wanted").await.unwrap().task_id;
    let mut watch = client.watch(filter, cursor).await.unwrap();
    assert_eq!(seen(&mut watch).await, third, "what came meanwhile, and nothing that was seen");
}

#[tokio::test]
async fn a_watch_of_several_ends_when_all_have() {
    let server = Server::start();
    let client = client(&server).await;
    let (worker, mut held) = hold(adder(&server), "held");
    let _worker = start(worker).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(client.task("held").payload(&()).submit().await.unwrap().task_id);
    }
    let mut watch = client.watch(ids.clone(), "").await.unwrap();
    let runs = [held.next().await, held.next().await, held.next().await];
    for run in runs {
        run.succeed(());
    }
    let mut ended = Vec::new();
    while let Some(event) = next(&mut watch).await {
        if let WatchEvent::Task(task) = event
            && task.state() == TaskState::Finished
        {
            ended.push(task.id);
        }
    }
    ended.sort();
    assert_eq!(ended, ids);
}

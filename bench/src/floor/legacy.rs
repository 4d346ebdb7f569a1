//! A bare server of the legacy messages: `POST /api/execute` answers with an id, `GET /api/result/{id}` is held
//! until the result is there, workers hold a WebSocket. Ids, a map, round robin over the workers, nothing else.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use uuid::Uuid;

/// Allocated for each socket at once; the library's own is 128 KiB.
const BUFFER: usize = 4 << 10;
/// How long a request for a result waits; the product's default.
const HOLD: Duration = Duration::from_secs(4);
/// Messages written to a worker together.
const BATCH: usize = 64;
const SHARDS: usize = 16;

/// Serves until the process ends.
///
/// # Errors
/// When the listener fails.
pub(super) async fn serve(listener: TcpListener) -> io::Result<()> {
    let app = Router::new()
        .route("/api/execute", post(execute))
        .route("/api/result/{id}", get(result))
        .route("/api/worker/connect", any(connect))
        .with_state(Arc::new(Floor::default()));
    axum::serve(super::without_delay(listener), app).await
}

#[derive(Debug, Default)]
struct Floor {
    shards: [Mutex<HashMap<Uuid, Slot>>; SHARDS],
    workers: RwLock<Vec<mpsc::UnboundedSender<Utf8Bytes>>>,
    next: AtomicUsize,
}

#[derive(Debug)]
enum Slot {
    Running,
    Awaited(oneshot::Sender<Box<RawValue>>),
    Done(Box<RawValue>),
}

impl Floor {
    fn shard(&self, id: Uuid) -> &Mutex<HashMap<Uuid, Slot>> {
        let [.., last] = id.into_bytes();
        let [first, ..] = &self.shards;
        self.shards.get(usize::from(last) % SHARDS).unwrap_or(first)
    }

    /// False without a worker.
    fn send(&self, task: Utf8Bytes) -> bool {
        let workers = self.workers.read();
        let turn = self.next.fetch_add(1, Ordering::Relaxed).checked_rem(workers.len());
        turn.and_then(|turn| workers.get(turn)).is_some_and(|worker| worker.send(task).is_ok())
    }

    fn finish(&self, id: Uuid, result: Box<RawValue>) {
        let mut shard = self.shard(id).lock();
        let Some(slot) = shard.get_mut(&id) else { return };
        if let Slot::Awaited(_) = slot {
            if let Some(Slot::Awaited(caller)) = shard.remove(&id) {
                drop(shard);
                // A caller that has gone meanwhile needs no answer.
                caller.send(result).ok();
            }
        } else {
            *slot = Slot::Done(result);
        }
    }
}

#[derive(Deserialize)]
struct Execute<'a> {
    #[serde(borrow)]
    method: &'a RawValue,
    #[serde(borrow)]
    params: &'a RawValue,
}

async fn execute(State(floor): State<Arc<Floor>>, body: Bytes) -> Response {
    let Ok(Execute { method, params }) = serde_json::from_slice(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let id = Uuid::new_v4();
    let task = format!("{{\"method\":{method},\"params\":{params},\"taskId\":\"{id}\",\"type\":\"task\"}}\n");
    floor.shard(id).lock().insert(id, Slot::Running);
    if floor.send(task.into()) {
        answer("null", "processing", id)
    } else {
        floor.shard(id).lock().remove(&id);
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }
}

async fn result(State(floor): State<Arc<Floor>>, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse() else { return StatusCode::NOT_FOUND.into_response() };
    let outcome = {
        let mut shard = floor.shard(id).lock();
        match shard.remove(&id) {
            None => return StatusCode::NOT_FOUND.into_response(),
            Some(Slot::Done(result)) => return answer(result.get(), "done", id),
            Some(Slot::Running | Slot::Awaited(_)) => {
                let (caller, outcome) = oneshot::channel();
                shard.insert(id, Slot::Awaited(caller));
                outcome
            }
        }
    };
    match timeout(HOLD, outcome).await {
        Ok(Ok(result)) => answer(result.get(), "done", id),
        _ => answer("null", "processing", id),
    }
}

fn answer(result: &str, status: &str, id: Uuid) -> Response {
    let body = format!("{{\"result\":{result},\"status\":\"{status}\",\"taskId\":\"{id}\"}}\n");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn connect(State(floor): State<Arc<Floor>>, upgrade: WebSocketUpgrade) -> Response {
    let upgrade = upgrade.read_buffer_size(BUFFER).write_buffer_size(BUFFER);
    upgrade.on_upgrade(|socket| work(floor, socket))
}

async fn work(floor: Arc<Floor>, socket: WebSocket) {
    let (sink, mut stream) = socket.split();
    // The registration, which says nothing that a floor needs.
    if !matches!(stream.next().await, Some(Ok(_))) {
        return;
    }
    let (worker, tasks) = mpsc::unbounded_channel();
    floor.workers.write().push(worker.clone());
    tokio::select! {
        () = write(sink, tasks) => {}
        () = read(&floor, stream) => {}
    }
    floor.workers.write().retain(|other| !other.same_channel(&worker));
}

async fn write(mut sink: SplitSink<WebSocket, Message>, mut tasks: mpsc::UnboundedReceiver<Utf8Bytes>) {
    let mut batch = Vec::with_capacity(BATCH);
    while tasks.recv_many(&mut batch, BATCH).await > 0 {
        for task in batch.drain(..) {
            if sink.feed(Message::Text(task)).await.is_err() {
                return;
            }
        }
        if sink.flush().await.is_err() {
            return;
        }
    }
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(rename = "taskId")]
    id: &'a str,
    result: Box<RawValue>,
}

async fn read(floor: &Floor, mut stream: SplitStream<WebSocket>) {
    while let Some(Ok(message)) = stream.next().await {
        if let Message::Text(text) = message
            && let Ok(Answer { id, result }) = serde_json::from_str(&text)
            && let Ok(id) = id.parse()
        {
            floor.finish(id, result);
        }
    }
}

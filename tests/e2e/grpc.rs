//! gRPC against the real binary: through the SDK, and by hand where the SDK would hide it.

pub(crate) mod by_hand;
mod calls;
mod drain;
mod limits;
mod pipe;
mod processes;
pub(crate) mod proxy;
mod python;
mod races;
mod routing;
mod sessions;
mod share;
mod shutdown;
mod submit;
mod watch;
mod wire;

use std::{
    future::Future,
    time::{SystemTime, UNIX_EPOCH},
};

use crewcall_sdk::{
    CallError, Client, Context, HandlerError, MethodSpec, Refusal, Worker, WorkerBuilder, WorkerHandle,
};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::{Channel, Endpoint};

use crate::harness::{PATIENCE, Server};

pub(crate) use self::{by_hand::Hand, proxy::Proxy, python::Python};

/// What a test waits for, or the end of the test.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it did not happen")
}

/// On the server's clock, which is this machine's.
pub(crate) fn now_ms() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// For the clients generated from `proto/`, where the SDK would hide what is tested.
async fn connect(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).unwrap().connect().await.unwrap()
}

pub(crate) async fn client(server: &Server) -> Client {
    Client::connect(server.url()).await.unwrap()
}

/// A worker that serves `add`.
pub(crate) fn adder(server: &Server) -> WorkerBuilder {
    Worker::builder(server.url()).method("add", add)
}

async fn add(_: Context, terms: Value) -> Result<i64, HandlerError> {
    match (terms["a"].as_i64(), terms["b"].as_i64()) {
        (Some(a), Some(b)) => Ok(a + b),
        _ => Err(HandlerError::new("bad_input", format!("no terms in {terms}")).not_retryable()),
    }
}

pub(crate) async fn start(builder: WorkerBuilder) -> WorkerHandle {
    let worker = builder.build().unwrap().start();
    soon(worker.wait_connected()).await.unwrap();
    worker
}

/// Ends when the server has heard that the handler of a leased task runs.
pub(crate) async fn until_begun(client: &Client, task_id: &str) {
    let begun = "the handler has begun".to_owned();
    soon(async { while !client.explain(task_id).await.unwrap().details.contains(&begun) {} }).await;
}

/// Ends when the server shows no worker of this id.
pub(crate) async fn until_gone(client: &Client, worker_id: &str) {
    soon(async {
        while client.workers().await.unwrap().iter().any(|worker| worker.id == worker_id) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

pub(crate) fn refusal(error: CallError) -> Refusal {
    match error {
        CallError::Refused(refusal) => refusal,
        other => panic!("not a refusal: {other:?}"),
    }
}

/// A handler that ends when and how the test says.
#[derive(Debug)]
pub(crate) struct Held {
    running: mpsc::UnboundedReceiver<Run>,
}

/// One attempt of it.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) context: Context,
    pub(crate) input: Value,
    end: oneshot::Sender<Result<Value, HandlerError>>,
}

/// Adds a method that is held.
pub(crate) fn hold(builder: WorkerBuilder, method: impl Into<MethodSpec>) -> (WorkerBuilder, Held) {
    let (started, running) = mpsc::unbounded_channel();
    let handler = move |context: Context, input: Value| {
        let started = started.clone();
        async move {
            let (end, ended) = oneshot::channel();
            // Fails when the test is over.
            let _ = started.send(Run { context, input, end });
            ended.await?
        }
    };
    (builder.method(method, handler), Held { running })
}

impl Held {
    pub(crate) async fn next(&mut self) -> Run {
        soon(self.running.recv()).await.expect("the worker has gone")
    }
}

impl Run {
    pub(crate) fn succeed(self, value: impl Into<Value>) {
        // The SDK drops a handler that was told to stop and did not.
        let _ = self.end.send(Ok(value.into()));
    }

    pub(crate) fn fail(self, error: HandlerError) {
        let _ = self.end.send(Err(error));
    }

    /// Ends when the worker tells its handler to stop; says why.
    pub(crate) async fn told_to_stop(&self) -> &str {
        soon(self.context.cancelled().cancelled()).await;
        self.context.cancel_reason()
    }
}

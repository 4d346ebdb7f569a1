//! The process with the workers.

use std::time::Duration;

use crewcall_sdk::{
    Context, HandlerError, Payload, Worker, WorkerHandle,
    proto::{
        self, Assign, Credit, Hello, Method, Pool, SessionRequest, SessionResponse, result,
        worker_client::WorkerClient,
    },
};
use tokio::{io::AsyncReadExt as _, sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    BenchError,
    case::{Crew, WorkerKind},
    channel::{MESSAGE_BYTES, connect},
    task,
};

/// What one worker may serve at most, by the server's limit.
const METHODS_PER_WORKER: u32 = 1000;
/// Connections opened at once: the backlog of a listening socket is finite.
const OPENING: usize = 64;

/// Runs a crew until stdin ends. Says `crew is ready` on stdout once all are welcomed.
///
/// # Errors
/// When a worker is refused or its stream breaks.
pub async fn serve(server: &str, crew: &Crew) -> Result<(), BenchError> {
    let mut tasks = JoinSet::new();
    let mut handles: Vec<WorkerHandle> = Vec::new();
    match crew.kind {
        WorkerKind::Sdk => {
            for index in 0..crew.workers {
                handles.push(sdk_worker(server, crew, index)?.start());
            }
            for handle in &handles {
                handle.wait_connected().await.map_err(|error| BenchError::failed("worker", error))?;
            }
        }
        WorkerKind::Bare => {
            let (ready, mut welcomed) = mpsc::unbounded_channel();
            let mut waiting = 0;
            for index in 0..crew.workers {
                tasks.spawn(bare_worker(server.to_owned(), crew.clone(), index, ready.clone()));
                waiting += 1;
                while waiting >= OPENING {
                    one_ready(&mut welcomed, &mut tasks).await?;
                    waiting -= 1;
                }
            }
            for _ in 0..waiting {
                one_ready(&mut welcomed, &mut tasks).await?;
            }
        }
        WorkerKind::Legacy => crate::load::legacy_workers(server, crew, &mut tasks).await?,
    }
    println!("crew is ready");
    let mut end = tokio::io::stdin();
    let mut nothing = [0; 16];
    loop {
        tokio::select! {
            read = end.read(&mut nothing) => match read {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            },
            Some(ended) = tasks.join_next() => {
                ended.map_err(|error| BenchError::failed("worker", error))??;
                return Err(BenchError::failed("worker", "the server ended its stream"));
            }
        }
    }
}

/// A worker has been welcomed; unless one has failed.
async fn one_ready(
    welcomed: &mut mpsc::UnboundedReceiver<()>,
    tasks: &mut JoinSet<Result<(), BenchError>>,
) -> Result<(), BenchError> {
    tokio::select! {
        Some(()) = welcomed.recv() => Ok(()),
        Some(ended) = tasks.join_next() => {
            ended.map_err(|error| BenchError::failed("worker", error))??;
            Err(BenchError::failed("worker", "the server ended its stream"))
        }
    }
}

/// The methods that worker `index` serves: all of them, or its share where one cannot hold them.
fn methods(crew: &Crew, index: u32) -> Vec<String> {
    let mine = |method: &u32| crew.methods <= METHODS_PER_WORKER || method % crew.workers == index;
    (0..crew.methods).filter(mine).map(|method| task::method(crew.first_method + method)).collect()
}

/// Other crews may work for the same server.
fn worker_id(index: u32) -> String {
    format!("bench-{}-{index}", std::process::id())
}

fn sdk_worker(server: &str, crew: &Crew, index: u32) -> Result<Worker, BenchError> {
    let busy = crew.busy;
    let handler = move |_: Context, payload: Payload| async move {
        if !busy.is_zero() {
            tokio::time::sleep(busy).await;
        }
        let sum = task::answer(&payload.data)
            .ok_or_else(|| HandlerError::new("bad_payload", "not a payload of this benchmark"))?;
        Ok::<_, HandlerError>(Payload { data: sum, content_type: String::new() })
    };
    let mut builder = Worker::builder(server).worker_id(worker_id(index)).concurrency(crew.concurrency);
    for method in methods(crew, index) {
        builder = builder.method_raw(method, handler);
    }
    builder.build().map_err(|error| BenchError::failed("worker", error))
}

/// A stream and nothing around it: the results of a frame of assignments go out as one frame, with the credit
/// for as many more.
async fn bare_worker(
    server: String,
    crew: Crew,
    index: u32,
    ready: mpsc::UnboundedSender<()>,
) -> Result<(), BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::failed(format!("worker {index}"), error);
    let mut client = WorkerClient::new(connect(&server).await?).max_decoding_message_size(MESSAGE_BYTES);
    let (sender, frames) = mpsc::unbounded_channel();
    let methods = methods(&crew, index);
    let methods = methods.into_iter().map(|name| Method { name, ..Method::default() }).collect();
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 1,
        worker_id: worker_id(index),
        boot_id: format!("{}", std::process::id()),
        pools: vec![Pool { name: String::new(), concurrency: crew.concurrency }],
        methods,
        ..Hello::default()
    };
    let mut worker = Bare { sender, credit: u64::from(crew.concurrency), seq: 0, busy: crew.busy };
    worker.send(SessionRequest { hello: Some(hello), ..SessionRequest::default() });
    let response =
        client.session(UnboundedReceiverStream::new(frames)).await.map_err(|status| failed(&status))?;
    let mut inbound = response.into_inner();
    let welcome = loop {
        let frame = inbound.message().await.map_err(|status| failed(&status))?;
        let Some(frame) = frame else { return Err(failed(&"the server ended its stream")) };
        if let Some(welcome) = frame.welcome {
            break welcome;
        }
    };
    worker.send(SessionRequest { credits: worker.credits(), ..SessionRequest::default() });
    let _ = ready.send(());
    let beat = Duration::from_millis(welcome.beat_ms.max(1));
    let mut beats = tokio::time::interval(beat);
    loop {
        tokio::select! {
            frame = inbound.message() => match frame.map_err(|status| failed(&status))? {
                Some(frame) => worker.take(frame)?,
                None => return Ok(()),
            },
            _ = beats.tick() => worker.send(SessionRequest {
                // Zeros leave the check of leases out.
                beat: Some(proto::Beat::default()),
                ..SessionRequest::default()
            }),
        }
    }
}

struct Bare {
    sender: mpsc::UnboundedSender<SessionRequest>,
    credit: u64,
    seq: u64,
    busy: Duration,
}

impl Bare {
    /// A closed channel means a broken stream, which the reader will find.
    fn send(&self, frame: SessionRequest) {
        let _ = self.sender.send(frame);
    }

    fn credits(&self) -> Vec<Credit> {
        vec![Credit { pool: String::new(), total: self.credit }]
    }

    fn take(&mut self, frame: SessionResponse) -> Result<(), BenchError> {
        // A caller that has gone took its calls with it; the results of those are of no use any more.
        if let Some(error) = frame.errors.iter().find(|error| error.reason != "stale_lease") {
            return Err(BenchError::failed(
                "worker",
                format!("the server refused a result: {}", error.message),
            ));
        }
        if frame.assign.is_empty() {
            return Ok(());
        }
        let results =
            frame.assign.into_iter().map(|assign| self.run(assign)).collect::<Result<Vec<_>, _>>()?;
        self.credit += results.len() as u64;
        let frame = SessionRequest { results, credits: self.credits(), ..SessionRequest::default() };
        if self.busy.is_zero() {
            self.send(frame);
        } else {
            let (sender, busy) = (self.sender.clone(), self.busy);
            tokio::spawn(async move {
                tokio::time::sleep(busy).await;
                let _ = sender.send(frame);
            });
        }
        Ok(())
    }

    fn run(&mut self, assign: Assign) -> Result<proto::Result, BenchError> {
        let payload = assign.payload.unwrap_or_default();
        let Some(data) = task::answer(&payload.data) else {
            return Err(BenchError::failed("worker", "it was given a payload that nobody sent"));
        };
        self.seq += 1;
        let payload = Payload { data, content_type: String::new() };
        Ok(proto::Result { lease: assign.lease, seq: self.seq, kind: Some(result::Kind::Succeeded(payload)) })
    }
}

//! The legacy protocol: callers that ask until the result is there, and workers on a WebSocket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    BenchError,
    case::{Crew, Extra},
    http1::Connection,
    meter::{Meter, Recorder},
    result::Sample,
    stage::Stage,
    task, websocket,
};

/// Tasks that a worker answers with one write.
const BATCH: usize = 64;

pub(crate) async fn run(
    stage: &mut Stage<'_>,
    in_flight: u32,
    pause: Duration,
    calls: u64,
) -> Result<Sample, BenchError> {
    let meter = Meter::new()?;
    let ledger = Arc::new(Ledger::default());
    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        let caller = Caller {
            connection: Connection::open(stage.url()).await?,
            ledger: Arc::clone(&ledger),
            pause,
            // Whether a result comes twice can be asked only where it does not spoil the figures.
            asks_again: calls > 0,
        };
        let end = if calls > 0 { calls } else { u64::MAX };
        callers.spawn(caller.run(meter.recorder(), end));
    }
    let mut sample = match calls {
        0 => stage.measure(&meter, callers).await?,
        _ => until_done(stage, &meter, callers).await?,
    };
    let extras = [
        (Extra::Lost, &ledger.lost),
        (Extra::Blank, &ledger.blank),
        (Extra::Doubled, &ledger.doubled),
        (Extra::Polls, &ledger.polls),
    ];
    for (name, count) in extras {
        sample.extra.insert(name.as_str().to_owned(), count.load(Ordering::Relaxed) as f64);
    }
    sample.wrong = ledger.wrong();
    Ok(sample)
}

/// Waits for all callers, however long they take; everything counts.
async fn until_done(
    stage: &Stage<'_>,
    meter: &Meter,
    mut callers: JoinSet<Result<(), BenchError>>,
) -> Result<Sample, BenchError> {
    let (cpu, start) = (stage.server.cpu(), Instant::now());
    meter.begin();
    while let Some(ended) = callers.join_next().await {
        ended.map_err(|error| BenchError::failed("caller", error))??;
    }
    meter.end();
    let (calls, seconds) = (meter.calls(), start.elapsed().as_secs_f64());
    let cpu = stage.server.cpu().zip(cpu).filter(|_| calls > 0);
    Ok(Sample {
        calls,
        seconds,
        rate: calls as f64 / seconds,
        latency: meter.latency(),
        server_cpu_ms_per_1000: cpu
            .map(|(after, before)| after.saturating_sub(before).as_secs_f64() * 1e6 / calls as f64),
        server_rss_mib: stage.server.resident().map(|bytes| bytes as f64 / f64::from(1 << 20)),
        ..Sample::default()
    })
}

/// What became of the calls.
#[derive(Debug, Default)]
struct Ledger {
    next: AtomicU64,
    polls: AtomicU64,
    lost: AtomicU64,
    blank: AtomicU64,
    doubled: AtomicU64,
    other: AtomicU64,
}

impl Ledger {
    fn wrong(&self) -> u64 {
        [&self.lost, &self.blank, &self.doubled, &self.other]
            .map(|count| count.load(Ordering::Relaxed))
            .iter()
            .sum()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

struct Caller {
    connection: Connection,
    ledger: Arc<Ledger>,
    pause: Duration,
    asks_again: bool,
}

/// Every answer of the protocol.
#[derive(Deserialize)]
struct Shown<'a> {
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    status: &'a str,
    #[serde(rename = "taskId")]
    id: &'a str,
}

impl Caller {
    async fn run(mut self, mut recorder: Recorder, end: u64) -> Result<(), BenchError> {
        while recorder.goes_on() {
            let number = self.ledger.next.fetch_add(1, Ordering::Relaxed);
            if number >= end {
                break;
            }
            let start = Instant::now();
            let path = self.call(number).await?;
            recorder.record(start);
            if self.asks_again && self.connection.get(&path).await?.status != 404 {
                count(&self.ledger.doubled);
            }
        }
        Ok(())
    }

    /// As the published SDKs do it: whatever the POST says, ask for the result until it is there.
    async fn call(&mut self, number: u64) -> Result<String, BenchError> {
        let mut body = b"{\"method\":\"add\",\"params\":".to_vec();
        body.extend_from_slice(&task::params(number, task::SMALL));
        body.push(b'}');
        let answer = self.connection.post("/api/execute", &body).await?;
        let path = match serde_json::from_slice::<Shown<'_>>(&answer.body) {
            Ok(shown) if answer.status == 200 => format!("/api/result/{}", shown.id),
            _ => {
                return Err(BenchError::failed(
                    "legacy",
                    format_args!("call {number} was answered {answer:?}"),
                ));
            }
        };
        loop {
            let answer = self.connection.get(&path).await?;
            count(&self.ledger.polls);
            if answer.status == 404 {
                count(&self.ledger.lost);
                return Ok(path);
            }
            let Ok(Shown { result, status, .. }) = serde_json::from_slice(&answer.body) else {
                count(&self.ledger.other);
                return Ok(path);
            };
            match (status, result.map(RawValue::get)) {
                ("processing" | "pending", _) => tokio::time::sleep(self.pause).await,
                ("done", None | Some("null")) => {
                    count(&self.ledger.blank);
                    return Ok(path);
                }
                ("done", Some(result)) if task::is_answer(number, result.as_bytes()) => return Ok(path),
                ("error", _) => {
                    count(&self.ledger.lost);
                    return Ok(path);
                }
                _ => {
                    count(&self.ledger.other);
                    return Ok(path);
                }
            }
        }
    }
}

// --- Workers ------------------------------------------------------------------------------------------

/// Starts the workers of a crew, each over its own connection, and returns once all are registered.
pub(crate) async fn workers(
    server: &str,
    crew: &Crew,
    tasks: &mut JoinSet<Result<(), BenchError>>,
) -> Result<(), BenchError> {
    if !crew.busy.is_zero() {
        return Err(BenchError::Usage("legacy workers of a benchmark answer at once".to_owned()));
    }
    let methods: Vec<_> = (0..crew.methods)
        .map(|index| serde_json::json!({"name": task::method(crew.first_method + index), "docs": []}))
        .collect();
    let hello = serde_json::json!({"group": "bench", "methods": methods}).to_string();
    for _ in 0..crew.workers {
        let socket = websocket::open(server, "/api/worker/connect", hello.clone()).await?;
        tasks.spawn(work(socket));
    }
    Ok(())
}

async fn work(socket: websocket::Socket) -> Result<(), BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::failed("worker", error);
    let (mut sink, stream) = socket.split();
    let mut batches = stream.ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        for message in batch {
            if let Message::Text(text) = message.map_err(|error| failed(&error))? {
                let answer = answer(&text).map_err(|why| failed(&why))?;
                sink.feed(Message::text(answer)).await.map_err(|error| failed(&error))?;
            }
        }
        sink.flush().await.map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// What a worker says to a message.
fn answer(text: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Told<'a> {
        r#type: &'a str,
        #[serde(default, rename = "taskId")]
        id: &'a str,
        #[serde(borrow)]
        params: Option<&'a RawValue>,
    }
    let told = serde_json::from_str::<Told<'_>>(text);
    let Told { r#type, id, params } = told.map_err(|error| format!("{error}: {text}"))?;
    if r#type == "ping" {
        return Ok("{\"type\":\"pong\"}".to_owned());
    }
    let sum = params.and_then(|params| task::answer(params.get().as_bytes()));
    let sum = sum.ok_or_else(|| format!("it was given a payload that nobody sent: {text}"))?;
    let sum = String::from_utf8_lossy(&sum);
    Ok(format!("{{\"type\":\"result\",\"taskId\":\"{id}\",\"result\":{sum}}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_answers_tasks_and_pings() {
        assert_eq!(answer("{\"type\":\"ping\"}\n").unwrap(), "{\"type\":\"pong\"}");
        let text = "{\"method\":\"add\",\"params\":{\"a\":1,\"b\":2},\"taskId\":\"x\",\"type\":\"task\"}\n";
        assert_eq!(answer(text).unwrap(), "{\"type\":\"result\",\"taskId\":\"x\",\"result\":3}");
        assert!(answer("{\"type\":\"task\",\"taskId\":\"x\",\"params\":{}}").is_err());
        assert!(answer("hello").is_err());
    }
}

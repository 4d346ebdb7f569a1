//! The same driver as `python/driver.py`, for the Rust SDK.

use std::{
    collections::HashMap,
    error::Error,
    io::Write,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use go_server_rust_sdk::{
    scheduler::{Client, RetryClient},
    worker::{call, Config, Worker},
    SdkError,
};
use serde_json::{json, Value};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::{mpsc, Semaphore},
    task::JoinHandle,
};

type Answer = Result<Value, Box<dyn Error + Send + Sync>>;
type Workers = Arc<Mutex<HashMap<String, JoinHandle<()>>>>;

const TIMEOUT: Duration = Duration::from_secs(30);

/// The SDK tells how its connection fares in the log only.
struct Log(mpsc::UnboundedSender<String>);

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        if record.target().starts_with("go_server_rust_sdk") {
            let _ = self.0.send(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn say(message: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{message}").and_then(|()| out.flush());
}

fn failed(text: impl Into<String>) -> SdkError {
    SdkError::Generic(text.into())
}

fn add(params: &Value) -> Value {
    match (params["a"].as_i64(), params["b"].as_i64()) {
        (Some(a), Some(b)) => json!(a + b),
        _ => json!(params["a"].as_f64().unwrap_or(0.0) + params["b"].as_f64().unwrap_or(0.0)),
    }
}

fn new_worker(url: &str, name: &str, prefix: &str) -> Worker {
    let mut worker = Worker::new(Config {
        scheduler_url: url.into(),
        worker_group: name.into(),
        max_retry: 1,
        ping_interval: 30,
    });
    let method = |name: &str| format!("{prefix}.{name}");
    let docs = || vec!["in Rust".to_owned()];
    worker.register_method(method("add"), |params| Ok(add(&params)), docs());
    worker.register_method(method("echo"), Ok, docs());
    worker.register_method(method("nothing"), |_| Ok(Value::Null), docs());
    worker.register_method(method("fail"), |_| Err(failed("out of paper")), docs());
    worker.register_method(
        method("slow10ms"),
        |params| {
            std::thread::sleep(Duration::from_millis(10));
            Ok(add(&params))
        },
        docs(),
    );
    worker.register_method(
        method("odd"),
        |params| match params.as_i64().unwrap_or(0) {
            n if n % 10 == 0 => Err(failed(format!("no {n}"))),
            n => Ok(json!(2 * n + 1)),
        },
        docs(),
    );
    worker
}

/// Text of a member, empty when there is none.
fn text(request: &Value, name: &str) -> String {
    request[name].as_str().unwrap_or_default().to_owned()
}

async fn serve(request: &Value, workers: &Workers) -> Answer {
    let (url, method, name) = (text(request, "url"), text(request, "method"), text(request, "name"));
    let (params, key) = (request["params"].clone(), text(request, "key"));
    let salt = request["salt"].as_i64().unwrap_or(0) as i32;
    let delay = Duration::from_secs_f64(request["delay"].as_f64().unwrap_or(0.1));
    let retries = request["retries"].as_u64().unwrap_or(3) as usize;
    match request["op"].as_str().unwrap_or_default() {
        "work" => {
            let prefix = request["prefix"].as_str().unwrap_or(&name).to_owned();
            let mut worker = new_worker(&url, &name, &prefix);
            // Methods are added by tasks that the SDK spawns and nobody can wait for.
            for _ in 0..64 {
                tokio::task::yield_now().await;
            }
            let label = name.clone();
            let running = tokio::spawn(async move {
                let end = worker.start().await.map_err(|error| error.to_string());
                say(&json!({"event": "ended", "name": label, "text": end.err()}));
            });
            workers.lock().unwrap().insert(name, running);
            Ok(json!(true))
        }
        "stop" => {
            if let Some(worker) = workers.lock().unwrap().remove(&name) {
                worker.abort();
            }
            Ok(json!(true))
        }
        "execute" => {
            let response = Client::new(url).execute(method, params).await?;
            Ok(json!({"taskId": response.task_id, "status": response.status, "result": response.result}))
        }
        "get_result" => {
            let response = Client::new(url).get_result(&text(request, "task")).await?;
            Ok(json!({"taskId": response.task_id, "status": response.status, "result": response.result}))
        }
        "execute_sync" => {
            let timeout = Duration::from_secs_f64(request["timeout"].as_f64().unwrap_or(30.0));
            Ok(json!(Client::new(url).execute_sync(method, params, timeout).await?.result))
        }
        "call" => Ok(call(&url, &method, params).await?),
        "retry" => {
            let client = RetryClient::new(url, retries, delay);
            Ok(json!(client.execute_sync_with_retry(method, params, TIMEOUT).await?.result))
        }
        "encrypted" => {
            let client = Client::new(url);
            Ok(json!(client.execute_sync_encrypted(method, &key, salt, params, TIMEOUT).await?.result))
        }
        "retry_encrypted" => {
            let client = RetryClient::new(url, retries, delay);
            let done = client.execute_sync_encrypted_with_retry(method, &key, salt, params, TIMEOUT).await?;
            Ok(json!(done.result))
        }
        "bench" => {
            let client = Client::new(url);
            let mut times = Vec::new();
            for _ in 0..request["count"].as_u64().unwrap_or(30) {
                let began = Instant::now();
                client.execute_sync(method.as_str(), params.clone(), TIMEOUT).await?;
                times.push(began.elapsed().as_secs_f64() * 1000.0);
            }
            Ok(json!(times))
        }
        "many" => many(request, url, method).await,
        other => Err(format!("no operation {other:?}").into()),
    }
}

async fn many(request: &Value, url: String, method: String) -> Answer {
    let start = request["start"].as_i64().unwrap_or(0);
    let count = request["count"].as_i64().unwrap_or(0);
    let room = Arc::new(Semaphore::new(request["concurrency"].as_u64().unwrap_or(1) as usize));
    let client = Client::new(url);
    let mut running = Vec::new();
    for n in start..start + count {
        let permit = room.clone().acquire_owned().await?;
        let (client, method) = (client.clone(), method.clone());
        running.push(tokio::spawn(async move {
            let answer = client.execute_sync(method, json!(n), TIMEOUT).await;
            drop(permit);
            match answer {
                Ok(response) => json!([n, {"ok": response.result}]),
                Err(error) => json!([n, {"error": error.to_string()}]),
            }
        }));
    }
    let mut answers = Vec::new();
    for one in running {
        answers.push(one.await?);
    }
    Ok(json!(answers))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (sender, mut lines) = mpsc::unbounded_channel();
    log::set_boxed_logger(Box::new(Log(sender)))?;
    log::set_max_level(log::LevelFilter::Info);
    tokio::spawn(async move {
        while let Some(text) = lines.recv().await {
            say(&json!({"event": "log", "text": text}));
        }
    });
    let workers = Workers::default();
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    say(&json!({"event": "up"}));
    while let Some(line) = input.next_line().await? {
        let request: Value = serde_json::from_str(&line)?;
        let workers = workers.clone();
        tokio::spawn(async move {
            match serve(&request, &workers).await {
                Ok(value) => say(&json!({"id": request["id"], "ok": value})),
                Err(error) => say(&json!({"id": request["id"], "error": error.to_string()})),
            }
        });
    }
    std::process::exit(0)
}

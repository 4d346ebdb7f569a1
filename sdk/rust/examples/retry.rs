//! A method that fails twice and then succeeds, and a task that is patient enough. Brings its own worker.
use std::time::Duration;

use crewcall_sdk::options::RetryPolicy;
use crewcall_sdk::proto::{TaskState, outcome};
use crewcall_sdk::{Client, Context, HandlerError, Worker};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("CREWCALL_SERVER").unwrap_or_else(|_| "http://127.0.0.1:8080".into());
    let worker = Worker::builder(&server)
        .method("sample.flaky", |context: Context, (): ()| async move {
            if context.attempt() < 3 {
                return Err(HandlerError::new("not_yet", format!("attempt {}", context.attempt())));
            }
            Ok(context.attempt())
        })
        .build()?
        .start();
    worker.wait_connected().await?;

    let client = Client::connect(&server).await?;
    let submitted = client
        .task("sample.flaky")
        .payload(&())
        .retry(RetryPolicy { max_attempts: 5, initial_backoff_ms: 100, max_backoff_ms: 1000 })
        .submit()
        .await?;
    let task = client.get_wait(&submitted.task_id, Duration::from_secs(30)).await?;
    for attempt in &task.attempts {
        let message = attempt.error.as_ref().map_or("", |error| &error.message);
        println!("attempt {} failed: {message}", attempt.number);
    }
    match (task.state(), task.outcome.and_then(|outcome| outcome.kind)) {
        (TaskState::Finished, Some(outcome::Kind::Succeeded(result))) => {
            println!("succeeded at attempt {}", result.decode::<u32>()?);
        }
        (state, outcome) => return Err(format!("ended as {state:?}: {outcome:?}").into()),
    }
    worker.stop().await?;
    Ok(())
}

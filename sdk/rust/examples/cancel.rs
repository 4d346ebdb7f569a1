//! Cancels a task while it runs; its handler hears of it and stops. Brings its own worker.
use crewcall_sdk::proto::TaskState;
use crewcall_sdk::{Client, Context, HandlerError, WatchEvent, Worker};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("CREWCALL_SERVER").unwrap_or_else(|_| "http://127.0.0.1:8080".into());
    let worker = Worker::builder(&server)
        .method("sample.endless", |context: Context, (): ()| async move {
            context.progress(0, 0, "waiting to be cancelled");
            context.cancelled().cancelled().await;
            println!("the handler stops: {}", context.cancel_reason());
            Err::<(), _>(HandlerError::cancelled())
        })
        .build()?
        .start();
    worker.wait_connected().await?;

    let client = Client::connect(&server).await?;
    let submitted = client.task("sample.endless").payload(&()).submit().await?;
    let mut watch = client.watch(submitted.task_id.as_str(), "").await?;
    let mut cancelled = false;
    while let Some(event) = watch.next().await {
        let event = event?;
        // What the handler said before the watch began comes with the task itself.
        let running = match &event {
            WatchEvent::Progress(_) => true,
            WatchEvent::Task(task) => task.state() == TaskState::Leased && task.progress.is_some(),
            WatchEvent::Chunk(_) => false,
        };
        if running && !cancelled {
            cancelled = true;
            client.cancel(&submitted.task_id, "changed my mind").await?;
        }
        if let WatchEvent::Task(task) = event
            && task.state() == TaskState::Cancelled
        {
            println!("the task is cancelled");
        }
    }
    worker.stop().await?;
    Ok(())
}

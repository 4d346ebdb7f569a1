//! Calls `add` and prints the sum. Needs `crewcall dev`, or a scheduler and the `worker` sample.
use crewcall_sdk::Client;
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("CREWCALL_SERVER").unwrap_or_else(|_| "http://127.0.0.1:8080".into());
    let client = Client::connect(server).await?;

    let sum: i64 = client.call("add", &json!({"a": 1, "b": 2})).await?;
    println!("1 + 2 = {sum}");

    // Many calls at once go over one stream.
    let pipe = client.pipe();
    let calls = (0..10).map(|n| {
        let pipe = pipe.clone();
        async move { pipe.call::<_, i64>("add", &json!({"a": n, "b": n})).await }
    });
    let sums = futures_util::future::try_join_all(calls).await?;
    println!("doubled: {sums:?}");
    Ok(())
}

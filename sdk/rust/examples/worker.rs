//! Serves `add` until ctrl-c or SIGTERM, then finishes what it has and leaves.
use crewcall_sdk::{Context, HandlerError, MethodSpec, Worker};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Terms {
    a: i64,
    b: i64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::var("CREWCALL_SERVER").unwrap_or_else(|_| "http://127.0.0.1:8080".into());
    let add = MethodSpec::new("add")
        .version("1.0.0")
        .summary("Adds two whole numbers")
        .example(&Terms { a: 1, b: 2 });
    Worker::builder(server)
        .concurrency(100)
        .method_with(add, |_context: Context, terms: Terms| async move {
            terms.a.checked_add(terms.b).ok_or_else(|| {
                HandlerError::new("overflow", "the sum does not fit into 64 bits").not_retryable()
            })
        })
        .build()?
        .run_until_signal()
        .await?;
    Ok(())
}

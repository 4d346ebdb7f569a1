//! The worker inside `crewcall dev`: one method for each thing that one wants to see at work.

use std::time::Duration;

use crewcall_sdk::{Context, HandlerError, MethodSpec, Payload, Worker, WorkerBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

const VERSION: &str = "1.0.0";

/// A number, whole as long as it can be: 1 + 2 is 3, not 3.0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Number {
    Whole(i64),
    Real(f64),
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Operands {
    a: Number,
    b: Number,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sleep {
    /// Milliseconds.
    ms: u64,
}

#[derive(Serialize, JsonSchema)]
struct Slept {
    slept_ms: u64,
}

#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Fail {
    /// For people.
    message: String,
    /// For programs.
    code: String,
    /// False: no further attempt, whatever the task's retry policy says.
    retryable: bool,
    /// When to try again; 0: as the policy says.
    retry_after_ms: u64,
    /// Succeeds from this attempt on; 0: never.
    succeed_at_attempt: u32,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Countdown {
    /// Where to start.
    n: u32,
    /// Milliseconds between two numbers.
    #[serde(default = "between")]
    every_ms: u64,
}

impl Default for Fail {
    fn default() -> Self {
        Self {
            message: "failed as asked".to_owned(),
            code: "sample_failure".to_owned(),
            retryable: true,
            retry_after_ms: 0,
            succeed_at_attempt: 0,
        }
    }
}

fn between() -> u64 {
    500
}

/// The worker, to be built.
pub(super) fn worker(server: String) -> WorkerBuilder {
    let add = spec("add", "Adds two numbers")
        .docs("Whole numbers stay whole. A sum beyond 64 bits fails with `overflow`.")
        .example(&json!({"a": 1, "b": 2}));
    let multiply = spec("multiply", "Multiplies two numbers")
        .docs("Whole numbers stay whole. A product beyond 64 bits fails with `overflow`.")
        .example(&json!({"a": 6, "b": 7}));
    let echo = spec("echo", "Returns what it is given")
        .docs("Byte for byte, whatever its media type.")
        .input_schema("true")
        .output_schema("true")
        .example(&json!({"hello": ["world", 9_007_199_254_740_993_u64]}));
    let sleep = spec("sleep", "Returns after a while")
        .docs("Stops at once when it is cancelled: try `crewcall cancel`.")
        .example(&json!({"ms": 1000}));
    let fail = spec("fail", "Fails, as told")
        .docs(
            "Shows errors and retries: with `succeed_at_attempt` it fails until that attempt. A call has one attempt \
             unless it asks for more: `crewcall call fail '{\"succeed_at_attempt\":3}' --retry 5`.",
        )
        .example(&json!({"message": "out of paper", "code": "printer", "retryable": false}))
        .example(&json!({"succeed_at_attempt": 3}));
    let countdown = spec("countdown", "Counts down to zero")
        .docs("Reports progress, and sends each number ahead as a chunk: try `crewcall watch`.")
        .example(&json!({"n": 10, "every_ms": 500}));
    Worker::builder(server)
        .worker_id("dev")
        .group("dev")
        .version(env!("CARGO_PKG_VERSION"))
        .method(add, |_: Context, operands: Operands| async move { sum(operands) })
        .method(multiply, |_: Context, operands: Operands| async move { product(operands) })
        .method_raw(echo, |_, payload| async move { Ok::<_, HandlerError>(payload) })
        .method(sleep, |context: Context, Sleep { ms }| async move {
            pause(&context, ms).await?;
            Ok::<_, HandlerError>(Slept { slept_ms: ms })
        })
        .method(fail, |context: Context, how: Fail| async move { failure(context.attempt(), how) })
        .method(countdown, |context: Context, Countdown { n, every_ms }| async move {
            for left in (1..=n).rev() {
                context.progress(u64::from(n - left), u64::from(n), format!("{left} to go"));
                context.chunk(Payload::raw(left.to_string(), "")).await?;
                pause(&context, every_ms).await?;
            }
            context.progress(u64::from(n), u64::from(n), "done");
            Ok::<_, HandlerError>("liftoff")
        })
}

fn spec(name: &str, summary: &str) -> MethodSpec {
    MethodSpec::new(name).version(VERSION).summary(summary)
}

fn sum(Operands { a, b }: Operands) -> Result<Number, HandlerError> {
    match (a, b) {
        (Number::Whole(a), Number::Whole(b)) => {
            a.checked_add(b).map(Number::Whole).ok_or_else(|| overflow("sum"))
        }
        _ => finite(a.real() + b.real(), "sum"),
    }
}

fn product(Operands { a, b }: Operands) -> Result<Number, HandlerError> {
    match (a, b) {
        (Number::Whole(a), Number::Whole(b)) => {
            a.checked_mul(b).map(Number::Whole).ok_or_else(|| overflow("product"))
        }
        _ => finite(a.real() * b.real(), "product"),
    }
}

impl Number {
    fn real(self) -> f64 {
        match self {
            Self::Whole(number) => number as f64,
            Self::Real(number) => number,
        }
    }
}

/// JSON has no infinity: it would be written as null.
fn finite(number: f64, what: &str) -> Result<Number, HandlerError> {
    if number.is_finite() { Ok(Number::Real(number)) } else { Err(overflow(what)) }
}

fn overflow(what: &str) -> HandlerError {
    HandlerError::new("overflow", format!("the {what} does not fit into 64 bits")).not_retryable()
}

fn failure(attempt: u32, how: Fail) -> Result<String, HandlerError> {
    if how.succeed_at_attempt > 0 && attempt >= how.succeed_at_attempt {
        return Ok(format!("succeeded at attempt {attempt}"));
    }
    let mut error = HandlerError::new(how.code, how.message);
    if !how.retryable {
        error = error.not_retryable();
    }
    if how.retry_after_ms > 0 {
        error = error.retry_after(Duration::from_millis(how.retry_after_ms));
    }
    Err(error)
}

async fn pause(context: &Context, ms: u64) -> Result<(), HandlerError> {
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(ms)) => Ok(()),
        () = context.cancelled().cancelled() => Err(HandlerError::cancelled()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_stay_whole() {
        let two = |a, b| Operands { a, b };
        let (one, half) = (Number::Whole(1), Number::Real(0.5));
        assert_eq!(sum(two(one, Number::Whole(2))).unwrap(), Number::Whole(3));
        assert_eq!(sum(two(one, half)).unwrap(), Number::Real(1.5));
        assert_eq!(product(two(Number::Whole(6), Number::Whole(7))).unwrap(), Number::Whole(42));
        assert_eq!(sum(two(Number::Whole(i64::MAX), one)).unwrap_err().code, "overflow");
        assert_eq!(product(two(Number::Real(f64::MAX), Number::Real(2.0))).unwrap_err().code, "overflow");
    }

    #[test]
    fn it_fails_until_told_to_succeed() {
        let how = || Fail { succeed_at_attempt: 2, ..Fail::default() };
        assert_eq!(failure(1, how()).unwrap_err().code, "sample_failure");
        assert_eq!(failure(2, how()).unwrap(), "succeeded at attempt 2");
    }

    #[tokio::test]
    async fn the_worker_can_be_built() {
        worker("127.0.0.1:1".to_owned()).build().unwrap();
    }
}

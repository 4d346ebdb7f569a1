//! One gRPC request for each call.

use std::time::Instant;

use crewcall_sdk::{Client, proto::outcome};
use tokio::task::JoinSet;

use crate::{BenchError, meter::Meter, result::Sample, stage::Stage, task};

pub(crate) async fn run(
    stage: &mut Stage<'_>,
    in_flight: u32,
    connections: u32,
) -> Result<Sample, BenchError> {
    let meter = Meter::new()?;
    let mut callers = JoinSet::new();
    let failed = |error: &dyn std::fmt::Display| BenchError::failed("call", error);
    let mut clients = Vec::new();
    for _ in 0..connections.max(1) {
        clients.push(Client::connect(stage.url()).await.map_err(|error| failed(&error))?);
    }
    for (slot, client) in (0..in_flight).zip(clients.iter().cycle()) {
        let (client, mut recorder) = (client.clone(), meter.recorder());
        callers.spawn(async move {
            let mut number = u64::from(slot);
            while recorder.goes_on() {
                let start = Instant::now();
                let answer = client.call_outcome(task::task("add", number, task::SMALL, false)).await;
                recorder.record(start);
                let kind = answer.map_err(|error| failed(&error))?.outcome.and_then(|outcome| outcome.kind);
                match &kind {
                    Some(outcome::Kind::Succeeded(result)) if task::is_answer(number, &result.data) => {}
                    other => return Err(failed(&format_args!("call {number} was answered {other:?}"))),
                }
                number += u64::from(in_flight);
            }
            Ok(())
        });
    }
    stage.measure(&meter, callers).await
}

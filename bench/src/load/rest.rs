//! `POST /v1/call/add`, each caller over its own connection.

use std::time::Instant;

use tokio::task::JoinSet;

use crate::{BenchError, http1::Connection, meter::Meter, result::Sample, stage::Stage, task};

pub(crate) async fn run(stage: &mut Stage<'_>, in_flight: u32) -> Result<Sample, BenchError> {
    let meter = Meter::new()?;
    let mut callers = JoinSet::new();
    for slot in 0..in_flight {
        let mut connection = Connection::open(stage.url()).await?;
        let mut recorder = meter.recorder();
        callers.spawn(async move {
            let mut number = u64::from(slot);
            while recorder.goes_on() {
                let start = Instant::now();
                let answer = connection.post("/v1/call/add", &task::params(number, task::SMALL)).await?;
                recorder.record(start);
                if answer.status != 200 || !task::is_answer(number, &answer.body) {
                    return Err(BenchError::failed(
                        "rest",
                        format_args!("call {number} was answered {answer:?}"),
                    ));
                }
                number += u64::from(in_flight);
            }
            Ok(())
        });
    }
    stage.measure(&meter, callers).await
}

//! Many calls over one stream.

use std::time::Instant;

use crewcall_sdk::{
    Client,
    proto::{PipeCall, PipeOutcome, PipeRequest, tasks_client::TasksClient},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    BenchError,
    case::{Caller, Server},
    channel::{MESSAGE_BYTES, connect},
    load::PendingPipe,
    meter::{Meter, Recorder},
    result::Sample,
    stage::Stage,
    task,
};

/// Calls in one frame of a bare window. More would turn client, server and worker into one that works while the
/// others wait.
const FRAME_CALLS: usize = 64;

/// Where an answer belongs.
struct Slot {
    number: u64,
    start: Instant,
}

pub(crate) async fn run(
    stage: &mut Stage<'_>,
    caller: Caller,
    in_flight: u32,
    durable: bool,
) -> Result<Sample, BenchError> {
    let meter = Meter::new()?;
    let mut callers = JoinSet::new();
    let size = if durable { task::STORED } else { task::SMALL };
    let work = Work { methods: stage.methods(), size, durable };
    match caller {
        Caller::Awaited if matches!(stage.arm.server, Server::Floor(_)) => {
            awaited_bare(stage.url(), in_flight, &work, &meter, &mut callers).await?;
        }
        Caller::Awaited => awaited(stage.url(), in_flight, &work, &meter, &mut callers).await?,
        Caller::Window => {
            callers.spawn(window(stage.url().to_owned(), in_flight, work, meter.recorder()));
        }
    }
    stage.measure(&meter, callers).await
}

/// What is called.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) methods: Vec<String>,
    pub(super) size: usize,
    pub(super) durable: bool,
}

impl Work {
    fn task(&self, number: u64) -> crewcall_sdk::NewTask {
        let index = usize::try_from(number).unwrap_or(0) % self.methods.len().max(1);
        let method = self.methods.get(index).map_or("add", String::as_str);
        task::task(method, number, self.size, self.durable)
    }
}

/// Calls over one pipe of the SDK, each awaited.
pub(super) async fn awaited(
    url: &str,
    in_flight: u32,
    work: &Work,
    meter: &Meter,
    callers: &mut JoinSet<Result<(), BenchError>>,
) -> Result<(), BenchError> {
    let client = Client::connect(url).await.map_err(|error| BenchError::failed("pipe", error))?;
    let pipe = client.pipe();
    let call = move |task| {
        let pipe = pipe.clone();
        async move { pipe.call_raw(task).outcome().await.map_err(|error| BenchError::failed("pipe", error)) }
    };
    await_each(in_flight, work, meter, callers, &call);
    Ok(())
}

/// The same for a floor, whose limit an SDK would hide.
async fn awaited_bare(
    url: &str,
    in_flight: u32,
    work: &Work,
    meter: &Meter,
    callers: &mut JoinSet<Result<(), BenchError>>,
) -> Result<(), BenchError> {
    let pipe = PendingPipe::open(url).await?;
    let call = move |task| {
        let pipe = pipe.clone();
        async move { pipe.call(task).await }
    };
    await_each(in_flight, work, meter, callers, &call);
    Ok(())
}

/// A task for each call in flight, which makes the next one when it has the answer.
fn await_each<C, F>(
    in_flight: u32,
    work: &Work,
    meter: &Meter,
    callers: &mut JoinSet<Result<(), BenchError>>,
    call: &C,
) where
    C: Fn(crewcall_sdk::NewTask) -> F + Clone + Send + 'static,
    F: Future<Output = Result<PipeOutcome, BenchError>> + Send,
{
    for slot in 0..u64::from(in_flight) {
        let (call, work, mut recorder) = (call.clone(), work.clone(), meter.recorder());
        callers.spawn(async move {
            let mut number = slot;
            while recorder.goes_on() {
                let start = Instant::now();
                let reply = call(work.task(number)).await;
                recorder.record(start);
                task::check(number, &reply?).map_err(|why| BenchError::failed("pipe", why))?;
                number += u64::from(in_flight);
            }
            Ok(())
        });
    }
}

/// Bare slots on the stream: each answer makes the next call of its slot.
pub(super) async fn window(
    url: String,
    in_flight: u32,
    work: Work,
    mut recorder: Recorder,
) -> Result<(), BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::failed("window", error);
    let mut client = TasksClient::new(connect(&url).await?).max_decoding_message_size(MESSAGE_BYTES);
    let (sender, frames) = mpsc::unbounded_channel();
    let mut slots = Vec::new();
    let mut numbers = 0..;
    let mut call = |slots: &mut Vec<Slot>, id: usize| {
        let number = numbers.next().unwrap_or(0);
        let slot = Slot { number, start: Instant::now() };
        match slots.get_mut(id) {
            Some(old) => *old = slot,
            None => slots.push(slot),
        }
        PipeCall { call_id: id as u64, task: Some(work.task(number)) }
    };
    let send = |calls: Vec<PipeCall>| {
        // A closed channel means a broken stream, which the reader finds.
        let _ = sender.send(PipeRequest { calls, cancels: Vec::new() });
    };
    let first: Vec<usize> = (0..in_flight as usize).collect();
    for ids in first.chunks(FRAME_CALLS) {
        send(ids.iter().map(|id| call(&mut slots, *id)).collect());
    }
    let response =
        client.pipe(UnboundedReceiverStream::new(frames)).await.map_err(|status| failed(&status))?;
    let mut inbound = response.into_inner();
    while recorder.goes_on() {
        let frame = inbound.message().await.map_err(|status| failed(&status))?;
        let Some(frame) = frame else { return Err(failed(&"the server ended the stream")) };
        for outcomes in frame.outcomes.chunks(FRAME_CALLS) {
            let mut calls = Vec::with_capacity(outcomes.len());
            for outcome in outcomes {
                let id = usize::try_from(outcome.call_id).unwrap_or(usize::MAX);
                let Some(slot) = slots.get(id) else {
                    return Err(failed(&format_args!("an answer to call {id}, which was never made")));
                };
                recorder.record(slot.start);
                task::check(slot.number, outcome).map_err(|why| failed(&why))?;
                calls.push(call(&mut slots, id));
            }
            send(calls);
        }
    }
    Ok(())
}

//! Connections that say hello and nothing more; their memory at the server.

use std::future::Future;
use std::time::Duration;

use crewcall_sdk::proto::worker_client::WorkerClient;
use crewcall_sdk::proto::{Beat, Hello, Method, SessionRequest};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_tungstenite::tungstenite::Message;
use tonic::transport::Endpoint;

use crate::{
    BenchError,
    case::{Extra, IdleKind},
    result::Sample,
    stage::Stage,
    websocket,
};

/// Opened before memory is first looked at: what the server sets up once is not the connections' share.
const FIRST: u32 = 100;
/// Opened at the same time: the backlog of a listening socket is finite.
const OPENING: usize = 64;

pub(crate) async fn run(
    stage: &mut Stage<'_>,
    kind: IdleKind,
    connections: u32,
) -> Result<Sample, BenchError> {
    let mut held = JoinSet::new();
    let first = FIRST.min(connections / 2);
    open(stage, kind, 0..first, &mut held).await?;
    let before = settled(stage, &mut held).await?;
    open(stage, kind, first..connections, &mut held).await?;
    let after = settled(stage, &mut held).await?;
    let share = after.saturating_sub(before) as f64 / f64::from(connections - first);
    let mut sample = Sample { server_rss_mib: Some(after as f64 / f64::from(1 << 20)), ..Sample::default() };
    sample.extra.insert(Extra::KibEach.as_str().to_owned(), share / 1024.0);
    Ok(sample)
}

/// The server's memory after everybody has been idle for a while; none of them may leave meanwhile.
async fn settled(stage: &Stage<'_>, held: &mut JoinSet<Result<(), BenchError>>) -> Result<u64, BenchError> {
    tokio::select! {
        () = tokio::time::sleep(stage.settings.seconds) => {}
        Some(ended) = held.join_next() => {
            ended.map_err(|error| BenchError::failed("idle worker", error))??;
            return Err(BenchError::failed("idle worker", "the server ended its connection"));
        }
    }
    stage.server.resident().ok_or_else(|| {
        BenchError::Usage(
            "the memory of a server elsewhere, or of this system's processes, is not known".to_owned(),
        )
    })
}

async fn open(
    stage: &Stage<'_>,
    kind: IdleKind,
    indices: std::ops::Range<u32>,
    held: &mut JoinSet<Result<(), BenchError>>,
) -> Result<(), BenchError> {
    let mut opening = futures_util::stream::iter(indices)
        .map(|index| connect(stage.url(), kind, index))
        .buffer_unordered(OPENING);
    while let Some(worker) = opening.next().await {
        held.spawn(worker?);
    }
    Ok(())
}

type Idle = std::pin::Pin<Box<dyn Future<Output = Result<(), BenchError>> + Send>>;

/// One worker, registered. What it yields keeps it alive, and ends with its connection.
async fn connect(url: &str, kind: IdleKind, index: u32) -> Result<Idle, BenchError> {
    Ok(match kind {
        IdleKind::Grpc => session(url, index).await?,
        IdleKind::Websocket => {
            let hello = format!(
                "{{\"hello\":{{\"worker_id\":\"idle-{index}\",\"pools\":[{{\"concurrency\":1}}],\
                 \"methods\":[{{\"name\":\"add\"}}]}},\"credits\":[{{\"total\":1}}]}}"
            );
            hold(websocket::open(url, "/v1/worker", hello).await?)
        }
        IdleKind::Legacy => {
            let hello = "{\"group\":\"idle\",\"methods\":[{\"name\":\"add\",\"docs\":[]}]}".to_owned();
            hold(websocket::open(url, "/api/worker/connect", hello).await?)
        }
    })
}

/// Reading answers the server's pings.
fn hold(mut socket: websocket::Socket) -> Idle {
    Box::pin(async move {
        while let Some(message) = socket.next().await {
            if let Message::Close(frame) =
                message.map_err(|error| BenchError::failed("idle worker", error))?
            {
                return Err(BenchError::failed("idle worker", format_args!("closed: {frame:?}")));
            }
        }
        Ok(())
    })
}

async fn session(url: &str, index: u32) -> Result<Idle, BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::failed("idle worker", error);
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| failed(&error))?;
    let channel = endpoint.tcp_nodelay(true).connect().await.map_err(|error| failed(&error))?;
    let (sender, frames) = mpsc::unbounded_channel();
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 1,
        worker_id: format!("idle-{index}"),
        boot_id: index.to_string(),
        methods: vec![Method { name: "add".to_owned(), ..Method::default() }],
        ..Hello::default()
    };
    let say = |frame| sender.send(frame).map_err(|_| failed(&"the server ended its stream"));
    say(SessionRequest { hello: Some(hello), ..SessionRequest::default() })?;
    let session = WorkerClient::new(channel).session(UnboundedReceiverStream::new(frames)).await;
    let mut inbound = session.map_err(|status| failed(&status))?.into_inner();
    let first = inbound.message().await.map_err(|status| failed(&status))?;
    let welcome = first.and_then(|frame| frame.welcome).ok_or_else(|| failed(&"it was not welcomed"))?;
    Ok(Box::pin(async move {
        // A little early: "at least this often".
        let mut beats = tokio::time::interval(Duration::from_millis(welcome.beat_ms.max(10)).mul_f64(0.8));
        loop {
            tokio::select! {
                frame = inbound.message() => {
                    if frame.map_err(|status| failed(&status))?.is_none() {
                        return Ok(());
                    }
                }
                _ = beats.tick() => {
                    let beat = Some(Beat::default());
                    sender
                        .send(SessionRequest { beat, ..SessionRequest::default() })
                        .map_err(|_| failed(&"the server ended its stream"))?;
                }
            }
        }
    }))
}

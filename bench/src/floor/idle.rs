//! Servers of workers that do nothing: what a connection costs that is only held.

use std::io;

use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::Response;
use crewcall::proto;
use crewcall::proto::worker_server::{Worker, WorkerServer};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response as Answer, Status, Streaming};

/// As small as the product's; the library's own is 128 KiB.
const BUFFER: usize = 4 << 10;

/// Sessions that are welcomed and then held.
///
/// # Errors
/// When the listener fails.
pub(super) async fn serve_grpc(listener: TcpListener) -> io::Result<()> {
    Server::builder()
        .add_service(WorkerServer::new(Host))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
        .map_err(io::Error::other)
}

struct Host;

#[tonic::async_trait]
impl Worker for Host {
    type SessionStream = BoxStream<'static, Result<proto::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::SessionRequest>>,
    ) -> Result<Answer<Self::SessionStream>, Status> {
        let welcome = proto::Welcome { protocol: 1, beat_ms: 10_000, lease_ms: 60_000, ..Default::default() };
        let welcome = proto::SessionResponse { welcome: Some(welcome), ..Default::default() };
        // Every beat is answered; there is nothing else to say.
        let beats = request.into_inner().filter_map(async |frame| {
            let beat = frame.ok()?.beat?;
            Some(Ok(proto::SessionResponse { beat: Some(beat), ..Default::default() }))
        });
        Ok(Answer::new(stream::iter([Ok(welcome)]).chain(beats).boxed()))
    }
}

/// WebSockets, at any path, that are read and never written to.
///
/// # Errors
/// When the listener fails.
pub(super) async fn serve_websocket(listener: TcpListener) -> io::Result<()> {
    let app = Router::new().fallback(async |upgrade: WebSocketUpgrade| -> Response {
        upgrade.read_buffer_size(BUFFER).write_buffer_size(BUFFER).on_upgrade(hold)
    });
    axum::serve(super::without_delay(listener), app).await
}

async fn hold(mut socket: WebSocket) {
    while let Some(Ok(_)) = socket.recv().await {}
}

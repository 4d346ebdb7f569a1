//! The bare REST server: `POST /v1/call/{method}` in front, the relay's worker stream behind. The body is the
//! payload as it is, the answer's body the result as it is.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use crewcall::proto::{self, outcome};
use tokio::net::TcpListener;
use tonic::service::Routes;

use super::relay::{Edge, Relay};

/// Serves until the process ends.
///
/// # Errors
/// When the listener fails.
pub(super) async fn serve(listener: TcpListener) -> io::Result<()> {
    let relay = Arc::new(Relay::default());
    let (_, workers) = Edge::new(Arc::clone(&relay)).services();
    let calls = Router::new().route("/v1/call/{method}", post(call)).with_state(relay);
    // gRPC and HTTP/1 on one port, as the product.
    let app = Routes::new(workers).into_axum_router().merge(calls);
    axum::serve(super::without_delay(listener), app).await
}

async fn call(State(relay): State<Arc<Relay>>, Path(method): Path<String>, body: Bytes) -> Response {
    let payload = Some(proto::Payload { data: body, content_type: String::new() });
    match relay.call(proto::NewTask { method, payload, options: None }).await {
        Some(proto::Outcome { kind: Some(outcome::Kind::Succeeded(result)) }) => {
            ([(header::CONTENT_TYPE, "application/json")], result.data).into_response()
        }
        Some(_) => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

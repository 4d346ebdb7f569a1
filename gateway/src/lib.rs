//! The HTTP edge of crewcall: it only translates, every rule is behind it in [`crewcall`].
//!
//! | route | answer |
//! |---|---|
//! | `GET /healthz` | 200 while the process serves: restart it when this fails |
//! | `GET /readyz` | 200 when new work is welcome, 503 while shutting down: send it no traffic |
//! | `GET /` | a page that says what listens here |
//! | anything else | 404 as `application/problem+json` (RFC 9457); gRPC status 12 for gRPC requests |

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use crewcall::shutdown::Shutdown;

mod problem;

pub use problem::Problem;

/// What the HTTP edge needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Makes `/readyz` refuse once stopping.
    pub shutdown: Shutdown,
}

/// The whole route table. It has no fallback of its own: give [`fallback`] to the router that this one is
/// merged into, next to the gRPC services.
pub fn router(settings: Settings) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(settings)
}

/// The answer to every path that nothing serves: gRPC status `UNIMPLEMENTED` for gRPC requests, else a 404
/// problem.
pub async fn fallback(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    if is_grpc(&headers) {
        return unimplemented_grpc();
    }
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("nothing answers {method} {}", uri.path()))
        .into_response()
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Trailers only, as the gRPC protocol answers an unknown method: HTTP 200, the status in the headers.
fn unimplemented_grpc() -> Response {
    let mut response = StatusCode::OK.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static("12"));
    headers.insert("grpc-message", HeaderValue::from_static("crewcall has no such gRPC service"));
    response
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(settings): State<Settings>) -> Response {
    if settings.shutdown.is_stopping() {
        return Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "shutting_down",
            "this server is shutting down",
        )
        .into_response();
    }
    "ready\n".into_response()
}

async fn page() -> Response {
    let policy =
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(include_str!("page.html"))).into_response()
}

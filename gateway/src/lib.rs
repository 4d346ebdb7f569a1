//! The HTTP edge of crewcall: it only translates, every rule is behind it in [`crewcall`].
//!
//! | route | answer |
//! |---|---|
//! | `GET /healthz` | 200 while the process serves: restart it when this fails |
//! | `GET /readyz` | 200 when new work is welcome, 503 while shutting down: send it no traffic |
//! | `GET /` | a page with what is served and by whom; the socket of a legacy worker when it is an upgrade |
//! | `/v1/...`, `/openapi.json` | REST and the JSON worker: the table in `v1.rs`, and `docs/rest.md` |
//! | `/api/...`, `/ws` | the protocol of go-server: see `docs/legacy.md` |
//! | a path with `//` in it | as if it were `/` |
//! | anything else | 404 as `application/problem+json` (RFC 9457); gRPC status 12 for gRPC requests |

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, uri::PathAndQuery},
    middleware,
    response::{IntoResponse, Response},
    routing::{any, get},
};
use crewcall::{handle::Handle, shutdown::Shutdown};
use tower::ServiceExt as _;

mod body;
mod browser;
mod front;
mod legacy;
mod legacy_worker;
mod openapi;
mod page;
mod problem;
mod v1;

pub use front::Front;
use legacy::Legacy;
pub use problem::Problem;
use v1::Edge;

/// What the HTTP edge needs to know.
#[derive(Clone)]
pub struct Settings {
    /// Makes `/readyz` refuse once stopping, and lets legacy workers go.
    pub shutdown: Shutdown,
    /// Origins, such as `https://ops.example`, whose pages may use this server. Its own always may.
    pub allowed_origins: Vec<String>,
    /// When set, a worker must show it. Compared in constant time, never logged.
    pub worker_key: Option<String>,
    /// How long a request for a legacy result waits for the outcome. Zero: it never waits, as the original.
    pub legacy_result_hold: Duration,
    /// Open encrypted legacy calls, so that every worker can serve them. The server then reads them.
    pub legacy_open_encrypted: bool,
    /// How often a legacy worker is pinged. One that is silent for three times as long is cut.
    pub legacy_ping_interval: Duration,
}

impl Settings {
    /// The defaults: result hold 4 s, ping interval 30 s, nothing opened, no key.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            shutdown,
            allowed_origins: Vec::new(),
            worker_key: None,
            legacy_result_hold: Duration::from_secs(4),
            legacy_open_encrypted: false,
            legacy_ping_interval: Duration::from_secs(30),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("allowed_origins", &self.allowed_origins)
            .field("worker_key", &self.worker_key.as_ref().map(|_| "***"))
            .field("legacy_result_hold", &self.legacy_result_hold)
            .field("legacy_open_encrypted", &self.legacy_open_encrypted)
            .field("legacy_ping_interval", &self.legacy_ping_interval)
            .finish_non_exhaustive()
    }
}

/// The HTTP edge of one engine.
#[derive(Clone, Debug)]
pub struct Gateway {
    v1: Arc<Edge>,
    legacy: Arc<Legacy>,
}

impl Gateway {
    /// The edge of the engine behind `handle`.
    pub fn new(handle: Handle, settings: Settings) -> Self {
        Self { v1: Edge::new(handle.clone(), &settings), legacy: Legacy::new(handle, settings) }
    }

    /// The whole route table. It has no fallback of its own: give [`fallback`] to the router that this one is merged
    /// into, next to the gRPC services.
    pub fn router(&self) -> Router {
        router(Arc::clone(&self.v1), Arc::clone(&self.legacy))
    }

    /// The way into `routes`, which must hold [`router`](Self::router): the same answers, the common ones sooner.
    pub fn front(&self, routes: Router) -> Front {
        Front::new(self.clone(), routes)
    }
}

fn router(v1: Arc<Edge>, legacy: Arc<Legacy>) -> Router {
    let settings = legacy.settings.clone();
    let allowed: Arc<[String]> = settings.allowed_origins.clone().into();
    let opens_encrypted = settings.legacy_open_encrypted;
    let v1 = v1::routes(v1, &settings);

    let health =
        Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).with_state(settings);
    let page = Router::new().route("/", any(root)).route("/page.css", get(page::style));
    let callers = Router::new()
        .route("/api/execute", any(legacy::execute))
        .route("/api/result/", any(legacy::result_of_nothing))
        .route("/api/result/{*id}", any(legacy::result))
        .route("/api/encrypted/execute", any(legacy::execute_encrypted))
        .route("/api/encrypted/result/", any(legacy::result_of_nothing_encrypted))
        .route("/api/encrypted/result/{*id}", any(legacy::result_encrypted))
        .route("/api/status", any(legacy::status));
    let callers = match opens_encrypted {
        true => callers.route("/api/execute-encrypted", any(legacy::execute_unencrypted)),
        false => callers,
    };
    let workers = Router::new()
        .route("/ws", any(legacy_worker::connect))
        .route("/api/worker/connect", any(legacy_worker::connect))
        .route("/api/worker/connect/", any(legacy_worker::connect))
        .route("/api/worker/connect/{*key}", any(legacy_worker::connect_with_key))
        .route("/{key}/api/worker/connect", any(legacy_worker::connect_after_key));

    page.merge(callers)
        .merge(workers)
        .with_state(legacy)
        .merge(health)
        .merge(v1)
        .layer(middleware::from_fn_with_state(allowed, browser::guard))
}

/// The answer to every path that `routes`, the router of [`Gateway::router`], does not serve as it is written: a path with
/// doubled slashes is cleaned and tried again; else gRPC status `UNIMPLEMENTED` for gRPC requests, and a 404 problem.
pub fn fallback(routes: Router) -> Router {
    let routes = routes.fallback(not_found);
    Router::new().fallback(move |mut request: Request| {
        let routes = routes.clone();
        async move {
            let Some(cleaned) = cleaned(request.uri()) else {
                return not_found(request.method().clone(), request.uri().clone(), request.headers().clone())
                    .await;
            };
            *request.uri_mut() = cleaned;
            match routes.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    })
}

/// The same without empty segments; `None` when there is none. SDKs glue their paths behind a base URL, which
/// may end in a slash.
fn cleaned(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if !path.contains("//") {
        return None;
    }
    let mut clean = String::with_capacity(path.len());
    for c in path.chars() {
        if !(c == '/' && clean.ends_with('/')) {
            clean.push(c);
        }
    }
    if let Some(query) = uri.query() {
        clean.push('?');
        clean.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(clean.parse::<PathAndQuery>().ok()?);
    Uri::from_parts(parts).ok()
}

/// `/`: the page, or the socket of a worker that was given nothing but the server's address.
async fn root(state: State<Arc<Legacy>>, peer: ConnectInfo<SocketAddr>, request: Request) -> Response {
    if legacy_worker::is_upgrade(request.headers()) {
        return legacy_worker::connect(state, peer, request).await;
    }
    page::page(state).await
}

/// gRPC status `UNIMPLEMENTED` for gRPC requests, else a 404 problem.
async fn not_found(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    if is_grpc(&headers) {
        return unimplemented_grpc();
    }
    Problem::new(StatusCode::NOT_FOUND, "not_found", format!("nothing answers {method} {}", uri.path()))
        .at(uri.path())
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
        .at("/readyz");
    }
    "ready\n".into_response()
}

#[cfg(test)]
mod tests;

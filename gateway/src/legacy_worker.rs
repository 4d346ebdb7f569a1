//! The WebSocket half of the legacy protocol: how a worker knocks, and who is let in. What is said over the
//! socket is in `legacy_worker/connection.rs`.
//!
//! Legacy workers are ordinary sessions. What this edge adds is the protocol's own bookkeeping (`Crew`): an
//! answer names a task, comes over any connection, and counts once.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use subtle::ConstantTimeEq as _;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::legacy::Legacy;

mod connection;
mod crew;
mod message;
mod registration;

use connection::Connection;
pub(crate) use crew::Crew;

/// What Python workers append to every URL they are given.
const SUFFIX: &str = "/api/worker/connect";

/// Whoever knocks, as its request shows.
#[derive(Debug)]
struct Visitor {
    ip: String,
    /// Which SDK it probably is; for people.
    sdk: &'static str,
}

/// `/api/worker/connect`, `/` and `/ws`: without a worker key, anybody.
pub(crate) async fn connect(
    state: State<Arc<Legacy>>,
    peer: ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    knock(&state, peer.0, String::new(), request)
}

/// `/api/worker/connect/{key}`, also with what Python workers append.
pub(crate) async fn connect_with_key(
    state: State<Arc<Legacy>>,
    peer: ConnectInfo<SocketAddr>,
    Path(key): Path<String>,
    request: Request,
) -> Response {
    knock(&state, peer.0, key, request)
}

/// `shown` is the rest of the path, decoded.
fn knock(legacy: &Arc<Legacy>, peer: SocketAddr, shown: String, mut request: Request) -> Response {
    if !fits(legacy.settings.worker_key.as_deref(), &shown) {
        return crate::legacy::text(
            StatusCode::NOT_FOUND,
            "workers connect at /api/worker/connect/KEY; the key is missing or wrong",
        );
    }
    let accept = match handshake(request.method(), request.headers()) {
        Ok(accept) => accept,
        Err(status) => {
            let mut response =
                crate::legacy::text(status, status.canonical_reason().unwrap_or("Bad Request"));
            response
                .headers_mut()
                .insert(header::SEC_WEBSOCKET_VERSION, header::HeaderValue::from_static("13"));
            return response;
        }
    };
    let visitor = Visitor { ip: client_ip(request.headers(), peer), sdk: sdk(request.headers()) };
    let upgrade = hyper::upgrade::on(&mut request);
    let connection = Connection::new(Arc::clone(legacy), visitor);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => connection.serve(upgraded).await,
            Err(error) => tracing::debug!(%error, "a worker's upgrade was not completed"),
        }
    });
    let headers = [
        (header::CONNECTION, "Upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Whether the rest of the path shows the worker key: itself, with a slash, or with the suffix.
fn fits(key: Option<&str>, shown: &str) -> bool {
    let Some(key) = key else { return true };
    let bare = shown.strip_suffix(SUFFIX).unwrap_or(shown);
    let same = |shown: &str| bool::from(shown.as_bytes().ct_eq(key.as_bytes()));
    // All forms are compared, so that the time taken tells nothing. A key may itself end in a slash.
    same(shown) | same(bare) | same(bare.strip_suffix('/').unwrap_or(bare))
}

/// The answer to the client's nonce, or the status of the refusal, in the order of the original's checks.
fn handshake(method: &Method, headers: &HeaderMap) -> Result<String, StatusCode> {
    if !is_upgrade(headers) {
        return Err(StatusCode::BAD_REQUEST);
    }
    if method != Method::GET {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(StatusCode::BAD_REQUEST);
    }
    match headers.get(header::SEC_WEBSOCKET_KEY) {
        Some(key) if !key.is_empty() => Ok(derive_accept_key(key.as_bytes())),
        _ => Err(StatusCode::BAD_REQUEST),
    }
}

/// Whether the request asks for a WebSocket.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    let has = |name: header::HeaderName, token: &str| {
        let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    has(header::CONNECTION, "upgrade") && has(header::UPGRADE, "websocket")
}

/// As the original finds it: for people only, since anybody can write these headers.
fn client_ip(headers: &HeaderMap, peer: SocketAddr) -> String {
    let first_of = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        value.split(',').next()?.trim().parse::<IpAddr>().ok()
    };
    first_of("x-forwarded-for").or_else(|| first_of("x-real-ip")).unwrap_or_else(|| peer.ip()).to_string()
}

/// The handshakes of the SDKs differ in their headers.
fn sdk(headers: &HeaderMap) -> &'static str {
    let starts = |name: header::HeaderName, with: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).is_some_and(|value| value.starts_with(with))
    };
    if starts(header::USER_AGENT, "Go-http-client/") {
        "go-server-sdk (Go)"
    } else if starts(header::SEC_WEBSOCKET_EXTENSIONS, "permessage-deflate") {
        "go-server-sdk (Node)"
    } else if headers.contains_key(header::ORIGIN) {
        "go-server-sdk (Python)"
    } else {
        "go-server-sdk"
    }
}

/// `K` of `/K/api/worker/connect`.
pub(crate) async fn connect_after_key(
    state: State<Arc<Legacy>>,
    peer: ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let path = request.uri().path();
    let key = path.strip_prefix('/').and_then(|path| path.strip_suffix(SUFFIX)).unwrap_or_default();
    let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
    knock(&state, peer.0, key, request)
}

//! The REST half of the legacy protocol, translated: execute, result, status, plain and encrypted.
//!
//! Legacy calls are ordinary tasks with the options that the protocol implies: never stored, one attempt,
//! refused when no live worker serves the method, and forgotten when the outcome is read. `docs/legacy.md`
//! tells what differs from the original, and why.

use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use crewcall::error::{Error, ErrorKind, Reason};
use crewcall::handle::{Ends, Handle};
use crewcall::outbox::Outbox;
use crewcall::scheduler::Reply;
use crewcall::task::{ExpiredReason, NewTask, Outcome, Payload, TaskError, TaskId, TaskOptions};

use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::Settings;
use crate::body;
use crate::legacy_worker::Crew;
use calls::{Call, Calls, Found, RETENTION, Space, Want};

pub(crate) mod calls;
pub(crate) mod crypto;
pub(crate) mod json;
pub(crate) mod request;
mod status;

pub(crate) use status::status;

/// What callers read when no worker serves the method: it is the exception's text in every SDK.
pub(crate) const NO_WORKER: &str = "服务不可用";
/// The same for a call whose worker was lost, and
pub(crate) const DISCONNECTED: &str = "Worker disconnected";
/// whose worker fell silent.
pub(crate) const TIMED_OUT: &str = "Worker timeout";

/// The media type of encrypted parameters: an object with the strings `crypto`, `key` and `params`.
pub(crate) const SEALED: &str = "application/vnd.crewcall.legacy-encrypted+json";

/// A call that still waits for a worker after this long is over: its workers left, or are full.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(300);
/// Room for what stands around the parameters, and for white space in them.
const BODY_OVERHEAD: usize = 1 << 20;

/// Where calls are handed in, and
pub(crate) const EXECUTE_PATH: &str = "/api/execute";
/// where their outcomes are fetched, by the id behind it.
pub(crate) const RESULT_PATH: &str = "/api/result/";

static OPTIONS: LazyLock<Arc<TaskOptions>> = LazyLock::new(|| {
    Arc::new(TaskOptions {
        queue_timeout_ms: QUEUE_TIMEOUT.as_millis() as u64,
        retention_ms: Some(RETENTION.as_millis() as u64),
        ..TaskOptions::call()
    })
});

/// What the handlers of the legacy edge share.
#[derive(Debug)]
pub(crate) struct Legacy {
    pub(crate) handle: Handle,
    pub(crate) settings: Settings,
    pub(crate) calls: Calls,
    ends: OnceCell<Ends>,
    pub(crate) crew: Crew,
}

impl Legacy {
    pub(crate) fn new(handle: Handle, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            handle,
            settings,
            calls: Calls::default(),
            ends: OnceCell::new(),
            crew: Crew::default(),
        })
    }

    async fn body(&self, request: Request) -> Result<Bytes, Response> {
        let most = self.handle.limits().payload_bytes.saturating_add(BODY_OVERHEAD);
        body::read(request.into_body(), most).await.map_err(|_| {
            let message = format!("the body could not be read, or is over {most} bytes");
            text(StatusCode::PAYLOAD_TOO_LARGE, &message)
        })
    }

    /// Hands in a call and answers as the original does when its worker has not answered yet.
    async fn submit(self: &Arc<Self>, method: String, payload: Payload, call: Call) -> Response {
        let id = TaskId::generate();
        let options = Arc::clone(&OPTIONS);
        let task =
            NewTask { id, method, payload, options, idempotency_key: String::new(), only_if_served: true };
        let ends = match self.ends().await {
            Ok(ends) => ends,
            Err(error) => return refusal(&error),
        };
        let begun = self.calls.begin(id, call);
        match ends.submit(begun.number, task).await {
            Ok(_) => {
                begun.keep();
                answer(b"null", "processing", id)
            }
            // A name that no worker can register is a method that no worker serves.
            Err(error) if matches!(error.reason, Reason::MethodNotServed | Reason::InvalidField) => {
                begun.refuse(NO_WORKER);
                answer(&quoted(NO_WORKER), "error", id)
            }
            Err(error) => refusal(&error),
        }
    }

    /// The stream of the ends of calls, opened for the first one.
    async fn ends(self: &Arc<Self>) -> Result<&Ends, Error> {
        let open = async || {
            let ends = self.handle.ends().await?;
            tokio::spawn(hear(Arc::downgrade(self), ends.outbox()));
            Ok(ends)
        };
        self.ends.get_or_try_init(open).await
    }

    /// The outcome of a call, for whoever asks in `space`.
    async fn fetch(&self, method: &Method, name: &str, space: Space) -> Response {
        // The spelling counts, as it did.
        let Some(id) = name.parse::<TaskId>().ok().filter(|id| *name == *spelled(*id, &mut [0; 36])) else {
            return not_found(space);
        };
        let hold = self.settings.legacy_result_hold;
        let found = match method {
            // It shows no outcome, so it must not use it up either.
            &Method::HEAD => self.calls.find(id, space, Want::Look),
            _ if hold.is_zero() => self.calls.find(id, space, Want::Take),
            _ => match self.calls.find(id, space, Want::TakeOrWait) {
                // Whatever ends the wait, the outcome is still there: it is taken only with the answer, and dropping
                // this future, as a caller that hangs up does, takes nothing.
                Found::Runs(Some(told)) => {
                    timeout(hold, told).await.ok();
                    self.calls.find(id, space, Want::Take)
                }
                found => found,
            },
        };
        match found {
            Found::Nothing => not_found(space),
            Found::Runs(_) => answer(b"null", "processing", id),
            Found::Refused(why) => answer(&quoted(why), "error", id),
            Found::Ended { outcome, secret, opened } => {
                if method != Method::HEAD {
                    self.handle.forget(id);
                }
                match result_of(&outcome, secret.as_deref()) {
                    // The one status that the helper which asks for opened results waits for.
                    Ok(result) if opened => answer(&result, "completed", id),
                    Ok(result) => answer(&result, "done", id),
                    Err(message) => answer(&quoted(&message), "error", id),
                }
            }
        }
    }
}

/// Hears of the ends of calls, as long as the edge lives and the engine.
async fn hear(legacy: Weak<Legacy>, outbox: Outbox<(u64, Reply)>) {
    let mut told = Vec::new();
    while matches!(outbox.take(&mut told).await, Ok(true)) {
        let Some(legacy) = legacy.upgrade() else { return };
        legacy.calls.hear(told.drain(..));
    }
    if let Some(legacy) = legacy.upgrade() {
        legacy.calls.let_all_go();
    }
}

/// `POST /api/execute`. The HTTP method and the content type do not matter.
pub(crate) async fn execute(State(legacy): State<Arc<Legacy>>, request: Request) -> Response {
    let body = match legacy.body(request).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    match request::execute(&body) {
        Ok(request) => legacy.submit(request.method, Payload::json(request.params), Call::plain()).await,
        Err(message) => text(StatusCode::BAD_REQUEST, &message),
    }
}

/// `POST /api/encrypted/execute`: relayed as it is, or opened when the operator asked for that.
pub(crate) async fn execute_encrypted(State(legacy): State<Arc<Legacy>>, request: Request) -> Response {
    let body = match legacy.body(request).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let request = match request::encrypted(&body) {
        Ok(request) => request,
        Err(message) => return text(StatusCode::BAD_REQUEST, &message),
    };
    if legacy.settings.legacy_open_encrypted
        && let Some((secret, params)) = request.open()
    {
        return legacy.submit(request.method, Payload::json(params), Call::opened(&secret)).await;
    }
    let payload = Payload { data: request.sealed(), content_type: SEALED.to_owned() };
    legacy.submit(request.method, payload, Call::encrypted()).await
}

/// `POST /api/execute-encrypted`: what the Python SDK 1.5.0 calls encrypted. Nothing in it is.
pub(crate) async fn execute_unencrypted(State(legacy): State<Arc<Legacy>>, request: Request) -> Response {
    let body = match legacy.body(request).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    match request::with_key(&body) {
        Ok((request, secret)) => {
            legacy.submit(request.method, Payload::json(request.params), Call::opened(&secret)).await
        }
        Err(message) => text(StatusCode::BAD_REQUEST, &message),
    }
}

/// The whole answer to `POST /api/execute`, as the router would give it to a program.
pub(crate) async fn answer_call(legacy: Arc<Legacy>, request: Request) -> Response {
    execute(State(legacy), request).await
}

/// The same for `GET /api/result/{id}`, when the id is not percent-encoded.
pub(crate) async fn answer_result(legacy: Arc<Legacy>, request: Request) -> Response {
    let id = request.uri().path().strip_prefix(RESULT_PATH).unwrap_or_default();
    legacy.fetch(request.method(), id, Space::Plain).await
}

/// `GET /api/result/{id}`.
pub(crate) async fn result(
    State(legacy): State<Arc<Legacy>>,
    method: Method,
    Path(id): Path<String>,
) -> Response {
    legacy.fetch(&method, &id, Space::Plain).await
}

/// `GET /api/encrypted/result/{id}`.
pub(crate) async fn result_encrypted(
    State(legacy): State<Arc<Legacy>>,
    method: Method,
    Path(id): Path<String>,
) -> Response {
    legacy.fetch(&method, &id, Space::Encrypted).await
}

/// `GET /api/result/`.
pub(crate) async fn result_of_nothing() -> Response {
    not_found(Space::Plain)
}

/// `GET /api/encrypted/result/`.
pub(crate) async fn result_of_nothing_encrypted() -> Response {
    not_found(Space::Encrypted)
}

/// The outcome as a JSON text, or the message of its error. Sealed with `secret` when there is one.
fn result_of(outcome: &Outcome, secret: Option<&str>) -> Result<Bytes, String> {
    match outcome {
        Outcome::Succeeded(payload) => {
            let plain = json_of(payload)?;
            let Some(secret) = secret else { return Ok(plain) };
            let sealed = crypto::seal(&plain, secret).ok_or("the result could not be sealed")?;
            Ok(quoted(&sealed).into())
        }
        Outcome::Failed(error) if error.code == TaskError::WORKER_LOST => {
            let silent = error.message.ends_with(TIMED_OUT);
            Err(if silent { TIMED_OUT } else { DISCONNECTED }.to_owned())
        }
        Outcome::Failed(error) => Err(error.message.clone()),
        Outcome::Cancelled(reason) => Err(format!("cancelled: {reason}")),
        Outcome::Expired(ExpiredReason::QueueTimeout) => Err(NO_WORKER.to_owned()),
        Outcome::Expired(ExpiredReason::Deadline) => Err("the task's deadline has passed".to_owned()),
    }
}

/// A payload as one JSON value.
pub(crate) fn json_of(payload: &Payload) -> Result<Bytes, String> {
    let kind = payload.content_type.split(';').next().unwrap_or_default().trim();
    let is_json = kind.is_empty() || kind == "application/json" || kind.ends_with("+json");
    if !is_json {
        return Err(format!("the payload is {kind:?}, which the legacy protocol cannot carry: it is JSON"));
    }
    if payload.data.is_empty() {
        return Ok(Bytes::from_static(b"null"));
    }
    match json::first_value(&payload.data) {
        Ok(value) => Ok(json::compact(&payload.data, value)),
        Err(error) => Err(format!("the payload is not JSON: {error}")),
    }
}

/// A string as a JSON text.
pub(crate) fn quoted(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    json::quote(text, &mut out);
    out
}

fn answer(result: &[u8], status: &str, id: TaskId) -> Response {
    let mut body = Vec::with_capacity(result.len() + 96);
    for part in [
        b"{\"result\":",
        result,
        b",\"status\":\"",
        status.as_bytes(),
        b"\",\"taskId\":\"",
        spelled(id, &mut [0; 36]).as_bytes(),
        b"\"}\n",
    ] {
        body.extend_from_slice(part);
    }
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An id as text, without a string of its own.
pub(crate) fn spelled(id: TaskId, buffer: &mut [u8; 36]) -> &str {
    id.0.hyphenated().encode_lower(buffer)
}

fn not_found(space: Space) -> Response {
    let message = match space {
        Space::Plain => "task not found",
        Space::Encrypted => "encrypted task not found",
    };
    text(StatusCode::NOT_FOUND, message)
}

/// An error as the original writes it: one line of plain text.
pub(crate) fn text(status: StatusCode, message: &str) -> Response {
    let headers =
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, format!("{message}\n")).into_response()
}

/// What the original had no answer for: limits, and the end of the server.
fn refusal(error: &Error) -> Response {
    let status = match error.kind() {
        ErrorKind::InvalidArgument if error.reason == Reason::PayloadTooLarge => {
            StatusCode::PAYLOAD_TOO_LARGE
        }
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict | ErrorKind::Precondition | ErrorKind::Aborted => StatusCode::CONFLICT,
        ErrorKind::Unauthenticated => StatusCode::UNAUTHORIZED,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::Exhausted | ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut response = text(status, &error.message);
    if let Some(ms) = error.retry_after_ms {
        response.headers_mut().insert(header::RETRY_AFTER, ms.div_ceil(1_000).into());
    }
    response
}

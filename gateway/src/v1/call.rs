//! `POST /v1/call/{method}`: a call over HTTP, the body its argument and the answer its result.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use crewcall::error::{Error, Reason};
use crewcall::handle::Handle;
use crewcall::task::{ExpiredReason, NewTask, Outcome, TaskId};

use super::dto::{self, AcceptedDto, LinksDto, OutcomeDto, PayloadDto, ProblemDto};
use super::options::options;
use super::params::{Params, Segment, read_body};
use super::payload::{BodyProblem, of_body};
use super::{Edge, NO_SNIFF};
use crate::Problem;

/// In front of the method.
pub(crate) const PATH: &str = "/v1/call/";

const TASK_ID: HeaderName = HeaderName::from_static("crewcall-task-id");

/// Runs a method and waits for its outcome.
///
/// The body is the payload as it is, the answer's body the result as it is. A caller that hangs up cancels the
/// call, unless it is durable or has an idempotency key. With `wait` the answer comes after that time at the
/// latest: 202, and the task goes on.
#[utoipa::path(
    post,
    path = "/v1/call/{method}",
    tag = "tasks",
    params(
        ("method" = String, Path, description = "Percent-encoded, `/` as `%2F`."),
        ("wait" = Option<String>, Query, description = "Wait at most so long (`30s`, at most 300s); then 202."),
        ("priority" = Option<u32>, Query, description = "0 to 9, higher first. Every option from here on can be a header instead: `Crewcall-Priority`."),
        ("deadline" = Option<String>, Query, description = "From now to the outcome (`30s`)."),
        ("queue_timeout" = Option<String>, Query, description = "Longest wait for a worker."),
        ("run_timeout" = Option<String>, Query, description = "Longest run of one attempt."),
        ("max_attempts" = Option<u32>, Query, description = "Attempts in all. Default 1."),
        ("initial_backoff" = Option<String>, Query, description = "Wait before the second attempt."),
        ("max_backoff" = Option<String>, Query, description = "The wait doubles up to this."),
        ("run_at" = Option<String>, Query, description = "Not before this time: RFC 3339 in UTC, or Unix milliseconds."),
        ("retention" = Option<String>, Query, description = "How long the outcome can be fetched."),
        ("durability" = Option<String>, Query, description = "`ephemeral` (default) or `durable`."),
        ("version" = Option<String>, Query, description = "Version range of the method."),
        ("group" = Option<String>, Query, description = "Only workers of this group."),
        ("label" = Option<Vec<String>>, Query, description = "`key=value`: only workers with this label."),
        ("metadata" = Option<Vec<String>>, Query, description = "`key=value`: passed to the worker."),
        ("idempotency_key" = Option<String>, Query, description = "Or the header `Idempotency-Key`."),
    ),
    request_body(content = PayloadDto, description = "JSON, or any other type as its Content-Type says."),
    responses(
        (status = 200, description = "The result, with the type that the worker gave it.", body = PayloadDto),
        (status = 202, description = "The wait has ended before the task.", body = AcceptedDto),
        (status = 204, description = "The method returned nothing."),
        (status = 409, description = "`task_cancelled`, `idempotency_conflict`.", body = ProblemDto, content_type = "application/problem+json"),
        (status = 422, description = "`task_failed`: the method ran and failed; see `outcome`.", body = ProblemDto, content_type = "application/problem+json"),
        (status = 504, description = "`task_expired`: a deadline passed.", body = ProblemDto, content_type = "application/problem+json"),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn call(
    State(edge): State<Arc<Edge>>,
    method: Segment,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    run(&edge, method.0, params, &headers, body).await
}

/// The whole answer to a request whose path is [`PATH`] and a method that is not percent-encoded, as the router
/// would give it to a program.
pub(crate) async fn answer(edge: Arc<Edge>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let method = path.strip_prefix(PATH).unwrap_or_default().to_owned();
    let params = Params::parse(parts.uri.query().unwrap_or_default());
    let mut response = match run(&edge, method, params, &parts.headers, body).await {
        Ok(response) => response,
        Err(problem) => problem.at(path),
    };
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    response
}

async fn run(
    edge: &Edge,
    method: String,
    mut params: Params,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let wait = params.wait(edge.handle.limits())?;
    let (options, idempotency_key) = options(&mut params, headers)?;
    params.finish()?;
    let body = read_body(headers, body, edge.handle.limits().payload_bytes).await?;
    let payload = of_body(headers, body)?;
    let id = TaskId::generate();
    let task = NewTask { id, method, payload, options, idempotency_key, only_if_served: false };
    match wait {
        None => edge.handle.call(task).await.map(|(id, outcome)| ended(id, &outcome))?,
        Some(wait) => call_with_wait(&edge.handle, task, wait).await,
    }
}

async fn call_with_wait(handle: &Handle, task: NewTask, wait: Duration) -> Result<Response, Problem> {
    // Nobody else can come to share a task without a key.
    let may_cancel =
        task.idempotency_key.is_empty() && task.options.durability == crewcall::task::Durability::Ephemeral;
    let accepted = handle.submit(vec![task]).await?.pop();
    let accepted = accepted.unwrap_or_else(|| Err(Error::new(Reason::Internal, "internal error")))?;
    let mut hang_up = HangUp { handle, id: accepted.id, armed: may_cancel };
    if !wait.is_zero() {
        handle.wait(accepted.id, wait).await?;
    }
    let view = handle.get(accepted.id).await;
    hang_up.armed = false;
    match view?.state.outcome() {
        Some(outcome) => ended(accepted.id, outcome),
        None => {
            let mut response =
                (StatusCode::ACCEPTED, axum::Json(accepted_out(accepted.id, accepted.attached)))
                    .into_response();
            name_task(&mut response, accepted.id);
            Ok(response)
        }
    }
}

/// Cancels the task of a caller that hangs up while it waits, as [`Handle::call`] does.
struct HangUp<'a> {
    handle: &'a Handle,
    id: TaskId,
    armed: bool,
}

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        if self.armed {
            let (handle, id) = (self.handle.clone(), self.id);
            tokio::spawn(async move { handle.cancel(id, "the caller went away".to_owned()).await });
        }
    }
}

pub(super) fn accepted_out(id: TaskId, attached: bool) -> AcceptedDto {
    let task_id = id.to_string();
    AcceptedDto { links: LinksDto::new(&task_id), task_id, attached }
}

/// Says in the headers which task an answer is about.
pub(super) fn name_task(response: &mut Response, id: TaskId) {
    let location = format!("/v1/tasks/{id}");
    for (name, text) in [(TASK_ID, id.to_string()), (header::LOCATION, location)] {
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(name, value);
        }
    }
}

/// The outcome of a task as the answer to a request: the result as it is, or the problem that there is none.
///
/// # Errors
/// `task_failed` (422), `task_cancelled` (409), `task_expired` (504).
pub(super) fn ended(id: TaskId, outcome: &Outcome) -> Result<Response, Problem> {
    let (status, reason, detail) = match outcome {
        Outcome::Succeeded(payload) => {
            let status = if payload.data.is_empty() { StatusCode::NO_CONTENT } else { StatusCode::OK };
            let mut response = Response::new(Body::from(payload.data.clone()));
            *response.status_mut() = status;
            let headers = response.headers_mut();
            // These, and one that every answer has: in one allocation.
            headers.reserve(5);
            if status == StatusCode::OK {
                headers.insert(header::CONTENT_TYPE, dto::content_type(payload));
            }
            // A worker's HTML must not run with the rights of this server's own pages.
            headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            let mut text = uuid::Uuid::encode_buffer();
            if let Ok(id) = HeaderValue::from_str(id.0.hyphenated().encode_lower(&mut text)) {
                headers.insert(TASK_ID, id);
            }
            return Ok(response);
        }
        Outcome::Failed(error) => {
            (StatusCode::UNPROCESSABLE_ENTITY, "task_failed", format!("{}: {}", error.code, error.message))
        }
        Outcome::Cancelled(reason) if reason.is_empty() => {
            (StatusCode::CONFLICT, "task_cancelled", "the task was cancelled".to_owned())
        }
        Outcome::Cancelled(reason) => {
            (StatusCode::CONFLICT, "task_cancelled", format!("the task was cancelled: {reason}"))
        }
        Outcome::Expired(ExpiredReason::QueueTimeout) => {
            let detail = "no worker took the task within its queue timeout";
            (StatusCode::GATEWAY_TIMEOUT, "task_expired", detail.to_owned())
        }
        Outcome::Expired(ExpiredReason::Deadline) => {
            (StatusCode::GATEWAY_TIMEOUT, "task_expired", "the task's deadline passed".to_owned())
        }
    };
    let outcome = dto::raw(&OutcomeDto::new(outcome));
    Err(Problem::new(status, reason, detail).with_outcome(id.to_string(), outcome))
}

impl From<BodyProblem> for Problem {
    fn from(problem: BodyProblem) -> Self {
        match problem {
            BodyProblem::Field(error) => error.into(),
            BodyProblem::Json(detail) => Self::invalid_json(detail),
        }
    }
}

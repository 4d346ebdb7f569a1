//! Tasks as resources: handed in, looked at, listed, ended, run again.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use crewcall::error::{Error, Reason};
use crewcall::scheduler::{Accepted, Filter, TaskView};
use crewcall::task::{NewTask, StateName, TaskId};
use serde_json::value::RawValue;

use super::Edge;
use super::call::{accepted_out, ended, name_task};
use super::dto::{
    ExplanationDto, NewTaskDto, NewTasksDto, PayloadDto, ProblemDto, RefusalDto, Shown, SubmitAnswerDto,
    SubmitResultDto, SubmittedDto, TaskDto, TaskPageDto, Verb,
};
use super::object::Object;
use super::params::{Params, Segment, read_body};
use super::payload::embedded;
use crate::Problem;
use crate::problem::status_of;

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;
/// Longest reason of a cancel.
const REASON_BYTES: usize = 1 << 10;

/// Hands in one task, or a list of 1 to 10,000.
///
/// They are durable and tried up to five times unless their options say otherwise, and accepted once they are
/// stored. Of a list each task is accepted or refused for itself.
#[utoipa::path(
    post,
    path = "/v1/tasks",
    tag = "tasks",
    request_body(content = NewTasksDto<'static>, description = "A task, or an array of tasks."),
    responses(
        (status = 201, description = "Accepted: the task, or every task of the list.", body = SubmitAnswerDto),
        (status = 200, description = "As 201, but every task was there already, under its idempotency key.", body = SubmitAnswerDto),
        (status = 207, description = "A list of which some were refused.", body = SubmittedDto),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn submit(
    State(edge): State<Arc<Edge>>,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    let body = read_body(&headers, body, edge.handle.limits().document_bytes()).await?;
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        submit_list(&edge, &body).await
    } else {
        submit_one(&edge, &body).await
    }
}

async fn submit_one(edge: &Edge, body: &Bytes) -> Result<Response, Problem> {
    let task: &RawValue = document(body)?;
    let accepted = edge.handle.submit(vec![new_task(task, body)?]).await?.pop();
    let Accepted { id, attached } =
        accepted.unwrap_or_else(|| Err(Error::new(Reason::Internal, "internal error")))?;
    let status = if attached { StatusCode::OK } else { StatusCode::CREATED };
    let mut response = (status, Json(accepted_out(id, attached))).into_response();
    name_task(&mut response, id);
    Ok(response)
}

async fn submit_list(edge: &Edge, body: &Bytes) -> Result<Response, Problem> {
    let given: Vec<&RawValue> = document(body)?;
    edge.handle.limits().check_submit(given.len())?;
    let mut tasks = Vec::with_capacity(given.len());
    let readable: Vec<Result<(), Error>> =
        given.into_iter().map(|task| new_task(task, body).map(|task| tasks.push(task))).collect();
    let mut submitted = match tasks.is_empty() {
        true => Vec::new(),
        false => edge.handle.submit(tasks).await?,
    }
    .into_iter();
    let results: Vec<Result<Accepted, Error>> = readable
        .into_iter()
        .map(|readable| {
            readable?;
            submitted.next().unwrap_or_else(|| Err(Error::new(Reason::Internal, "internal error")))
        })
        .collect();
    let status = if results.iter().any(Result::is_err) {
        StatusCode::MULTI_STATUS
    } else if results.iter().flatten().all(|accepted| accepted.attached) {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let results = results.into_iter().map(submit_result).collect();
    Ok((status, Json(SubmittedDto { results })).into_response())
}

fn submit_result(result: Result<Accepted, Error>) -> SubmitResultDto {
    match result {
        Ok(Accepted { id, attached }) => SubmitResultDto::Accepted { task_id: id.to_string(), attached },
        Err(error) => SubmitResultDto::Refused { refusal: refusal_out(error) },
    }
}

pub(super) fn refusal_out(error: Error) -> RefusalDto {
    RefusalDto {
        status: status_of(error.reason).as_u16(),
        reason: error.reason.as_str(),
        retry_after_ms: error.retry_after_ms,
        message: error.message,
    }
}

/// Takes `limit`: how many tasks a page may hold.
pub(super) fn page_size(params: &mut Params) -> Result<usize, Error> {
    match params.one("limit")? {
        None => Ok(DEFAULT_PAGE),
        Some(given) => match given.parse() {
            Ok(limit @ 1..=MAX_PAGE) => Ok(limit),
            _ => Err(Error::invalid("limit", format_args!("{given:?}: give 1 to {MAX_PAGE}"))),
        },
    }
}

fn document<'a, T: serde::Deserialize<'a>>(body: &'a Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|problem| {
        Problem::invalid_json(format!("the body is not a task or an array of tasks: {problem}"))
    })
}

fn new_task(raw: &RawValue, body: &Bytes) -> Result<NewTask, Error> {
    let Object(task): Object<NewTaskDto<'_>> =
        serde_json::from_str(raw.get()).map_err(|problem| Error::invalid("task", problem))?;
    let (options, idempotency_key) = task.options.unwrap_or_default().fill_in(Verb::Submit)?;
    Ok(NewTask {
        id: TaskId::generate(),
        method: task.method,
        payload: embedded(task.payload, body, "payload")?,
        options,
        idempotency_key,
        only_if_served: false,
    })
}

/// One task as it stands; with `wait`, as it stands when it has ended or that time has passed.
#[utoipa::path(
    get,
    path = "/v1/tasks/{id}",
    tag = "tasks",
    params(
        ("id" = String, Path),
        ("wait" = Option<String>, Query, description = "Wait up to so long for the outcome (`30s`, at most 300s)."),
        ("payload" = Option<bool>, Query, description = "Also show what the task was submitted with."),
    ),
    responses(
        (status = 200, body = TaskDto<'static>),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get(
    State(edge): State<Arc<Edge>>,
    id: Segment,
    mut params: Params,
) -> Result<Response, Problem> {
    let (wait, payload) = (params.wait(edge.handle.limits())?, params.flag("payload")?);
    params.finish()?;
    let id = id.task_id()?;
    if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
        edge.handle.wait(id, wait).await?;
    }
    let view = match payload {
        true => edge.handle.get_with_payload(id).await?,
        false => edge.handle.get(id).await?,
    };
    Ok(task_answer(&view, Shown { payload, attempts: true }))
}

fn task_answer(view: &TaskView, shown: Shown) -> Response {
    let mut response = Json(TaskDto::new(view, shown)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The result itself, as the answer to a call would have been.
#[utoipa::path(
    get,
    path = "/v1/tasks/{id}/result",
    tag = "tasks",
    params(
        ("id" = String, Path),
        ("wait" = Option<String>, Query, description = "Wait up to so long for the outcome (`30s`, at most 300s)."),
    ),
    responses(
        (status = 200, description = "The result, with the type that the worker gave it.", body = PayloadDto),
        (status = 204, description = "The method returned nothing."),
        (status = 409, description = "`task_not_ended`, `task_cancelled`.", body = ProblemDto, content_type = "application/problem+json"),
        (status = 422, description = "`task_failed`", body = ProblemDto, content_type = "application/problem+json"),
        (status = 504, description = "`task_expired`", body = ProblemDto, content_type = "application/problem+json"),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn result(
    State(edge): State<Arc<Edge>>,
    id: Segment,
    mut params: Params,
) -> Result<Response, Problem> {
    let wait = params.wait(edge.handle.limits())?;
    params.finish()?;
    let id = id.task_id()?;
    if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
        edge.handle.wait(id, wait).await?;
    }
    let view = edge.handle.get(id).await?;
    match view.state.outcome() {
        Some(outcome) => ended(id, outcome),
        None => {
            let message = format!("task {id} has not ended: it is {}", view.state.name().as_str());
            Err(Error::new(Reason::TaskNotEnded, message).into())
        }
    }
}

/// Tasks, newest first.
#[utoipa::path(
    get,
    path = "/v1/tasks",
    tag = "tasks",
    params(
        ("method" = Option<String>, Query, description = "Exact name."),
        ("state" = Option<Vec<String>>, Query, description = "Any of these: repeated, or separated by commas."),
        ("worker" = Option<String>, Query, description = "Held by this worker."),
        ("limit" = Option<u32>, Query, description = "Default 100, at most 1000."),
        ("page" = Option<String>, Query, description = "`next_page` of the page before."),
    ),
    responses(
        (status = 200, body = TaskPageDto<'static>),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(State(edge): State<Arc<Edge>>, mut params: Params) -> Result<Response, Problem> {
    let filter = filter(&mut params)?;
    let limit = page_size(&mut params)?;
    let after = match params.one("page")? {
        None => None,
        Some(page) => Some(page.parse::<TaskId>().map_err(|_| {
            Error::invalid("page", "is not one that this server gave; leave it out to begin")
        })?),
    };
    params.finish()?;
    let (views, next) = edge.handle.list(filter, after, limit).await?;
    let page = TaskPageDto {
        tasks: views.iter().map(|view| TaskDto::new(view, Shown::default())).collect(),
        next_page: next.map(|id| id.to_string()),
    };
    Ok(Json(page).into_response())
}

/// Takes the parameters that say which tasks are meant.
pub(super) fn filter(params: &mut Params) -> Result<Filter, Error> {
    let method = params.one("method")?.unwrap_or_default();
    let worker_id = params.one("worker")?.unwrap_or_default();
    let given = params.all("state");
    let names = given.iter().flat_map(|names| names.split(',')).filter(|name| !name.is_empty());
    let states = names
        .map(|name| {
            StateName::ALL.into_iter().find(|state| state.as_str() == name).ok_or_else(|| {
                let known = StateName::ALL.map(StateName::as_str).join(", ");
                Error::invalid("state", format_args!("{name:?} is not one of {known}"))
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Filter { method, states, worker_id })
}

/// Ends a task that has not ended. Its worker is told to stop.
#[utoipa::path(
    delete,
    path = "/v1/tasks/{id}",
    tag = "tasks",
    params(
        ("id" = String, Path),
        ("reason" = Option<String>, Query, description = "Shown to the worker and in the outcome. At most 1 KiB."),
    ),
    responses(
        (status = 200, description = "Cancelled, now or before.", body = TaskDto<'static>),
        (status = 409, description = "`task_ended`", body = ProblemDto, content_type = "application/problem+json"),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn cancel(
    State(edge): State<Arc<Edge>>,
    id: Segment,
    mut params: Params,
) -> Result<Response, Problem> {
    let reason = reason(&mut params)?;
    params.finish()?;
    let view = edge.handle.cancel(id.task_id()?, reason).await?;
    Ok(task_answer(&view, Shown::default()))
}

/// Takes the text that an operator leaves for a worker.
pub(super) fn reason(params: &mut Params) -> Result<String, Error> {
    let reason = params.one("reason")?.unwrap_or_default();
    if reason.len() > REASON_BYTES {
        let size = reason.len();
        return Err(Error::invalid("reason", format_args!("is {size} bytes long; at most {REASON_BYTES}")));
    }
    Ok(reason)
}

/// Runs an ended task again, under the same id, from attempt 1. Its outcome is withdrawn.
#[utoipa::path(
    post,
    path = "/v1/tasks/{id}/retry",
    tag = "tasks",
    params(("id" = String, Path)),
    responses(
        (status = 200, body = TaskDto<'static>),
        (status = 409, description = "`task_not_ended`", body = ProblemDto, content_type = "application/problem+json"),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn retry(
    State(edge): State<Arc<Edge>>,
    id: Segment,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let view = edge.handle.retry(id.task_id()?).await?;
    Ok(task_answer(&view, Shown::default()))
}

/// Says in words why a task is where it is.
#[utoipa::path(
    get,
    path = "/v1/tasks/{id}/explain",
    tag = "tasks",
    params(("id" = String, Path)),
    responses(
        (status = 200, body = ExplanationDto<'static>),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn explain(
    State(edge): State<Arc<Edge>>,
    id: Segment,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let explanation = edge.handle.explain(id.task_id()?).await?;
    Ok(Json(ExplanationDto::new(&explanation)).into_response())
}

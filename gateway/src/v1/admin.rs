//! For operators: what is connected, what it serves, how it does.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::Edge;
use super::dto::{MethodStatusDto, MethodsDto, ProblemDto, StatsDto, WorkerDto, WorkersDto};
use super::params::{Params, Segment};
use super::tasks::reason;
use crate::Problem;

/// Connected workers, and those that may come back.
#[utoipa::path(
    get,
    path = "/v1/workers",
    tag = "operators",
    responses(
        (status = 200, body = WorkersDto<'static>),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn workers(State(edge): State<Arc<Edge>>, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    let workers = edge.handle.workers().await?;
    Ok(Json(WorkersDto { workers: workers.iter().map(WorkerDto::new).collect() }).into_response())
}

/// Methods that live workers serve, or that tasks wait for.
#[utoipa::path(
    get,
    path = "/v1/methods",
    tag = "operators",
    responses(
        (status = 200, body = MethodsDto<'static>),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn methods(State(edge): State<Arc<Edge>>, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    let methods = edge.handle.methods().await?;
    Ok(Json(MethodsDto { methods: methods.iter().map(MethodStatusDto::new).collect() }).into_response())
}

/// Counts of tasks and workers.
#[utoipa::path(
    get,
    path = "/v1/stats",
    tag = "operators",
    responses(
        (status = 200, body = StatsDto),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn stats(State(edge): State<Arc<Edge>>, params: Params) -> Result<Response, Problem> {
    params.finish()?;
    Ok(Json(StatsDto::new(&edge.handle.stats().await?)).into_response())
}

/// Asks a worker to take no more, finish what it has and leave.
#[utoipa::path(
    post,
    path = "/v1/workers/{id}/drain",
    tag = "operators",
    params(
        ("id" = String, Path),
        ("reason" = Option<String>, Query, description = "Told to the worker. At most 1 KiB."),
    ),
    responses(
        (status = 204, description = "It was asked."),
        (status = 404, description = "`worker_not_found`", body = ProblemDto, content_type = "application/problem+json"),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn drain(
    State(edge): State<Arc<Edge>>,
    id: Segment,
    mut params: Params,
) -> Result<Response, Problem> {
    let reason = reason(&mut params)?;
    params.finish()?;
    edge.handle.drain(id.0, reason).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

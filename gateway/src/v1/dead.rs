//! Dead letters: looked through, run again, discarded.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use crewcall::clock::Timestamp;
use crewcall::error::{Error, Result};
use crewcall::scheduler::{DeadChange, DeadChanged, DeadFilter, DeadSelection};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Edge;
use super::dto::{ProblemDto, RefusalDto, Shown, TaskDto, TaskPageDto};
use super::object::Object;
use super::params::{Params, read_body};
use super::tasks::{page_size, refusal_out};
use crate::Problem;

/// Which dead letters: either `task_ids`, or a filter with a condition, or `all`.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = DeadSelection)]
pub(super) struct DeadSelectionDto {
    /// At most 1000. Each has its own result.
    task_ids: Vec<String>,
    #[serde(deserialize_with = "super::object::one")]
    filter: DeadFilterDto,
    /// Every dead letter.
    all: bool,
    /// With a filter or `all`: at most so many, those that died first. Default and most 1000.
    limit: u32,
    /// With a filter or `all`: `next_page` of the answer before. Deaths after the first request are not looked at.
    page: String,
    /// Change nothing, only say what would be changed.
    dry_run: bool,
}

/// All given conditions must hold.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = DeadFilter)]
struct DeadFilterDto {
    /// Exact name.
    method: String,
    /// Exact code of the last error.
    error_code: String,
    /// They died before this.
    died_before_unix_ms: u64,
    /// They died at this time or after it.
    died_after_unix_ms: u64,
}

/// What became of dead letters.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadChanged)]
pub(super) struct DeadChangedDto {
    /// How many were changed, or would be.
    changed: usize,
    /// One for each id of the request, in its order, or for each that was found.
    results: Vec<DeadResultDto>,
    /// Set when there may be more: give it as `page` to go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page: Option<String>,
}

/// How one dead letter fared.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadResult)]
struct DeadResultDto {
    #[schema(format = "uuid")]
    task_id: String,
    /// Why nothing was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<RefusalDto>,
}

impl DeadFilterDto {
    fn into_filter(self) -> DeadFilter {
        let time = |unix_ms: u64| (unix_ms > 0).then_some(Timestamp(unix_ms));
        DeadFilter {
            method: self.method,
            error_code: self.error_code,
            died_before: time(self.died_before_unix_ms),
            died_after: time(self.died_after_unix_ms),
        }
    }
}

/// Dead letters with their attempts, those that died last first.
#[utoipa::path(
    get,
    path = "/v1/dead",
    tag = "operators",
    params(
        ("method" = Option<String>, Query, description = "Exact name."),
        ("error_code" = Option<String>, Query, description = "Exact code of the last error."),
        ("died_before" = Option<u64>, Query, description = "Milliseconds since 1970."),
        ("died_after" = Option<u64>, Query, description = "Milliseconds since 1970."),
        ("limit" = Option<u32>, Query, description = "Default 100, at most 1000."),
        ("page" = Option<String>, Query, description = "`next_page` of the page before."),
    ),
    responses(
        (status = 200, body = TaskPageDto<'static>),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(State(edge): State<Arc<Edge>>, mut params: Params) -> Result<Response, Problem> {
    let filter = DeadFilter {
        method: params.one("method")?.unwrap_or_default(),
        error_code: params.one("error_code")?.unwrap_or_default(),
        died_before: moment(&mut params, "died_before")?,
        died_after: moment(&mut params, "died_after")?,
    };
    let limit = page_size(&mut params)?;
    let after = params.one("page")?.map(|page| page.parse()).transpose()?;
    params.finish()?;
    let (views, next) = edge.handle.list_dead(filter, after, limit).await?;
    let shown = Shown { payload: false, attempts: true };
    let page = TaskPageDto {
        tasks: views.iter().map(|view| TaskDto::new(view, shown)).collect(),
        next_page: next.map(|place| place.to_string()),
    };
    Ok(Json(page).into_response())
}

fn moment(params: &mut Params, name: &'static str) -> Result<Option<Timestamp>> {
    let Some(text) = params.one(name)? else { return Ok(None) };
    let parsed = text.parse().map(Timestamp);
    parsed
        .map(Some)
        .map_err(|_| Error::invalid(name, format_args!("{text:?} is not milliseconds since 1970")))
}

/// Runs dead letters again, from attempt 1.
///
/// Repeating it runs nothing twice: what runs again is no dead letter.
#[utoipa::path(
    post,
    path = "/v1/dead/retry",
    tag = "operators",
    request_body(content = DeadSelectionDto),
    responses(
        (status = 200, body = DeadChangedDto),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn retry(
    State(edge): State<Arc<Edge>>,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    change(&edge, DeadChange::Retry, &headers, body).await
}

/// Forgets dead letters now. Their idempotency keys are free then.
#[utoipa::path(
    post,
    path = "/v1/dead/discard",
    tag = "operators",
    request_body(content = DeadSelectionDto),
    responses(
        (status = 200, body = DeadChangedDto),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn discard(
    State(edge): State<Arc<Edge>>,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    params.finish()?;
    change(&edge, DeadChange::Discard, &headers, body).await
}

async fn change(
    edge: &Edge,
    change: DeadChange,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_body(headers, body, edge.handle.limits().document_bytes()).await?;
    let Object(given): Object<DeadSelectionDto> = serde_json::from_slice(&body).map_err(|problem| {
        Problem::invalid_json(format!("the body says not which dead letters: {problem}"))
    })?;
    let selection = DeadSelection::new(
        edge.handle.limits(),
        &given.task_ids,
        given.filter.into_filter(),
        given.all,
        given.limit,
        &given.page,
    )?;
    let DeadChanged { results, next } = edge.handle.change_dead(change, selection, given.dry_run).await?;
    let changed = results.iter().filter(|(_, result)| result.is_ok()).count();
    let results = results
        .into_iter()
        .map(|(id, result)| DeadResultDto { task_id: id.to_string(), refusal: result.err().map(refusal_out) })
        .collect();
    let next_page = next.map(|place| place.to_string());
    Ok(Json(DeadChangedDto { changed, results, next_page }).into_response())
}

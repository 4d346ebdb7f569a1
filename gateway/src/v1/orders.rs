//! Orders of operators: methods paused, the store copied.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use crewcall::order::Pause;
use crewcall::scheduler::Room;
use serde::Serialize;
use utoipa::ToSchema;

use super::Edge;
use super::dto::ProblemDto;
use super::params::{Params, Segment};
use super::tasks::reason;
use crate::Problem;

/// An operator's order that the tasks of a method wait.
#[derive(Serialize, ToSchema)]
#[schema(as = MethodPause)]
pub(super) struct PauseDto {
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    /// Who said so, as they call themselves.
    #[serde(skip_serializing_if = "String::is_empty")]
    by: String,
    since_unix_ms: u64,
}

impl PauseDto {
    pub(super) fn new(pause: &Pause) -> Self {
        Self { reason: pause.reason.clone(), by: pause.by.clone(), since_unix_ms: pause.since.0 }
    }
}

/// The answer to a pause.
#[derive(Serialize, ToSchema)]
#[schema(as = Paused)]
pub(super) struct PausedDto {
    pause: PauseDto,
    /// It was paused before.
    was_paused: bool,
    /// A live worker serves the method, or tasks of it are there. If not, its name may be misspelt.
    known: bool,
}

/// The answer to a resume.
#[derive(Serialize, ToSchema)]
#[schema(as = Resumed)]
pub(super) struct ResumedDto {
    was_paused: bool,
}

/// A copy of the store.
#[derive(Serialize, ToSchema)]
#[schema(as = Backup)]
pub(super) struct BackupDto {
    /// It lies in `backups/NAME` of the server's data directory.
    name: String,
    /// Stored rows in it.
    rows: u64,
    /// Disk that it takes.
    bytes: u64,
}

/// How much is used of what there is.
#[derive(Serialize, ToSchema)]
#[schema(as = Room)]
pub(super) struct RoomDto {
    /// The most tasks that the server may know, ended ones included.
    max_tasks: u64,
    /// Payloads and outcomes held in memory, and the most that they may take.
    memory_bytes: u64,
    max_memory_bytes: u64,
    /// Dead letters beyond so many are kept no longer than any other ended task.
    max_dead: u64,
    /// Disk that the store takes; 0 when the server keeps everything in memory.
    store_bytes: u64,
    /// The most that its tables may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_store_bytes: Option<u64>,
    /// Why durable work is refused now.
    #[serde(skip_serializing_if = "Option::is_none")]
    store_full: Option<String>,
}

impl RoomDto {
    pub(super) fn new(room: &Room) -> Self {
        let Room {
            max_tasks,
            memory_bytes,
            max_memory_bytes,
            max_dead,
            store_bytes,
            max_store_bytes,
            store_full,
        } = room.clone();
        Self { max_tasks, memory_bytes, max_memory_bytes, max_dead, store_bytes, max_store_bytes, store_full }
    }
}

/// Lets the tasks of a method wait. They are taken all the same; what handlers have begun goes on.
#[utoipa::path(
    post,
    path = "/v1/methods/{method}/pause",
    tag = "operators",
    params(
        ("method" = String, Path),
        ("reason" = Option<String>, Query, description = "For people. At most 1 KiB."),
        ("by" = Option<String>, Query, description = "Who says so; for people. At most 128 bytes."),
    ),
    responses(
        (status = 200, description = "It is paused, now or since before.", body = PausedDto),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn pause(
    State(edge): State<Arc<Edge>>,
    method: Segment,
    mut params: Params,
) -> Result<Response, Problem> {
    let (reason, by) = (reason(&mut params)?, params.one("by")?.unwrap_or_default());
    params.finish()?;
    let paused = edge.handle.pause(method.0, reason, by).await?;
    let (was_paused, known) = (paused.was_paused, paused.known);
    Ok(Json(PausedDto { pause: PauseDto::new(&paused.pause), was_paused, known }).into_response())
}

/// Lets them wait no longer. Of a method that is not paused it succeeds too.
#[utoipa::path(
    post,
    path = "/v1/methods/{method}/resume",
    tag = "operators",
    params(("method" = String, Path)),
    responses(
        (status = 200, body = ResumedDto),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn resume(
    State(edge): State<Arc<Edge>>,
    method: Segment,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let was_paused = edge.handle.resume(method.0).await?;
    Ok(Json(ResumedDto { was_paused }).into_response())
}

/// Copies everything stored into `backups/NAME` of the server's data directory, while it goes on.
#[utoipa::path(
    post,
    path = "/v1/backups",
    tag = "operators",
    params(("name" = Option<String>, Query, description = "Letters, digits, dots, dashes, underscores; left out: chosen.")),
    responses(
        (status = 201, body = BackupDto),
        (status = 409, description = "`backup_exists`, `store_ephemeral`", body = ProblemDto, content_type = "application/problem+json"),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn backup(State(edge): State<Arc<Edge>>, mut params: Params) -> Result<Response, Problem> {
    let name = params.one("name")?.unwrap_or_default();
    params.finish()?;
    let made = edge.handle.backup(&name).await?;
    let body = BackupDto { name: made.name, rows: made.rows, bytes: made.bytes };
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

//! The JSON documents of REST v1. Their fields are those of `proto/crewcall/v1` under the same names; what
//! is not set is left out.

use std::borrow::Cow;

use crewcall::task::Payload;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::payload::Embedded;

mod method;
mod options;
mod stats;
mod task;
mod worker;

pub(super) use method::{MethodStatusDto, MethodsDto};
pub(super) use options::{DurabilityDto, RetryPolicyDto, TargetDto, TaskOptionsDto, Verb};
pub(super) use stats::StatsDto;
pub(super) use task::{
    AcceptedDto, ChunkEventDto, ExplanationDto, LinksDto, NewTaskDto, NewTasksDto, OutcomeDto, ProgressDto,
    ProgressEventDto, RefusalDto, Shown, SubmitAnswerDto, SubmitResultDto, SubmittedDto, TaskDto,
    TaskPageDto,
};
pub(super) use worker::{WorkerDto, WorkersDto};

/// As seen by the description of the API.
pub(super) type PayloadDto = Embedded<'static>;

impl PartialSchema for Embedded<'_> {
    fn schema() -> RefOr<Schema> {
        let text = "Any JSON value: the payload itself, as it was written. A payload that is not JSON, or looks like \
                    this object, is `{\"base64\": \"...\", \"content_type\": \"...\"}`.";
        // Without a type: anything.
        ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some(text)).into()
    }
}

impl ToSchema for Embedded<'_> {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Payload")
    }
}

/// An error, as `application/problem+json` (RFC 9457).
#[derive(ToSchema)]
#[schema(as = Problem)]
#[allow(dead_code)] // the schema of what `Problem` writes
pub(super) struct ProblemDto {
    /// Where the reason is explained.
    #[schema(rename = "type")]
    kind: String,
    /// The HTTP status in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// For people: what was wrong, with which value, what to do.
    detail: String,
    /// Stable, for programs.
    reason: String,
    /// The path of the request.
    instance: Option<String>,
    /// When waiting helps: how long.
    retry_after_ms: Option<u64>,
    /// The task that ended other than in success.
    task_id: Option<String>,
    /// How it ended.
    outcome: Option<OutcomeDto<'static>>,
}

/// JSON text of a value that this crate made.
pub(super) fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).unwrap_or_else(|problem| {
        tracing::error!(%problem, "a document cannot be written");
        RawValue::NULL.to_owned()
    })
}

/// What a payload that is not embedded says of itself, as a header.
pub(super) fn content_type(payload: &Payload) -> axum::http::HeaderValue {
    use axum::http::HeaderValue;
    if payload.content_type.is_empty() {
        return HeaderValue::from_static(super::payload::JSON);
    }
    // A worker may say anything.
    HeaderValue::from_str(&payload.content_type)
        .unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

/// Documents that no route names as its body.
#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(ProgressEventDto<'static>, ChunkEventDto<'static>)))]
pub(super) struct Extra;

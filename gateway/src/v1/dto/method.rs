//! Methods.

use crewcall::scheduler::MethodView;
use crewcall::task::Method;
use serde::Serialize;
use utoipa::ToSchema;

use crate::v1::orders::PauseDto;

/// Methods that live workers serve, or that tasks wait for, by name and version.
#[derive(Serialize, ToSchema)]
#[schema(as = Methods)]
pub(crate) struct MethodsDto<'a> {
    pub(crate) methods: Vec<MethodStatusDto<'a>>,
}

/// A method.
#[derive(Serialize, ToSchema)]
#[schema(as = MethodStatus)]
pub(crate) struct MethodStatusDto<'a> {
    /// As registered by the worker that joined last. Only `name` is set when no worker serves it.
    method: MethodDto<'a>,
    /// Live workers that serve this version.
    workers: u32,
    /// Tasks of the method, of any version, that wait for a worker.
    ready: u64,
    /// Set while they wait because an operator says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause: Option<PauseDto>,
}

/// A function that workers serve, in the words of a worker: untrusted text.
#[derive(Serialize, ToSchema)]
#[schema(as = Method)]
struct MethodDto<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    /// One line.
    #[serde(skip_serializing_if = "str::is_empty")]
    summary: &'a str,
    /// Markdown. Show it with all HTML made inert.
    #[serde(skip_serializing_if = "str::is_empty")]
    docs: &'a str,
    /// JSON Schema of the payload, as text.
    #[serde(skip_serializing_if = "str::is_empty")]
    input_schema: &'a str,
    /// JSON Schema of the result, as text.
    #[serde(skip_serializing_if = "str::is_empty")]
    output_schema: &'a str,
    /// Payloads to try, as JSON text.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    examples: &'a [String],
    /// The pool it runs in.
    #[serde(skip_serializing_if = "str::is_empty")]
    pool: &'a str,
}

impl<'a> MethodStatusDto<'a> {
    pub(crate) fn new(view: &'a MethodView) -> Self {
        let method = match view.method.as_deref() {
            Some(method) => MethodDto::new(method),
            None => MethodDto {
                name: &view.name,
                version: "",
                summary: "",
                docs: "",
                input_schema: "",
                output_schema: "",
                examples: &[],
                pool: "",
            },
        };
        let pause = view.paused.as_ref().map(PauseDto::new);
        Self { method, workers: view.workers, ready: view.ready, pause }
    }
}

impl<'a> MethodDto<'a> {
    fn new(method: &'a Method) -> Self {
        Self {
            name: &method.name,
            version: &method.version_text,
            summary: &method.summary,
            docs: &method.docs,
            input_schema: &method.input_schema,
            output_schema: &method.output_schema,
            examples: &method.examples,
            pool: &method.pool,
        }
    }
}

//! REST v1 and the JSON worker: `proto/crewcall/v1` in JSON, under the same names. `docs/rest.md` shows it,
//! `openapi.json` describes it, and both edges build the same commands, so they cannot disagree.
//!
//! | route | what |
//! |---|---|
//! | `POST /v1/call/{method}` | run a method, wait for its outcome |
//! | `POST /v1/tasks` | hand in one task or a list |
//! | `GET /v1/tasks` | list |
//! | `GET` `DELETE /v1/tasks/{id}` | look at one, end one |
//! | `GET /v1/tasks/{id}/result` | the result itself |
//! | `GET /v1/tasks/{id}/events`, `GET /v1/events` | follow one, follow many (server-sent events) |
//! | `POST /v1/tasks/{id}/retry` | run an ended one again |
//! | `GET /v1/tasks/{id}/explain` | why is it where it is? |
//! | `GET /v1/workers` `/v1/methods` `/v1/stats` | what is there, how it does |
//! | `POST /v1/workers/{id}/drain` | let a worker go |
//! | `POST /v1/methods/{method}/pause` `…/resume` | let a method's tasks wait, and no longer |
//! | `GET /v1/dead` | tasks that failed for good |
//! | `POST /v1/dead/retry` `/v1/dead/discard` | run them again, forget them |
//! | `POST /v1/backups` | copy the store |
//! | `GET /v1/worker` | the WebSocket of a worker |
//! | `GET /openapi.json` | this table for machines |

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use crewcall::handle::Handle;
use crewcall::shutdown::Shutdown;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use call::{PATH as CALL_PATH, answer as answer_call};

use crate::{Problem, Settings, openapi};

mod admin;
mod call;
mod dead;
mod dto;
mod events;
mod frame;
mod object;
mod options;
mod orders;
mod params;
mod payload;
mod tasks;
mod worker;

/// What the handlers share.
pub(crate) struct Edge {
    handle: Handle,
    worker_key: Option<String>,
    shutdown: Shutdown,
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edge").finish_non_exhaustive()
    }
}

impl Edge {
    pub(crate) fn new(handle: Handle, settings: &Settings) -> Arc<Self> {
        let (worker_key, shutdown) = (settings.worker_key.clone(), settings.shutdown.clone());
        Arc::new(Self { handle, worker_key, shutdown })
    }
}

/// The routes of REST v1.
pub(crate) fn routes(edge: Arc<Edge>, settings: &Settings) -> Router {
    let allowed: Arc<[String]> = settings.allowed_origins.clone().into();
    documented()
        .split_for_parts()
        .0
        .route("/openapi.json", get(openapi::document))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(edge)
        .layer(middleware::from_fn_with_state(allowed, share))
        .layer(middleware::from_fn(finish))
}

/// The routes with their descriptions.
pub(crate) fn documented_routes() -> OpenApi {
    documented().split_for_parts().1
}

fn documented() -> OpenApiRouter<Arc<Edge>> {
    OpenApiRouter::with_openapi(openapi::frame().merge_from(dto::Extra::openapi()))
        .routes(routes!(call::call))
        .routes(routes!(tasks::submit, tasks::list))
        .routes(routes!(tasks::get, tasks::cancel))
        .routes(routes!(tasks::result))
        .routes(routes!(events::of_task))
        .routes(routes!(events::of_filter))
        .routes(routes!(tasks::retry))
        .routes(routes!(tasks::explain))
        .routes(routes!(admin::workers))
        .routes(routes!(admin::drain))
        .routes(routes!(admin::methods))
        .routes(routes!(admin::stats))
        .routes(routes!(orders::pause))
        .routes(routes!(orders::resume))
        .routes(routes!(orders::backup))
        .routes(routes!(dead::list))
        .routes(routes!(dead::retry))
        .routes(routes!(dead::discard))
        .routes(routes!(worker::connect))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not answer {method}; see the header allow", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// What every answer has: a problem names the path it is about, and no browser guesses types.
async fn finish(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = problem.at(&path);
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    response
}

/// Lets pages of allowed origins read the answers (CORS); who may ask at all is not decided here.
async fn share(State(allowed): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned().filter(|origin| {
        origin.to_str().is_ok_and(|origin| allowed.iter().any(|known| known.eq_ignore_ascii_case(origin)))
    });
    let Some(origin) = origin else { return next.run(request).await };
    let wanted = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match preflight {
        true => StatusCode::NO_CONTENT.into_response(),
        false => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if preflight {
        let methods = HeaderValue::from_static("GET, HEAD, POST, DELETE");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
        if let Some(wanted) = wanted {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted);
        }
    } else {
        let exposed = HeaderValue::from_static("crewcall-task-id, location, retry-after");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    response
}

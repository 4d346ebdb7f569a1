//! What happens to tasks, as server-sent events: `task` (as it stands now), `progress`, `chunk`, and `closed`
//! when the server ends the stream for another reason than the end of the task.
//!
//! The id of an event is the cursor to go on from, which browsers send back as `Last-Event-ID`. The last event
//! of a task that ended has an id that says so: whoever comes back with it is told 204, at which an
//! `EventSource` stops asking.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{
    IntoResponse, Response,
    sse::{self, KeepAlive, Sse},
};
use crewcall::error::{Error, Reason};
use crewcall::handle::Watch;
use crewcall::scheduler::{Cursor, Event, EventKind, Filter};
use crewcall::shutdown::Shutdown;
use crewcall::task::TaskId;
use futures_util::stream::{self, Stream};
use serde::Serialize;

use super::Edge;
use super::dto::{self, ChunkEventDto, ProblemDto, ProgressDto, ProgressEventDto, Shown, TaskDto};
use super::params::{Params, Segment};
use super::payload::Embedded;
use super::tasks::filter;
use crate::Problem;

/// Within the patience of proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Marks the id of the event after which nothing more comes.
const END: &str = "-end";

/// Follows one task until it has ended: server-sent events `task`, `progress` and `chunk`.
#[utoipa::path(
    get,
    path = "/v1/tasks/{id}/events",
    tag = "tasks",
    params(
        ("id" = String, Path),
        ("Last-Event-ID" = Option<String>, Header, description = "Go on after this event. Also as the parameter `cursor`."),
        ("cursor" = Option<String>, Query, description = "Go on after the event of this id."),
    ),
    responses(
        (status = 200, description = "Events: `task` (Task), `progress` (ProgressEvent), `chunk` (ChunkEvent), `closed` (Problem).", body = String, content_type = "text/event-stream"),
        (status = 204, description = "The last event seen was the end, and the task has not been run again."),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn of_task(
    State(edge): State<Arc<Edge>>,
    id: Segment,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last = last_seen(&mut params, &headers)?;
    params.finish()?;
    let id = id.task_id()?;
    let ended = last.ended && edge.handle.get(id).await?.state.outcome().is_some();
    if ended {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let watch = edge.handle.watch(vec![id], Filter::default(), last.cursor).await?;
    Ok(answer(watch, Some(id), edge.shutdown.clone()))
}

/// Follows all tasks that match, until the caller leaves. The newest 1000 are shown first.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "tasks",
    params(
        ("method" = Option<String>, Query, description = "Exact name."),
        ("state" = Option<Vec<String>>, Query, description = "Any of these: repeated, or separated by commas."),
        ("worker" = Option<String>, Query, description = "Held by this worker."),
        ("Last-Event-ID" = Option<String>, Header, description = "Go on after this event. Also as the parameter `cursor`."),
        ("cursor" = Option<String>, Query, description = "Go on after the event of this id."),
    ),
    responses(
        (status = 200, description = "Events: `task` (Task), `progress` (ProgressEvent), `chunk` (ChunkEvent), `closed` (Problem).", body = String, content_type = "text/event-stream"),
        (status = "default", description = "Refused.", body = ProblemDto, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn of_filter(
    State(edge): State<Arc<Edge>>,
    mut params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let filter = filter(&mut params)?;
    let last = last_seen(&mut params, &headers)?;
    params.finish()?;
    let watch = edge.handle.watch(Vec::new(), filter, last.cursor).await?;
    Ok(answer(watch, None, edge.shutdown.clone()))
}

/// The event that the caller saw last.
#[derive(Debug, Default, PartialEq, Eq)]
struct LastSeen {
    cursor: Option<Cursor>,
    ended: bool,
}

fn last_seen(params: &mut Params, headers: &HeaderMap) -> Result<LastSeen, Error> {
    let by_query = params.one("cursor")?;
    // A browser that reconnects sends the header beside the query it began with: the header is newer.
    let by_header = headers.get(LAST_EVENT_ID).map(|value| value.to_str().unwrap_or("?").to_owned());
    read_id(&by_header.or(by_query).unwrap_or_default())
}

fn read_id(text: &str) -> Result<LastSeen, Error> {
    if text.is_empty() {
        return Ok(LastSeen::default());
    }
    let (place, ended) = match text.strip_suffix(END) {
        Some(place) => (place, true),
        None => (text, false),
    };
    let cursor = place.split_once('-').and_then(|(epoch, seq)| {
        Some(Cursor { epoch: u64::from_str_radix(epoch, 16).ok()?, seq: u64::from_str_radix(seq, 16).ok()? })
    });
    match cursor {
        Some(cursor) => Ok(LastSeen { cursor: Some(cursor), ended }),
        None => Err(Error::invalid("cursor", "is not an event id of this server; leave it out to begin")),
    }
}

fn answer(watch: Watch, only: Option<TaskId>, shutdown: Shutdown) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("");
    let mut response = Sse::new(events(watch, only, shutdown)).keep_alive(keep_alive).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would hold events back until its buffer is full.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Feed {
    watch: Watch,
    only: Option<TaskId>,
    shutdown: Shutdown,
    /// Taken and not yet sent, last first.
    items: Vec<Event>,
    over: bool,
}

fn events(
    watch: Watch,
    only: Option<TaskId>,
    shutdown: Shutdown,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    let feed = Feed { watch, only, shutdown, items: Vec::new(), over: false };
    stream::unfold(feed, |mut feed| async move { feed.next().await.map(|event| (Ok(event), feed)) })
}

impl Feed {
    async fn next(&mut self) -> Option<sse::Event> {
        while self.items.is_empty() {
            if self.over {
                return None;
            }
            let taken = tokio::select! {
                biased;
                taken = self.watch.outbox().take(&mut self.items) => taken,
                () = self.shutdown.stopping() => {
                    Err(Error::new(Reason::ShuttingDown, "the server is stopping; go on from the last event"))
                }
            };
            match taken {
                Ok(true) => self.items.reverse(),
                Ok(false) => return None,
                Err(error) => {
                    self.over = true;
                    let problem = Problem::from(error).to_json(None);
                    return Some(sse::Event::default().event("closed").data(problem));
                }
            }
        }
        self.items.pop().map(|event| event_out(&event, self.only))
    }
}

fn event_out(event: &Event, only: Option<TaskId>) -> sse::Event {
    let mut id = format!("{:x}-{:x}", event.cursor.epoch, event.cursor.seq);
    let (name, data) = match &event.kind {
        EventKind::Task(view) => {
            if only.is_some() && view.state.outcome().is_some() {
                id.push_str(END);
            }
            ("task", line(&TaskDto::new(view, Shown::default())))
        }
        EventKind::Progress(task, progress) => {
            let progress = ProgressDto::new(progress);
            ("progress", line(&ProgressEventDto { task_id: task.to_string(), progress }))
        }
        EventKind::Chunk(task, chunk) => {
            let data = Embedded(&chunk.data);
            let task_id = task.to_string();
            ("chunk", line(&ChunkEventDto { task_id, attempt: chunk.attempt, index: chunk.index, data }))
        }
    };
    sse::Event::default().event(name).id(id).data(data)
}

/// As one line: payloads stand in it as they were written, and a line ends a field of an event. In JSON, line
/// breaks are white space; inside of strings there are none.
fn line(value: &impl Serialize) -> String {
    dto::raw(value).get().replace(['\r', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_cursors() {
        let cursor = Some(Cursor { epoch: 0x1f, seq: 10 });
        assert_eq!(read_id("").unwrap(), LastSeen::default());
        assert_eq!(read_id("1f-a").unwrap(), LastSeen { cursor, ended: false });
        assert_eq!(read_id("1f-a-end").unwrap(), LastSeen { cursor, ended: true });
        for bad in ["1f", "-end", "x-1", "1f-a-", "1f-a-end-end", "?"] {
            assert!(read_id(bad).is_err(), "{bad}");
        }
    }
}

//! Follows tasks and picks up again where a broken connection left off.
use std::time::Duration;

use futures_util::{Stream, stream};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::error::CallError;
use crate::proto::tasks_client::TasksClient;
use crate::proto::{
    ChunkEvent, ProgressEvent, Task, TaskFilter, WatchRequest, WatchResponse, watch_response,
};
use crate::worker::backoff::Backoff;

/// Broken connections in a row, without one event between them, after which a watch gives up.
const RECONNECTS_MAX: u32 = 10;
const BACKOFF_BASE: Duration = Duration::from_millis(100);
const BACKOFF_CAP: Duration = Duration::from_secs(5);

/// Which tasks to follow.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchTarget {
    /// These; the watch ends when all of them have. At most 1000.
    Ids(Vec<String>),
    /// All that match, now and later; the watch does not end by itself.
    Filter(TaskFilter),
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// The task as it stands now.
    Task(Box<Task>),
    /// Word from a running handler.
    Progress(ProgressEvent),
    /// A piece of output ahead of the result.
    Chunk(ChunkEvent),
}

/// Events of the tasks followed. Dropping it ends the watch and nothing else.
#[derive(Debug)]
pub struct Watch {
    client: TasksClient<Channel>,
    request: WatchRequest,
    stream: Option<Streaming<WatchResponse>>,
    backoff: Backoff,
    failures: u32,
    ended: bool,
}

impl Watch {
    pub(crate) async fn open(
        mut client: TasksClient<Channel>,
        target: WatchTarget,
        cursor: String,
    ) -> Result<Self, CallError> {
        let (task_ids, filter) = match target {
            WatchTarget::Ids(ids) => (ids, None),
            WatchTarget::Filter(filter) => (Vec::new(), Some(filter)),
        };
        let request = WatchRequest { task_ids, filter, cursor };
        let stream = client.watch(request.clone()).await?.into_inner();
        let backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP);
        Ok(Self { client, request, stream: Some(stream), backoff, failures: 0, ended: false })
    }

    /// The next event, or `None` when all named tasks have ended. Safe to drop and call again: no event is
    /// lost.
    ///
    /// # Errors
    /// [`CallError::Refused`], or [`CallError::Transport`] once ten reconnections in a row have failed;
    /// after an error there are no more events.
    #[allow(clippy::should_implement_trait, reason = "it is async; `into_stream` is the trait's form")]
    pub async fn next(&mut self) -> Option<Result<WatchEvent, CallError>> {
        loop {
            if self.ended {
                return None;
            }
            let received = match &mut self.stream {
                Some(stream) => stream.message().await,
                None => match self.client.watch(self.request.clone()).await {
                    Ok(response) => {
                        self.stream = Some(response.into_inner());
                        continue;
                    }
                    Err(status) => Err(status),
                },
            };
            let error = match received {
                Ok(Some(response)) => {
                    self.failures = 0;
                    self.backoff.reset();
                    if !response.cursor.is_empty() {
                        self.request.cursor = response.cursor;
                    }
                    match response.event {
                        Some(event) => return Some(Ok(event.into())),
                        None => continue,
                    }
                }
                Ok(None) => {
                    self.ended = true;
                    return None;
                }
                Err(status) => CallError::from(status),
            };
            self.stream = None;
            self.failures += 1;
            if !error.is_transient() || self.failures > RECONNECTS_MAX {
                self.ended = true;
                return Some(Err(error));
            }
            tokio::time::sleep(self.backoff.next_wait()).await;
        }
    }

    /// Where this watch stands; a later [`Client::watch`](crate::Client::watch) goes on from here.
    pub fn cursor(&self) -> &str {
        &self.request.cursor
    }

    /// The same as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<WatchEvent, CallError>> + Send + Unpin {
        Box::pin(stream::unfold(self, |mut watch| async move {
            let event = watch.next().await?;
            Some((event, watch))
        }))
    }
}

impl From<watch_response::Event> for WatchEvent {
    fn from(event: watch_response::Event) -> Self {
        match event {
            watch_response::Event::Task(task) => Self::Task(Box::new(task)),
            watch_response::Event::Progress(progress) => Self::Progress(progress),
            watch_response::Event::Chunk(chunk) => Self::Chunk(chunk),
        }
    }
}

impl From<String> for WatchTarget {
    fn from(id: String) -> Self {
        Self::Ids(vec![id])
    }
}

impl From<&str> for WatchTarget {
    fn from(id: &str) -> Self {
        Self::Ids(vec![id.to_owned()])
    }
}

impl From<Vec<String>> for WatchTarget {
    fn from(ids: Vec<String>) -> Self {
        Self::Ids(ids)
    }
}

impl From<TaskFilter> for WatchTarget {
    fn from(filter: TaskFilter) -> Self {
        Self::Filter(filter)
    }
}

//! For callers: one call, one submission, everything one may do with a task afterwards.
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;

use crate::channel::{self, MESSAGE_BYTES_MAX};
use crate::error::{CallError, Refusal, outcome_result, transport_words};
use crate::options::{NewTask, Payload, TaskBuilder, TaskOptions, millis};
use crate::pipe::Pipe;
use crate::proto::admin_client::AdminClient;
use crate::proto::tasks_client::TasksClient;
use crate::proto::{self, ListResponse, MethodStatus, StatsResponse, SubmitResult, Task, TaskFilter};
use crate::watch::{Watch, WatchTarget};

/// A connection to a scheduler. Clones share it; it reconnects by itself when it breaks.
#[derive(Debug, Clone)]
pub struct Client {
    tasks: TasksClient<Channel>,
    pub(crate) admin: AdminClient<Channel>,
    runtime: tokio::runtime::Handle,
}

/// An accepted task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// Names the task in everything that follows.
    pub task_id: String,
    /// True when a task with the same idempotency key was there already and this is its id.
    pub attached: bool,
}

impl Client {
    /// Connects to `http://host:port` or `host:port` and waits until the connection stands.
    ///
    /// # Errors
    /// [`CallError::Transport`] when the address is malformed or nothing answers there within 5 s.
    pub async fn connect(address: impl AsRef<str>) -> Result<Self, CallError> {
        let address = address.as_ref();
        let endpoint = channel::endpoint(address).map_err(CallError::Transport)?;
        let channel = endpoint.connect().await.map_err(|error| {
            CallError::Transport(format!(
                "cannot reach {address} ({}): is the scheduler running there?",
                transport_words(&error)
            ))
        })?;
        Ok(Self::from_channel(channel, tokio::runtime::Handle::current()))
    }

    /// Like [`connect`](Self::connect), but connects at the first request, on the runtime it is called in.
    ///
    /// # Errors
    /// [`CallError::Transport`] when the address is malformed or there is no tokio runtime.
    pub fn connect_lazy(address: impl AsRef<str>) -> Result<Self, CallError> {
        let endpoint = channel::endpoint(address.as_ref()).map_err(CallError::Transport)?;
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| CallError::Transport(format!("a client needs a tokio runtime: {error}")))?;
        Ok(Self::from_channel(endpoint.connect_lazy(), runtime))
    }

    fn from_channel(channel: Channel, runtime: tokio::runtime::Handle) -> Self {
        let tasks = TasksClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let admin = AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Self { tasks, admin, runtime }
    }

    /// Runs a method and waits for its result. Dropping the future cancels the task.
    ///
    /// # Errors
    /// Every kind of [`CallError`].
    pub async fn call<In, Out>(&self, method: impl Into<String>, input: &In) -> Result<Out, CallError>
    where
        In: Serialize + ?Sized,
        Out: DeserializeOwned,
    {
        self.task(method).payload(input).call().await
    }

    /// [`call`](Self::call) with options.
    ///
    /// # Errors
    /// Every kind of [`CallError`].
    pub async fn call_with<In, Out>(
        &self,
        method: impl Into<String>,
        input: &In,
        options: TaskOptions,
    ) -> Result<Out, CallError>
    where
        In: Serialize + ?Sized,
        Out: DeserializeOwned,
    {
        self.task(method).options(options).payload(input).call().await
    }

    /// Runs a task as given and waits for its result, whatever its content type.
    ///
    /// # Errors
    /// Every kind of [`CallError`] but [`CallError::Encode`].
    pub async fn call_raw(&self, task: NewTask) -> Result<Payload, CallError> {
        outcome_result(self.call_outcome(task).await?.outcome)
    }

    /// Runs a task as given; a method that failed is an answer here, with the task's id beside it.
    ///
    /// # Errors
    /// [`CallError::Refused`] and [`CallError::Transport`] only.
    pub async fn call_outcome(&self, task: NewTask) -> Result<proto::CallResponse, CallError> {
        let request = proto::CallRequest { task: Some(task) };
        Ok(self.tasks.clone().call(request).await?.into_inner())
    }

    /// Starts a task with options; finish with `.call()` or `.submit()`.
    pub fn task(&self, method: impl Into<String>) -> TaskBuilder<Self> {
        TaskBuilder::bound(method, self.clone())
    }

    /// Hands in one task and returns when it is accepted (and, unless it is ephemeral, stored).
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`].
    pub async fn submit(&self, task: NewTask) -> Result<Submitted, CallError> {
        match self.submit_many(vec![task]).await?.pop() {
            Some(result) => Ok(result?),
            None => Err(CallError::missing("results")),
        }
    }

    /// Hands in 1 to 10,000 tasks. The results come in the order of the tasks, each its own.
    ///
    /// # Errors
    /// [`CallError::Refused`] when the request as a whole was refused, [`CallError::Transport`].
    pub async fn submit_many(
        &self,
        tasks: Vec<NewTask>,
    ) -> Result<Vec<Result<Submitted, Refusal>>, CallError> {
        let expected = tasks.len();
        let response = self.tasks.clone().submit(proto::SubmitRequest { tasks }).await?.into_inner();
        if response.results.len() != expected {
            return Err(CallError::missing("results"));
        }
        Ok(response.results.into_iter().map(submitted).collect())
    }

    /// Opens the fast lane: many calls in flight over one stream.
    pub fn pipe(&self) -> Pipe {
        Pipe::new(self.tasks.clone(), self.runtime.clone())
    }

    /// One task as it stands, without its payload.
    ///
    /// # Errors
    /// [`CallError::Refused`] (`NOT_FOUND`) when it is unknown, [`CallError::Transport`].
    pub async fn get(&self, task_id: impl Into<String>) -> Result<Task, CallError> {
        self.get_with(proto::GetRequest { task_id: task_id.into(), ..Default::default() }).await
    }

    /// Waits up to `wait` (at most 5 min) for the outcome and returns the task as it then stands.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_wait(&self, task_id: impl Into<String>, wait: Duration) -> Result<Task, CallError> {
        let request =
            proto::GetRequest { task_id: task_id.into(), wait_ms: millis(wait), with_payload: false };
        self.get_with(request).await
    }

    /// One task, with everything the request can ask for.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_with(&self, request: proto::GetRequest) -> Result<Task, CallError> {
        self.tasks.clone().get(request).await?.into_inner().task.ok_or_else(|| CallError::missing("task"))
    }

    /// One page of the tasks that match, newest first. `page_token` is empty for the first page,
    /// `page_size` 0 for the server's default.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`].
    pub async fn list(
        &self,
        filter: TaskFilter,
        page_size: u32,
        page_token: impl Into<String>,
    ) -> Result<ListResponse, CallError> {
        let request = proto::ListRequest { filter: Some(filter), page_size, page_token: page_token.into() };
        Ok(self.tasks.clone().list(request).await?.into_inner())
    }

    /// Cancels a task that has not ended.
    ///
    /// # Errors
    /// [`CallError::Refused`] when it is unknown or has ended some other way, [`CallError::Transport`].
    pub async fn cancel(
        &self,
        task_id: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<Task, CallError> {
        let request = proto::CancelRequest { task_id: task_id.into(), reason: reason.into() };
        self.tasks.clone().cancel(request).await?.into_inner().task.ok_or_else(|| CallError::missing("task"))
    }

    /// Runs an ended task again under the same id.
    ///
    /// # Errors
    /// [`CallError::Refused`] when it is unknown or has not ended, [`CallError::Transport`].
    pub async fn retry(&self, task_id: impl Into<String>) -> Result<Task, CallError> {
        let request = proto::RetryRequest { task_id: task_id.into() };
        self.tasks.clone().retry(request).await?.into_inner().task.ok_or_else(|| CallError::missing("task"))
    }

    /// Says why a task is where it is.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn explain(&self, task_id: impl Into<String>) -> Result<proto::ExplainResponse, CallError> {
        let request = proto::ExplainRequest { task_id: task_id.into() };
        Ok(self.tasks.clone().explain(request).await?.into_inner())
    }

    /// Follows tasks, from the beginning (empty cursor) or from where an earlier [`Watch`] stood. Picks up
    /// again by itself when the connection breaks.
    ///
    /// # Errors
    /// [`CallError::Refused`] when a named task is unknown, [`CallError::Transport`].
    pub async fn watch(
        &self,
        target: impl Into<WatchTarget>,
        cursor: impl Into<String>,
    ) -> Result<Watch, CallError> {
        Watch::open(self.tasks.clone(), target.into(), cursor.into()).await
    }

    /// The workers connected, by id.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`].
    pub async fn workers(&self) -> Result<Vec<proto::WorkerStatus>, CallError> {
        Ok(self.admin.clone().workers(proto::WorkersRequest {}).await?.into_inner().workers)
    }

    /// The methods served or waited for, by name and version.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`].
    pub async fn methods(&self) -> Result<Vec<MethodStatus>, CallError> {
        Ok(self.admin.clone().methods(proto::MethodsRequest {}).await?.into_inner().methods)
    }

    /// Counts of the whole server.
    ///
    /// # Errors
    /// [`CallError::Refused`], [`CallError::Transport`].
    pub async fn stats(&self) -> Result<StatsResponse, CallError> {
        Ok(self.admin.clone().stats(proto::StatsRequest {}).await?.into_inner())
    }

    /// Asks a worker to finish what it has and leave.
    ///
    /// # Errors
    /// [`CallError::Refused`] (`NOT_FOUND`) when it is not connected, [`CallError::Transport`].
    pub async fn drain(
        &self,
        worker_id: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<(), CallError> {
        let request = proto::DrainRequest { worker_id: worker_id.into(), reason: reason.into() };
        self.admin.clone().drain(request).await?;
        Ok(())
    }
}

impl TaskBuilder<Client> {
    /// Runs the task and waits for its result. Dropping the future cancels it, unless it is durable.
    ///
    /// # Errors
    /// Every kind of [`CallError`].
    pub async fn call<Out: DeserializeOwned>(self) -> Result<Out, CallError> {
        self.call_raw().await?.decode()
    }

    /// Like [`call`](Self::call), for results that are not JSON.
    ///
    /// # Errors
    /// Every kind of [`CallError`] but [`CallError::Decode`] of the result itself.
    pub async fn call_raw(self) -> Result<Payload, CallError> {
        let (client, task) = self.into_parts()?;
        client.call_raw(task).await
    }

    /// Hands the task in and returns when it is accepted.
    ///
    /// # Errors
    /// [`CallError::Encode`], [`CallError::Refused`], [`CallError::Transport`].
    pub async fn submit(self) -> Result<Submitted, CallError> {
        let (client, task) = self.into_parts()?;
        client.submit(task).await
    }
}

fn submitted(result: SubmitResult) -> Result<Submitted, Refusal> {
    match result.refusal {
        Some(refusal) => Err(refusal.into()),
        None => Ok(Submitted { task_id: result.task_id, attached: result.attached }),
    }
}

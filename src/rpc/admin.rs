//! `Admin`: the operators' service.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Response, Status};

use super::convert::{Shown, dead_filter, method_out, task_out, time_out};
use super::download;
use super::tasks::page_size;
use crate::error::Result as Outcome;
use crate::handle::Handle;
use crate::order::Pause;
use crate::proto;
use crate::proto::admin_server::Admin;
use crate::scheduler::{DeadChange, DeadChanged, DeadSelection, Room, WorkerState, WorkerView};
use crate::task::StateName;

pub(super) struct AdminEdge {
    handle: Handle,
}

impl AdminEdge {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle }
    }
}

#[tonic::async_trait]
impl Admin for AdminEdge {
    async fn workers(
        &self,
        _: Request<proto::WorkersRequest>,
    ) -> Result<Response<proto::WorkersResponse>, Status> {
        let workers = self.handle.workers().await?.into_iter().map(worker_out).collect();
        Ok(Response::new(proto::WorkersResponse { workers }))
    }

    async fn methods(
        &self,
        _: Request<proto::MethodsRequest>,
    ) -> Result<Response<proto::MethodsResponse>, Status> {
        let methods = self.handle.methods().await?.into_iter().map(|view| proto::MethodStatus {
            method: Some(match &view.method {
                Some(method) => method_out(method),
                None => proto::Method { name: view.name.to_string(), ..proto::Method::default() },
            }),
            workers: view.workers,
            ready: view.ready,
            pause: view.paused.as_ref().map(pause_out),
        });
        Ok(Response::new(proto::MethodsResponse { methods: methods.collect() }))
    }

    async fn stats(&self, _: Request<proto::StatsRequest>) -> Result<Response<proto::StatsResponse>, Status> {
        let stats = self.handle.stats().await?;
        Ok(Response::new(proto::StatsResponse {
            delayed: stats.in_state(StateName::Delayed),
            ready: stats.in_state(StateName::Ready),
            leased: stats.in_state(StateName::Leased),
            finished: stats.in_state(StateName::Finished),
            dead: stats.in_state(StateName::Dead),
            cancelled: stats.in_state(StateName::Cancelled),
            expired: stats.in_state(StateName::Expired),
            submitted_total: stats.totals.submitted,
            finished_total: stats.totals.finished,
            failed_total: stats.totals.failed,
            cancelled_total: stats.totals.cancelled,
            expired_total: stats.totals.expired,
            retried_total: stats.totals.retried,
            refused_total: stats.totals.refused,
            workers: stats.workers,
            uptime_ms: stats.uptime_ms,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            paused_methods: stats.paused_methods,
            room: Some(room_out(stats.room)),
        }))
    }

    async fn drain(
        &self,
        request: Request<proto::DrainRequest>,
    ) -> Result<Response<proto::DrainResponse>, Status> {
        let request = request.into_inner();
        self.handle.drain(request.worker_id, request.reason).await?;
        Ok(Response::new(proto::DrainResponse {}))
    }

    async fn pause(
        &self,
        request: Request<proto::PauseRequest>,
    ) -> Result<Response<proto::PauseResponse>, Status> {
        let proto::PauseRequest { method, reason, by } = request.into_inner();
        let paused = self.handle.pause(method, reason, by).await?;
        Ok(Response::new(proto::PauseResponse {
            pause: Some(pause_out(&paused.pause)),
            was_paused: paused.was_paused,
            known: paused.known,
        }))
    }

    async fn resume(
        &self,
        request: Request<proto::ResumeRequest>,
    ) -> Result<Response<proto::ResumeResponse>, Status> {
        let was_paused = self.handle.resume(request.into_inner().method).await?;
        Ok(Response::new(proto::ResumeResponse { was_paused }))
    }

    async fn list_dead(
        &self,
        request: Request<proto::ListDeadRequest>,
    ) -> Result<Response<proto::ListDeadResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse()?),
        };
        let (tasks, next) = self.handle.list_dead(dead_filter(request.filter)?, after, size).await?;
        let shown = Shown { payload: false, attempts: true };
        Ok(Response::new(proto::ListDeadResponse {
            tasks: tasks.into_iter().map(|view| task_out(view, shown)).collect(),
            next_page_token: next.map(|place| place.to_string()).unwrap_or_default(),
        }))
    }

    async fn retry_dead(
        &self,
        request: Request<proto::RetryDeadRequest>,
    ) -> Result<Response<proto::RetryDeadResponse>, Status> {
        let changed = self.change_dead(DeadChange::Retry, request.into_inner().selection).await?;
        Ok(Response::new(proto::RetryDeadResponse {
            changed: changed.changed() as u32,
            next_page_token: changed.next.map(|place| place.to_string()).unwrap_or_default(),
            results: results_out(changed),
        }))
    }

    async fn discard_dead(
        &self,
        request: Request<proto::DiscardDeadRequest>,
    ) -> Result<Response<proto::DiscardDeadResponse>, Status> {
        let changed = self.change_dead(DeadChange::Discard, request.into_inner().selection).await?;
        Ok(Response::new(proto::DiscardDeadResponse {
            changed: changed.changed() as u32,
            next_page_token: changed.next.map(|place| place.to_string()).unwrap_or_default(),
            results: results_out(changed),
        }))
    }

    async fn backup(
        &self,
        request: Request<proto::BackupRequest>,
    ) -> Result<Response<proto::BackupResponse>, Status> {
        let made = self.handle.backup(&request.into_inner().name).await?;
        Ok(Response::new(proto::BackupResponse { name: made.name, rows: made.rows, bytes: made.bytes }))
    }

    type DownloadBackupStream =
        Pin<Box<dyn Stream<Item = Result<proto::DownloadBackupResponse, Status>> + Send>>;

    async fn download_backup(
        &self,
        _: Request<proto::DownloadBackupRequest>,
    ) -> Result<Response<Self::DownloadBackupStream>, Status> {
        Ok(Response::new(Box::pin(download::stream(self.handle.backup_to_send().await?))))
    }
}

impl AdminEdge {
    async fn change_dead(
        &self,
        change: DeadChange,
        selection: Option<proto::DeadSelection>,
    ) -> Outcome<DeadChanged> {
        let given = selection.unwrap_or_default();
        let selection = DeadSelection::new(
            self.handle.limits(),
            &given.task_ids,
            dead_filter(given.filter)?,
            given.all,
            given.limit,
            &given.page_token,
        )?;
        self.handle.change_dead(change, selection, given.dry_run).await
    }
}

fn results_out(changed: DeadChanged) -> Vec<proto::DeadResult> {
    let results = changed.results.into_iter().map(|(id, result)| proto::DeadResult {
        task_id: id.to_string(),
        refusal: result.err().map(Into::into),
    });
    results.collect()
}

fn pause_out(pause: &Pause) -> proto::MethodPause {
    proto::MethodPause {
        reason: pause.reason.clone(),
        by: pause.by.clone(),
        since_unix_ms: time_out(pause.since),
    }
}

fn room_out(room: Room) -> proto::Room {
    proto::Room {
        max_tasks: room.max_tasks,
        memory_bytes: room.memory_bytes,
        max_memory_bytes: room.max_memory_bytes,
        max_dead: room.max_dead,
        store_bytes: room.store_bytes,
        max_store_bytes: room.max_store_bytes.unwrap_or_default(),
        store_full: room.store_full.unwrap_or_default(),
    }
}

fn worker_out(worker: WorkerView) -> proto::WorkerStatus {
    let methods = worker.methods.iter().map(|method| {
        if method.version_text.is_empty() {
            method.name.to_string()
        } else {
            format!("{}@{}", method.name, method.version_text)
        }
    });
    let pools = worker.pools.iter().map(|pool| proto::PoolStatus {
        name: pool.name.to_string(),
        concurrency: pool.concurrency,
        in_flight: pool.in_flight,
        credit: pool.credit,
    });
    proto::WorkerStatus {
        id: worker.id.to_string(),
        session_id: worker.session.0.to_string(),
        state: match worker.state {
            WorkerState::Active => proto::WorkerState::Active,
            WorkerState::Draining => proto::WorkerState::Draining,
            WorkerState::Away => proto::WorkerState::Away,
        }
        .into(),
        methods: methods.collect(),
        pools: pools.collect(),
        group: worker.group,
        labels: worker.labels.into_iter().collect(),
        version: worker.version,
        sdk: worker.sdk,
        host: worker.host,
        peer: worker.peer,
        joined_at_unix_ms: time_out(worker.joined_at),
        seen_at_unix_ms: time_out(worker.seen_at),
        finished: worker.finished,
    }
}

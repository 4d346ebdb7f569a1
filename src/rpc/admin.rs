//! `Admin`: the operators' service.

use tonic::{Request, Response, Status};

use super::convert::{method_out, time_out};
use crate::handle::Handle;
use crate::proto;
use crate::proto::admin_server::Admin;
use crate::scheduler::{WorkerState, WorkerView};
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

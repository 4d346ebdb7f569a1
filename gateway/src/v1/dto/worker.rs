//! Workers.

use std::collections::BTreeMap;

use crewcall::scheduler::{WorkerState, WorkerView};
use serde::Serialize;
use utoipa::ToSchema;

/// Connected workers, and those that may come back, by id.
#[derive(Serialize, ToSchema)]
#[schema(as = Workers)]
pub(crate) struct WorkersDto<'a> {
    pub(crate) workers: Vec<WorkerDto<'a>>,
}

/// A worker.
#[derive(Serialize, ToSchema)]
#[schema(as = WorkerStatus)]
pub(crate) struct WorkerDto<'a> {
    id: &'a str,
    session_id: String,
    /// `active`; `draining`: gets no more work; `away`: its stream broke, its leases wait for it.
    state: &'static str,
    group: &'a str,
    labels: &'a BTreeMap<String, String>,
    version: &'a str,
    sdk: &'a str,
    host: &'a str,
    /// Address that it connected from.
    peer: &'a str,
    joined_at_unix_ms: u64,
    /// When anything was last heard.
    seen_at_unix_ms: u64,
    pools: Vec<PoolDto<'a>>,
    /// Names, with `@version` where one was given.
    methods: Vec<String>,
    /// Results accepted from it since it joined.
    finished: u64,
}

/// A share of a worker's capacity.
#[derive(Serialize, ToSchema)]
#[schema(as = PoolStatus)]
struct PoolDto<'a> {
    name: &'a str,
    concurrency: u32,
    in_flight: u32,
    /// Credit not used yet.
    credit: u64,
}

impl<'a> WorkerDto<'a> {
    pub(crate) fn new(worker: &'a WorkerView) -> Self {
        let pools = worker.pools.iter().map(|pool| PoolDto {
            name: &pool.name,
            concurrency: pool.concurrency,
            in_flight: pool.in_flight,
            credit: pool.credit,
        });
        let methods = worker.methods.iter().map(|method| match method.version_text.as_str() {
            "" => method.name.to_string(),
            version => format!("{}@{version}", method.name),
        });
        Self {
            id: &worker.id,
            session_id: worker.session.0.to_string(),
            state: match worker.state {
                WorkerState::Active => "active",
                WorkerState::Draining => "draining",
                WorkerState::Away => "away",
            },
            group: &worker.group,
            labels: &worker.labels,
            version: &worker.version,
            sdk: &worker.sdk,
            host: &worker.host,
            peer: &worker.peer,
            joined_at_unix_ms: worker.joined_at.0,
            seen_at_unix_ms: worker.seen_at.0,
            pools: pools.collect(),
            methods: methods.collect(),
            finished: worker.finished,
        }
    }
}

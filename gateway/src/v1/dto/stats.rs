//! Counts.

use crewcall::scheduler::Stats;
use crewcall::task::StateName;
use serde::Serialize;
use utoipa::ToSchema;

use crate::v1::orders::RoomDto;

/// Counts of tasks and workers.
#[derive(Serialize, ToSchema)]
#[schema(as = Stats)]
pub(crate) struct StatsDto {
    /// Tasks by state, now.
    delayed: u64,
    ready: u64,
    leased: u64,
    finished: u64,
    dead: u64,
    cancelled: u64,
    expired: u64,
    /// Since the server started.
    submitted_total: u64,
    finished_total: u64,
    failed_total: u64,
    cancelled_total: u64,
    expired_total: u64,
    retried_total: u64,
    /// Entries from workers that were refused (stale or foreign leases).
    refused_total: u64,
    workers: u32,
    uptime_ms: u64,
    /// Of the server.
    version: &'static str,
    /// Methods whose tasks wait because an operator says so.
    paused_methods: u32,
    room: RoomDto,
}

impl StatsDto {
    pub(crate) fn new(stats: &Stats) -> Self {
        Self {
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
            version: env!("CARGO_PKG_VERSION"),
            paused_methods: stats.paused_methods,
            room: RoomDto::new(&stats.room),
        }
    }
}

//! `crewcall workers` and `crewcall stats`: the server as a whole.

use clap::Args;

use super::{ClientArgs, CommandError, Run, Session};
use crate::{
    exit::Exit,
    output::{age, size, span},
    view,
};

/// The arguments of `workers`.
#[derive(Args, Debug)]
#[command(after_help = Exit::SEE_HELP)]
pub(crate) struct WorkersArgs {
    #[command(flatten)]
    client: ClientArgs,
}

impl Run for WorkersArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let workers: Vec<view::Worker> =
            session.client.workers().await?.into_iter().map(Into::into).collect();
        if session.out.json {
            session.out.document(&workers)?;
            return Ok(Exit::Ok);
        }
        let rows: Vec<[String; 9]> = workers
            .into_iter()
            .map(|worker| {
                let busy: u64 = worker.pools.iter().map(|pool| u64::from(pool.in_flight)).sum();
                let room: u64 = worker.pools.iter().map(|pool| u64::from(pool.concurrency)).sum();
                [
                    worker.id,
                    worker.state.to_owned(),
                    format!("{busy}/{room}"),
                    worker.finished.to_string(),
                    worker.group,
                    worker.host,
                    age(worker.joined_at_unix_ms),
                    age(worker.seen_at_unix_ms),
                    worker.methods.join(","),
                ]
            })
            .collect();
        let headers = ["ID", "STATE", "BUSY", "FINISHED", "GROUP", "HOST", "JOINED", "SEEN", "METHODS"];
        session.out.table(headers, &rows, "no worker is connected")?;
        Ok(Exit::Ok)
    }
}

/// The arguments of `stats`.
#[derive(Args, Debug)]
#[command(after_help = Exit::SEE_HELP)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    client: ClientArgs,
}

impl Run for StatsArgs {
    fn client(&self) -> &ClientArgs {
        &self.client
    }

    async fn run(self, session: &Session) -> Result<Exit, CommandError> {
        let stats = session.client.stats().await?;
        let out = &session.out;
        if out.json {
            out.document(&view::Stats::from(stats))?;
            return Ok(Exit::Ok);
        }
        // Seconds are enough: a running server's are forgotten as they are read.
        let uptime_ms = stats.uptime_ms / 1000 * 1000;
        let paused = match stats.paused_methods {
            0 => String::new(),
            1 => "1 method".to_owned(),
            count => format!("{count} methods"),
        };
        let room = stats.room.clone().unwrap_or_default();
        let of = |used: u64, most: u64| match most {
            0 => size(used),
            most => format!("{} of {}", size(used), size(most)),
        };
        let memory = of(room.memory_bytes, room.max_memory_bytes);
        let store =
            if room.store_bytes == 0 { String::new() } else { of(room.store_bytes, room.max_store_bytes) };
        out.facts(&[
            ("server", format!("crewcall {} at {}", stats.version, session.server)),
            ("up for", if uptime_ms == 0 { "0s".to_owned() } else { span(uptime_ms) }),
            ("workers", stats.workers.to_string()),
            ("paused", paused),
            ("memory", memory),
            ("store", store),
            ("full", room.store_full),
        ])?;
        let row = |name: &str, now: Option<u64>, total: Option<u64>| {
            let word = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
            [name.to_owned(), word(now), word(total)]
        };
        let rows = [
            row("submitted", None, Some(stats.submitted_total)),
            row("delayed", Some(stats.delayed), None),
            row("ready", Some(stats.ready), None),
            row("leased", Some(stats.leased), None),
            row("finished", Some(stats.finished), Some(stats.finished_total)),
            row("dead", Some(stats.dead), Some(stats.failed_total)),
            row("cancelled", Some(stats.cancelled), Some(stats.cancelled_total)),
            row("expired", Some(stats.expired), Some(stats.expired_total)),
            row("retried", None, Some(stats.retried_total)),
            row("refused entries", None, Some(stats.refused_total)),
        ];
        out.line("")?;
        out.table(["TASKS", "NOW", "SINCE START"], &rows, "")?;
        Ok(Exit::Ok)
    }
}

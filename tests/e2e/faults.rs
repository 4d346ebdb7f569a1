//! What goes wrong around a server and must not reach those who rely on it: the disk, the clock, the wire,
//! workers that die or stand still, callers that all want the same. The server's own death is in `crash`.
//!
//! Disk and clock fail through the library of `tests/core/store/disk_shim.c`, preloaded into the server.

mod clock;
mod disk;
mod keys;
#[path = "../core/store/shim.rs"]
mod shim;
mod wire;
mod worker;

use std::{ffi::OsString, fmt::Display, fs, path::Path};

use crewcall_sdk::{
    Client, Worker,
    proto::{Task, TaskState},
};
use tempfile::TempDir;

use crate::{
    crash::site::Site,
    grpc::{Held, hold, soon},
};

/// Switches of one server's disk and clock.
#[derive(Debug)]
struct Faults {
    dir: TempDir,
}

impl Faults {
    /// All are off.
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A server on this disk and by this clock.
    async fn site(&self, limits: &'static str) -> Site {
        let environment = |data: &Path| {
            vec![
                ("LD_PRELOAD", shim::library().into()),
                ("SHIM_DIR", data.into()),
                ("SHIM_ROOM", self.dir.path().join("room").into()),
                ("SHIM_FAULTS", OsString::from(self.dir.path())),
            ]
        };
        Site::open_in(limits, environment).await
    }

    /// The next sync fails.
    fn fail_a_sync(&self) {
        self.switch("eio", 0);
    }

    /// Whether it has.
    fn has_failed_a_sync(&self) -> bool {
        !self.dir.path().join("eio").exists()
    }

    /// No file may grow by more than so many bytes.
    fn leave_room(&self, bytes: u64) {
        self.switch("room", bytes);
    }

    fn free_room(&self) {
        self.off("room");
    }

    /// Every sync takes longer by this.
    fn delay_syncs(&self, ms: u64) {
        self.switch("delay", ms);
    }

    /// No sync ends from now on.
    fn block_syncs(&self) {
        self.switch("block", 0);
    }

    /// Ends when one waits.
    async fn until_blocked(&self) {
        soon(async {
            while !self.dir.path().join("blocked").exists() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    fn let_syncs_go(&self) {
        self.off("block");
        self.off("delay");
    }

    /// The wall clock is wrong by so many seconds.
    fn set_clock(&self, wrong_by: i64) {
        self.switch("clock", wrong_by);
    }

    fn switch(&self, fault: &str, value: impl Display) {
        // As a whole: the server looks at any moment.
        let new = self.dir.path().join("new");
        fs::write(&new, value.to_string()).unwrap();
        fs::rename(new, self.dir.path().join(fault)).unwrap();
    }

    fn off(&self, fault: &str) {
        // Some go by themselves.
        let _ = fs::remove_file(self.dir.path().join(fault));
    }
}

/// A worker of the site that serves `held`.
async fn holder(site: &Site, concurrency: u32) -> (crewcall_sdk::WorkerHandle, Held) {
    let builder = Worker::builder(site.switch().url()).worker_id("holder").concurrency(concurrency);
    let (builder, held) = hold(builder, "held");
    let worker = builder.build().unwrap().start();
    soon(worker.wait_connected()).await.unwrap();
    (worker, held)
}

/// The task, once it is in this state.
async fn until_state(client: &Client, id: &str, state: TaskState) -> Task {
    soon(async {
        loop {
            let task = client.get(id).await.unwrap();
            if task.state() == state {
                return task;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

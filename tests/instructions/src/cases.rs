//! The cases: what the hot path of the scheduler meets.

use std::sync::Arc;

use crewcall::task::TaskOptions;

use crate::bench::Bench;

/// One way to use the scheduler.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// For the table.
    pub(crate) about: &'static str,
    workers: usize,
    methods: usize,
    /// Tasks that one worker runs at once.
    concurrency: u32,
    /// Rounds that are counted; as many go before.
    rounds: u32,
    /// Tasks in each round.
    tasks: usize,
    round: Round,
}

#[derive(Clone, Copy)]
enum Round {
    /// Calls, then their results.
    Calls,
    /// Calls that nobody has room for, then room for them, then their results.
    Queued,
    /// Durable tasks in one Submit, then their results; they are forgotten a while later.
    Durable,
}

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "call",
        about: "calls one at a time, one worker",
        workers: 1,
        methods: 1,
        concurrency: 64,
        rounds: 2_000,
        tasks: 1,
        round: Round::Calls,
    },
    Case {
        name: "calls_64",
        about: "64 calls, their 64 results in one frame",
        workers: 1,
        methods: 1,
        concurrency: 64,
        rounds: 64,
        tasks: 64,
        round: Round::Calls,
    },
    Case {
        name: "queued_64",
        about: "64 calls that wait in line before the worker has room",
        workers: 1,
        methods: 1,
        concurrency: 64,
        rounds: 64,
        tasks: 64,
        round: Round::Queued,
    },
    Case {
        name: "durable_64",
        about: "64 durable tasks in one Submit, rows included, forgotten by time",
        workers: 1,
        methods: 1,
        concurrency: 64,
        rounds: 64,
        tasks: 64,
        round: Round::Durable,
    },
    Case {
        name: "workers_1000",
        about: "64 calls, each to the least loaded of 1,000 workers",
        workers: 1_000,
        methods: 1,
        concurrency: 4,
        rounds: 64,
        tasks: 64,
        round: Round::Calls,
    },
    Case {
        name: "methods_10000",
        about: "64 calls, each of another one of 10,000 methods",
        workers: 10,
        methods: 10_000,
        concurrency: 64,
        // Every method is called before the counting begins.
        rounds: 160,
        tasks: 64,
        round: Round::Calls,
    },
];

impl Case {
    /// How many tasks are counted.
    pub(crate) fn counted(&self) -> u64 {
        u64::from(self.rounds) * self.tasks as u64
    }

    /// Plays it and checks every outcome.
    pub(crate) fn run(&self) -> Result<(), String> {
        let tasks = self.tasks;
        let mut bench = Bench::new(self.workers, self.methods, self.concurrency)?;
        if !matches!(self.round, Round::Queued) {
            for worker in 0..self.workers {
                bench.grant(worker, self.concurrency.into())?;
            }
        }
        // In milliseconds, which are rounds: from then on as many are forgotten as are made.
        let options = Arc::new(TaskOptions { retention_ms: Some(8), ..TaskOptions::submit() });
        bench.play(self.rounds, |bench| {
            match self.round {
                Round::Calls => {
                    bench.call(tasks)?;
                    bench.finish(true)?;
                }
                Round::Queued => {
                    bench.call(tasks)?;
                    bench.grant(0, tasks as u64)?;
                    bench.finish(false)?;
                }
                Round::Durable => {
                    bench.submit(tasks, &options)?;
                    bench.finish(true)?;
                }
            }
            bench.pass()
        })?;
        let played = self.counted() * 2;
        match self.round {
            Round::Calls | Round::Queued => bench.expect(played, 0),
            Round::Durable => bench.expect(0, played),
        }
    }
}

//! A worker as the protocol wants it, apart from dying at any moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use crewcall::error::Reason;
use crewcall::scheduler::{AttemptEnd, AttemptResult, ConnId, Frame, Hello, PoolSpec, Tell, Welcome};
use crewcall::task::{Method, Payload, Progress, TaskError};

use super::network::{Down, Up};
use super::rng::Rng;

pub(super) const METHODS: [&str; 3] = ["add", "mul", "slow"];
pub(super) const VERSIONS: [&str; 3] = ["1.0.0", "1.2.0", "2.0.0"];
const POOL: &str = "main";
const EXTRA: &str = "extra";

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) name: String,
    index: usize,
    boot: u32,
    token: Option<u128>,
    pub(super) conn: Option<ConnId>,
    pub(super) welcomed: bool,
    pub(super) draining: bool,
    concurrency: u32,
    prefetch: u64,
    starts_on_receipt: bool,
    two_pools: bool,
    /// Lease, with its pool and whether the handler has begun.
    pub(super) running: BTreeMap<u64, (String, bool)>,
    /// Results that the server has not yet called durable.
    unacked: Vec<AttemptResult>,
    seq: u64,
    granted: BTreeMap<String, u64>,
}

impl Worker {
    pub(super) fn new(index: usize) -> Self {
        Self {
            name: format!("w{index}"),
            index,
            boot: 0,
            token: None,
            conn: None,
            welcomed: false,
            draining: false,
            concurrency: 1 + index as u32,
            prefetch: (index % 3) as u64,
            starts_on_receipt: index == 2,
            two_pools: index % 2 == 1,
            running: BTreeMap::new(),
            unacked: Vec::new(),
            seq: 0,
            granted: BTreeMap::new(),
        }
    }

    /// The first two serve everything, so that no task is for nobody; the others a version each.
    fn methods(&self) -> Vec<Method> {
        let mut methods = Vec::new();
        for (n, name) in METHODS.iter().enumerate() {
            for (v, version) in VERSIONS.iter().enumerate() {
                if self.index < 2 || (self.index + v).is_multiple_of(3) {
                    let pool = if self.two_pools && n == 1 { EXTRA } else { POOL };
                    methods.push(method(name, version, pool));
                }
            }
        }
        methods
    }

    fn pools(&self) -> Vec<PoolSpec> {
        let mut pools = vec![PoolSpec { name: POOL.into(), concurrency: self.concurrency }];
        if self.two_pools {
            pools.push(PoolSpec { name: EXTRA.into(), concurrency: 2 });
        }
        pools
    }

    pub(super) fn connect(&mut self, conn: ConnId) -> Up {
        self.conn = Some(conn);
        self.welcomed = false;
        let unacked = self.unacked.iter().map(|result| result.lease);
        Up::Hello(Box::new(Hello {
            worker_id: self.name.clone(),
            boot_id: format!("boot{}", self.boot),
            resume_token: self.token,
            group: if self.index == 1 { "g".into() } else { String::new() },
            labels: if self.index < 2 { [("zone".into(), "a".into())].into() } else { BTreeMap::new() },
            pools: self.pools(),
            methods: self.methods(),
            in_flight: self.running.keys().copied().chain(unacked).collect(),
            starts_on_receipt: self.starts_on_receipt,
            ..Hello::default()
        }))
    }

    /// The process is gone, with all it knew.
    pub(super) fn restart(&mut self) {
        let boot = self.boot + 1;
        *self = Self { boot, ..Self::new(self.index) };
    }

    pub(super) fn disconnected(&mut self) {
        self.conn = None;
        self.welcomed = false;
    }

    /// What the worker says to what it hears.
    pub(super) fn hear(&mut self, down: Down) -> Option<Frame> {
        match down {
            Down::Welcome(welcome) => return Some(self.welcome(&welcome)),
            Down::Refused | Down::Close => self.disconnected(),
            Down::Assign(assign) => {
                let begun = self.starts_on_receipt;
                self.running.insert(assign.lease, (assign.pool.to_string(), begun));
            }
            Down::Tell(Tell::Cancel(lease, _)) => return self.drop_run(lease),
            Down::Tell(Tell::Recall(lease)) => return self.release(lease),
            // An entry was refused, not the lease.
            Down::Tell(Tell::Refused(_, error)) if error.reason == Reason::PayloadTooLarge => {}
            Down::Tell(Tell::Refused(lease, _)) => {
                self.unacked.retain(|result| result.lease != lease);
                return self.drop_run(lease);
            }
            Down::Tell(Tell::DurableSeq(seq)) => self.unacked.retain(|result| result.seq > seq),
            Down::Tell(Tell::Drain(_)) => {
                self.draining = true;
                let released =
                    self.running.iter().filter(|(_, (_, begun))| !begun).map(|(l, _)| *l).collect();
                return Some(self.give_back(released));
            }
            Down::Tell(Tell::Beat(..) | Tell::Move(_)) => {}
        }
        None
    }

    fn welcome(&mut self, welcome: &Welcome) -> Frame {
        self.token = Some(welcome.token);
        self.welcomed = true;
        self.draining = false;
        self.running.retain(|lease, _| !welcome.drop.contains(lease));
        self.unacked.retain(|result| !welcome.drop.contains(&result.lease));
        self.granted.clear();
        for pool in self.pools() {
            let busy = self.running.values().filter(|(name, _)| *name == pool.name).count() as u64;
            let room = (u64::from(pool.concurrency) + self.prefetch).saturating_sub(busy);
            self.granted.insert(pool.name, room);
        }
        Frame { results: self.unacked.clone(), credits: self.credits(), ..Frame::default() }
    }

    fn credits(&self) -> Vec<(String, u64)> {
        self.granted.iter().map(|(pool, total)| (pool.clone(), *total)).collect()
    }

    fn drop_run(&mut self, lease: u64) -> Option<Frame> {
        let (pool, _) = self.running.remove(&lease)?;
        *self.granted.entry(pool).or_default() += 1;
        Some(Frame { credits: self.credits(), ..Frame::default() })
    }

    fn release(&mut self, lease: u64) -> Option<Frame> {
        let unstarted = self.running.get(&lease).is_some_and(|(_, begun)| !begun);
        unstarted.then(|| self.give_back(vec![lease]))
    }

    fn give_back(&mut self, released: Vec<u64>) -> Frame {
        for lease in &released {
            if let Some((pool, _)) = self.running.remove(lease) {
                *self.granted.entry(pool).or_default() += 1;
            }
        }
        Frame { released, credits: self.credits(), ..Frame::default() }
    }

    pub(super) fn finish(&mut self, lease: u64, end: AttemptEnd) -> Frame {
        let Some((pool, _)) = self.running.remove(&lease) else { return Frame::default() };
        *self.granted.entry(pool).or_default() += 1;
        self.seq += 1;
        let result = AttemptResult { lease, seq: self.seq, end };
        self.unacked.push(result.clone());
        Frame { results: vec![result], credits: self.credits(), ..Frame::default() }
    }

    pub(super) fn succeed(&mut self, lease: u64) -> Frame {
        self.finish(lease, AttemptEnd::Succeeded(result_of(lease)))
    }

    pub(super) fn beat(&self) -> Frame {
        let digest = self.running.keys().fold(0, |digest, lease| digest ^ lease);
        Frame { beat: Some((self.running.len() as u32, digest)), ..Frame::default() }
    }

    /// Something that a worker may do at any time.
    pub(super) fn act(&mut self, rng: &mut Rng) -> Option<Frame> {
        let leases: Vec<u64> = self.running.keys().copied().collect();
        let lease = (!leases.is_empty()).then(|| rng.pick(&leases));
        match (rng.below(20), lease) {
            (0..=2, _) => Some(self.beat()),
            (3..=5, Some(lease)) => {
                self.running.get_mut(&lease)?.1 = true;
                Some(Frame { started: vec![lease], ..Frame::default() })
            }
            (6, Some(lease)) => {
                self.running.get_mut(&lease)?.1 = true;
                let progress = Progress { current: 1, total: 2, message: String::new() };
                Some(Frame { progress: vec![(lease, progress)], ..Frame::default() })
            }
            (7, Some(lease)) => {
                self.running.get_mut(&lease)?.1 = true;
                Some(Frame {
                    chunks: vec![(lease, Payload::json(vec![0; rng.below(40)]))],
                    ..Frame::default()
                })
            }
            (8..=13, Some(lease)) => Some(self.succeed(lease)),
            (14..=15, Some(lease)) => {
                let retryable = rng.pick(&[None, None, Some(true), Some(false)]);
                let retry_after_ms = rng.pick(&[0, 0, 50]);
                let error = TaskError::new("", "no luck");
                Some(self.finish(lease, AttemptEnd::Failed { error, retryable, retry_after_ms }))
            }
            (16, Some(lease)) => self.release(lease),
            // A lease that was never its own, or long ago.
            (17, _) => {
                let lease = 1 + rng.below(50) as u64;
                let results =
                    vec![AttemptResult { lease, seq: 0, end: AttemptEnd::Succeeded(result_of(lease)) }];
                (!self.running.contains_key(&lease)).then(|| Frame { results, ..Frame::default() })
            }
            (18, _) => {
                self.concurrency = 1 + rng.below(4) as u32;
                let update = crewcall::scheduler::Update { pools: self.pools(), methods: Vec::new() };
                Some(Frame { update: Some(update), ..Frame::default() })
            }
            _ => None,
        }
    }
}

/// What the handler under this lease returns: says which attempt it was.
pub(super) fn result_of(lease: u64) -> Payload {
    Payload::json(lease.to_string())
}

fn method(name: &str, version: &str, pool: &str) -> Method {
    Method {
        name: Arc::from(name),
        version: version.parse().unwrap(),
        version_text: version.into(),
        summary: String::new(),
        docs: String::new(),
        input_schema: String::new(),
        output_schema: String::new(),
        examples: Vec::new(),
        pool: pool.into(),
    }
}

//! The cases of each mode, and the figures they are held to.

use std::time::Duration;

use crate::{
    case::{
        Against, Arm, Before, Caller, Case, Crew, Extra, Goal, IdleKind, Load, Metric, Mode, Server, Way,
        WorkerKind,
    },
    floor::Floor,
    settings::Settings,
};

const LONE_PIPE: Goal = Goal::ratio_at_most(Metric::P50, 1.35, 1.10);
const LONE_REQUEST: Goal = Goal::ratio_at_most(Metric::P50, 1.3, 1.10);
const REQUESTS: Goal = Goal::ratio_at_least(Metric::Rate, 0.75, 0.85);
/// What grows must not make a call dearer.
const FLAT: Goal = Goal::ratio_at_most(Metric::Cpu, 1.3, 1.05);

/// For long queues: few enough at once that even the shortest is a queue.
const BUSY_CONCURRENCY: u32 = 256;
/// For methods: one worker may serve a thousand.
const METHOD_WORKERS: u32 = 10;
/// A second queue length would be the queue itself: what waits longer than its callers is shed.
const OVERLOAD_FLAGS: &[&str] = &["--max-queue-tasks", "1000"];
/// So many calls that a loss of one in a million shows.
const LEGACY_CALLS: u64 = 1_000_000;
/// What the published SDKs sleep when a result is not there.
const SDK_PAUSE: Duration = Duration::from_secs(1);

/// The cases of a mode, as the settings want them.
pub(crate) fn cases(mode: Mode, settings: &Settings) -> Vec<Case> {
    let size = |full: u32| settings.size.of(full);
    let in_flight = |default: &[u32]| match settings.in_flight.as_slice() {
        [] => default.to_vec(),
        chosen => chosen.to_vec(),
    };
    match mode {
        Mode::Pipe => {
            let awaited = in_flight(&[1, 64, 256, 1024]).into_iter().map(|n| pipe(Caller::Awaited, n));
            awaited
                .chain(in_flight(&[1, 64, 256, 1024]).into_iter().map(|n| pipe(Caller::Window, n)))
                .collect()
        }
        Mode::Call => {
            let connections = match settings.connections.as_slice() {
                [] => &[1, 4],
                chosen => chosen,
            };
            let over = |connections: u32| {
                let numbers = in_flight(&[1, 64, 256]).into_iter();
                numbers.filter(move |n| *n >= connections).map(move |n| call(n, connections))
            };
            connections.iter().flat_map(|connections| over(*connections)).collect()
        }
        Mode::Rest => in_flight(&[1, 64, 256]).into_iter().map(rest).collect(),
        Mode::Legacy => {
            let mut cases: Vec<Case> = in_flight(&[64, 256]).into_iter().map(legacy).collect();
            cases.push(legacy_pause());
            let calls = u64::from(size(u32::try_from(LEGACY_CALLS).unwrap_or(u32::MAX)));
            cases.push(legacy_count(calls));
            cases
        }
        Mode::Submit => in_flight(&[1, 64, 1024]).into_iter().map(submit).collect(),
        Mode::Durable => {
            let awaited = in_flight(&[1, 64, 1024]).into_iter().map(|n| durable(Caller::Awaited, n));
            awaited.chain(in_flight(&[1024]).into_iter().map(|n| durable(Caller::Window, n))).collect()
        }
        Mode::Workers => grown(settings, &[1, size(100), size(1000)], workers),
        Mode::Methods => grown(settings, &[1, size(100), size(10_000)], methods),
        Mode::Backlog => grown(settings, &[size(1_000), size(100_000), size(1_000_000)], backlog),
        Mode::Stored => grown(settings, &[0, size(100_000)], stored),
        Mode::Idle => [IdleKind::Grpc, IdleKind::Websocket, IdleKind::Legacy]
            .into_iter()
            .flat_map(|kind| [5_000, 10_000].map(|connections| idle(kind, size(connections))))
            .collect(),
        Mode::Overload => [Way::Pipe, Way::Call, Way::Rest]
            .into_iter()
            .flat_map(|way| [2, 10].map(|times| overload(way, times, settings.overload)))
            .collect(),
        Mode::Restart => vec![restart(size(200_000))],
        Mode::Slow => vec![slow(64)],
        Mode::Floor => {
            let modes = [Mode::Pipe, Mode::Call, Mode::Rest, Mode::Legacy, Mode::Submit, Mode::Durable];
            let cases = modes.into_iter().flat_map(|mode| cases(mode, settings));
            cases.filter_map(|case| bare(case, settings)).collect()
        }
    }
}

/// What a case is held against, by itself, when that is a floor.
fn bare(case: Case, settings: &Settings) -> Option<Case> {
    let Against { name, arm } = case.against?;
    matches!(arm.server, Server::Floor(_)).then(|| Case {
        mode: Mode::Floor,
        series: format!("{name}, {}, {}", case.mode.name(), case.series),
        product: arm,
        against: None,
        goals: Vec::new(),
        // Beside those modes, in which it runs in every pair, once is enough.
        pairs: settings.compare.then_some(1),
        ..case
    })
}

/// Each number held against the first, which runs alone only when nothing is held against anything.
fn grown(settings: &Settings, numbers: &[u32], make: impl Fn(u32, u32) -> Case) -> Vec<Case> {
    let Some((first, rest)) = numbers.split_first() else { return Vec::new() };
    let mut cases: Vec<Case> = rest.iter().map(|number| make(*number, *first)).collect();
    if !settings.compare {
        cases.insert(0, Case { against: None, goals: Vec::new(), ..make(*first, *first) });
    }
    // What is tiny can be the same twice.
    cases.dedup_by_key(|case| case.at);
    cases
}

fn case(mode: Mode, series: impl Into<String>, at: u32, unit: &'static str, product: Arm) -> Case {
    Case {
        mode,
        series: series.into(),
        at: u64::from(at),
        unit,
        product,
        against: None,
        goals: Vec::new(),
        pairs: None,
        preparation: Duration::ZERO,
    }
}

impl Case {
    /// Held against a floor: another server, and where the product has its SDK at both ends, the barest there is.
    fn against_floor(self, name: &'static str, floor: Floor) -> Self {
        let mut arm = Arm { server: Server::Floor(floor), flags: &[], ..self.product.clone() };
        if arm.crew.kind == WorkerKind::Sdk {
            arm.crew.kind = WorkerKind::Bare;
        }
        self.against(name, arm)
    }

    fn against(mut self, name: &'static str, arm: Arm) -> Self {
        self.against = Some(Against { name, arm });
        self
    }

    fn goals(mut self, goals: &[Goal]) -> Self {
        self.goals.extend_from_slice(goals);
        self
    }

    fn pairs(mut self, pairs: u32) -> Self {
        self.pairs = Some(pairs);
        self
    }

    fn preparation(mut self, seconds: u64) -> Self {
        self.preparation = Duration::from_secs(seconds);
        self
    }
}

fn pipe(caller: Caller, in_flight: u32) -> Case {
    let (series, kind) = match caller {
        Caller::Awaited => ("awaited", WorkerKind::Sdk),
        Caller::Window => ("window", WorkerKind::Bare),
    };
    let load = Load::Pipe { caller, in_flight, durable: false };
    let goals: &[Goal] = match (caller, in_flight) {
        (Caller::Awaited, 1) => &[LONE_PIPE],
        (Caller::Awaited, 64) => &[Goal::ratio_at_least(Metric::Rate, 0.50, 0.70)],
        (Caller::Awaited, 1024) => &[Goal::ratio_at_least(Metric::Rate, 0.45, 0.65)],
        (Caller::Window, 1024) => {
            &[Goal::ratio_at_least(Metric::Rate, 0.60, 0.80), Goal::ratio_at_most(Metric::Cpu, 2.1, 1.6)]
        }
        _ => &[],
    };
    case(Mode::Pipe, series, in_flight, "in flight", Arm::new(Server::Ephemeral, Crew::one(kind), load))
        .against_floor("relay", Floor::Relay)
        .goals(goals)
}

fn call(in_flight: u32, connections: u32) -> Case {
    let load = Load::Unary { in_flight, connections };
    let series =
        if connections == 1 { "1 connection".to_owned() } else { format!("{connections} connections") };
    let goals: &[Goal] = match in_flight {
        1 => &[LONE_REQUEST],
        64 | 256 => &[REQUESTS],
        _ => &[],
    };
    let arm = Arm::new(Server::Ephemeral, Crew::one(WorkerKind::Bare), load);
    case(Mode::Call, series, in_flight, "in flight", arm)
        .against_floor("bare unary", Floor::Relay)
        .goals(goals)
}

fn rest(in_flight: u32) -> Case {
    let goals: &[Goal] = match in_flight {
        1 => &[LONE_REQUEST],
        64 | 256 => &[REQUESTS],
        _ => &[],
    };
    let arm = Arm::new(Server::Ephemeral, Crew::one(WorkerKind::Bare), Load::Rest { in_flight });
    case(Mode::Rest, "POST /v1/call", in_flight, "in flight", arm)
        .against_floor("bare REST", Floor::Rest)
        .goals(goals)
}

fn legacy_arm(in_flight: u32, pause: Duration, calls: u64) -> Arm {
    let load = Load::Legacy { in_flight, pause, calls };
    Arm::new(Server::Ephemeral, Crew::one(WorkerKind::Legacy), load)
}

fn legacy(in_flight: u32) -> Case {
    let goals: &[Goal] = match in_flight {
        64 | 256 => &[Goal::ratio_at_least(Metric::Rate, 0.70, 0.85)],
        _ => &[],
    };
    let arm = legacy_arm(in_flight, Duration::ZERO, 0);
    case(Mode::Legacy, "at once", in_flight, "in flight", arm)
        .against_floor("bare legacy", Floor::Legacy)
        .goals(goals)
}

fn legacy_pause() -> Case {
    let arm = legacy_arm(64, SDK_PAUSE, 0);
    let without = legacy_arm(64, Duration::ZERO, 0);
    case(Mode::Legacy, "1 s sleep", 64, "in flight", arm).against("no sleep", without).goals(&[
        Goal::at_most(Metric::P99, 100_000.0, 10_000.0),
        Goal::ratio_at_least(Metric::Rate, 0.0, 0.90).claim_only(),
    ])
}

fn legacy_count(calls: u64) -> Case {
    let none = |extra| Goal::at_most(Metric::Extra(extra), 0.0, 0.0);
    let arm = legacy_arm(64, Duration::ZERO, calls);
    let at = u32::try_from(calls).unwrap_or(u32::MAX);
    case(Mode::Legacy, "counted", at, "calls", arm)
        .goals(&[none(Extra::Lost), none(Extra::Blank), none(Extra::Doubled)])
        .pairs(1)
        .preparation(40)
}

fn submit(in_flight: u32) -> Case {
    let goals: &[Goal] = match in_flight {
        64 => &[Goal::ratio_at_least(Metric::Rate, 0.4, 0.7)],
        1024 => &[Goal::ratio_at_least(Metric::Rate, 0.25, 0.65)],
        _ => &[],
    };
    let arm = Arm::new(Server::Durable, Crew::none(), Load::Submit { in_flight });
    case(Mode::Submit, "ack after fsync", in_flight, "in flight", arm)
        .against_floor("relay + log", Floor::Log)
        .goals(goals)
}

fn durable(caller: Caller, in_flight: u32) -> Case {
    let (series, kind) = match caller {
        Caller::Awaited => ("awaited", WorkerKind::Sdk),
        Caller::Window => ("window", WorkerKind::Bare),
    };
    let goals: &[Goal] = match in_flight {
        1 => &[Goal::ratio_at_most(Metric::P50, 1.5, 1.15)],
        1024 => &[Goal::ratio_at_least(Metric::Rate, 0.2, 0.6)],
        _ => &[],
    };
    let load = Load::Pipe { caller, in_flight, durable: true };
    case(Mode::Durable, series, in_flight, "in flight", Arm::new(Server::Durable, Crew::one(kind), load))
        .against_floor("relay + log", Floor::Log)
        .goals(goals)
}

const GROWTH_IN_FLIGHT: u32 = 1024;

fn window() -> Load {
    Load::Pipe { caller: Caller::Window, in_flight: GROWTH_IN_FLIGHT, durable: false }
}

fn workers(number: u32, first: u32) -> Case {
    let arm =
        |workers| Arm::new(Server::Ephemeral, Crew { workers, ..Crew::one(WorkerKind::Bare) }, window());
    let goals: &[Goal] = if number == 1000 { &[Goal::ratio_at_least(Metric::Rate, 0.10, 0.25)] } else { &[] };
    case(Mode::Workers, "1,024 in flight", number, "workers", arm(number))
        .against("1 worker", arm(first))
        .goals(goals)
        .preparation(1)
}

fn methods(number: u32, first: u32) -> Case {
    let arm = |methods| {
        let crew = Crew { workers: METHOD_WORKERS, methods, ..Crew::one(WorkerKind::Bare) };
        Arm::new(Server::Ephemeral, crew, window())
    };
    let goals: &[Goal] = if number == 10_000 { &[FLAT] } else { &[] };
    case(Mode::Methods, "10 workers", number, "methods", arm(number))
        .against("1 method", arm(first))
        .goals(goals)
}

fn backlog(number: u32, first: u32) -> Case {
    let arm = |queued| {
        let crew = Crew { concurrency: BUSY_CONCURRENCY, ..Crew::one(WorkerKind::Bare) };
        Arm::new(Server::Ephemeral, crew, Load::Backlog { queued })
    };
    let goals: &[Goal] = if number == 1_000_000 { &[FLAT] } else { &[] };
    case(Mode::Backlog, "1 worker, 256 at once", number, "queued", arm(number))
        .against("1,000 queued", arm(first))
        .goals(goals)
        .preparation(u64::from(number / 200_000))
}

fn stored(number: u32, first: u32) -> Case {
    let arm = |finished| Arm {
        before: Before::Finished(finished),
        ..Arm::new(Server::Ephemeral, Crew::one(WorkerKind::Sdk), Load::Stored { in_flight: 64 })
    };
    let goals: &[Goal] = if number == 100_000 {
        &[
            FLAT,
            Goal::ratio_at_most(Metric::Extra(Extra::StatsUs), 3.0, 1.5),
            Goal::ratio_at_most(Metric::Extra(Extra::ListUs), 3.0, 1.5),
        ]
    } else {
        &[]
    };
    case(Mode::Stored, "64 in flight", number, "kept", arm(number))
        .against("none kept", arm(first))
        .goals(goals)
        .preparation(1)
}

fn idle(kind: IdleKind, connections: u32) -> Case {
    let each = Metric::Extra(Extra::KibEach);
    let (series, name, floor, goal) = match kind {
        IdleKind::Grpc => ("gRPC", "bare stream", Floor::IdleGrpc, Goal::ratio_at_most(each, 1.5, 1.2)),
        IdleKind::Websocket => {
            ("WebSocket", "bare WebSocket", Floor::IdleWebsocket, Goal::at_most(each, 20.0, 12.0))
        }
        IdleKind::Legacy => {
            ("legacy WebSocket", "bare WebSocket", Floor::IdleWebsocket, Goal::at_most(each, 20.0, 12.0))
        }
    };
    let arm = Arm::new(Server::Ephemeral, Crew::none(), Load::Idle { kind, connections });
    let goals: &[Goal] = if connections == 5_000 { &[goal] } else { &[] };
    case(Mode::Idle, series, connections, "connections", arm)
        .against_floor(name, floor)
        .goals(goals)
        .pairs(3)
        .preparation(3)
}

fn overload(way: Way, times: u32, length: Duration) -> Case {
    let (series, concurrency) = match way {
        Way::Pipe => ("pipe", 100),
        // Ten times of what they can do must be less than what this machine's network can.
        Way::Call => ("call", 20),
        Way::Rest => ("rest", 20),
    };
    let crew = Crew { concurrency, busy: Duration::from_millis(10), ..Crew::one(WorkerKind::Sdk) };
    let load = Load::Overload { way, times };
    let arm = Arm { flags: OVERLOAD_FLAGS, ..Arm::new(Server::Ephemeral, crew, load) };
    let series = format!("{series} for {} s", length.as_secs_f64());
    let extra = |extra| Metric::Extra(extra);
    case(Mode::Overload, series, times, "times the peak", arm)
        .goals(&[
            Goal::at_least(extra(Extra::Goodput), 0.8, 0.9),
            Goal::at_most(extra(Extra::MemoryGrowth), 1.2, 1.1),
            Goal::at_most(extra(Extra::RecoverMs), 10_000.0, 10_000.0),
            Goal::at_most(Metric::Wrong, 0.0, 0.0),
        ])
        .pairs(1)
        .preparation(length.as_secs())
}

fn restart(tasks: u32) -> Case {
    let arm = Arm::new(Server::Durable, Crew::one(WorkerKind::Bare), Load::Restart { tasks });
    case(Mode::Restart, "kill -9", tasks, "live tasks", arm)
        .goals(&[
            Goal::at_most(Metric::Extra(Extra::ReadyMs), 600.0, 250.0),
            Goal::at_most(Metric::Extra(Extra::FileShare), 3.0, 3.0).claim_only(),
        ])
        .pairs(5)
        .preparation(4)
}

fn slow(callers: u32) -> Case {
    let arm = |callers| Arm::new(Server::Ephemeral, Crew::one(WorkerKind::Sdk), Load::Slow { callers });
    case(Mode::Slow, "16 fast calls in flight", callers, "callers of a 1 s method", arm(callers))
        .against("no slow callers", arm(0))
        .goals(&[Goal::ratio_at_most(Metric::P99, 1.10, 1.10)])
        .preparation(1)
}

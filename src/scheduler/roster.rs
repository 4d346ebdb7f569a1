//! Who is here, what they serve, how much they can take. Volatile: rebuilt as workers join.
//!
//! ```text
//! session  one worker's stream; holds leases
//!   pool     a share of its capacity, with credit of its own
//!     offer    what the pool serves: methods and versions, group, labels. Pools that offer the same share
//!              one offer, so a thousand equal workers cost a queue as much as one
//! route    a method and a target: one queue, and the offers that may serve it now
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use foldhash::fast::FixedState;
use semver::Version;
use slab::Slab;

use super::command::{ConnId, Hello, SessionId, WorkerId};
use super::effect::SharedText;
use super::leases::Leases;
use crate::clock::Timestamp;
use crate::task::{Method, Target};

mod audit;
mod chunk;
mod open;
mod route;

use chunk::Chunk;
pub(crate) use chunk::Runs;
use open::{Open, Place, Places};
use route::PlainRoutes;
pub(crate) use route::Route;

/// One worker's stream, or the memory of it while it may come back.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) worker_id: WorkerId,
    /// Secret; proves the right to resume.
    pub(crate) token: u128,
    /// Who it said it is. Pools and methods live in `pools`, not here.
    pub(crate) hello: Hello,
    /// `None`: the stream broke, and the session waits to be resumed.
    pub(crate) conn: Option<ConnId>,
    /// It is given work: connected, and not asked to leave.
    pub(crate) serving: bool,
    pub(crate) draining: bool,
    pub(crate) joined_at: Timestamp,
    pub(crate) seen_at: Timestamp,
    /// The `seen_at` for which its silence was given more time.
    pub(crate) doubted: Option<Timestamp>,
    pub(crate) pools: Vec<usize>,
    /// Leases it holds.
    pub(crate) leases: Leases,
    /// XOR of them.
    pub(crate) digest: u64,
    pub(crate) finished: u64,
    /// Highest result number accepted, and acknowledged.
    pub(crate) result_seq: u64,
    pub(crate) result_acked: u64,
    /// How many rows had been handed out with the last result that was stored: once as many are stored, all
    /// its results are.
    pub(crate) result_written: u64,
    /// Assignments and endings so far: tells whether two beats saw the same set.
    pub(crate) changes: u64,
    /// Its beats have said how many leases it holds.
    pub(crate) counts_leases: bool,
    /// `changes` at the last beat that did not agree with us.
    pub(crate) disagreed_at: Option<u64>,
}

/// A share of a worker's capacity.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) session: usize,
    pub(crate) name: Arc<str>,
    pub(crate) concurrency: u32,
    /// Running totals over the present stream: how many it was ready to take, how many it was sent.
    pub(crate) granted: u64,
    pub(crate) assigned: u64,
    pub(crate) in_flight: u32,
    pub(crate) offer: usize,
    /// When it was last given or relieved of work, in steps of the roster.
    used: u64,
    /// Its entry in the offer's `overfull`.
    excess: u32,
}

impl Pool {
    pub(crate) const fn credit(&self) -> u64 {
        self.granted.saturating_sub(self.assigned)
    }
}

/// What a pool serves. Sorted, so that equal offers are equal keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OfferKey {
    group: String,
    labels: BTreeMap<String, String>,
    methods: BTreeSet<(Arc<str>, Version)>,
}

#[derive(Debug)]
pub(crate) struct Offer {
    key: OfferKey,
    /// Pools of sessions that get work.
    live: u32,
    /// Pools linked to it, those of sessions that get none included.
    pools: u32,
    /// Tasks in flight at all of them.
    in_flight: u32,
    /// The pool that was chosen last, and what may follow there.
    chunk: Chunk,
    /// Pools with credit, in order of choice.
    open: Open,
    /// Pools that hold more than they run at once, by how much more.
    overfull: BTreeSet<(u32, usize)>,
    /// Queues that may hold work for it, in turn. A queue that turns out to be empty, or not for this offer
    /// any more, is dropped when its turn comes.
    turns: VecDeque<usize>,
    in_turns: HashSet<usize, FixedState>,
}

/// A method that somebody serves or waits for.
#[derive(Debug, Default)]
struct MethodEntry {
    routes: BTreeMap<Target, usize>,
    /// The route of the empty target, to which nearly all calls go.
    plain: Option<usize>,
    offers: Vec<usize>,
    /// As registered last, by version.
    served: Served,
}

/// Versions of a method that are served: as registered last, and by how many live workers.
pub(crate) type Served = BTreeMap<Version, (Arc<Method>, u32)>;

/// A pool that was chosen, and the version of the method it will run.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) pool: usize,
    pub(crate) version: SharedText,
}

#[derive(Debug, Default)]
pub(crate) struct Roster {
    pub(crate) sessions: Slab<Session>,
    by_worker: HashMap<WorkerId, usize>,
    by_id: HashMap<SessionId, usize, FixedState>,
    pub(crate) pools: Slab<Pool>,
    /// Those that can be chosen.
    places: Places,
    offers: Slab<Offer>,
    offer_index: HashMap<OfferKey, usize>,
    pub(crate) routes: Slab<Route>,
    methods: BTreeMap<Arc<str>, MethodEntry>,
    /// Names of methods by hash: the tree above serves ordered listings, this one the hot path.
    plain_routes: PlainRoutes,
    /// Methods whose tasks wait: nobody may serve their routes.
    paused: BTreeSet<Arc<str>>,
    steps: u64,
    /// See `chunk.rs`.
    round: u64,
}

impl Roster {
    // --- sessions ---------------------------------------------------------------------------------

    pub(crate) fn session_of_worker(&self, worker_id: &str) -> Option<usize> {
        self.by_worker.get(worker_id).copied()
    }

    pub(crate) fn session_of_id(&self, id: SessionId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn add_session(&mut self, session: Session) -> usize {
        let (worker_id, id) = (Arc::clone(&session.worker_id), session.id);
        let key = self.sessions.insert(session);
        self.by_worker.insert(worker_id, key);
        self.by_id.insert(id, key);
        key
    }

    /// Removes a session whose pools are gone and whose leases have been dealt with.
    pub(crate) fn remove_session(&mut self, key: usize) {
        let session = self.sessions.remove(key);
        self.by_worker.remove(&session.worker_id);
        self.by_id.remove(&session.id);
    }

    /// Whether the session is to be given work.
    pub(crate) fn is_active(&self, session: usize) -> bool {
        self.sessions[session].serving
    }

    // --- pools and offers -------------------------------------------------------------------------

    /// Links pools to a session as its hello or update says; old pools of the same name keep their counts.
    /// Returns the routes whose offers changed.
    pub(crate) fn set_pools(&mut self, session: usize, credit_cap: u32) -> Vec<usize> {
        let mut touched = BTreeSet::new();
        let old = std::mem::take(&mut self.sessions[session].pools);
        let hello = &self.sessions[session].hello;
        let (specs, group, labels) = (hello.pools.clone(), hello.group.clone(), hello.labels.clone());
        let methods: Vec<Arc<Method>> = hello.methods.iter().cloned().map(Arc::new).collect();
        let mut kept = BTreeMap::new();
        for pool in old {
            self.unlink(pool, &mut touched);
            kept.insert(self.pools[pool].name.to_string(), pool);
        }
        for spec in specs {
            let mine = methods.iter().filter(|method| method.pool == spec.name);
            let key = OfferKey {
                group: group.clone(),
                labels: labels.clone(),
                methods: mine.clone().map(|m| (Arc::clone(&m.name), m.version.clone())).collect(),
            };
            let mine: Vec<_> = mine.cloned().collect();
            let concurrency = spec.concurrency.clamp(1, credit_cap);
            let pool = match kept.remove(&spec.name) {
                Some(pool) => {
                    self.pools[pool].concurrency = concurrency;
                    pool
                }
                None => self.pools.insert(Pool {
                    session,
                    name: Arc::from(spec.name),
                    concurrency,
                    granted: 0,
                    assigned: 0,
                    in_flight: 0,
                    offer: usize::MAX,
                    used: 0,
                    excess: 0,
                }),
            };
            self.link(pool, key, &mine, &mut touched);
            self.sessions[session].pools.push(pool);
        }
        for pool in kept.into_values() {
            // A pool that still runs tasks stays, unlinked, until they end.
            if self.pools[pool].in_flight > 0 {
                let key = OfferKey { group: group.clone(), labels: labels.clone(), methods: BTreeSet::new() };
                self.link(pool, key, &[], &mut touched);
                self.sessions[session].pools.push(pool);
            } else {
                self.pools.remove(pool);
            }
        }
        self.settle(&touched)
    }

    /// Unlinks and removes all pools of a session. Returns the routes whose offers changed.
    pub(crate) fn remove_pools(&mut self, session: usize) -> Vec<usize> {
        let mut touched = BTreeSet::new();
        for pool in std::mem::take(&mut self.sessions[session].pools) {
            self.unlink(pool, &mut touched);
            self.pools.remove(pool);
        }
        self.settle(&touched)
    }

    /// Called after a session began or ceased to be active. Returns the routes whose offers changed.
    pub(crate) fn activity_changed(&mut self, session: usize, was_active: bool) -> Vec<usize> {
        let active = self.is_active(session);
        let mut touched = BTreeSet::new();
        for pool in self.sessions[session].pools.clone() {
            self.reposition(pool);
            if was_active != active {
                let offer = self.pools[pool].offer;
                self.count_live(offer, if active { 1 } else { -1 }, &mut touched);
            }
        }
        self.settle(&touched)
    }

    fn link(&mut self, pool: usize, key: OfferKey, methods: &[Arc<Method>], touched: &mut BTreeSet<usize>) {
        let offer = match self.offer_index.get(&key) {
            Some(offer) => *offer,
            None => {
                let offer = self.offers.insert(Offer {
                    key: key.clone(),
                    live: 0,
                    pools: 0,
                    in_flight: 0,
                    chunk: Chunk::default(),
                    open: Open::default(),
                    overfull: BTreeSet::new(),
                    turns: VecDeque::new(),
                    in_turns: HashSet::default(),
                });
                for (name, _) in &key.methods {
                    let entry = self.methods.entry(Arc::clone(name)).or_default();
                    if !entry.offers.contains(&offer) {
                        entry.offers.push(offer);
                    }
                }
                self.offer_index.insert(key, offer);
                offer
            }
        };
        for method in methods {
            if let Some(entry) = self.methods.get_mut(&method.name) {
                let served = entry.served.entry(method.version.clone()).or_insert((Arc::clone(method), 0));
                served.0 = Arc::clone(method);
            }
        }
        self.offers[offer].pools += 1;
        self.offers[offer].in_flight += self.pools[pool].in_flight;
        self.pools[pool].offer = offer;
        if self.is_active(self.pools[pool].session) {
            self.count_live(offer, 1, touched);
        }
        self.reposition(pool);
    }

    fn unlink(&mut self, pool: usize, touched: &mut BTreeSet<usize>) {
        let offer = self.pools[pool].offer;
        let entry = &mut self.pools[pool];
        self.offers[offer].open.set(pool, None, &mut self.places);
        let excess = std::mem::take(&mut entry.excess);
        let in_flight = entry.in_flight;
        let entry = &mut self.offers[offer];
        entry.overfull.remove(&(excess, pool));
        entry.in_flight -= in_flight;
        entry.chunk.end(pool);
        if self.is_active(self.pools[pool].session) {
            self.count_live(offer, -1, touched);
        }
        self.offers[offer].pools -= 1;
        if self.offers[offer].pools > 0 {
            return;
        }
        let gone = self.offers.remove(offer);
        self.offer_index.remove(&gone.key);
        for (name, version) in &gone.key.methods {
            if let Some(entry) = self.methods.get_mut(name) {
                entry.offers.retain(|other| *other != offer);
                let offers = &self.offers;
                let still = entry
                    .offers
                    .iter()
                    .any(|o| offers[*o].key.methods.contains(&(Arc::clone(name), version.clone())));
                if !still {
                    entry.served.remove(version);
                }
            }
            self.drop_method_if_unused(name);
        }
    }

    /// Counts a live pool in or out; at the first and the last, the routes of its methods change.
    fn count_live(&mut self, offer: usize, by: i32, touched: &mut BTreeSet<usize>) {
        let entry = &mut self.offers[offer];
        let before = entry.live;
        entry.live = before.saturating_add_signed(by);
        let edge = (before == 0) != (entry.live == 0);
        for (name, version) in &entry.key.methods {
            if let Some(method) = self.methods.get_mut(name) {
                if let Some((_, workers)) = method.served.get_mut(version) {
                    *workers = workers.saturating_add_signed(by);
                }
                if edge {
                    touched.extend(method.routes.values().copied());
                }
            }
        }
    }

    /// Works out anew who may serve the routes.
    fn settle(&mut self, touched: &BTreeSet<usize>) -> Vec<usize> {
        for route in touched {
            if self.routes.contains(*route) {
                self.match_route(*route);
            }
        }
        touched.iter().copied().filter(|route| self.routes.contains(*route)).collect()
    }

    fn match_route(&mut self, key: usize) {
        let mut matches = Vec::new();
        self.matches_of(key, &mut matches);
        let texts =
            matches.into_iter().map(|(offer, version)| (offer, self.version_text(key, &version))).collect();
        self.routes[key].offers = texts;
        if !self.routes[key].queue.is_empty() {
            self.take_turns(key);
        }
    }

    /// The offers that may serve the route now, with the version that each would run.
    fn matches_of(&self, key: usize, matches: &mut Vec<(usize, Version)>) {
        if !self.paused.contains(&self.routes[key].method) {
            self.fitting(key, matches);
        }
    }

    /// The offers that serve what the route is about.
    fn fitting(&self, key: usize, matches: &mut Vec<(usize, Version)>) {
        let route = &self.routes[key];
        if let Some(entry) = self.methods.get(&route.method) {
            for offer in &entry.offers {
                let candidate = &self.offers[*offer];
                let fits = candidate.live > 0
                    && (route.target().group.is_empty() || route.target().group == candidate.key.group)
                    && route.target().labels.iter().all(|(k, v)| candidate.key.labels.get(k) == Some(v));
                if !fits {
                    continue;
                }
                let newest = candidate
                    .key
                    .methods
                    .iter()
                    .filter(|(name, _)| *name == route.method)
                    .map(|(_, version)| version)
                    .filter(|version| route.range().is_none_or(|range| range.matches(version)))
                    .max_by_key(|version| (route.range().is_some() || version.pre.is_empty(), *version));
                if let Some(version) = newest {
                    matches.push((*offer, version.clone()));
                }
            }
        }
        if route.range().is_none() {
            // Nobody asked for a version: the newest that is alive. A prerelease only when there is no
            // release, as every package manager does it.
            let newest =
                matches.iter().map(|(_, version)| version).max_by_key(|v| (v.pre.is_empty(), *v)).cloned();
            matches.retain(|(_, version)| Some(version) == newest.as_ref());
        }
    }

    /// The version as the worker wrote it: empty stays empty.
    fn version_text(&self, route: usize, version: &Version) -> SharedText {
        self.methods
            .get(&self.routes[route].method)
            .and_then(|entry| entry.served.get(version))
            .map_or_else(SharedText::default, |(method, _)| SharedText::from(method.version_text.as_str()))
    }

    // --- credit and choice ------------------------------------------------------------------------

    /// Puts a pool in its place among those with credit, or out.
    pub(crate) fn reposition(&mut self, pool: usize) {
        let entry = &mut self.pools[pool];
        let active = self.sessions[entry.session].serving;
        let offer = &mut self.offers[entry.offer];
        let excess = if active { entry.in_flight.saturating_sub(entry.concurrency) } else { 0 };
        if excess != entry.excess {
            offer.overfull.remove(&(entry.excess, pool));
            if excess > 0 {
                offer.overfull.insert((excess, pool));
            }
            entry.excess = excess;
        }
        let place = (active && entry.credit() > 0).then_some(Place {
            in_flight: entry.in_flight,
            concurrency: entry.concurrency,
            used: entry.used,
            pool: pool as u32,
        });
        offer.open.set(pool, place, &mut self.places);
    }

    /// A pool brought a task along, which its credit does not count.
    pub(crate) fn adopt(&mut self, pool: usize) {
        let entry = &mut self.pools[pool];
        entry.in_flight += 1;
        self.offers[entry.offer].in_flight += 1;
        self.reposition(pool);
    }

    /// A pool was given a task.
    pub(crate) fn load(&mut self, pool: usize) {
        self.steps += 1;
        let entry = &mut self.pools[pool];
        entry.assigned += 1;
        entry.in_flight += 1;
        self.offers[entry.offer].in_flight += 1;
        entry.used = self.steps;
        self.reposition(pool);
    }

    /// A pool was relieved of one.
    pub(crate) fn unload(&mut self, pool: usize) {
        self.steps += 1;
        let entry = &mut self.pools[pool];
        entry.in_flight -= 1;
        self.offers[entry.offer].in_flight -= 1;
        entry.used = self.steps;
        self.reposition(pool);
    }

    /// The least loaded pool with credit that may serve the route.
    pub(crate) fn choose(&self, route: usize) -> Option<Choice> {
        self.routes[route]
            .offers
            .iter()
            .filter_map(|(offer, version)| self.offers[*offer].open.first().map(|place| (place, version)))
            // Compared where they lie: to copy a place that was written a moment ago, in parts, stalls the processor.
            .min_by(|(one, _), (other, _)| one.cmp(other))
            .map(|(place, version)| Choice { pool: place.pool as usize, version: version.clone() })
    }

    /// The next queue with work for the pool, while it has credit.
    pub(crate) fn next_turn(&mut self, pool: usize) -> Option<(usize, SharedText)> {
        if !self.places.is_open(pool) {
            return None;
        }
        let offer_key = self.pools[pool].offer;
        loop {
            let offer = &mut self.offers[offer_key];
            let route_key = *offer.turns.front()?;
            let serves = self
                .routes
                .get(route_key)
                .filter(|route| !route.queue.is_empty())
                .and_then(|route| route.offers.iter().find(|(offer, _)| *offer == offer_key));
            match serves {
                Some((_, version)) => {
                    // To the end of the line: methods take turns.
                    offer.turns.rotate_left(1);
                    return Some((route_key, version.clone()));
                }
                None => {
                    offer.turns.pop_front();
                    offer.in_turns.remove(&route_key);
                }
            }
        }
    }

    /// For a pool with credit and nothing to do: the peer that holds most beyond what it runs, and how
    /// much.
    pub(crate) fn fullest_peer(&self, idle: usize) -> Option<(usize, u64)> {
        let pool = &self.pools[idle];
        if pool.in_flight > 0 || !self.places.is_open(idle) {
            return None;
        }
        self.offers[pool.offer].overfull.last().map(|(excess, peer)| (*peer, u64::from(*excess)))
    }

    /// The route has work: everyone who may serve it takes note.
    pub(crate) fn take_turns(&mut self, route: usize) {
        for (offer, _) in &self.routes[route].offers {
            let offer = &mut self.offers[*offer];
            if offer.in_turns.insert(route) {
                offer.turns.push_back(route);
            }
        }
    }

    // --- routes -----------------------------------------------------------------------------------

    /// The route of a plain call, when it exists: the hot path.
    pub(crate) fn plain_route(&self, method: &str) -> Option<usize> {
        self.plain_routes.find(method, &self.routes)
    }

    /// The route of a method and a target, when it exists.
    pub(crate) fn find_route(&self, method: &str, target: &Target) -> Option<usize> {
        self.methods.get(method)?.routes.get(target).copied()
    }

    /// Makes the route. Its target's range must have been checked.
    pub(crate) fn add_route(&mut self, method: &str, target: &Target) -> usize {
        let name = match self.methods.get_key_value(method) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(method),
        };
        let key = self.routes.insert(Route::new(Arc::clone(&name), target));
        let entry = self.methods.entry(name).or_default();
        entry.routes.insert(target.clone(), key);
        if *target == Target::default() {
            entry.plain = Some(key);
            self.plain_routes.add(key, &self.routes);
        }
        self.match_route(key);
        key
    }

    /// Whether a live worker serves what the route is about, paused or not.
    pub(crate) fn is_served(&self, route: usize) -> bool {
        if !self.routes[route].offers.is_empty() {
            return true;
        }
        let mut matches = Vec::new();
        if self.paused.contains(&self.routes[route].method) {
            self.fitting(route, &mut matches);
        }
        !matches.is_empty()
    }

    /// The method's name, if a worker serves it or tasks of it are known.
    pub(crate) fn name_of(&self, method: &str) -> Option<Arc<str>> {
        self.methods.get_key_value(method).map(|(name, _)| Arc::clone(name))
    }

    /// Lets the tasks of a method wait, or wait no longer. Returns its routes.
    pub(crate) fn set_paused(&mut self, method: &Arc<str>, paused: bool) -> Vec<usize> {
        if paused {
            self.paused.insert(Arc::clone(method));
        } else {
            self.paused.remove(method);
        }
        let routes = self.methods.get(method).map(|entry| entry.routes.values().copied().collect());
        self.settle(&routes.unwrap_or_default())
    }

    /// Paused methods, for the audit.
    pub(crate) fn paused(&self) -> impl Iterator<Item = &Arc<str>> {
        self.paused.iter()
    }

    /// A task of the route is known no longer.
    #[inline]
    pub(crate) fn task_forgotten(&mut self, route: usize) {
        let entry = &mut self.routes[route];
        entry.tasks -= 1;
        if entry.tasks == 0 {
            self.drop_route_if_unused(route);
        }
    }

    /// Forgets the route when no task is left on it and nobody serves its method, so that names sent by
    /// strangers do not pile up.
    pub(crate) fn drop_route_if_unused(&mut self, key: usize) {
        let route = &self.routes[key];
        let plain_and_served = *route.target() == Target::default()
            && self.methods.get(&route.method).is_some_and(|entry| !entry.offers.is_empty());
        if route.tasks > 0 || plain_and_served {
            return;
        }
        let route = self.routes.remove(key);
        if let Some(entry) = self.methods.get_mut(&route.method) {
            entry.routes.remove(route.target());
            if entry.plain == Some(key) {
                entry.plain = None;
                self.plain_routes.remove(&route.method, key);
            }
        }
        self.drop_method_if_unused(&route.method);
    }

    fn drop_method_if_unused(&mut self, name: &Arc<str>) {
        let Some(entry) = self.methods.get(name) else { return };
        if !entry.offers.is_empty() {
            return;
        }
        let idle: Vec<usize> =
            entry.routes.values().copied().filter(|route| self.routes[*route].tasks == 0).collect();
        for key in idle {
            let route = self.routes.remove(key);
            if let Some(entry) = self.methods.get_mut(name) {
                entry.routes.remove(route.target());
                if entry.plain == Some(key) {
                    entry.plain = None;
                    self.plain_routes.remove(name, key);
                }
            }
        }
        if self.methods.get(name).is_some_and(|entry| entry.routes.is_empty()) {
            self.methods.remove(name);
        }
    }

    // --- for people -------------------------------------------------------------------------------

    /// Methods in order, each with its versions and the tasks that wait for it.
    pub(crate) fn method_entries(&self) -> impl Iterator<Item = (&Arc<str>, &Served, u64)> {
        self.methods.iter().map(|(name, entry)| {
            let ready = entry.routes.values().map(|route| self.routes[*route].queue.len() as u64).sum();
            (name, &entry.served, ready)
        })
    }

    /// Live pools that serve the method at all, whatever the target: version, group, session, credit.
    pub(crate) fn live_pools_of(&self, method: &str) -> Vec<(Vec<Version>, usize)> {
        let Some(entry) = self.methods.get(method) else { return Vec::new() };
        let mut found = Vec::new();
        for (key, pool) in &self.pools {
            if entry.offers.contains(&pool.offer) && self.is_active(pool.session) {
                let methods = &self.offers[pool.offer].key.methods;
                let versions = methods.iter().filter(|(name, _)| &**name == method).map(|(_, v)| v.clone());
                found.push((versions.collect(), key));
            }
        }
        found
    }

    /// Whether the pool is among those that may serve the route.
    pub(crate) fn pool_may_serve(&self, pool: usize, route: usize) -> bool {
        self.routes[route].offers.iter().any(|(offer, _)| *offer == self.pools[pool].offer)
    }
}

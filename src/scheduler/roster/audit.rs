//! What must hold between the parts of the roster.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::Roster;
use crate::scheduler::audit::ensure;
use crate::task::Target;

impl Roster {
    /// Whether the parts of the roster agree with each other, and with how many tasks each route has.
    pub(in crate::scheduler) fn audit(&self, tasks_of_routes: &BTreeMap<usize, usize>) -> Result<(), String> {
        let (mut live, mut pools) = (BTreeMap::new(), BTreeMap::new());
        let (mut open, mut overfull) = (BTreeSet::new(), BTreeSet::new());
        let (mut linked, mut in_flight) = (0, BTreeMap::new());
        for (key, pool) in &self.pools {
            let serving = self.is_active(pool.session);
            ensure!(self.offers.contains(pool.offer), "pool {key}: no offer");
            ensure!(self.sessions[pool.session].pools.contains(&key), "pool {key}: its session has lost it");
            *pools.entry(pool.offer).or_insert(0) += 1;
            *live.entry(pool.offer).or_insert(0) += u32::from(serving);
            *in_flight.entry(pool.offer).or_insert(0) += pool.in_flight;
            let is_open = serving && pool.credit() > 0;
            ensure!(self.places.is_open(key) == is_open, "pool {key}: open {}", !is_open);
            let place = (pool.in_flight, pool.concurrency, pool.used, key);
            open.extend(is_open.then_some((pool.offer, place)));
            let excess = if serving { pool.in_flight.saturating_sub(pool.concurrency) } else { 0 };
            ensure!(pool.excess == excess, "pool {key}: excess {}, should be {excess}", pool.excess);
            overfull.extend((excess > 0).then_some((pool.offer, (excess, key))));
            linked += 1;
        }
        ensure!(
            linked == self.sessions.iter().map(|(_, s)| s.pools.len()).sum::<usize>(),
            "pools without a session"
        );
        for (key, offer) in &self.offers {
            ensure!(self.offer_index.get(&offer.key) == Some(&key), "offer {key} is not in the index");
            ensure!(Some(&offer.pools) == pools.get(&key), "offer {key}: {} pools counted", offer.pools);
            let flying = offer.in_flight;
            ensure!(Some(&flying) == in_flight.get(&key), "offer {key}: {flying} in flight counted");
            ensure!(Some(&offer.live) == live.get(&key), "offer {key}: {} live counted", offer.live);
            ensure!(offer.open.is_in_order(&self.places), "offer {key}: open is out of order");
            let mut places = offer.open.iter().map(|p| (p.in_flight, p.concurrency, p.used, p.pool as usize));
            ensure!(places.all(|place| open.remove(&(key, place))), "offer {key}: open is stale");
            ensure!(
                offer.overfull.iter().all(|e| overfull.remove(&(key, *e))),
                "offer {key}: overfull is stale"
            );
            let turns: HashSet<usize, FixedState> = offer.turns.iter().copied().collect();
            ensure!(turns == offer.in_turns && turns.len() == offer.turns.len(), "offer {key}: turns");
            for (name, version) in &offer.key.methods {
                let known = self
                    .methods
                    .get(name)
                    .is_some_and(|entry| entry.offers.contains(&key) && entry.served.contains_key(version));
                ensure!(known, "offer {key}: nobody knows that it serves {name} {version}");
            }
        }
        ensure!(open.is_empty() && overfull.is_empty(), "pools are missing in open or overfull");
        ensure!(self.offer_index.len() == self.offers.len(), "the index of offers holds too much");
        ensure!(
            self.by_worker.len() == self.sessions.len() && self.by_id.len() == self.sessions.len(),
            "sessions"
        );
        self.audit_routes(tasks_of_routes)?;
        self.audit_methods()
    }

    fn audit_routes(&self, tasks_of_routes: &BTreeMap<usize, usize>) -> Result<(), String> {
        for (key, route) in &self.routes {
            let tasks = tasks_of_routes.get(&key).copied().unwrap_or_default();
            ensure!(
                route.tasks as usize == tasks,
                "route {key}: {} tasks counted, {tasks} there",
                route.tasks
            );
            let Some(entry) = self.methods.get(&route.method) else {
                return Err(format!("route {key}: no method"));
            };
            ensure!(
                entry.routes.get(route.target()) == Some(&key),
                "route {key}: its method does not know it"
            );
            let idle_is_wanted = *route.target() == Target::default() && !entry.offers.is_empty();
            ensure!(tasks > 0 || idle_is_wanted, "route {key} of {:?} should be gone", route.method);
            for (offer, _) in &route.offers {
                let turns = self
                    .offers
                    .get(*offer)
                    .map(|offer| offer.live > 0 && (route.queue.is_empty() || offer.in_turns.contains(&key)));
                ensure!(turns == Some(true), "route {key}: offer {offer} is dead, or has no turn for it");
            }
            let mut expected = Vec::new();
            self.matches_of(key, &mut expected);
            let expected: Vec<usize> = expected.into_iter().map(|(offer, _)| offer).collect();
            ensure!(
                route.offers.iter().map(|(offer, _)| *offer).eq(expected),
                "route {key}: offers are stale"
            );
        }
        Ok(())
    }

    fn audit_methods(&self) -> Result<(), String> {
        let (mut routes, mut plain) = (0, 0);
        for (name, entry) in &self.methods {
            ensure!(!entry.routes.is_empty() || !entry.offers.is_empty(), "method {name:?} should be gone");
            ensure!(
                entry.offers.iter().all(|offer| self.offers.contains(*offer)),
                "method {name:?}: dead offer"
            );
            ensure!(
                entry.plain == entry.routes.get(&Target::default()).copied(),
                "method {name:?}: plain route"
            );
            ensure!(
                entry.plain == self.plain_routes.find(name, &self.routes),
                "method {name:?}: plain index"
            );
            for (version, (_, workers)) in &entry.served {
                let id = (Arc::clone(name), version.clone());
                let serving = entry
                    .offers
                    .iter()
                    .map(|offer| &self.offers[*offer])
                    .filter(|o| o.key.methods.contains(&id));
                let (offers, live) = serving.fold((0, 0), |(n, live), offer| (n + 1, live + offer.live));
                ensure!(
                    offers > 0 && live == *workers,
                    "{name:?} {version}: {workers} workers counted, {live} live"
                );
            }
            routes += entry.routes.len();
            plain += usize::from(entry.plain.is_some());
        }
        ensure!(routes == self.routes.len() && plain == self.plain_routes.len(), "routes without a method");
        Ok(())
    }
}

//! From ready to leased: which worker gets which task.

use super::effect::{Assign, EffectKind, SharedText, Tell};
use super::ledger::{Record, Slot};
use super::{Output, Scheduler};
use crate::clock::Timestamp;
use crate::task::{Body, Payload, State, Task};

impl Scheduler {
    /// What is new in "ready" goes to a worker at once or to the end of its line.
    pub(super) fn ready(&mut self, slot: Slot, out: &mut Output) {
        let route = self.lives[slot].route();
        self.next_place += 1;
        let live = &mut self.lives[slot];
        live.ready_since = self.now;
        live.place = self.next_place;
        let choice = self.roster.choose_next(route);
        let queue = &mut self.roster.routes[route].queue;
        let (first, served) = (queue.is_empty(), choice.is_some());
        if first && let Some(choice) = choice {
            self.assign(slot, choice.pool, choice.version, out);
            return;
        }
        queue.push_back(&mut self.lives, slot, self.ledger.task(slot).options.priority);
        if first {
            self.roster.take_turns(route);
        }
        self.reschedule(slot);
        // Others wait although there is credit: only in the middle of a change of the roster. Nobody is
        // overtaken.
        if served {
            return self.serve(&[route], out);
        }
        if self.stopping {
            self.turn_away(slot, out);
        }
    }

    /// What comes back to "ready" takes its old place in line. Its route is to be served, but only when all that
    /// comes back with it stands in line: a younger task must not go before an older one that is a moment behind.
    pub(super) fn ready_again(&mut self, slot: Slot, out: &mut Output) -> usize {
        let route = self.lives[slot].route();
        let queue = &mut self.roster.routes[route].queue;
        let first = queue.is_empty();
        queue.put_back(&mut self.lives, slot, self.ledger.task(slot).options.priority);
        if first {
            self.roster.take_turns(route);
        }
        self.reschedule(slot);
        if self.stopping {
            self.turn_away(slot, out);
        }
        route
    }

    /// Takes the task out of its queue if it waits there.
    pub(super) fn unqueue(&mut self, slot: Slot) {
        let task = self.ledger.task(slot);
        if matches!(task.state, State::Ready) {
            let route = self.lives[slot].route();
            self.roster.routes[route].queue.remove(&mut self.lives, slot, task.options.priority);
        }
    }

    /// Gives a pool with new credit what waits for it.
    pub(super) fn fill(&mut self, pool: usize, out: &mut Output) {
        while let Some((route, version)) = self.roster.next_turn(pool) {
            if let Some(slot) = self.roster.routes[route].queue.pop(&mut self.lives, self.limits.ageing_ms) {
                self.assign(slot, pool, version, out);
            }
        }
        self.relieve(pool, out);
    }

    /// An idle pool asks back what waits, unstarted, at the fullest of its peers.
    fn relieve(&mut self, idle: usize, out: &mut Output) {
        let Some((full, excess)) = self.roster.fullest_peer(idle) else { return };
        let session = &self.roster.sessions[self.roster.pools[full].session];
        let Some(conn) = session.conn else { return };
        let mut unstarted: Vec<(u64, Slot)> = session
            .leases
            .iter()
            .filter(|(_, slot)| self.lives[*slot].pool() == Some(full) && !self.lives[*slot].started)
            .collect();
        // What was asked back before is on its way, or about to start after all.
        let asked = unstarted.iter().filter(|(_, slot)| self.lives[*slot].recalled).count() as u64;
        let wanted = self.roster.pools[idle].credit().min(excess.saturating_sub(asked)) as usize;
        unstarted.retain(|(_, slot)| !self.lives[*slot].recalled);
        // The newest: the oldest are about to start.
        unstarted.sort_unstable_by_key(|(lease, _)| std::cmp::Reverse(*lease));
        for (lease, slot) in unstarted.into_iter().take(wanted) {
            self.lives[slot].recalled = true;
            out.now(EffectKind::Tell(conn, Tell::Recall(lease)));
        }
    }

    /// Gives the queues of these routes to whoever has credit: after workers joined, left or changed.
    pub(super) fn serve(&mut self, routes: &[usize], out: &mut Output) {
        for route in routes {
            // A route that changed may be gone by now.
            while self.roster.routes.get(*route).is_some_and(|route| !route.queue.is_empty()) {
                let Some(choice) = self.roster.choose(*route) else { break };
                let queue = &mut self.roster.routes[*route].queue;
                if let Some(slot) = queue.pop(&mut self.lives, self.limits.ageing_ms) {
                    self.assign(slot, choice.pool, choice.version, out);
                }
            }
        }
    }

    fn assign(&mut self, slot: Slot, pool: usize, version: SharedText, out: &mut Output) {
        let session_key = self.roster.pools[pool].session;
        let session = &mut self.roster.sessions[session_key];
        let Some(conn) = session.conn else { return };
        let lease = self.ledger.new_lease(self.now, &mut out.rows);
        session.leases.insert(lease, slot);
        session.digest ^= lease;
        session.changes += 1;
        let (worker_id, started) = (session.worker_id.clone(), session.hello.starts_on_receipt);
        self.roster.load(pool);
        self.commit(Record::Leased { slot, lease, worker_id }, out);
        let live = &mut self.lives[slot];
        live.set_pool(Some(pool));
        live.started = started;
        live.recalled = false;
        if let Some(talk) = &mut live.talk {
            // What an earlier try said is not about this one; its chunks are kept, with their own numbers.
            talk.progress = None;
            talk.chunks_seen = 0;
        }
        self.reschedule(slot);
        let task = self.ledger.task(slot);
        let (payload, stored) = match &task.body {
            Body::Held(payload) => (payload.clone(), None),
            Body::Stored(bytes) => (Payload::default(), Some(*bytes)),
        };
        let assign = Box::new(Assign {
            id: task.id,
            lease,
            attempt: task.attempt,
            method: task.method.clone(),
            version,
            payload,
            deadline: attempt_deadline(task),
            options: (&task.options).into(),
            pool: (&self.roster.pools[pool].name).into(),
        });
        // Not gated: work that was never acknowledged may be lost, and a lost attempt is tried again.
        out.now(match stored {
            None => EffectKind::Assign(conn, assign),
            Some(bytes) => EffectKind::AssignStored { conn, assign, bytes },
        });
        self.changed(slot, out);
    }

    /// Ends the lease of a leased task on all sides but the ledger's. What becomes of the task is the
    /// caller's next step.
    pub(super) fn detach(&mut self, slot: Slot) {
        let State::Leased { lease, .. } = self.ledger.task(slot).state else { return };
        let live = &mut self.lives[slot];
        live.started = false;
        live.recalled = false;
        self.orphans.remove(&lease);
        if let Some(pool) = live.pool() {
            live.set_pool(None);
            let session = &mut self.roster.sessions[self.roster.pools[pool].session];
            session.leases.remove(lease);
            session.digest ^= lease;
            session.changes += 1;
            self.roster.unload(pool);
        }
    }
}

/// When the running attempt will be stopped.
fn attempt_deadline(task: &Task) -> Timestamp {
    let run = match task.options.run_timeout_ms {
        0 => Timestamp::NEVER,
        ms => task.changed_at + ms,
    };
    run.min(task.deadline())
}

//! A task ends in one outcome. Whoever is told it is told the same, also after crashes, until a Retry
//! withdraws it.

use std::collections::{BTreeMap, VecDeque};

use crewcall::clock::Timestamp;
use crewcall::scheduler::{Command, DeadChange, Effect, EffectKind, EventKind, Reply, Scheduler};
use crewcall::task::{Outcome, TaskId};

use super::invariant::{Held, Invariant, Stored};

/// An outcome on its way to somebody, with the life of the task that it belongs to.
#[derive(Default)]
pub(super) struct OneOutcome {
    /// Dead letters are being run again.
    retrying: bool,
    /// Retries asked for, that is lives begun at most.
    lives: BTreeMap<TaskId, u32>,
    /// Put out and not yet carried out.
    pending: BTreeMap<TaskId, VecDeque<(u32, Outcome)>>,
    known: BTreeMap<(TaskId, u32), Outcome>,
}

impl Invariant for OneOutcome {
    fn asked(&mut self, command: &Command) {
        self.retrying = false;
        match command {
            Command::Retry { id, .. } => *self.lives.entry(*id).or_default() += 1,
            Command::ChangeDead { change: DeadChange::Retry, dry_run: false, .. } => self.retrying = true,
            _ => {}
        }
    }

    fn made(&mut self, _: Timestamp, effect: &Effect) -> Held {
        if let EffectKind::Reply(_, Reply::DeadChanged(changed)) = &effect.kind
            && self.retrying
        {
            for (id, _) in changed.results.iter().filter(|(_, result)| result.is_ok()) {
                *self.lives.entry(*id).or_default() += 1;
            }
        }
        for (id, outcome) in outcomes(&effect.kind) {
            let life = self.lives.get(id).copied().unwrap_or_default();
            self.pending.entry(*id).or_default().push_back((life, outcome.clone()));
        }
        Ok(())
    }

    fn restored(&mut self, _: &Stored, _: &Scheduler) -> Held {
        // What was on its way is lost.
        self.pending.clear();
        Ok(())
    }

    fn told(&mut self, kind: &EffectKind) -> Held {
        for (id, outcome) in outcomes(kind) {
            // Answers to different people may overtake each other: one waits for the disk, another need not.
            let pending = self.pending.entry(*id).or_default();
            let place = pending.iter().position(|(_, made)| made == outcome);
            let Some((life, _)) = place.and_then(|place| pending.remove(place)) else {
                return Err(format!("{id}: {outcome:?} was told and never put out"));
            };
            let known = self.known.entry((*id, life)).or_insert_with(|| outcome.clone());
            if known != outcome {
                return Err(format!("{id}: told {known:?}, then {outcome:?}"));
            }
        }
        Ok(())
    }
}

fn outcomes(kind: &EffectKind) -> Vec<(&TaskId, &Outcome)> {
    match kind {
        EffectKind::Reply(_, Reply::Ended(id, outcome)) => vec![(id, outcome)],
        EffectKind::Reply(_, Reply::Task(view)) => {
            view.state.outcome().map(|outcome| (&view.id, outcome)).into_iter().collect()
        }
        EffectKind::Reply(_, Reply::Explained(explanation)) => {
            let view = &explanation.task;
            view.state.outcome().map(|outcome| (&view.id, outcome)).into_iter().collect()
        }
        EffectKind::Reply(_, Reply::Tasks(views, _) | Reply::DeadLetters(views, _)) => {
            views.iter().filter_map(|view| Some((&view.id, view.state.outcome()?))).collect()
        }
        EffectKind::Event(_, event) => match &event.kind {
            EventKind::Task(view) => {
                view.state.outcome().map(|outcome| (&view.id, outcome)).into_iter().collect()
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

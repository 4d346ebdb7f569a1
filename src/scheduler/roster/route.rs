//! Routes, and how a name finds its own.

use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use semver::VersionReq;
use slab::Slab;

use super::Runs;
use crate::scheduler::effect::SharedText;
use crate::scheduler::queue::Queue;
use crate::task::Target;

/// A method and a target: one queue.
// One cache line, so that ten thousand methods called in turn stay in a second-level cache; what is seldom looked at
// lies elsewhere.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Route {
    pub(crate) method: Arc<str>,
    /// Who may serve it now, with the version chosen there.
    pub(super) offers: Box<[(usize, SharedText)]>,
    pub(crate) queue: Queue,
    about: Box<About>,
    /// Tasks in any state whose route this is.
    pub(crate) tasks: u32,
    /// How long attempts take.
    pub(crate) runs: Runs,
}

const _: () = assert!(size_of::<Option<Route>>() == 64, "a cache line");

#[derive(Debug)]
struct About {
    target: Target,
    range: Option<VersionReq>,
}

impl Route {
    /// The target's range must have been checked.
    pub(super) fn new(method: Arc<str>, target: &Target) -> Self {
        Self {
            method,
            offers: Box::default(),
            queue: Queue::default(),
            about: Box::new(About { target: target.clone(), range: target.range().ok().flatten() }),
            tasks: 0,
            runs: Runs::default(),
        }
    }

    pub(crate) fn target(&self) -> &Target {
        &self.about.target
    }

    /// The versions asked for; `None`: the newest that is alive.
    pub(super) fn range(&self) -> Option<&VersionReq> {
        self.about.range.as_ref()
    }
}

/// Routes of the empty target, by name: the way of nearly all calls. The names are those of the routes themselves.
#[derive(Debug, Default)]
pub(super) struct PlainRoutes {
    routes: HashTable<u32>,
    hasher: RandomState,
}

impl PlainRoutes {
    pub(super) fn len(&self) -> usize {
        self.routes.len()
    }

    #[inline]
    pub(super) fn find(&self, method: &str, routes: &Slab<Route>) -> Option<usize> {
        let of = |key: &u32| routes.get(*key as usize).is_some_and(|route| &*route.method == method);
        self.routes.find(self.hasher.hash_one(method), of).map(|key| *key as usize)
    }

    /// `key` is in `routes`, and nothing else of its name was added.
    pub(super) fn add(&mut self, key: usize, routes: &Slab<Route>) {
        let hash =
            |key: &u32| routes.get(*key as usize).map_or(0, |route| self.hasher.hash_one(&*route.method));
        let key = key as u32;
        self.routes.insert_unique(hash(&key), key, hash);
    }

    /// The route `key` of this name is gone.
    pub(super) fn remove(&mut self, method: &str, key: usize) {
        let hash = self.hasher.hash_one(method);
        if let Ok(entry) = self.routes.find_entry(hash, |other| *other as usize == key) {
            entry.remove();
        }
    }
}

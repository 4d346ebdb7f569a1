//! Equal options, shared: a million tasks submitted alike have one.

use std::collections::HashSet;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::task::TaskOptions;

/// How many may be kept for nobody before they are looked through.
const SLACK: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct SharedOptions {
    known: HashSet<Arc<TaskOptions>, RandomState>,
    /// How many were in use when they were last looked through.
    used: usize,
    /// The last one asked for: most tasks are like the one before them.
    last: Option<Arc<TaskOptions>>,
}

impl SharedOptions {
    /// The one that stands for all equal to `options`.
    pub(crate) fn share(&mut self, options: Arc<TaskOptions>) -> Arc<TaskOptions> {
        if let Some(last) = &self.last
            && (Arc::ptr_eq(last, &options) || *last == options)
        {
            return Arc::clone(last);
        }
        let shared = match self.known.get(&options) {
            Some(known) => Arc::clone(known),
            None => {
                if self.known.len() >= 2 * self.used + SLACK {
                    self.known.retain(|options| Arc::strong_count(options) > 1);
                    self.used = self.known.len();
                }
                self.known.insert(Arc::clone(&options));
                options
            }
        };
        self.last = Some(Arc::clone(&shared));
        shared
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(deadline_ms: u64) -> Arc<TaskOptions> {
        Arc::new(TaskOptions { deadline_ms, ..TaskOptions::submit() })
    }

    #[test]
    fn equal_ones_become_one_and_unused_ones_go() {
        let mut shared = SharedOptions::default();
        let first = shared.share(options(1));
        shared.share(options(2));
        assert!(Arc::ptr_eq(&first, &shared.share(options(1))));
        for deadline in 0..100_000 {
            shared.share(options(deadline));
        }
        assert!(shared.len() <= 2 * SLACK, "{} are kept", shared.len());
        assert!(Arc::ptr_eq(&first, &shared.share(options(1))));
    }
}

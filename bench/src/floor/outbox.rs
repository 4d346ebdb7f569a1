//! What waits to be written to one stream: everything that gathered goes out together.

use std::mem;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Entries, and what else is to be said (`X`).
#[derive(Debug)]
pub(super) struct Outbox<T, X> {
    inner: Mutex<Inner<T, X>>,
}

#[derive(Debug)]
struct Inner<T, X> {
    entries: Vec<T>,
    extra: Option<X>,
    reader: Option<Waker>,
}

impl<T, X> Default for Outbox<T, X> {
    fn default() -> Self {
        Self { inner: Mutex::new(Inner { entries: Vec::new(), extra: None, reader: None }) }
    }
}

impl<T, X> Outbox<T, X> {
    pub(super) fn extend(&self, mut more: Vec<T>) {
        self.update(|entries, _| match entries.is_empty() {
            true => mem::swap(entries, &mut more),
            false => entries.append(&mut more),
        });
    }

    /// Changes what waits, and wakes whoever writes it.
    pub(super) fn update(&self, change: impl FnOnce(&mut Vec<T>, &mut Option<X>)) {
        let mut inner = self.inner.lock();
        let now = &mut *inner;
        change(&mut now.entries, &mut now.extra);
        let reader = inner.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Moves every entry into `taken`, which must be empty, and yields what else is to be said.
    pub(super) fn poll_take(&self, cx: &Context<'_>, taken: &mut Vec<T>) -> Poll<Option<X>> {
        let mut inner = self.inner.lock();
        if inner.entries.is_empty() && inner.extra.is_none() {
            inner.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        mem::swap(&mut inner.entries, taken);
        Poll::Ready(inner.extra.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_gathered_goes_at_once() {
        let outbox = Outbox::<u32, &str>::default();
        let cx = Context::from_waker(Waker::noop());
        let mut taken = Vec::new();
        assert_eq!(outbox.poll_take(&cx, &mut taken), Poll::Pending);
        outbox.extend(vec![1]);
        outbox.extend(vec![2, 3]);
        assert_eq!(outbox.poll_take(&cx, &mut taken), Poll::Ready(None));
        assert_eq!(taken, [1, 2, 3]);
        taken.clear();
        outbox.update(|_, extra| *extra = Some("done"));
        assert_eq!(outbox.poll_take(&cx, &mut taken), Poll::Ready(Some("done")));
        assert_eq!(outbox.poll_take(&cx, &mut taken), Poll::Pending);
    }
}

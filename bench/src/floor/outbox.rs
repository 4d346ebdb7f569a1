//! What waits to be written to one stream: everything that gathered goes out together.

use std::mem;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Entries, and what else is to be said with them (`X`, nothing by default).
#[derive(Debug)]
pub(super) struct Outbox<T, X = ()> {
    inner: Mutex<Inner<T, X>>,
}

#[derive(Debug)]
struct Inner<T, X> {
    entries: Vec<T>,
    extra: X,
    reader: Option<Waker>,
    closed: bool,
}

impl<T, X: Default> Default for Outbox<T, X> {
    fn default() -> Self {
        let inner = Inner { entries: Vec::new(), extra: X::default(), reader: None, closed: false };
        Self { inner: Mutex::new(inner) }
    }
}

impl<T, X: Default + PartialEq> Outbox<T, X> {
    pub(super) fn push(&self, entry: T) {
        self.update(|entries, _| entries.push(entry));
    }

    pub(super) fn extend(&self, more: impl IntoIterator<Item = T>) {
        self.update(|entries, _| entries.extend(more));
    }

    /// Changes what waits, and wakes whoever writes it.
    pub(super) fn update(&self, change: impl FnOnce(&mut Vec<T>, &mut X)) {
        let mut inner = self.inner.lock();
        let inner_now = &mut *inner;
        change(&mut inner_now.entries, &mut inner_now.extra);
        let reader = inner.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// What waits now is the last.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        let reader = inner.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Moves everything into `taken`, which must be empty, and yields the rest; `None` once it is closed
    /// and empty.
    pub(super) fn poll_take(&self, cx: &Context<'_>, taken: &mut Vec<T>) -> Poll<Option<X>> {
        let mut inner = self.inner.lock();
        if inner.entries.is_empty() && inner.extra == X::default() {
            if inner.closed {
                return Poll::Ready(None);
            }
            inner.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        mem::swap(&mut inner.entries, taken);
        Poll::Ready(Some(mem::take(&mut inner.extra)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_goes_at_once_and_what_is_closed_ends_empty() {
        let outbox = Outbox::<u32, u32>::default();
        let cx = Context::from_waker(Waker::noop());
        let mut taken = Vec::new();
        assert_eq!(outbox.poll_take(&cx, &mut taken), Poll::Pending);
        outbox.push(1);
        outbox.extend([2, 3]);
        outbox.close();
        assert_eq!(outbox.poll_take(&cx, &mut taken), Poll::Ready(Some(0)));
        assert_eq!(taken, [1, 2, 3]);
        taken.clear();
        outbox.update(|_, extra| *extra = 7);
        assert_eq!(outbox.poll_take(&cx, &mut taken), Poll::Ready(Some(7)));
        assert_eq!(outbox.poll_take(&cx, &mut taken), Poll::Ready(None));
    }
}

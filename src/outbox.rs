//! What the engine has to say to one stream. The engine never waits for a reader: it appends and goes on;
//! whoever writes the stream takes everything that is there at once, so frames grow with the load and no
//! timer is needed. How much can be waiting is bounded by what the stream was allowed to ask for (credit of
//! a worker, calls in flight of a pipe) or by a limit of its own (watchers).

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::Error;
use crate::scheduler::ConnId;

/// One stream's end of the engine. Clones share it.
#[derive(Debug)]
pub struct Outbox<T> {
    inner: Arc<Mutex<Inner<T>>>,
}

#[derive(Debug)]
struct Inner<T> {
    items: Vec<T>,
    /// `Some(None)` is a normal end.
    closed: Option<Option<Error>>,
    reader: Option<Waker>,
    /// Whoever causes items and holds back until they have been read.
    pacer: Option<Waker>,
    /// The engine holds back until they have been read.
    taken: Option<(Arc<Taken>, ConnId)>,
}

/// Streams that have read what was there, for the engine that holds back more.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    streams: Mutex<Vec<ConnId>>,
    notify: Notify,
}

impl Taken {
    /// Ends when there are any. Cancel-safe.
    pub(crate) async fn any(&self) {
        self.notify.notified().await;
    }

    /// Those since the last time.
    pub(crate) fn streams(&self) -> Vec<ConnId> {
        std::mem::take(&mut self.streams.lock())
    }

    fn add(&self, conn: ConnId) {
        self.streams.lock().push(conn);
        self.notify.notify_one();
    }
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                items: Vec::new(),
                closed: None,
                reader: None,
                pacer: None,
                taken: None,
            })),
        }
    }
}

impl<T> Outbox<T> {
    /// Appends all of `items`, leaving it empty, and wakes the reader. Returns how many wait now.
    pub(crate) fn append(&self, items: &mut Vec<T>) -> usize {
        let mut inner = self.inner.lock();
        if inner.items.is_empty() {
            std::mem::swap(&mut inner.items, items);
        } else {
            inner.items.append(items);
        }
        let (waiting, reader) = (inner.items.len(), inner.reader.take());
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
        waiting
    }

    /// Tells `taken` of this stream, `conn`, when what waits is read; at once if nothing waits.
    pub(crate) fn tell_when_taken(&self, taken: &Arc<Taken>, conn: ConnId) {
        let mut inner = self.inner.lock();
        if inner.items.is_empty() {
            drop(inner);
            taken.add(conn);
        } else {
            inner.taken = Some((Arc::clone(taken), conn));
        }
    }

    /// Nothing more will come. What waits is still read first. The first end counts.
    pub(crate) fn close(&self, error: Option<Error>) {
        let mut inner = self.inner.lock();
        inner.closed.get_or_insert(error);
        let wakers = [inner.reader.take(), inner.pacer.take()];
        drop(inner);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Everything that is there, in `items`, which must be empty; its old allocation is handed back for
    /// the next round. Ready with `Ok(false)` at the normal end and with the error at any other.
    pub fn poll_take(&self, cx: &mut Context<'_>, items: &mut Vec<T>) -> Poll<Result<bool, Error>> {
        let mut inner = self.inner.lock();
        if !inner.items.is_empty() {
            std::mem::swap(&mut inner.items, items);
            let (pacer, taken) = (inner.pacer.take(), inner.taken.take());
            drop(inner);
            if let Some((taken, conn)) = taken {
                taken.add(conn);
            }
            if let Some(pacer) = pacer {
                pacer.wake();
            }
            return Poll::Ready(Ok(true));
        }
        match &inner.closed {
            Some(None) => Poll::Ready(Ok(false)),
            Some(Some(error)) => Poll::Ready(Err(error.clone())),
            None => {
                if inner.reader.as_ref().is_none_or(|reader| !reader.will_wake(cx.waker())) {
                    inner.reader = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    /// As `poll_take`, as a future. Cancel-safe.
    pub async fn take(&self, items: &mut Vec<T>) -> Result<bool, Error> {
        std::future::poll_fn(|cx| self.poll_take(cx, items)).await
    }

    /// Ends when fewer than `most` items wait unread, or nothing more will come. For the one whose frames
    /// cause the items: so the peer that does not read is not read from either. One at a time may wait.
    pub(crate) async fn below(&self, most: usize) {
        std::future::poll_fn(|cx| {
            let mut inner = self.inner.lock();
            if inner.items.len() < most || inner.closed.is_some() {
                return Poll::Ready(());
            }
            inner.pacer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

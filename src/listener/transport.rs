//! One accepted connection as bytes: plain or TLS, with the guards that no library sets for us.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

use super::{
    admission::Admission,
    meter::FrameMeter,
    patience::{Pace, Patience},
};

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// A socket, with or without TLS.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    /// Boxed: a TLS session is a kilobyte, and most connections have none.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection whose protocol is known. It holds the connection's place among the admitted ones: an
/// upgraded connection leaves its HTTP task behind, and its place must not be free before the socket is.
#[derive(Debug)]
pub(super) struct Transport {
    stream: Stream,
    /// What was read to find the protocol, to be read again.
    prefix: Bytes,
    meter: Option<FrameMeter>,
    patience: Patience,
    _admission: Admission,
}

impl Transport {
    /// Reads until the protocol is certain: at most the 24 bytes of the HTTP/2 preface. Waits as long as the
    /// client does, so the caller sets the deadline.
    ///
    /// # Errors
    /// `UnexpectedEof` when the client closes before a single byte; else what the socket says.
    pub(super) async fn open(
        mut stream: Stream,
        pace: Pace,
        admission: Admission,
    ) -> io::Result<(Self, Protocol)> {
        let mut prefix = BytesMut::with_capacity(HTTP2_PREFACE.len());
        let protocol = loop {
            let missing = HTTP2_PREFACE.len() - prefix.len();
            if missing == 0 {
                break Protocol::Http2;
            }
            let read = stream.read_buf(&mut (&mut prefix).limit(missing)).await?;
            match read {
                0 if prefix.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => break Protocol::Http1,
                _ if !HTTP2_PREFACE.starts_with(&prefix) => break Protocol::Http1,
                _ => {}
            }
        };
        let transport = Self {
            stream,
            prefix: prefix.freeze(),
            meter: (protocol == Protocol::Http2).then(FrameMeter::new),
            patience: Patience::new(pace),
            _admission: admission,
        };
        Ok((transport, protocol))
    }

    /// Passes a write's answer on, or ends the connection of a client that is too slow: the memory of what waits
    /// for it belongs to others.
    fn watch_write(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) => {
                self.patience.taken(*bytes);
                if let Some(meter) = &mut self.meter {
                    meter.sent(*bytes);
                }
                written
            }
            Poll::Ready(Err(_)) => written,
            Poll::Pending => self.patience.poll_lost(cx).map(Err),
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.prefix.is_empty() {
            let length = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix.copy_to_bytes(length));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if let Some(meter) = &mut this.meter {
            meter.received(buf.filled().get(before..).unwrap_or_default()).map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.watch_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.watch_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.watch_write(cx, flushed.map_ok(|()| 0)).map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let closed = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.watch_write(cx, closed.map_ok(|()| 0)).map_ok(|_| ())
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// An HTTP/1 request body that ends in an error when the client sends nothing for too long. Not for HTTP/2,
/// whose bidirectional streams may rest for hours while pings show that the peer lives.
#[derive(Debug)]
pub(super) struct TimedBody {
    inner: Incoming,
    timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl TimedBody {
    pub(super) fn new(inner: Incoming, timeout: Duration) -> Self {
        Self { inner, timeout, stalled: None }
    }
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.stalled = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let stalled = this.stalled.get_or_insert_with(|| Box::pin(sleep(this.timeout)));
        ready!(stalled.as_mut().poll(cx));
        let error = format!("no byte of the request body came for {:?}", this.timeout);
        Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, error).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

//! A wire that can be cut, or stand still: between the server and whoever connects through it.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Dropping it cuts the wire for good.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    cuts: watch::Sender<u64>,
    stalled: watch::Sender<bool>,
    allowance: Arc<watch::Sender<Allowance>>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    FromServer,
}

/// How an end hears of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// What had been passed on still arrives.
    Close,
    /// What was under way may be lost.
    Reset,
}

/// Bytes that still pass one way, over all connections, before they are cut.
#[derive(Clone, Copy, Debug, Default)]
struct Allowance(Option<(Way, usize, Cut)>);

impl Allowance {
    /// How many of `length` bytes may pass, and how the wire is cut behind them.
    fn take(&mut self, way: Way, length: usize) -> (usize, Option<Cut>) {
        match &mut self.0 {
            Some((limited, left, cut)) if *limited == way => {
                let (passed, cut) = (length.min(*left), *cut);
                *left -= passed;
                if passed == length {
                    return (length, None);
                }
                self.0 = None;
                (passed, Some(cut))
            }
            _ => (length, None),
        }
    }
}

impl Proxy {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, cut) = watch::channel(0);
        let (stalled, stall) = watch::channel(false);
        let allowance = Arc::new(watch::Sender::new(Allowance::default()));
        let shared = allowance.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (mut cut, stall, allowance) = (cut.clone(), stall.clone(), shared.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(server).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    carry(near, far, cut, stall, &allowance).await;
                });
            }
        });
        Self { address, cuts, stalled, allowance }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Breaks all connections at once. New ones are let through.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Lets so many more bytes pass one way; the next one cuts its connection. New ones are let through.
    pub(crate) fn cut_after(&self, way: Way, bytes: usize, cut: Cut) {
        self.allowance.send_replace(Allowance(Some((way, bytes, cut))));
    }

    /// Ends when that has happened.
    pub(crate) async fn has_cut(&self) {
        let mut allowance = self.allowance.subscribe();
        super::soon(allowance.wait_for(|allowance| allowance.0.is_none())).await.unwrap();
    }

    /// From now on nothing that the server sends arrives, and nothing says so.
    pub(crate) fn stall(&self) {
        self.stalled.send_replace(true);
    }
}

async fn carry(
    mut near: TcpStream,
    mut far: TcpStream,
    mut cut: watch::Receiver<u64>,
    mut stall: watch::Receiver<bool>,
    allowance: &watch::Sender<Allowance>,
) {
    let how = {
        let (mut from_near, mut to_near) = near.split();
        let (mut from_far, mut to_far) = far.split();
        let down = async {
            tokio::select! {
                how = pass(&mut from_far, &mut to_near, Way::FromServer, allowance) => how,
                () = async { drop(stall.wait_for(|stalled| *stalled).await) } => std::future::pending().await,
            }
        };
        tokio::select! {
            how = pass(&mut from_near, &mut to_far, Way::ToServer, allowance) => how,
            how = down => how,
            _ = cut.changed() => Cut::Reset,
        }
    };
    if how == Cut::Reset {
        // Both ends see a reset: what was under way is lost.
        let _ = (near.set_zero_linger(), far.set_zero_linger());
    } else {
        let _ = (near.shutdown().await, far.shutdown().await);
    }
}

/// Ends when one of the two has gone, or at the cut.
async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    way: Way,
    allowance: &watch::Sender<Allowance>,
) -> Cut {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return Cut::Reset };
        let mut taken = (length, None);
        allowance.send_if_modified(|allowance| {
            taken = allowance.take(way, length);
            taken.1.is_some()
        });
        let (passed, cut) = taken;
        if to.write_all(&buffer[..passed]).await.is_err() {
            return Cut::Reset;
        }
        if let Some(cut) = cut {
            return cut;
        }
    }
}

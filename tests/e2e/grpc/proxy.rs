//! A wire that can be cut, or stand still: between the server and whoever connects through it.

use std::net::SocketAddr;

use tokio::{
    io::copy,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Dropping it cuts the wire for good.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    cuts: watch::Sender<u64>,
    stalled: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, cut) = watch::channel(0);
        let (stalled, stall) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (mut cut, stall) = (cut.clone(), stall.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(server).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    carry(near, far, cut, stall).await;
                });
            }
        });
        Self { address, cuts, stalled }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Breaks all connections at once. New ones are let through.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
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
) {
    {
        let (mut from_near, mut to_near) = near.split();
        let (mut from_far, mut to_far) = far.split();
        let down = async {
            tokio::select! {
                _ = copy(&mut from_far, &mut to_near) => {}
                () = async { drop(stall.wait_for(|stalled| *stalled).await) } => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = copy(&mut from_near, &mut to_far) => {}
            () = down => {}
            _ = cut.changed() => {}
        }
    }
    // Both ends see a reset: what was under way is lost.
    let _ = (near.set_zero_linger(), far.set_zero_linger());
}

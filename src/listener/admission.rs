//! Who may hold a connection: so many in all, so many per address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// The places for connections. Touched when a connection opens and when it closes, never between.
#[derive(Clone, Debug)]
pub(super) struct Door {
    places: Arc<Semaphore>,
    per_ip: Arc<PerIp>,
    open: TaskTracker,
}

#[derive(Debug)]
struct PerIp {
    limit: usize,
    connections: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection's place; dropping it frees the place.
#[derive(Debug)]
pub(super) struct Admission {
    _place: OwnedSemaphorePermit,
    _ip: IpPlace,
    _open: TaskTrackerToken,
}

#[derive(Debug)]
struct IpPlace {
    per_ip: Arc<PerIp>,
    ip: IpAddr,
}

impl Door {
    pub(super) fn new(max_connections: usize, max_connections_per_ip: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(max_connections.clamp(1, Semaphore::MAX_PERMITS))),
            per_ip: Arc::new(PerIp { limit: max_connections_per_ip.max(1), connections: Mutex::default() }),
            open: TaskTracker::new(),
        }
    }

    /// Whether every place is taken.
    pub(super) fn is_full(&self) -> bool {
        self.places.available_permits() == 0
    }

    /// A place for the next connection, as soon as there is one. `None` never happens while the door
    /// exists: nobody closes the semaphore.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Admits a connection from `ip` to `place`. `None` when that address has its share already.
    pub(super) fn admit(&self, place: OwnedSemaphorePermit, ip: IpAddr) -> Option<Admission> {
        let ip = PerIp::enter(&self.per_ip, ip)?;
        Some(Admission { _place: place, _ip: ip, _open: self.open.token() })
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// Ends when every admitted connection is closed. To be called when no more are admitted.
    pub(super) async fn all_closed(&self) {
        self.open.close();
        self.open.wait().await;
    }
}

impl PerIp {
    fn enter(per_ip: &Arc<Self>, ip: IpAddr) -> Option<IpPlace> {
        let ip = accountable(ip);
        let mut connections = per_ip.connections.lock();
        let count = connections.entry(ip).or_insert(0);
        if *count >= per_ip.limit {
            return None;
        }
        *count += 1;
        drop(connections);
        Some(IpPlace { per_ip: Arc::clone(per_ip), ip })
    }
}

impl Drop for IpPlace {
    fn drop(&mut self) {
        let mut connections = self.per_ip.connections.lock();
        if let Some(count) = connections.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.ip);
            }
        }
    }
}

/// Who answers for an address: an IPv4 address itself, the /64 of an IPv6 one (a single host owns that many).
fn accountable(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_has_its_share_and_gets_it_back() {
        let door = Door::new(10, 2);
        let ip: IpAddr = "10.1.2.3".parse().unwrap();
        let first = door.admit(door.place().await.unwrap(), ip);
        let second = door.admit(door.place().await.unwrap(), "::ffff:10.1.2.3".parse().unwrap());
        assert!(first.is_some() && second.is_some());
        assert!(door.admit(door.place().await.unwrap(), ip).is_none(), "the mapped address is the same one");
        assert!(door.admit(door.place().await.unwrap(), "10.1.2.4".parse().unwrap()).is_some());
        drop(first);
        assert!(door.admit(door.place().await.unwrap(), ip).is_some());
        drop(second);
        assert!(door.per_ip.connections.lock().is_empty(), "nothing is kept about those who left");
    }

    #[tokio::test]
    async fn a_refused_connection_gives_its_place_back() {
        let door = Door::new(2, 1);
        let ip: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::2".parse().unwrap();
        let _first = door.admit(door.place().await.unwrap(), ip).unwrap();
        assert!(door.admit(door.place().await.unwrap(), neighbour).is_none(), "one /64, one share");
        assert!(!door.is_full());
        assert_eq!(door.open(), 1);
    }
}

//! Accepting connections, as many at a time as are allowed just then.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::connection;
use crate::current::Current;
use crate::duplex::Duplex;
use crate::gateway::Shared;
use crate::headers::Peer;
use crate::http1::io::Connection;
use crate::http2;
use crate::report::Refusal;
use crate::tally::Tally;

/// How many connections there may be. That can be changed while there are some: if there are too many, those that end next
/// make no room.
pub(crate) struct Places {
    free: Arc<Semaphore>,
    bound: Mutex<Bound>,
}

struct Bound {
    max: usize,
    /// Places that there are beyond that.
    excess: usize,
}

/// Room for one connection, until it is dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(crate) fn new(max: usize) -> Arc<Places> {
        let bound = Mutex::new(Bound { max, excess: 0 });
        Arc::new(Places { free: Arc::new(Semaphore::new(max)), bound })
    }

    pub(crate) fn set(&self, max: usize) {
        let mut bound = self.bound.lock();
        if max < bound.max {
            let fewer = bound.max - max;
            bound.excess += fewer - self.free.forget_permits(fewer);
        } else {
            let more = max - bound.max;
            let kept = bound.excess.min(more);
            bound.excess -= kept;
            self.free.add_permits(more - kept);
        }
        bound.max = max;
    }

    pub(crate) async fn take(self: &Arc<Self>) -> Place {
        let permit = self.free.clone().acquire_owned().await.expect("the semaphore is never closed");
        Place { places: self.clone(), permit: Some(permit) }
    }

    /// Whether there are more than there may be.
    fn are_too_many(&self) -> bool {
        self.bound.lock().excess > 0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut bound = self.places.bound.lock();
        if bound.excess > 0 {
            bound.excess -= 1;
            self.permit.take().expect("it is there until now").forget();
        }
    }
}

/// Accepts connections for ever, each to be served by what is in force then.
pub(crate) async fn accept(current: Arc<Current>, places: Arc<Places>, listener: TcpListener) {
    let mut shared = current.get();
    loop {
        let mut place = places.take().await;
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // A connection that is gone already is nobody's loss; without descriptors it helps to wait.
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
                {
                    tracing::warn!(%error, "cannot accept connections; trying again in a moment");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        // There may be fewer now than when this one began to be waited for.
        while places.are_too_many() {
            drop(place);
            place = places.take().await;
        }
        current.renew(&mut shared);
        let number = shared.tally.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let open = Open::new(&shared.tally);
        let (current, serving) = (current.clone(), shared.clone());
        let stopped = shared.stopped.clone();
        shared.tasks.spawn(async move {
            let _admitted = (place, open);
            tokio::select! {
                biased;
                () = stopped.cancelled() => {}
                () = serve(&current, serving, stream, (client, number)) => {}
            }
        });
    }
}

async fn serve(current: &Arc<Current>, shared: Arc<Shared>, stream: TcpStream, client: (SocketAddr, u64)) {
    // Without it a small chunk would wait for the acknowledgement of the one before.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let peer = |scheme| Peer::new(client.0, client.1, scheme);
    let Some(tls) = &shared.tls else {
        return connection::serve(current, shared, Connection::Tcp(stream), peer("http")).await;
    };
    let Ok(Ok((stream, http2))) = timeout(shared.settings.timeouts.header, secured(tls, stream)).await else {
        return shared.tally.refused(Refusal::Tls);
    };
    let peer = peer("https");
    if http2 {
        http2::serve(current, shared, stream, peer).await;
    } else {
        connection::serve(current, shared, Connection::Other(stream), peer).await;
    }
}

/// The stream inside of TLS, and whether its client wants HTTP/2.
async fn secured(tls: &TlsAcceptor, stream: TcpStream) -> io::Result<(Box<dyn Duplex>, bool)> {
    let stream = tls.accept(stream).await?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Box::new(stream), http2))
}

/// Counts a connection while it is open.
struct Open(Arc<Tally>);

impl Open {
    fn new(tally: &Arc<Tally>) -> Open {
        tally.connections_open.fetch_add(1, Ordering::Relaxed);
        Open(tally.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections_open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn places_that_are_taken_away_while_somebody_has_them_go_when_he_leaves() {
        let places = Places::new(2);
        let mut taken: Vec<Place> = Vec::new();
        let fill = |taken: &mut Vec<Place>| {
            taken.extend(std::iter::from_fn(|| places.take().now_or_never()));
            taken.len()
        };
        assert_eq!(fill(&mut taken), 2);
        places.set(5);
        assert_eq!(fill(&mut taken), 5);
        places.set(1);
        assert!(places.are_too_many());
        // Those that leave make no room until there is one.
        for left in [4, 3, 2, 1] {
            taken.pop();
            assert_eq!(fill(&mut taken), left);
        }
        assert!(!places.are_too_many());
        taken.pop();
        assert_eq!(fill(&mut taken), 1);
        places.set(3);
        taken.pop();
        places.set(2);
        assert_eq!(fill(&mut taken), 2);
        // Of what is owed nothing is left when more are allowed again.
        places.set(1);
        places.set(4);
        assert_eq!((fill(&mut taken), places.are_too_many()), (4, false));
    }
}

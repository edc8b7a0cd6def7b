//! A proxy between client and broker that cuts, stops and refuses.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Hands bytes on between clients and a port of this machine, until it is told otherwise.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Connections are cut when it changes.
    cuts: watch::Sender<u64>,
    /// Bytes that the server may still say before its connection is cut.
    budget: AtomicU64,
    /// Nothing passes, and nobody is told.
    frozen: AtomicBool,
    /// New connections are refused.
    refusing: AtomicBool,
}

impl Proxy {
    /// To a port of this machine.
    ///
    /// # Panics
    /// If there is no port to listen at.
    pub async fn to(target: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            cuts: watch::channel(0).0,
            budget: AtomicU64::new(u64::MAX),
            frozen: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
        });
        let proxy = Proxy { port, shared: shared.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await;
                let Some(server) = server.ok().filter(|_| !shared.refusing.load(Ordering::SeqCst)) else {
                    continue;
                };
                // A reset and no orderly end: what is on its way is lost.
                #[expect(deprecated, reason = "nothing is left to be sent that could block")]
                for socket in [&client, &server] {
                    let _ = socket.set_linger(Some(Duration::ZERO));
                }
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                // Where one direction has ended the other one ends.
                let pair = Arc::new(watch::channel(()).0);
                for (from, to, is_server) in [(from_client, to_server, false), (from_server, to_client, true)]
                {
                    let (shared, pair) = (shared.clone(), pair.clone());
                    let (cuts, ended) = (shared.cuts.subscribe(), pair.subscribe());
                    tokio::spawn(async move {
                        pass(&shared, cuts, ended, from, to, is_server).await;
                        pair.send_replace(());
                    });
                }
            }
        });
        proxy
    }

    /// A broker's address by AMQP, through it.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Cuts every connection there is.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Cuts the connections when the server has said so many bytes more, all of them together.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.budget.store(bytes, Ordering::SeqCst);
    }

    /// Cuts nothing more by itself.
    pub fn let_all_through(&self) {
        self.shared.budget.store(u64::MAX, Ordering::SeqCst);
    }

    /// Whether bytes stay where they are.
    pub fn freeze(&self, frozen: bool) {
        self.shared.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refusing: bool) {
        self.shared.refusing.store(refusing, Ordering::SeqCst);
    }
}

async fn pass(
    shared: &Shared,
    mut cuts: watch::Receiver<u64>,
    mut ended: watch::Receiver<()>,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    is_server: bool,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        // What was cut first: the end of its other direction, seen late, is not another cut.
        let read = tokio::select! {
            biased;
            _ = cuts.changed() => return,
            _ = ended.changed() => return,
            read = from.read(&mut buffer) => read.unwrap_or(0),
        };
        while shared.frozen.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if cuts.has_changed().unwrap_or(true) || ended.has_changed().unwrap_or(true) {
                return;
            }
        }
        let mut pass = read;
        if is_server {
            let took = |budget: u64| (budget != u64::MAX).then(|| budget.saturating_sub(read as u64));
            if let Ok(before) = shared.budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, took) {
                pass = read.min(usize::try_from(before).unwrap_or(usize::MAX));
            }
        }
        if pass > 0 {
            let written = tokio::select! {
                biased;
                _ = cuts.changed() => return,
                _ = ended.changed() => return,
                written = to.write_all(&buffer[..pass]) => written,
            };
            if written.is_err() {
                return;
            }
        }
        if pass < read {
            shared.cuts.send_modify(|cuts| *cuts += 1);
            return;
        }
        if read == 0 {
            return;
        }
    }
}

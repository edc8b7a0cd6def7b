//! The same while requests never cease.

use super::*;

/// Clients that keep connections and clients that do not ask two servers, of which either may be gone at any time, and one of three
/// configurations follows the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_configurations_come_and_go() {
    const CLIENTS: usize = 8;
    const RELOADS: u64 = 150;
    let (a, b) = (listen(gateway([says("hello")])).await, listen(gateway([says("hello")])).await);
    let url = |server: &Server| format!("http://{}", server.local_addr()).parse().expect("a url");
    let configurations = [
        || Gateway::new(Settings::default()),
        || {
            let timeouts = Timeouts { total: Some(Duration::from_secs(100)), ..Timeouts::default() };
            Gateway::new(Settings { request_chunk: 4096, timeouts, ..Settings::default() })
        },
    ];
    let made = |turn: u64| {
        let gateway = configurations[turn as usize % 2]();
        match turn % 3 {
            0 => gateway.route(Route::proxy("up", [url(&a)])),
            1 => gateway.route(Route::proxy("up", [url(&b), url(&a)])),
            _ => gateway
                .route(Route::proxy("other", [url(&b)]).path("/a"))
                .route(Route::proxy("up", [url(&a)])),
        }
    };
    let server = listen(made(0)).await;
    let address = server.local_addr();
    let (done, asked): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (done, asked) = (done.clone(), asked.clone());
            tokio::spawn(async move {
                let mut client = connect(address).await;
                let mut count = 0_u64;
                // Some more when all is done.
                while done.load(Ordering::Relaxed) == 0 || count < 10 {
                    let body = "x".repeat((count as usize * 701) % 20_000);
                    let head =
                        format!("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len());
                    client.send(head + &body).await;
                    assert_eq!(status(&client.head().await), 200);
                    assert_eq!(client.bytes(5).await, b"hello");
                    count += 1;
                    asked.fetch_add(1, Ordering::Relaxed);
                    if number % 2 == 1 {
                        client = connect(address).await;
                    }
                }
            })
        })
        .collect();
    for turn in 1..=RELOADS {
        let before = asked.load(Ordering::Relaxed);
        server.reload(made(turn)).expect("it is well");
        within("requests in between", async {
            while asked.load(Ordering::Relaxed) < before + 3 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    done.store(1, Ordering::Relaxed);
    for client in clients {
        within("the last answer", client).await.expect("no request failed");
    }
    // An exchange is counted when it has ended, shortly after its client has its answer.
    let look = server.monitor();
    let drained = within("the end", server.shutdown(Duration::from_secs(10))).await;
    assert_eq!((drained.broken_off, drained.leases_left), (0, 0));
    let (asked, snapshot) = (asked.load(Ordering::Relaxed), look());
    assert!(asked >= 3 * RELOADS, "{asked}");
    assert_eq!(snapshot.answers.iter().map(|one| one.by_class["2xx"]).sum::<u64>(), asked);
    assert_eq!(snapshot.reloads["applied"], RELOADS);
    assert_eq!(snapshot.refused.values().sum::<u64>(), 0, "{:?}", snapshot.refused);
}

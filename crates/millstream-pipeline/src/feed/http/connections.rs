//! The connections of the source: so many at a time, none of which waits for its client for long.

use super::{Shared, take};
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

/// How long a connection may take to send the head of a request, its silence before it included.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(60);
/// How long the system is left alone that has no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(200);

/// Accepts connections until it is dropped: those there are then finish the request they are at.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, most: usize) {
    let room = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
    // Dropped with this future.
    let (_open, closing) = watch::channel(());
    loop {
        // More wait in the system's queue.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = connection(stream, shared.clone(), closing.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            // The client's; or there are too many open files, and some may be closed soon.
            Err(_) => sleep(NO_ROOM).await,
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>, mut closing: watch::Receiver<()>) {
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let shared = shared.clone();
        async move {
            let (head, body) = request.into_parts();
            Ok::<_, Infallible>(take(shared, head.method, head.uri, head.headers, Body::new(body)).await)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), answer);
    let mut served = pin!(served);
    tokio::select! {
        // An error of a connection is that connection's.
        _ = &mut served => return,
        _ = closing.changed() => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = served.await;
}

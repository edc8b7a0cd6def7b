//! Our proxy and the minimal one on hyper, as processes of this program.

use std::net::{Ipv4Addr, SocketAddr};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use millstream_gateway::{Gateway, Route, Settings};
use tokio::net::{TcpListener, TcpStream};

/// Serves until the process is killed.
pub(crate) fn serve(name: &str, port: u16, upstream: u16) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("a runtime: {error}"))?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, upstream));
    let mut settings = Settings::default();
    match name {
        "hyper" => return runtime.block_on(hyper(listen, upstream)),
        "ours" => {}
        chunks => {
            let (kib, pooled) =
                chunks.split_once(',').ok_or_else(|| format!("no proxy is called `{chunks}`"))?;
            let kib: usize = kib.parse().map_err(|error| format!("{kib}: {error}"))?;
            (settings.request_chunk, settings.response_chunk) = (kib << 10, kib << 10);
            settings.pool.enabled = pooled.parse().map_err(|error| format!("{pooled}: {error}"))?;
        }
    }
    runtime.block_on(ours(settings, listen, upstream))
}

async fn ours(settings: Settings, listen: SocketAddr, upstream: SocketAddr) -> Result<(), String> {
    let url = format!("http://{upstream}").parse().map_err(|error| format!("{error}"))?;
    let gateway = Gateway::new(settings).route(Route::proxy("up", [url]));
    let _server = gateway.listen(listen).await.map_err(|error| format!("{listen}: {error}"))?;
    std::future::pending().await
}

/// What a page of code on hyper does: a connection to the upstream for each of a client's, bodies handed through.
async fn hyper(listen: SocketAddr, upstream: SocketAddr) -> Result<(), String> {
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("{listen}: {error}"))?;
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let Ok(up) = TcpStream::connect(upstream).await else { return };
            let _ = up.set_nodelay(true);
            let Ok((sender, connection)) = hyper::client::conn::http1::handshake(TokioIo::new(up)).await
            else {
                return;
            };
            tokio::spawn(connection);
            let sender = std::sync::Arc::new(tokio::sync::Mutex::new(sender));
            let service = service_fn(move |request: Request<Incoming>| {
                let sender = sender.clone();
                async move {
                    let mut sender = sender.lock().await;
                    sender.ready().await?;
                    let answer = sender.send_request(request);
                    let response: Response<Incoming> = answer.await?;
                    Ok::<_, hyper::Error>(response)
                }
            });
            let server = hyper::server::conn::http1::Builder::new();
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

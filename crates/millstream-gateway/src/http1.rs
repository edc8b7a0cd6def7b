//! HTTP/1: heads and framing as plain data, and the two sides of a connection.

pub(crate) mod decoder;
pub(crate) mod head;
pub(crate) mod io;
pub(crate) mod watch;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, duplex};
    use tokio::time::Instant;

    use super::io::Connection;
    use super::watch::Waits;
    use crate::chunk::Chunk;
    use crate::pool::{BufferPool, PoolSettings};

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_waited_for_once_and_gets_nothing_twice() {
        let (near, mut far) = duplex(10);
        let pool = BufferPool::new(PoolSettings::default());
        let (read, mut write) = Connection::Other(Box::new(near)).split(&pool);
        let (idle, since) = (Duration::from_secs(2), Instant::now());
        write.pending.extend_from_slice(b"head");
        let body = Chunk::Shared(Bytes::from_static(b"a body"));
        let sent = write.send(b"", body, b" and more", None, &Waits::of(idle)).await;
        assert_eq!(sent.map_err(|error| error.kind()), Err(std::io::ErrorKind::TimedOut));
        write.flush(idle).await.expect("nothing to write");
        assert!(since.elapsed() < 2 * idle, "{:?}", since.elapsed());
        drop((read, write));
        let mut all = String::new();
        far.read_to_string(&mut all).await.expect("an end");
        assert_eq!(all, "heada body");
    }
}

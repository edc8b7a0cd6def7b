//! What a stream allocates: nothing for each of its chunks.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millstream_gateway::{Gateway, GatewaySnapshot, Route, Settings, TIERS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Allocations of the threads that are counted.
static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, counting.
struct Counting;

fn note() {
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as above, and `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A gateway to this server on a thread of its own, whose allocations are counted.
fn gateway(upstream: &str) -> (std::net::SocketAddr, impl Fn() -> GatewaySnapshot + use<>) {
    let url = upstream.parse().expect("a url");
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let gateway = Gateway::new(Settings::default()).route(Route::proxy("up", [url]));
            let server = gateway.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
            tell.send((server.local_addr(), server.monitor())).expect("heard");
            COUNTED.set(true);
            std::future::pending::<()>().await;
        });
    });
    told.recv().expect("a gateway")
}

const LIMIT: Duration = Duration::from_secs(60);
const BLOCK: usize = 64 << 10;
/// How many blocks are moved before anything is counted, and how many then.
const WARM: usize = 512;
const COUNTED_BLOCKS: usize = 1_024;

#[tokio::test]
async fn a_chunk_on_its_way_allocates_nothing_and_finds_its_buffer() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, snapshot) = gateway(&format!("http://{}", upstream.local_addr().expect("an address")));
    let mut client = TcpStream::connect(address).await.expect("connected");
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("written");
    let (mut up, _) =
        tokio::time::timeout(LIMIT, upstream.accept()).await.expect("in time").expect("accepted");
    up.read_exact(&mut [0; 20]).await.expect("a request");
    up.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.expect("written");
    let block = [format!("{BLOCK:x}\r\n").as_bytes(), &vec![b'x'; BLOCK], b"\r\n"].concat();
    let mut read = vec![0; 2 * BLOCK];
    let mut moved = async |blocks: usize, from: u64| {
        let bytes = || snapshot().streams[1].bytes;
        let goal = from + (blocks * BLOCK) as u64;
        let writing = async {
            for _ in 0..blocks {
                up.write_all(&block).await.expect("written");
            }
        };
        let reading = async {
            while bytes() < goal {
                let _ = tokio::time::timeout(Duration::from_millis(20), client.read(&mut read)).await;
            }
        };
        tokio::time::timeout(LIMIT, async { tokio::join!(writing, reading) }).await.expect("in time");
        goal
    };
    let warm = moved(WARM, 0).await;
    let (before, allocated) = (snapshot(), COUNT.load(Ordering::Relaxed));
    moved(COUNTED_BLOCKS, warm).await;
    let (after, allocated) = (snapshot(), COUNT.load(Ordering::Relaxed) - allocated);
    let chunks = after.streams[1].chunks - before.streams[1].chunks;
    assert!(chunks >= (COUNTED_BLOCKS * BLOCK / (1 << 20)) as u64, "{chunks} chunks");
    // A tier that is first needed now, because somebody was slow, has its buffer and the shelf's row to make.
    let tiers = TIERS.len() as u64;
    assert!(allocated <= chunks / 100 + 3 * tiers, "{allocated} allocations for {chunks} chunks");
    let sum = |of: &GatewaySnapshot| {
        of.pool.tiers.iter().fold((0, 0), |sum, tier| (sum.0 + tier.hits, sum.1 + tier.misses))
    };
    let (hits, misses) = (sum(&after).0 - sum(&before).0, sum(&after).1 - sum(&before).1);
    assert!(misses <= (hits + misses) / 100 + tiers, "{hits} hits, {misses} misses");
}

//! Behaviours of streams around one another.

use super::attempts::Numbers;
use super::*;

#[tokio::test(start_paused = true)]
async fn a_limit_inside_of_retries_takes_none_of_their_items() {
    let opened = AtomicU64::new(0);
    let mediator = Mediator::builder()
        .stream_behaviour(StreamRetries::new(retry(3), Resume::Position))
        .stream_behaviour(StreamTimeout::new().total(4 * SECOND))
        .stream(move |Numbers { from }| {
            let first = opened.fetch_add(1, Ordering::SeqCst) == 0;
            let pipe: Items =
                if first { breaks_at(from, 1) } else { Pipe::from_iter(from..20).map(Ok).boxed() };
            std::future::ready(Ok::<_, Error>(pipe))
        })
        .build()
        .unwrap();
    let mut stream = mediator.stream(Numbers { from: 0 }).await.unwrap();
    let mut items = Vec::new();
    while let Some(item) = stream.next().await {
        items.push(item.unwrap());
        sleep(SECOND).await; // so that each try is too late after some items, while the next is there
    }
    assert_eq!(items, (0..20).collect::<Vec<_>>());
}

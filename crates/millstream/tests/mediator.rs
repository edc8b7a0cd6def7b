//! The mediator among brokers and flows.

use millstream::mediator::{Mediator, Memory, Notification, memory_limit, process_memory, to_broker};
use millstream::prelude::*;
use millstream::queue;
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Placed {
    id: u32,
}
impl Notification for Placed {}

#[tokio::test]
async fn a_notification_reaches_the_exchange_and_what_the_broker_does_not_store_is_a_failure() {
    let broker = millstream::open("memory:").await.unwrap();
    broker.declare_queue(Queue::transient("orders")).await.unwrap();
    let mediator = Mediator::builder()
        .notification_handler(to_broker::<Placed, _>(broker.clone(), Address::queue("orders"), Json))
        .notification_handler(to_broker::<Placed, _>(broker.clone(), Address::queue("nowhere"), Json))
        .build()
        .unwrap();
    let published = mediator.publish(Placed { id: 7 }).await;
    let failures: Vec<_> = published.failures().map(|(_, error)| millstream::flow::chain(error)).collect();
    assert_eq!(failures.len(), 1);
    assert!(failures[0].contains("queue `nowhere`"), "{}", failures[0]);
    let consumer = broker.consume("orders", ConsumeOptions::default().stop_when_empty()).await.unwrap();
    let (placed, _) = queue::decode::<Placed, _>(consumer, Json).collect().await.unwrap();
    assert_eq!(placed, [Placed { id: 7 }]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_process_uses_some_memory_and_no_more_than_it_may() {
    let used = process_memory().expect("Linux tells");
    assert!(used > 100 << 10, "{used} bytes");
    assert!(memory_limit().is_none_or(|limit| used <= limit));
    let memory = Memory::new(used / 2).probe(std::time::Duration::from_secs(1), process_memory);
    assert!(memory.is_short());
}

//! What a lost connection loses: nothing that was told to be stored.

use std::sync::Arc;

use millstream_events::{BusError, EventBus, EventContext, Inbox, Published, Subscribe};
use millstream_rabbitmq::RabbitMq;
use millstream_testing::{Proxy, unique};

use crate::bus::{LONG, Placed, Seen, settled};
use crate::support::node;

async fn through(proxy: &Proxy, service: &str, exchange: &str, options: &str) -> EventBus {
    let broker = RabbitMq::connect(&format!("{}?reconnect_min=1&reconnect_max=20{options}", proxy.url()))
        .await
        .expect("connected");
    EventBus::new(Arc::new(broker), service).exchange(exchange)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_outlive_their_connection() {
    let (node, exchange) = (node().await, unique("events"));
    let (proxy, straight) = (Proxy::to(node.port).await, Proxy::to(node.port).await);
    let (bank, shop) =
        (through(&proxy, "bank", &exchange, "").await, through(&straight, "shop", &exchange, "").await);
    let (kept, listened) = (Seen::new(), Seen::new());
    let mut running = Vec::new();
    for (seen, options) in [(&kept, Subscribe::new()), (&listened, Subscribe::new().temporary())] {
        let add = seen.clone();
        let handler = async move |event: &Placed, _: &EventContext| add.note(event.n);
        // What was handled and not acknowledged in time comes again.
        let options = options.inbox(Inbox::new(1000, LONG));
        running.push(bank.subscribe(options, handler).await.unwrap().start());
    }
    for n in 0..60 {
        if n % 20 == 10 {
            proxy.refuse(true);
            proxy.cut();
        }
        if n % 20 == 15 {
            proxy.refuse(false);
        }
        let placed = shop.event(&Placed { order: 1, n }).unwrap();
        assert_eq!(placed.publish().await.unwrap(), Published::Stored);
    }
    for seen in [kept, listened] {
        let mut numbers = seen.wait_for(60).await;
        numbers.sort_unstable();
        assert_eq!(numbers, (0..60).collect::<Vec<_>>());
    }
    for subscription in running {
        subscription.stop(LONG).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_confirm_is_lost_is_unconfirmed_and_published_again_it_is_skipped() {
    let (node, exchange) = (node().await, unique("events"));
    let (proxy, straight) = (Proxy::to(node.port).await, Proxy::to(node.port).await);
    let (shop, bank) = (
        through(&proxy, "shop", &exchange, "&confirm_timeout=1000").await,
        through(&straight, "bank", &exchange, "").await,
    );
    let seen = Seen::new();
    let add = seen.clone();
    let handler = async move |event: &Placed, _: &EventContext| add.note(event.n);
    let options = Subscribe::new().inbox(Inbox::new(10, LONG));
    let subscription = bank.subscribe(options, handler).await.unwrap().start();
    let publish = async |n: u32| {
        let placed = shop.event(&Placed { order: 1, n }).unwrap().id(format!("event-{n}"));
        placed.publish().await
    };
    assert_eq!(publish(1).await.unwrap(), Published::Stored);
    proxy.cut_after(0);
    let error = publish(2).await.unwrap_err();
    assert!(matches!(error, BusError::Unconfirmed(_)), "{error:?}");
    proxy.let_all_through();
    let mut unconfirmed = 1;
    while publish(2).await.is_err() {
        unconfirmed += 1; // the connection is not back yet
    }
    // The client sends again what was not confirmed, so that it may come a third time.
    settled(&subscription, 3).await;
    assert_eq!(seen.all(), [1, 2]);
    assert!(subscription.statistics().skipped >= 1);
    let statistics = shop.statistics();
    assert_eq!((statistics.published, statistics.unconfirmed, statistics.refused), (2, unconfirmed, 0));
    subscription.stop(LONG).await.unwrap();
}

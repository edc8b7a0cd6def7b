//! Orders as events: an aggregate decides, its events are kept in a store, an outbox tells other services by a bus, and a saga
//! carries an order through payment and shipping, and undoes what was done if nobody pays.
//!
//!     cargo run -p millstream --features events --example order_events
//!     cargo run -p millstream --features events --example order_events embedded:state/orders
//!
//! On RabbitMQ events are kept in its streams, and the bus is on its exchanges:
//!
//!     cargo run -p millstream --features events,rabbitmq --example order_events rabbitmq-stream://localhost amqp://localhost

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millstream::events::{
    Aggregate, Aggregates, EventBus, EventContext, EventData, EventStore, Filter, Outbox, Saga, SagaStatus,
    Sagas, Step, StepError, Subscribe, Wait,
};
use millstream::prelude::*;
use millstream::queue::Failure;
use serde::{Deserialize, Serialize};

/// What can happen to an order.
#[derive(Serialize, Deserialize)]
enum OrderEvent {
    Placed { lamps: u32 },
    Shipped,
}

impl EventData for OrderEvent {
    const TYPES: &'static [&'static str] = &["order.placed", "order.shipped"];

    fn event_type(&self) -> &'static str {
        match self {
            OrderEvent::Placed { .. } => "order.placed",
            OrderEvent::Shipped => "order.shipped",
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Order {
    lamps: u32,
    shipped: bool,
}

impl Aggregate for Order {
    const NAME: &'static str = "order";
    type Event = OrderEvent;

    fn apply(&mut self, event: &OrderEvent) {
        match event {
            OrderEvent::Placed { lamps } => self.lamps += lamps,
            OrderEvent::Shipped => self.shipped = true,
        }
    }
}

/// What the billing service tells.
#[derive(Serialize, Deserialize)]
struct Paid {
    euros: u32,
}

impl EventData for Paid {
    const TYPES: &'static [&'static str] = &["billing.paid"];
}

/// What the saga of an order knows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Delivery {
    order: String,
    shelf: Option<String>,
    paid: u32,
}

fn delivery(orders: Aggregates<Order>) -> Saga<Delivery> {
    Saga::new("delivery")
        .timeout(Duration::from_secs(3600))
        .step(
            Step::new("reserve", |mut delivery: Delivery, _| async move {
                delivery.shelf = Some("7b".to_owned());
                Ok(delivery)
            })
            .undo(|mut delivery: Delivery, step| async move {
                eprintln!("{}: shelf {} is free again", step.id, delivery.shelf.take().unwrap_or_default());
                Ok(delivery)
            }),
        )
        .wait(
            Wait::new("payment", |mut delivery: Delivery, paid: Paid| {
                if paid.euros == 0 {
                    return Err(StepError::permanent("nothing was paid"));
                }
                delivery.paid = paid.euros;
                Ok(delivery)
            })
            .timeout(Duration::from_secs(2)),
        )
        .step(Step::new("ship", move |delivery: Delivery, step| {
            let orders = orders.clone();
            async move {
                // A step may be done again after a crash: under this name it counts once.
                let ship = orders.on(&delivery.order).command(step.key());
                ship.execute(|_: &Order| Ok::<_, BoxError>(vec![OrderEvent::Shipped])).await?;
                Ok(delivery)
            }
        }))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut urls = std::env::args().skip(1);
    let streams = millstream::open(&urls.next().unwrap_or_else(|| "memory:".to_owned())).await?;
    let queues = match urls.next() {
        Some(url) => millstream::open(&url).await?,
        None => streams.clone(),
    };
    let store = EventStore::open(streams.clone(), "orders").await?;
    let orders = Aggregates::<Order>::new(store.clone()).snapshot_every(100);
    let sagas = Sagas::builder(store.clone()).saga(delivery(orders.clone())).start().await?;

    // Billing hears of orders, and tells who has paid. It has a process of its own, elsewhere.
    let billing = EventBus::new(queues.clone(), "billing");
    let told = billing.clone();
    let bills = billing
        .subscribe(
            Subscribe::new().name("orders"),
            async move |event: &OrderEvent, context: &EventContext| {
                if let OrderEvent::Placed { lamps } = event
                    && *lamps < 100
                {
                    eprintln!("billing: {lamps} lamps");
                    told.event(&Paid { euros: lamps * 40 })?.in_context(context).publish().await?;
                }
                Ok::<_, Failure>(())
            },
        )
        .await?
        .start();

    // The shop hears of payments, and tells its sagas. What is stored is told by its outbox.
    let shop = EventBus::new(queues.clone(), "shop");
    let listening = sagas.clone();
    let payments = shop
        .subscribe(Subscribe::new(), async move |_: &Paid, context: &EventContext| {
            listening.tell(context.event()).await?;
            Ok::<_, Failure>(())
        })
        .await?
        .start();
    let outbox =
        Outbox::new(store.clone(), shop, "shop").filter(Filter::all().streams("order-")).start().await?;

    // Ids that no earlier run of this example has used.
    #[expect(clippy::disallowed_methods, reason = "a number that grows from run to run")]
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for (number, lamps) in [(1, 3), (2, 500)] {
        let id = format!("{run}.{number}");
        let begun = Delivery { order: id.clone(), ..Delivery::default() };
        sagas.begin("delivery", &id, &begun).await?;
        let place = orders.on(&id).correlation_id(&id);
        place.execute(|_: &Order| Ok::<_, BoxError>(vec![OrderEvent::Placed { lamps }])).await?;
    }

    let paid = sagas.ended("delivery", &format!("{run}.1")).await?;
    assert_eq!(paid.status, SagaStatus::Completed);
    eprintln!("{}: {:?}", paid.id, orders.load(&paid.id).await?.state);
    // Nobody lends 20,000 euros: what was reserved is free again.
    let unpaid = sagas.ended("delivery", &format!("{run}.2")).await?;
    assert_eq!((unpaid.status, unpaid.undone.len()), (SagaStatus::TimedOut, 1));
    eprintln!("{}: {}", unpaid.id, unpaid.reason.unwrap_or_default());

    let deadline = Duration::from_secs(5);
    sagas.shutdown(deadline).await;
    outbox.shutdown(deadline).await?;
    bills.stop(deadline).await?;
    payments.stop(deadline).await?;
    store.saved().await;
    queues.close().await?;
    streams.close().await?;
    Ok(())
}

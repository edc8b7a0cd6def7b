//! Exchanges that lead to each other, and what queues and consumers may ask for besides.

use std::time::Duration;

use super::{Bench, claims, text, texts};
use crate::consume::{ConsumeOptions, Nack, StopWhen};
use crate::declaration::{Standing, Topology};
use crate::error::BrokerErrorKind;
use crate::message::Message;
use crate::publish::{Address, PublishOutcome, Refusal};
use crate::stream::StreamFrom;
use crate::topology::{Binding, Exchange, ExchangeKind, Queue, QueueKind};

claims![
    an_exchange_leads_to_another,
    exchanges_that_lead_in_a_circle_give_one_copy,
    what_is_led_nowhere_goes_to_the_alternate_exchange,
    an_internal_exchange_is_reached_by_others_only,
    a_deleted_exchange_takes_its_bindings_along,
    a_difference_of_an_exchange_is_explained,
    how_a_topology_stands_is_told_and_changes_nothing,
    bindings_between_exchanges_survive_a_restart needs durable,
    a_paused_consumer_is_silent_until_it_goes_on,
    one_consumer_at_a_time_receives_and_the_next_takes_over,
    a_turn_ends_when_nothing_is_in_hand_and_order_outlives_it,
    a_paused_consumer_keeps_its_turn,
    a_consumer_with_a_higher_priority_goes_first needs consumer_priority,
    a_queue_that_nobody_uses_goes_by_itself needs queue_expiry,
    a_queue_can_be_a_stream needs stream_queues,
];

async fn exchange(bench: &Bench, make: impl FnOnce(Exchange) -> Exchange) -> String {
    let exchange = make(Exchange::durable(bench.name("exchange"), ExchangeKind::Topic));
    let name = exchange.name.clone();
    bench.broker().declare_exchange(exchange).await.expect("the exchange is declared");
    name
}

async fn bind(bench: &Bench, binding: Binding) {
    bench.broker().bind(binding).await.expect("the binding is made");
}

async fn publish(bench: &Bench, exchange: &str, key: &str) -> PublishOutcome {
    let to = Address::new(exchange, key);
    bench.broker().publish(&to, Message::new(key.to_owned())).await.expect("the broker takes it")
}

async fn an_exchange_leads_to_another(bench: &mut Bench) {
    let (outer, inner) = (exchange(bench, |e| e).await, exchange(bench, |e| e).await);
    let queue = bench.queue(Queue::durable).await;
    bind(bench, Binding::new(&outer, "orders.#", &inner).to_exchange()).await;
    bind(bench, Binding::new(&inner, "*.north", &queue)).await;
    assert!(publish(bench, &outer, "orders.north").await.is_confirmed());
    for key in ["orders.south", "other.north"] {
        assert!(matches!(publish(bench, &outer, key).await, PublishOutcome::Unroutable(_)), "{key}");
    }
    assert_eq!(bench.drain(&queue).await, ["orders.north"]);
    bench.broker().unbind(Binding::new(&outer, "orders.#", &inner).to_exchange()).await.expect("unbound");
    assert!(matches!(publish(bench, &outer, "orders.north").await, PublishOutcome::Unroutable(_)));
    let missing = Binding::new(&outer, "#", bench.name("missing")).to_exchange();
    assert_eq!(bench.broker().bind(missing).await.expect_err("nowhere").kind(), BrokerErrorKind::NotFound);
}

async fn exchanges_that_lead_in_a_circle_give_one_copy(bench: &mut Bench) {
    let (one, two) = (exchange(bench, |e| e).await, exchange(bench, |e| e).await);
    let queue = bench.queue(Queue::durable).await;
    bind(bench, Binding::new(&one, "#", &two).to_exchange()).await;
    bind(bench, Binding::new(&two, "#", &one).to_exchange()).await;
    bind(bench, Binding::new(&one, "#", &queue)).await;
    bind(bench, Binding::new(&two, "#", &queue)).await;
    assert!(publish(bench, &one, "x").await.is_confirmed());
    assert_eq!(bench.drain(&queue).await, ["x"]);
}

async fn what_is_led_nowhere_goes_to_the_alternate_exchange(bench: &mut Bench) {
    let rest = exchange(bench, |e| e).await;
    let main = exchange(bench, |e| e.alternate(&rest)).await;
    let (led, other) = (bench.queue(Queue::durable).await, bench.queue(Queue::durable).await);
    bind(bench, Binding::new(&main, "known", &led)).await;
    bind(bench, Binding::new(&rest, "#", &other)).await;
    assert!(publish(bench, &main, "known").await.is_confirmed());
    assert!(publish(bench, &main, "unknown").await.is_confirmed());
    assert_eq!(bench.drain(&led).await, ["known"]);
    assert_eq!(bench.drain(&other).await, ["unknown"]);
}

async fn an_internal_exchange_is_reached_by_others_only(bench: &mut Bench) {
    let inner = exchange(bench, Exchange::internal).await;
    let outer = exchange(bench, |e| e).await;
    let queue = bench.queue(Queue::durable).await;
    bind(bench, Binding::new(&outer, "#", &inner).to_exchange()).await;
    bind(bench, Binding::new(&inner, "#", &queue)).await;
    let refused = publish(bench, &inner, "direct").await;
    let PublishOutcome::Refused(Refusal::Broker(error)) = &refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("internal"), "{error}");
    assert!(publish(bench, &outer, "led").await.is_confirmed());
    assert_eq!(bench.drain(&queue).await, ["led"]);
}

async fn a_deleted_exchange_takes_its_bindings_along(bench: &mut Bench) {
    let (outer, inner) = (exchange(bench, |e| e).await, exchange(bench, |e| e).await);
    let queue = bench.queue(Queue::durable).await;
    bind(bench, Binding::new(&outer, "#", &inner).to_exchange()).await;
    bind(bench, Binding::new(&inner, "#", &queue)).await;
    bench.broker().delete_exchange(&inner).await.expect("deleted");
    let again = Exchange::durable(&inner, ExchangeKind::Topic);
    bench.broker().declare_exchange(again).await.expect("declared anew");
    bind(bench, Binding::new(&inner, "#", &queue)).await;
    assert!(matches!(publish(bench, &outer, "x").await, PublishOutcome::Unroutable(_)));
}

async fn a_difference_of_an_exchange_is_explained(bench: &mut Bench) {
    let name = exchange(bench, |e| e.alternate("other")).await;
    let asked = Exchange::durable(&name, ExchangeKind::Topic).alternate("another");
    let error = bench.broker().declare_exchange(asked).await.expect_err("it differs");
    let text = error.to_string();
    assert_eq!(error.kind(), BrokerErrorKind::Mismatch);
    assert!(text.contains("alternate: has") && text.contains("other") && text.contains("another"), "{text}");
}

async fn how_a_topology_stands_is_told_and_changes_nothing(bench: &mut Bench) {
    let (exchange, queue) = (bench.name("exchange"), bench.name("queue"));
    let topology = Topology::default()
        .exchange(Exchange::durable(&exchange, ExchangeKind::Topic).alternate("amq.fanout"))
        .queue(Queue::durable(&queue).max_items(5))
        .binding(Binding::new(&exchange, "a.*", &queue));
    let broker = &**bench.broker();
    for _ in 0..2 {
        let standings = topology.standings(broker).await.expect("asked");
        let missing =
            |(_, standing): &(_, Standing)| matches!(standing, Standing::Missing | Standing::Unknown(_));
        assert!(standings.iter().all(missing), "{standings:?}");
    }
    assert_eq!(broker.queue(&queue).await.expect("looked up"), None);
    topology.declare(broker).await.expect("declared");
    topology.declare(broker).await.expect("again");
    let standings = topology.standings(broker).await.expect("asked");
    let same = |(_, standing): &(_, Standing)| matches!(standing, Standing::Same | Standing::Unknown(_));
    assert!(standings.iter().all(same), "{standings:?}");
    let other = Topology::default().queue(Queue::durable(&queue).max_items(6));
    let standings = other.standings(broker).await.expect("asked");
    let [(_, Standing::Different(text))] = &standings[..] else { panic!("{standings:?}") };
    assert!(text.contains("max_items: has 5, asked for 6"), "{text}");
    broker.declare_queue(Queue::durable(&queue).max_items(5)).await.expect("it is as it was");
}

async fn bindings_between_exchanges_survive_a_restart(bench: &mut Bench) {
    let rest = exchange(bench, Exchange::internal).await;
    let main = exchange(bench, |e| e.alternate(&rest)).await;
    let inner = exchange(bench, |e| e).await;
    let (led, other) = (bench.queue(Queue::durable).await, bench.queue(Queue::durable).await);
    bind(bench, Binding::new(&main, "a.#", &inner).to_exchange()).await;
    bind(bench, Binding::new(&inner, "#", &led)).await;
    bind(bench, Binding::new(&rest, "#", &other)).await;
    bench.restart().await;
    assert!(publish(bench, &main, "a.x").await.is_confirmed());
    assert!(publish(bench, &main, "b.x").await.is_confirmed());
    assert_eq!(bench.drain(&led).await, ["a.x"]);
    assert_eq!(bench.drain(&other).await, ["b.x"]);
}

async fn a_paused_consumer_is_silent_until_it_goes_on(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    bench.publish(&queue, &["a", "b", "c"]).await;
    let mut consumer = bench.consume(&queue, ConsumeOptions::default().prefetch(1)).await;
    let first = bench.take(&mut consumer, 1).await.remove(0);
    let acker = consumer.acker();
    acker.pause();
    assert!(first.ack(), "what was handed out can be settled");
    assert!(bench.is_idle(&mut consumer).await, "there is room, and it is paused");
    // Others go on, with all that nobody has.
    bench.publish(&queue, &["d"]).await;
    let mut other = bench.consumer(&queue).await;
    assert_eq!(bench.take(&mut other, 1).await.len(), 1);
    drop(other);
    acker.resume();
    let mut rest = Vec::new();
    for _ in 0..3 {
        let delivery = bench.take(&mut consumer, 1).await.remove(0);
        assert!(delivery.ack());
        rest.push(text(&delivery));
    }
    rest.sort();
    assert_eq!(rest, ["b", "c", "d"]);
    acker.pause();
    acker.stop(StopWhen::Now);
    assert!(super::within("it ends though it is paused", consumer.next()).await.is_none());
}

async fn one_consumer_at_a_time_receives_and_the_next_takes_over(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).single_active_consumer()).await;
    let mut first = bench.consume(&queue, ConsumeOptions::default().prefetch(1)).await;
    let mut second = bench.consumer(&queue).await;
    bench.publish(&queue, &["a", "b", "c"]).await;
    let a = bench.take(&mut first, 1).await.remove(0);
    assert!(bench.is_idle(&mut second).await, "the first has no room, and it is its turn all the same");
    assert!(a.ack());
    let b = bench.take(&mut first, 1).await.remove(0);
    assert!(b.ack());
    drop((a, b, first));
    assert_eq!(texts(&bench.take(&mut second, 1).await), ["c"]);
}

async fn a_turn_ends_when_nothing_is_in_hand_and_order_outlives_it(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).single_active_consumer()).await;
    let mut first = bench.consume(&queue, ConsumeOptions::default().prefetch(3)).await;
    let mut second = bench.consumer(&queue).await;
    bench.publish(&queue, &["a", "b", "c", "d", "e", "f"]).await;
    let mut held = bench.take(&mut first, 3).await;
    // It takes nothing more, and what it took is in somebody's hands.
    first.acker().stop(StopWhen::Now);
    bench.publish(&queue, &["g"]).await;
    assert!(bench.is_idle(&mut second).await, "the first has not finished");
    let (last, b) = (held.pop().expect("c"), held.pop().expect("b"));
    assert!(held[0].ack() && last.nack(&Nack::RequeueAfter(Duration::from_millis(100))));
    assert!(bench.is_idle(&mut second).await, "the first has not finished");
    assert!(b.nack(&Nack::Requeue));
    let mut got = texts(&bench.take(&mut second, 6).await);
    // Whether the others have been taken when its time comes is not for us to say.
    got.retain(|body| body != "c");
    assert_eq!(got, ["b", "d", "e", "f", "g"]);
    assert!(bench.is_idle(&mut second).await, "each came once");
    // The handles of the first are still there: they keep nothing back.
    drop((first, held, last, b));
}

async fn a_paused_consumer_keeps_its_turn(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).single_active_consumer()).await;
    let mut first = bench.consumer(&queue).await;
    let mut second = bench.consumer(&queue).await;
    let acker = first.acker();
    acker.pause();
    bench.publish(&queue, &["a", "b"]).await;
    assert!(bench.is_idle(&mut first).await, "it is paused");
    assert!(bench.is_idle(&mut second).await, "it is not its turn");
    acker.resume();
    assert_eq!(texts(&bench.take(&mut first, 2).await), ["a", "b"]);
}

async fn a_consumer_with_a_higher_priority_goes_first(bench: &mut Bench) {
    let queue = bench.queue(Queue::durable).await;
    let mut low = bench.consume(&queue, ConsumeOptions::default().priority(-1)).await;
    let mut high = bench.consume(&queue, ConsumeOptions::default().priority(5).prefetch(2)).await;
    bench.publish(&queue, &["a", "b", "c"]).await;
    assert_eq!(texts(&bench.take(&mut high, 2).await), ["a", "b"]);
    assert_eq!(texts(&bench.take(&mut low, 1).await), ["c"], "what the higher has no room for");
}

async fn a_queue_that_nobody_uses_goes_by_itself(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::transient(name).expires(Duration::from_secs(2))).await;
    // In time, though the machine does much else.
    let consumer = bench.consumer(&queue).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(bench.broker().queue(&queue).await.expect("looked up").is_some(), "somebody uses it");
    drop(consumer);
    // To look at it is to use it: one look, late enough.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.broker().queue(&queue).await.expect("looked up"), None);
}

async fn a_queue_can_be_a_stream(bench: &mut Bench) {
    let queue = bench.queue(|name| Queue::durable(name).kind(QueueKind::Stream)).await;
    bench.publish(&queue, &["a", "b", "c"]).await;
    let from = |from: StreamFrom| ConsumeOptions::default().from(from);
    for _ in 0..2 {
        let mut all = bench.consume(&queue, from(StreamFrom::First)).await;
        let taken = bench.take(&mut all, 3).await;
        assert!(taken.iter().all(|delivery| delivery.ack()));
        assert_eq!(texts(&taken), ["a", "b", "c"], "to take is not to take off");
    }
    let nowhere = bench.broker().consume(&queue, ConsumeOptions::default()).await.expect_err("from where?");
    assert_eq!(nowhere.kind(), BrokerErrorKind::Invalid);
    let plain = bench.queue(Queue::durable).await;
    let no_stream = bench.broker().consume(&plain, from(StreamFrom::First)).await.expect_err("no stream");
    assert_eq!(no_stream.kind(), BrokerErrorKind::Invalid);
    let mut later = bench.consume(&queue, from(StreamFrom::Offset(1))).await;
    assert_eq!(texts(&bench.take(&mut later, 2).await), ["b", "c"]);
    let mut new = bench.consume(&queue, from(StreamFrom::Next)).await;
    bench.publish(&queue, &["d"]).await;
    assert_eq!(texts(&bench.take(&mut new, 1).await), ["d"]);
}

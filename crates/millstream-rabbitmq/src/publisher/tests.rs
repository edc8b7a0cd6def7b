//! What becomes of what was handed over, without a connection.

use super::*;
use futures_util::FutureExt;
use millstream_message::{Address, Message};

fn outbox(known: &Arc<Known>) -> Outbox {
    let options = Options::parse("amqp://localhost").expect("a URL");
    Outbox::new(Arc::new(Window::new(&options)), known.clone())
}

/// Hands one message over, as if it was sent.
fn sent(outbox: &mut Outbox, to: Address, deadline: Option<Duration>) -> Told {
    let publish = Publish { to, message: Message::new("x") };
    outbox.push(Entry::new(vec![publish], Vec::new(), (1, 1), deadline), None)
}

fn outcome(told: Told) -> PublishOutcome {
    told.now_or_never().expect("it is known").get(0)
}

fn no_exchange(name: &str) -> Closed {
    let text = format!("NOT_FOUND - no exchange '{name}' in vhost '/'");
    Closed { code: 404, text, cause: (60, 40) }
}

#[test]
fn an_exchange_that_has_gone_is_not_known_any_more() {
    let known = Arc::<Known>::default();
    known.exchanges.lock().extend(["gone", "there"].map(str::to_owned));
    outbox(&known).channel_closed(&no_exchange("gone"));
    assert_eq!(known.exchanges.lock().iter().collect::<Vec<_>>(), ["there"]);
}

#[test]
fn only_the_last_one_is_surely_not_stored_when_its_exchange_has_gone() {
    let mut outbox = outbox(&Arc::default());
    let told = ["gone", "there", "gone"].map(|to| sent(&mut outbox, Address::new(to, ""), None));
    outbox.channel_closed(&no_exchange("gone"));
    outbox.fail(&BrokerError::new(BrokerErrorKind::Unavailable, "closed"));
    let [first, other, last] = told.map(outcome);
    assert!(matches!(first, PublishOutcome::Unconfirmed(error) if error.to_string().contains("gone")));
    assert!(matches!(other, PublishOutcome::Unconfirmed(error) if error.to_string().contains("closed")));
    assert!(matches!(last, PublishOutcome::Refused(Refusal::NoExchange { .. })));
}

#[test]
fn what_was_confirmed_behind_what_is_given_up_is_told_as_confirmed() {
    let mut outbox = outbox(&Arc::default());
    let late = Some(Duration::from_secs(1));
    let [first, second] = [0; 2].map(|_| sent(&mut outbox, Address::queue("q"), late));
    outbox.ack(2, false);
    outbox.resolve();
    outbox.expire(Duration::from_secs(2));
    assert!(matches!(outcome(first), PublishOutcome::Unconfirmed(_)));
    assert!(outcome(second).is_confirmed());
    assert_eq!(outbox.window.confirmed.load(Ordering::Relaxed), 1, "whose outcome is known");
}

#[test]
fn messages_whose_delay_queue_has_gone_come_back_from_where_they_were_to_go() {
    let known = Arc::<Known>::default();
    let (mut outbox, queue, to) = (outbox(&known), "millstream.delay.5.1..q", Address::queue("q"));
    known.waiting.add(queue, &to);
    let told = [0; 2].map(|_| sent(&mut outbox, Address::queue(queue), None));
    for tag in 1..3 {
        outbox.returned("", queue, b"x", "NO_ROUTE");
        outbox.ack(tag, false);
    }
    outbox.resolve();
    for outcome in told.map(outcome) {
        let PublishOutcome::Unroutable(returned) = outcome else { panic!("it came back") };
        assert_eq!(returned.publish.to, to);
    }
}

#[test]
fn what_a_queue_does_not_confirm_holds_up_nobody_else() {
    let mut outbox = outbox(&Arc::default());
    let [stuck, refused, second] = [0; 3].map(|_| sent(&mut outbox, Address::queue("q"), None));
    let window = outbox.window.clone();
    let room = window.items.available_permits();
    outbox.expire(Duration::ZERO);
    outbox.nack(2, false);
    outbox.ack(3, false);
    outbox.resolve();
    assert_eq!(outbox.deadline(), Some(LOOK), "somebody looks then");
    outbox.expire(LOOK);
    assert!(matches!(outcome(refused), PublishOutcome::Refused(_)));
    assert!(outcome(second).is_confirmed());
    assert_eq!(window.items.available_permits(), room + 2, "there is room again");
    // As long as it is stuck nobody behind it waits for the next look.
    let behind = [0; 2].map(|_| sent(&mut outbox, Address::queue("other"), None));
    outbox.ack(5, false);
    outbox.resolve();
    let [open, known] = behind.map(FutureExt::now_or_never);
    assert!(open.is_none() && known.is_some_and(|known| known.all_confirmed()));
    // It goes on behind what is stuck.
    let last = sent(&mut outbox, Address::queue("q"), None);
    outbox.ack(1, false);
    outbox.resolve();
    assert!(outcome(stuck).is_confirmed());
    outbox.ack(6, true);
    outbox.resolve();
    assert!(outcome(last).is_confirmed());
    outbox.expire(3 * LOOK);
    assert_eq!((outbox.deadline(), outbox.in_flight()), (None, 0));
}

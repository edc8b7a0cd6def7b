//! What becomes of what was handed over, without a connection.

use super::*;
use futures_util::FutureExt;
use millstream_message::{Address, Message};

fn outbox(known: &Arc<Known>) -> Outbox {
    let options = Options::parse("amqp://localhost").expect("a URL");
    Outbox::new(Arc::new(Window::new(&options)), known.clone(), None)
}

/// Hands one message over, as if it was sent.
fn sent(outbox: &mut Outbox, to: Address) -> Told {
    sent_at(outbox, to, Duration::ZERO)
}

fn sent_at(outbox: &mut Outbox, to: Address, at: Duration) -> Told {
    let publish = Publish { to, message: Message::new("x") };
    outbox.push(Entry::new(vec![publish], Vec::new(), (1, 1)), None, || at)
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
    let told = ["gone", "there", "gone"].map(|to| sent(&mut outbox, Address::new(to, "")));
    outbox.channel_closed(&no_exchange("gone"));
    outbox.fail(&BrokerError::new(BrokerErrorKind::Unavailable, "closed"), Duration::ZERO);
    let [first, other, last] = told.map(outcome);
    assert!(matches!(first, PublishOutcome::Unconfirmed(error) if error.to_string().contains("gone")));
    assert!(matches!(other, PublishOutcome::Unconfirmed(error) if error.to_string().contains("closed")));
    assert!(matches!(last, PublishOutcome::Refused(Refusal::NoExchange { .. })));
}

#[test]
fn what_was_confirmed_behind_what_is_given_up_is_told_as_confirmed() {
    let mut outbox = outbox(&Arc::default());
    outbox.confirm_timeout = Some(Duration::from_secs(1));
    let [first, second] = [0; 2].map(|_| sent(&mut outbox, Address::queue("q")));
    outbox.ack(2, false);
    outbox.resolve(Duration::ZERO);
    assert_eq!(outbox.deadline(), outbox.confirm_timeout);
    outbox.expire(Duration::from_secs(1));
    assert!(matches!(outcome(first), PublishOutcome::Unconfirmed(_)));
    assert!(outcome(second).is_confirmed());
    assert_eq!(outbox.window.confirmed.load(Ordering::Relaxed), 1, "whose outcome is known");
}

#[test]
fn messages_whose_delay_queue_has_gone_come_back_from_where_they_were_to_go() {
    let known = Arc::<Known>::default();
    let (mut outbox, queue, to) = (outbox(&known), "millstream.delay.5.1..q", Address::queue("q"));
    known.waiting.add(queue, &to);
    let told = [0; 2].map(|_| sent(&mut outbox, Address::queue(queue)));
    for tag in 1..3 {
        outbox.returned("", queue, b"x", "NO_ROUTE");
        outbox.ack(tag, false);
    }
    outbox.resolve(Duration::ZERO);
    for outcome in told.map(outcome) {
        let PublishOutcome::Unroutable(returned) = outcome else { panic!("it came back") };
        assert_eq!(returned.publish.to, to);
    }
}

#[test]
fn what_a_queue_does_not_confirm_holds_up_nobody_else() {
    let mut outbox = outbox(&Arc::default());
    let [stuck, refused, second] = [0; 3].map(|_| sent(&mut outbox, Address::queue("q")));
    let window = outbox.window.clone();
    let room = window.items.available_permits();
    outbox.expire(Duration::ZERO);
    outbox.nack(2, false);
    outbox.ack(3, false);
    outbox.resolve(Duration::ZERO);
    assert_eq!(outbox.deadline(), Some(LOOK), "somebody looks then");
    outbox.expire(LOOK);
    assert!(matches!(outcome(refused), PublishOutcome::Refused(_)));
    assert!(outcome(second).is_confirmed());
    assert_eq!(window.items.available_permits(), room + 2, "there is room again");
    // As long as it is stuck nobody behind it waits for the next look.
    let behind = [0; 2].map(|_| sent(&mut outbox, Address::queue("other")));
    outbox.ack(5, false);
    outbox.resolve(Duration::ZERO);
    let [open, known] = behind.map(FutureExt::now_or_never);
    assert!(open.is_none() && known.is_some_and(|known| known.all_confirmed()));
    // It goes on behind what is stuck.
    let last = sent(&mut outbox, Address::queue("q"));
    outbox.ack(1, false);
    outbox.resolve(Duration::ZERO);
    assert!(outcome(stuck).is_confirmed());
    outbox.ack(6, true);
    outbox.resolve(Duration::ZERO);
    assert!(outcome(last).is_confirmed());
    outbox.expire(3 * LOOK);
    assert_eq!((outbox.deadline(), outbox.in_flight()), (None, 0));
}

/// How many batches took so long, in their order, and how long all of them did.
fn took(outbox: &Outbox) -> (Vec<(u64, Duration)>, Duration) {
    let ConfirmLatency { counts, sum } = &outbox.latency;
    let bounds = ConfirmLatency::BOUNDS.into_iter().chain([Duration::MAX]);
    let some = counts.iter().copied().zip(bounds).filter(|(count, _)| *count > 0);
    (some.collect(), *sum)
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn a_confirm_counts_from_when_its_batch_was_handed_over() {
    let mut outbox = outbox(&Arc::default());
    let to = || Address::queue("q");
    let _first = sent_at(&mut outbox, to(), millis(100));
    outbox.expire(millis(103));
    let _second = sent_at(&mut outbox, to(), millis(103));
    outbox.ack(2, true);
    outbox.resolve(millis(104));
    assert_eq!(took(&outbox), (vec![(1, millis(1)), (1, millis(5))], millis(5)));
    // Refused, returned, or longer than all bounds: it is known then.
    outbox.expire(millis(1_000));
    let _others = [0; 3].map(|_| sent_at(&mut outbox, to(), millis(1_000)));
    outbox.nack(3, false);
    outbox.returned("", "q", b"x", "NO_ROUTE");
    outbox.ack(4, false);
    outbox.resolve(millis(1_040));
    outbox.ack(5, false);
    outbox.resolve(millis(31_000));
    let late = vec![(1, millis(1)), (1, millis(5)), (2, millis(50)), (1, Duration::MAX)];
    assert_eq!(took(&outbox), (late, millis(5 + 2 * 40 + 30_000)));
    assert_eq!(outbox.latency.count(), 5);
}

#[test]
fn the_clock_is_read_once_between_two_turns_of_the_task() {
    let (mut outbox, mut read) = (outbox(&Arc::default()), 0);
    for turn in 1..=3 {
        for _ in 0..100 {
            let publish = Publish { to: Address::queue("q"), message: Message::new("x") };
            let clock = || {
                read += 1;
                millis(turn)
            };
            outbox.push(Entry::new(vec![publish], Vec::new(), (1, 1)), None, clock);
        }
        outbox.expire(millis(turn));
    }
    assert_eq!(read, 3);
    outbox.ack(300, true);
    outbox.resolve(millis(3));
    assert_eq!(
        took(&outbox).0,
        [(100, ConfirmLatency::BOUNDS[0]), (100, millis(1)), (100, Duration::from_micros(2_500))]
    );
}

#[test]
fn what_is_told_early_counts_and_what_is_given_up_does_not() {
    let mut outbox = outbox(&Arc::default());
    outbox.confirm_timeout = Some(millis(900));
    let _told = [0; 2].map(|_| sent_at(&mut outbox, Address::queue("q"), millis(0)));
    // Nothing of this one is sent.
    let refused = PublishOutcome::Refused(Refusal::TooLarge { len: 2, max: 1 });
    let publish = Publish { to: Address::queue("q"), message: Message::new("xx") };
    let _refused = outbox.push(Entry::new(vec![publish], vec![(0, refused)], (1, 2)), None, || millis(0));
    outbox.expire(millis(0));
    outbox.ack(2, false);
    outbox.expire(LOOK);
    assert_eq!(took(&outbox), (vec![(1, LOOK)], LOOK), "held up for so long");
    outbox.expire(millis(900));
    assert_eq!((outbox.latency.count(), outbox.in_flight()), (1, 0), "nobody knows what became of it");
}

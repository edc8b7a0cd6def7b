//! The book of what is not confirmed, against its claims and a model.

use super::*;
use millstream_message::{BrokerErrorKind, Message};
use proptest::prelude::*;

fn publish(key: &str, body: u64) -> Publish {
    Publish { to: Address::queue(key), message: Message::new(body.to_string()) }
}

fn entry(publishes: Vec<Publish>) -> Entry {
    Entry::new(publishes, Vec::new(), (0, 0))
}

fn batch(confirms: &mut Confirms, bodies: std::ops::Range<u64>) {
    confirms.push(entry(bodies.map(|body| publish("q", body)).collect()));
}

/// The outcomes of the batches that are known, in their order.
fn resolve(confirms: &mut Confirms) -> Vec<Outcomes> {
    std::iter::from_fn(|| confirms.pop_known()).map(Entry::outcomes).collect()
}

#[test]
fn batches_resolve_in_order_when_all_of_them_is_known() {
    let mut confirms = Confirms::default();
    batch(&mut confirms, 0..3);
    batch(&mut confirms, 3..5);
    assert!(confirms.ack(5, false) && confirms.ack(4, false) && confirms.ack(1, false));
    assert!(resolve(&mut confirms).is_empty(), "the second waits for the first");
    assert_eq!(confirms.in_flight(), 2);
    assert!(confirms.ack(3, true));
    let told = resolve(&mut confirms);
    assert!(told.len() == 2 && told.iter().all(Outcomes::all_confirmed));
}

#[test]
fn refused_and_returned_ones_are_told_by_their_place() {
    let mut confirms = Confirms::default();
    confirms.push(entry(vec![publish("a", 0), publish("b", 1), publish("a", 2), publish("b", 1)]));
    let mut returned = || confirms.returned("", "b", b"1", "NO_ROUTE", None);
    assert!(returned() && returned());
    assert!(!returned(), "both have come");
    assert!(confirms.nack(3, false) && confirms.ack(4, true));
    let outcomes = resolve(&mut confirms).remove(0);
    assert!(outcomes.get(0).is_confirmed());
    let PublishOutcome::Unroutable(returned) = outcomes.get(1) else { panic!("{outcomes:?}") };
    assert_eq!(
        (returned.publish, returned.reason.as_str()),
        (publish("b", 1), "there is no queue `b`, or its node is down; declare it first")
    );
    assert!(matches!(outcomes.get(2), PublishOutcome::Refused(Refusal::Full { queue, .. }) if queue == "a"));
    assert!(matches!(outcomes.get(3), PublishOutcome::Unroutable(_)));
}

#[test]
fn what_was_refused_beforehand_is_not_sent() {
    let refused = PublishOutcome::Refused(Refusal::TooLarge { len: 2, max: 1 });
    let entry = Entry::new((0..3).map(|n| publish("q", n)).collect(), vec![(1, refused)], (0, 0));
    let mut confirms = Confirms::default();
    assert_eq!(confirms.push(entry).publishes(), [publish("q", 0), publish("q", 2)]);
    assert!(confirms.nack(2, false) && confirms.ack(1, false));
    let outcomes = resolve(&mut confirms).remove(0);
    assert!(matches!(outcomes.get(1), PublishOutcome::Refused(Refusal::TooLarge { .. })));
    assert!(matches!(outcomes.get(2), PublishOutcome::Refused(Refusal::Full { .. })));
}

#[test]
fn a_new_channel_gets_what_was_not_settled_in_its_order() {
    let mut confirms = Confirms::default();
    batch(&mut confirms, 0..3);
    batch(&mut confirms, 3..6);
    assert!(confirms.ack(2, false) && confirms.nack(4, false) && confirms.ack(6, false));
    let again: Vec<_> = confirms.restart().flat_map(|entry| entry.publishes().to_vec()).collect();
    assert_eq!(again, [0, 2, 4].map(|body| publish("q", body)));
    assert!(confirms.ack(3, true));
    let told = resolve(&mut confirms);
    assert!(told[0].all_confirmed());
    assert_eq!(told[1].others().iter().map(|(place, _)| *place).collect::<Vec<_>>(), [0]);
}

#[test]
fn confirms_of_what_was_never_sent_are_told_apart() {
    let mut confirms = Confirms::default();
    assert!(!confirms.ack(1, false) && !confirms.ack(1, true) && !confirms.nack(0, false));
    assert!(confirms.ack(0, true), "all of nothing");
    batch(&mut confirms, 0..2);
    assert!(!confirms.ack(3, true) && confirms.ack(0, true));
    assert!(confirms.pop_known().is_some());
}

#[test]
fn who_gives_up_is_told_what_is_not_known() {
    let mut confirms = Confirms::default();
    batch(&mut confirms, 0..4);
    assert!(confirms.nack(1, false) && confirms.ack(3, false));
    let error = BrokerError::new(BrokerErrorKind::Unavailable, "gone");
    let GivenUp { outcomes, known, .. } = confirms.give_up_first(&error).expect("there is one");
    assert!(matches!(outcomes.get(0), PublishOutcome::Refused(_)));
    assert!(matches!(outcomes.get(1), PublishOutcome::Unconfirmed(_)));
    assert!(outcomes.get(2).is_confirmed(), "it came before the end");
    assert!(matches!(outcomes.get(3), PublishOutcome::Unconfirmed(_)));
    assert_eq!((confirms.in_flight(), known), (0, 2));
}

proptest! {
    /// Acks, nacks, and new channels in any order: each message is told once, as it was settled first.
    #[test]
    fn every_message_has_the_outcome_that_came_first(
        sizes in prop::collection::vec(0..70u64, 1..12),
        steps in prop::collection::vec((0..6u8, any::<u64>(), any::<bool>()), 0..60),
    ) {
        let mut confirms = Confirms::default();
        let total: u64 = sizes.iter().sum();
        let mut from = 0;
        for size in &sizes {
            batch(&mut confirms, from..from + size);
            from += size;
        }
        // The model: what each number of the channel stands for, and how each message was settled.
        let mut numbers: Vec<u64> = (0..total).collect();
        let mut settled = vec![None; total as usize];
        for (step, at, multiple) in steps {
            if step == 5 {
                let again: Vec<u64> = confirms.restart()
                    .flat_map(|entry| entry.publishes().iter().map(|publish| {
                        std::str::from_utf8(publish.message.body()).expect("text").parse().expect("a number")
                    }).collect::<Vec<u64>>()).collect();
                numbers.retain(|n| settled[*n as usize].is_none());
                prop_assert_eq!(&again, &numbers);
                continue;
            }
            if numbers.is_empty() { break; }
            let tag = 1 + at % numbers.len() as u64;
            let is_ack = step < 3;
            let taken = if is_ack { confirms.ack(tag, multiple) } else { confirms.nack(tag, multiple) };
            prop_assert!(taken);
            let from = if multiple { 0 } else { tag as usize - 1 };
            for number in &numbers[from..tag as usize] {
                settled[*number as usize].get_or_insert(is_ack);
            }
            prop_assert_eq!(confirms.in_flight(), settled.iter().filter(|s| s.is_none()).count() as u64);
        }
        prop_assert!(confirms.ack(0, true));
        let told = resolve(&mut confirms);
        prop_assert_eq!(told.len(), sizes.len());
        let mut at = 0;
        for (size, outcomes) in sizes.into_iter().zip(told) {
            for place in 0..size as usize {
                prop_assert_eq!(outcomes.get(place).is_confirmed(), settled[at].unwrap_or(true));
                at += 1;
            }
        }
    }
}

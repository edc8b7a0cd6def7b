//! The counted pointer under every way in which a token ends, under Miri too (`cargo xtask miri`).

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::{Outcome, Settle, TokenRuns, Tracker};

type Heard = Arc<Mutex<Vec<(Range<u64>, &'static str)>>>;

fn tracker() -> (Tracker, Heard) {
    let heard = Heard::default();
    let ear = heard.clone();
    let tracker = Tracker::new(move |items: Range<u64>, outcome: &Outcome| {
        let outcome = match outcome {
            Outcome::Completed => "completed",
            Outcome::Dropped(_) => "dropped",
            Outcome::Dead(_) => "dead",
            Outcome::Abandoned => "abandoned",
        };
        ear.lock().unwrap().push((items, outcome));
    });
    (tracker, heard)
}

#[test]
fn tokens_outlive_their_tracker_and_free_what_they_share() {
    let (mut tracker, heard) = tracker();
    let (a, b) = (tracker.issue(), tracker.issue());
    drop(tracker);
    a.settle(&Outcome::Completed);
    assert_eq!(Arc::strong_count(&heard), 2);
    drop(b);
    assert_eq!(Arc::strong_count(&heard), 1, "the settler went with the last token");
    assert_eq!(*heard.lock().unwrap(), [(0..1, "completed"), (1..2, "abandoned")]);
}

#[test]
fn consecutive_items_are_settled_as_one_run() {
    let (mut tracker, heard) = tracker();
    let mut group = Default::default();
    for _ in 0..5000 {
        tracker.issue().join(&mut group);
    }
    group.settle(&Outcome::Completed);
    assert_eq!(*heard.lock().unwrap(), [(0..5000, "completed")]);
}

#[test]
fn an_item_of_several_handles_ends_once_with_the_weightiest_outcome() {
    let (mut tracker, heard) = tracker();
    let token = tracker.issue();
    let (second, third) = (token.share(), token.share());
    second.settle(&Outcome::Completed);
    token.settle(&Outcome::Dropped("filter".into()));
    assert!(heard.lock().unwrap().is_empty());
    drop(third);
    assert_eq!(*heard.lock().unwrap(), [(0..1, "abandoned")]);
}

#[test]
fn a_group_comes_apart_into_its_own_tokens_or_shares_of_all() {
    let (mut tracker, heard) = tracker();
    let mut group = TokenRuns::default();
    for _ in 0..3 {
        tracker.issue().join(&mut group);
    }
    let mut shares = group.shares(3);
    let parts: Vec<_> = std::iter::from_fn(|| shares.next_share()).collect();
    for (at, part) in parts.into_iter().enumerate().rev() {
        part.settle(&Outcome::Completed);
        assert_eq!(heard.lock().unwrap().last(), Some(&(at as u64..at as u64 + 1, "completed")));
    }

    heard.lock().unwrap().clear();
    let mut group = TokenRuns::default();
    for _ in 0..3 {
        tracker.issue().join(&mut group);
    }
    let mut shares = group.shares(2);
    let (first, second) = (shares.next_share().unwrap(), shares.next_share().unwrap());
    assert!(shares.next_share().is_none());
    first.settle(&Outcome::Completed);
    assert!(heard.lock().unwrap().is_empty());
    drop(second);
    let ended: u64 = heard.lock().unwrap().iter().map(|(items, _)| items.end - items.start).sum();
    assert_eq!(ended, 3);
    assert_eq!(tracker.account().abandoned(), 3);
}

/// Settles every third and then every other item of 200 with one that came from elsewhere, in one group.
#[test]
fn scattered_items_are_settled_each_once_whatever_becomes_of_their_group() {
    let items = |heard: &Heard| {
        let mut items: Vec<u64> = heard.lock().unwrap().iter().flat_map(|(items, _)| items.clone()).collect();
        items.sort_unstable();
        items
    };
    let kept = |item: u64| item.is_multiple_of(if item < 100 { 3 } else { 2 });
    let expected: Vec<u64> = (0..200).filter(|item| kept(*item)).collect();
    for fate in ["settled", "joined", "taken apart", "split", "shared", "dropped"] {
        let (mut tracker, heard) = tracker();
        let mut group = TokenRuns::default();
        let mut others = TokenRuns::default();
        for item in 0..200 {
            let token = tracker.issue();
            token.join(if kept(item) { &mut group } else { &mut others });
        }
        assert_eq!(group.items(), expected.len() as u64);
        assert!(group.more.len() < 8, "near items are one run");
        match fate {
            "settled" => group.settle(&Outcome::Completed),
            "joined" => {
                let mut whole = TokenRuns::default();
                group.join(&mut whole);
                whole.settle(&Outcome::Completed);
            }
            "taken apart" => {
                let numbers: Vec<u64> = group.into_tokens().map(|token| token.item()).collect();
                assert_eq!(numbers, expected, "in their order");
            }
            "split" => {
                let mut shares = group.shares(expected.len());
                let mut at = 0;
                while let Some(share) = shares.next_share() {
                    assert_eq!(format!("{share:?}"), format!("[{}]", expected[at]));
                    share.settle(&Outcome::Completed);
                    at += 1;
                }
                assert_eq!(at, expected.len());
            }
            "shared" => {
                let share = group.share();
                group.settle(&Outcome::Completed);
                assert!(heard.lock().unwrap().is_empty());
                share.settle(&Outcome::Completed);
            }
            _ => drop(group),
        }
        assert_eq!(items(&heard), expected, "{fate}");
        drop((others, tracker));
        assert_eq!(items(&heard), (0..200).collect::<Vec<_>>(), "{fate}");
        assert_eq!(Arc::strong_count(&heard), 1, "{fate}: nothing holds the settler any more");
    }
}

#[test]
fn groups_of_one_thread_use_the_same_room_again() {
    let (mut tracker, _heard) = tracker();
    let mut rooms = Vec::new();
    for _ in 0..3 {
        let mut group = TokenRuns::default();
        for item in 0..4_000 {
            let token = tracker.issue();
            match item % 100 {
                0 => token.join(&mut group),
                _ => token.settle(&Outcome::Completed),
            }
        }
        rooms.push(group.more.as_ptr());
        group.settle(&Outcome::Completed);
    }
    assert_eq!(rooms[0], rooms[1]);
    assert_eq!(rooms[1], rooms[2]);
}

/// Handles that are made, put together and settled in any order: each item ends once, when its last handle is settled, as the
/// weightiest of their outcomes.
#[test]
fn whatever_is_shared_ends_with_its_last_handle_as_the_weightiest_says() {
    let outcomes = [
        Outcome::Dropped("filter".into()),
        Outcome::Completed,
        Outcome::Dead(Arc::new(crate::Failure::new("s", &std::fmt::Error, std::time::UNIX_EPOCH))),
        Outcome::Abandoned,
    ];
    let names = ["dropped", "completed", "dead", "abandoned"];
    for seed in 0..if cfg!(miri) { 5 } else { 500 } {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut tracker, heard) = tracker();
        let count = random.usize(1..300);
        let mut groups: Vec<TokenRuns> = Vec::new();
        let (mut handles, mut worst) = (vec![1_u32; count], vec![0; count]);
        let gap = random.usize(1..4);
        let mut group = TokenRuns::default();
        for handles in &mut handles {
            let token = tracker.issue();
            for _ in 0..if random.u8(0..3) == 0 { random.usize(0..3) } else { 0 } {
                *handles += 1;
                let mut alone = TokenRuns::default();
                token.share().join(&mut alone);
                groups.push(alone);
            }
            token.join(&mut group);
            if random.usize(0..80) < gap {
                groups.push(std::mem::take(&mut group));
            }
        }
        groups.push(group);
        let mut ended = 0;
        while !groups.is_empty() {
            let group = groups.swap_remove(random.usize(0..groups.len()));
            let items: Vec<usize> = {
                let tokens: Vec<_> = group.into_tokens().collect();
                let items = tokens.iter().map(|token| token.item() as usize).collect();
                groups.push(TokenRuns::default());
                let last = groups.len() - 1;
                tokens.into_iter().for_each(|token| token.join(&mut groups[last]));
                items
            };
            let group = groups.pop().unwrap();
            if random.u8(0..4) == 0 && items.iter().all(|item| handles[*item] < 6) {
                items.iter().for_each(|item| handles[*item] += 1);
                groups.push(group.share());
                groups.push(group);
                continue;
            }
            let outcome = random.usize(0..4);
            heard.lock().unwrap().clear();
            group.settle(&outcomes[outcome]);
            let mut expected: Vec<(u64, &str)> = Vec::new();
            for item in items {
                handles[item] -= 1;
                worst[item] = worst[item].max(outcome);
                if handles[item] == 0 {
                    expected.push((item as u64, names[worst[item]]));
                }
            }
            let heard = heard.lock().unwrap();
            let mut told: Vec<_> =
                heard.iter().flat_map(|(items, how)| items.clone().map(move |item| (item, *how))).collect();
            expected.sort_unstable();
            told.sort_unstable();
            assert_eq!(told, expected, "seed {seed}");
            ended += told.len();
        }
        assert_eq!(ended, count, "seed {seed}");
        let account = tracker.account();
        let dropped = account.dropped().values().sum::<u64>();
        assert_eq!(
            account.completed() + account.dead() + account.abandoned() + dropped,
            count as u64,
            "seed {seed}"
        );
    }
}

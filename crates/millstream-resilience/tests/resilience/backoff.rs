//! The delays: how they grow, and that chance stays within its bounds.

use std::time::Duration;

use millstream_resilience::{Backoff, Jitter};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn first(backoff: Backoff, count: usize) -> Vec<u128> {
    backoff.delays().take(count).map(|delay| delay.as_millis()).collect()
}

#[test]
fn delays_grow_as_declared_up_to_their_cap() {
    assert_eq!(first(Backoff::fixed(ms(70)), 3), [70, 70, 70]);
    assert_eq!(first(Backoff::linear(ms(100)).max(ms(350)), 5), [100, 200, 300, 350, 350]);
    assert_eq!(first(Backoff::exponential(ms(100)).max(ms(500)), 4), [100, 200, 400, 500]);
    assert_eq!(first(Backoff::exponential(ms(100)).first(ms(7)), 3), [7, 14, 28]);
    assert_eq!(first(Backoff::exponential(ms(100)).factor(3.0), 4), [100, 300, 900, 2700]);
    assert_eq!(first(Backoff::exponential(ms(100)), 12).last(), Some(&30_000), "30 s if nothing is said");
    assert_eq!(
        first(Backoff::fixed(Duration::from_secs(3600)), 1),
        [3_600_000],
        "a fixed one is what was said"
    );
}

#[test]
fn no_attempt_is_too_late_to_count() {
    let far = Duration::from_secs(u64::MAX);
    for backoff in [Backoff::linear(far), Backoff::exponential(far), Backoff::exponential(ms(1))] {
        let backoff = backoff.max(Duration::MAX);
        assert_eq!(backoff.nominal(u32::MAX), Duration::MAX);
        assert!(backoff.jitter(Jitter::Decorrelated).delays().nth(100).is_some());
    }
    assert_eq!(Backoff::exponential(Duration::ZERO).nominal(u32::MAX), Duration::ZERO);
    assert_eq!(Backoff::exponential(ms(7)).nominal(0), ms(7), "there is no delay before the first");
}

#[test]
fn full_jitter_is_anything_up_to_the_delay_and_equal_jitter_its_upper_half() {
    let backoff = Backoff::fixed(ms(1000));
    let spread = |jitter| {
        let mut delays = backoff.jitter(jitter).delays_seeded(7);
        let delays: Vec<_> = (0..10_000).map(|_| delays.next_delay()).collect();
        let mean = delays.iter().sum::<Duration>() / 10_000;
        (*delays.iter().min().unwrap(), mean, *delays.iter().max().unwrap())
    };
    let (min, mean, max) = spread(Jitter::Full);
    assert!(min < ms(10) && max > ms(990) && max <= ms(1000), "{min:?} {max:?}");
    assert!(ms(480) < mean && mean < ms(520), "{mean:?}");
    let (min, mean, max) = spread(Jitter::Equal);
    assert!(ms(500) <= min && min < ms(510) && max > ms(990) && max <= ms(1000), "{min:?} {max:?}");
    assert!(ms(740) < mean && mean < ms(760), "{mean:?}");
}

#[test]
fn one_delay_is_as_it_would_be_in_its_turn() {
    let backoff = Backoff::exponential(ms(100)).max(ms(1000));
    assert_eq!([0, 1, 2, 3, 99].map(|n| backoff.delay(n)), [100, 100, 200, 400, 1000].map(ms));
    let chance: Vec<_> = (0..100).map(|_| backoff.jitter(Jitter::Equal).delay(3)).collect();
    assert!(chance.iter().all(|delay| (ms(200)..=ms(400)).contains(delay)));
    assert!(chance.iter().any(|delay| delay != &chance[0]));
}

#[test]
fn decorrelated_jitter_is_up_to_three_times_the_previous_delay() {
    let mut delays = Backoff::decorrelated(ms(100)).max(ms(5000)).delays_seeded(7);
    let (mut previous, mut longest) = (ms(100), ms(0));
    for _ in 0..10_000 {
        let delay = delays.next_delay();
        assert!(ms(100) <= delay && delay <= (previous * 3).min(ms(5000)), "{delay:?} after {previous:?}");
        previous = delay;
        longest = longest.max(delay);
    }
    assert!(longest > ms(4900), "{longest:?}");
    delays.reset();
    assert!(delays.next_delay() <= ms(300));
    let above_the_cap = Backoff::decorrelated(ms(100)).max(ms(50)).delays().next();
    assert_eq!(above_the_cap, Some(ms(50)));
}

#[test]
fn the_same_seed_gives_the_same_delays() {
    let backoff = Backoff::exponential(ms(100)).full_jitter();
    let some = |seed| backoff.delays_seeded(seed).take(10).collect::<Vec<_>>();
    assert_eq!(some(1), some(1));
    assert_ne!(some(1), some(2));
    let unseeded = || backoff.delays().take(10).collect::<Vec<_>>();
    assert_ne!(unseeded(), unseeded());
}

#[test]
fn a_factor_that_shrinks_is_refused() {
    for factor in [0.5, f64::NAN] {
        let shrinks = move || Backoff::exponential(ms(1)).factor(factor);
        assert!(std::panic::catch_unwind(shrinks).is_err());
    }
}

#[test]
fn it_prints_itself() {
    let text = |backoff: Backoff| backoff.to_string();
    assert_eq!(text(Backoff::fixed(ms(500))), "500ms each time");
    assert_eq!(text(Backoff::linear(ms(500))), "linear from 500ms to 30s");
    assert_eq!(
        text(Backoff::exponential(ms(500)).full_jitter()),
        "exponential from 500ms to 30s, full jitter"
    );
    assert_eq!(
        text(Backoff::exponential(ms(500)).factor(1.5).jitter(Jitter::Equal)),
        "exponential by 1.5 from 500ms to 30s, equal jitter"
    );
    assert_eq!(text(Backoff::decorrelated(ms(500))), "decorrelated jitter from 500ms to 30s");
}

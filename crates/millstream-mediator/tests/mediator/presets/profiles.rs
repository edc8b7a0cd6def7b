//! The profiles, each value by its effect.

use tracing::Level;

use super::*;
use crate::support::logged;

/// A mediator with this profile, whose handler takes so many milliseconds, and fails after them if there are none.
fn within(profile: &Profile) -> Mediator {
    Mediator::builder()
        .profile(profile)
        .request(async |ask: Ask| {
            sleep(Duration::from_millis(ask.0)).await;
            if ask.0 == 0 { Err("busy") } else { Ok(ask.0) }
        })
        .build()
        .unwrap()
}

fn profile(service: Service) -> Profile {
    Profile::new(service, Environment::Production, || None)
}

#[tokio::test(start_paused = true)]
async fn profiles_warn_of_calls_slower_than_they_say() {
    let mine = profile(Service::Web).slow(SECOND);
    for (profile, limit) in [
        (profile(Service::Web), 200),
        (profile(Service::Microservice), 500),
        (profile(Service::Background), 5_000),
        (mine, 1_000),
    ] {
        let mediator = within(&profile);
        mediator.send(Ask(limit - 1)).await.unwrap();
        assert_eq!(number(&mediator, "mediator_slow_requests_total", &[]), 0.0, "{profile}");
        mediator.send(Ask(limit + 1)).await.unwrap();
        assert_eq!(number(&mediator, "mediator_slow_requests_total", &[]), 1.0, "{profile}");
    }
}

#[tokio::test(start_paused = true)]
async fn profiles_end_calls_after_half_a_minute_unless_another_limit_is_set() {
    for service in [Service::Web, Service::Microservice, Service::Background] {
        let limit = 30 * SECOND;
        let mediator = within(&profile(service));
        assert_eq!(mediator.send(Ask(29_999)).await.unwrap(), 29_999);
        let error = mediator.send(Ask(30_001)).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::TimedOut { limit }, "{service:?}");
    }
    let mediator = within(&profile(Service::Web).timeout(Timeout::new(2 * SECOND)));
    assert!(mediator.send(Ask(2_001)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn profiles_tell_of_successes_at_the_level_and_as_often_as_fits_where_they_run() {
    for (environment, info, debug) in [
        (Environment::Development, 200, 200),
        (Environment::Staging, 0, 200),
        (Environment::Production, 0, 2),
    ] {
        for (level, expected) in [(Level::INFO, info), (Level::DEBUG, debug)] {
            let mediator = within(&Profile::new(Service::Web, environment, || None));
            let (text, _guard) = logged(level);
            for _ in 0..200 {
                mediator.send(Ask(1)).await.unwrap();
            }
            let text = text();
            let told = text.lines().filter(|line| line.contains("a call has ended")).count();
            assert_eq!(told, expected, "{environment:?} at {level}: {text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn profiles_try_again_and_open_their_breakers_as_their_service_says_or_who_sets_them() {
    let mine = profile(Service::Web).retry(RetryPreset::Conservative).breaker(BreakerPreset::Sensitive);
    for (profile, attempts, calls, pause) in [
        (profile(Service::Web), 4, 5, 30),
        (profile(Service::Microservice), 5, 8, 60),
        (profile(Service::Background), 6, 10, 60),
        (mine, 3, 3, 15),
    ] {
        let tries = Arc::new(AtomicU64::new(0));
        let count = tries.clone();
        let mediator = Mediator::builder()
            .profile(&profile)
            .request(move |_: Ask| {
                count.fetch_add(1, Ordering::SeqCst);
                std::future::ready(Err::<u64, _>("busy"))
            })
            .build()
            .unwrap();
        for n in 1..=calls {
            assert_eq!(mediator.send(Ask(0)).await.unwrap_err().kind(), &ErrorKind::Failed, "{profile}");
            assert_eq!(tries.load(Ordering::SeqCst), n * attempts, "{profile}");
        }
        for (seconds, is_open) in [(0, true), (pause - 1, true), (2, false)] {
            sleep(seconds * SECOND).await;
            let error = mediator.send(Ask(0)).await.unwrap_err();
            assert_eq!(matches!(error.kind(), ErrorKind::CircuitOpen { .. }), is_open, "{profile}: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn profiles_have_as_much_memory_as_fits_where_they_run() {
    for (service, environment, mib, every) in [
        (Service::Web, Environment::Staging, 512u64 * 8 / 10, 30),
        (Service::Microservice, Environment::Staging, 256 * 7 / 10, 15),
        (Service::Background, Environment::Development, 2048 * 9 / 10, 10),
    ] {
        let used = Arc::new(AtomicU64::new(0));
        let read = used.clone();
        let probe = move || Some(read.load(Ordering::SeqCst));
        let mediator = within(&Profile::new(service, environment, probe));
        // Slowly, so that it is not short by how fast it grows.
        for part in 0..100 {
            used.store((mib << 20) * part / 100, Ordering::SeqCst);
            sleep(every * SECOND).await;
            assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1, "{service:?} {environment:?} at {part} %");
        }
        used.store((mib + 1) << 20, Ordering::SeqCst);
        sleep(every * SECOND).await;
        let error = mediator.send(Ask(1)).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Shed, "{service:?} {environment:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_profiles_breaker_opens_for_what_hangs() {
    for service in [Service::Web, Service::Microservice, Service::Background] {
        let mediator = within(&profile(service));
        let mut hung = 0;
        while mediator.send(Ask(1_000_000)).await.unwrap_err().kind()
            == (&ErrorKind::TimedOut { limit: 30 * SECOND })
        {
            hung += 1;
            assert!(hung < 100, "{service:?}: it never opens");
            // At once, as clients come: what is spread over minutes has left the breaker's window.
            let more = (0..30).map(|_| mediator.send(Ask(1_000_000)));
            futures_util::future::join_all(more).await;
        }
        let refused = mediator.send(Ask(1)).await.unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::CircuitOpen { .. }), "{service:?}: {refused}");
    }
}

//! Retries: what is tried again, how often, when, and at whose cost.

use std::cell::{Cell, RefCell};
use std::error::Error as _;
use std::future::{pending, ready};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_resilience::{
    AllTransient, Backoff, BoxError, Budget, Class, Classified, Error, FromRetry, Retry, RetryError, Stop,
    TimedOut, Timeout, Tried, class_of,
};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

fn failing(class: Class) -> BoxError {
    Classified::new(class, "no").into()
}

fn every_second(attempts: u32) -> Retry {
    Retry::new(attempts).backoff(Backoff::fixed(SECOND))
}

async fn stops(retry: &Retry, class: Class) -> RetryError<BoxError> {
    retry.call(async || Err::<(), _>(failing(class))).await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn it_calls_until_it_succeeds_with_the_delays_of_its_backoff() {
    let (began, calls) = (Instant::now(), RefCell::new(Vec::new()));
    let retry = Retry::new(5).backoff(Backoff::exponential(SECOND));
    let result = retry.call(async || {
        calls.borrow_mut().push(began.elapsed().as_secs());
        if calls.borrow().len() < 4 { Err(failing(Class::Transient)) } else { Ok(17) }
    });
    assert_eq!(result.await.unwrap(), 17);
    assert_eq!(*calls.borrow(), [0, 1, 3, 7]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_help_is_not_tried() {
    let error = stops(&every_second(5), Class::Permanent).await;
    assert_eq!((error.attempts(), error.stop(), error.class()), (1, Stop::Permanent, Class::Permanent));
    let error = stops(&every_second(5), Class::Cancelled).await;
    assert_eq!((error.attempts(), error.stop()), (1, Stop::Cancelled));
    let error = stops(&every_second(5), Class::Transient).await;
    assert_eq!((error.attempts(), error.stop(), error.elapsed()), (5, Stop::Attempts, 4 * SECOND));
    assert_eq!(stops(&Retry::never(), Class::Transient).await.attempts(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_classifier_decides_instead_of_the_error() {
    let by_text = |error: &&str| if *error == "busy" { Class::Transient } else { Class::Permanent };
    let attempts = async |error| {
        every_second(3).call_with(&by_text, async || Err::<(), _>(error)).await.unwrap_err().attempts()
    };
    assert_eq!((attempts("busy").await, attempts("bad").await), (3, 1));
    let all = every_second(3).call_with(&AllTransient, async || Err::<(), _>(())).await;
    assert_eq!(all.unwrap_err().attempts(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_error_tells_of_the_attempts_before_it() {
    let attempt = Cell::new(0);
    let retry = every_second(20);
    let fail = async || {
        attempt.set(attempt.get() + 1);
        Err::<(), _>(io::Error::new(io::ErrorKind::TimedOut, format!("attempt {}", attempt.get())))
    };
    let error = retry.call(fail).await.unwrap_err();
    assert_eq!(error.error().to_string(), "attempt 20");
    assert_eq!(error.earlier().len(), 16, "the newest");
    let (first, last) = (error.earlier().next().unwrap(), error.earlier().last().unwrap());
    assert_eq!((first.error.to_string(), last.error.to_string()), ("attempt 4".into(), "attempt 19".into()));
    assert_eq!((first.class, first.delay), (Class::Transient, SECOND));
    assert_eq!(error.to_string(), "20 attempts failed in 19s");
    assert_eq!(error.source().unwrap().to_string(), "attempt 20");
    let lengths = error.map(|error| error.to_string().len());
    assert_eq!((*lengths.error(), lengths.earlier().next().unwrap().error), (10, 9));
    assert_eq!((lengths.attempts(), lengths.into_error()), (20, 10));
}

#[tokio::test(start_paused = true)]
async fn no_attempt_begins_after_the_time_is_over_and_no_delay_that_would_end_then() {
    let retry = Retry::new(100).backoff(Backoff::fixed(4 * SECOND)).elapsed_max(10 * SECOND);
    let error = stops(&retry, Class::Transient).await;
    assert_eq!((error.attempts(), error.stop(), error.elapsed()), (3, Stop::Elapsed, 8 * SECOND));
    // The time of the attempts counts, also of the first.
    let began = Instant::now();
    let slow = retry.call(async || {
        sleep(5 * SECOND).await;
        Err::<(), _>(failing(Class::Transient))
    });
    assert_eq!(slow.await.unwrap_err().attempts(), 2);
    assert_eq!(began.elapsed(), 14 * SECOND, "5 + 4 + 5, and another delay would be too long");
}

#[tokio::test(start_paused = true)]
async fn a_callee_that_asks_for_time_gets_it_up_to_a_limit() {
    let asks = |after| Class::Throttled { retry_after: Some(after) };
    let retry = Retry::new(3).backoff(Backoff::fixed(2 * SECOND)).retry_after_max(10 * SECOND);
    assert_eq!(stops(&retry, asks(7 * SECOND)).await.elapsed(), 14 * SECOND);
    assert_eq!(stops(&retry, asks(SECOND)).await.elapsed(), 4 * SECOND, "the backoff is longer");
    assert_eq!(stops(&retry, asks(10 * SECOND)).await.stop(), Stop::Attempts);
    let error = stops(&retry, asks(11 * SECOND)).await;
    assert_eq!((error.attempts(), error.stop(), error.class()), (1, Stop::RetryAfter, asks(11 * SECOND)));
    assert_eq!(error.to_string(), "the only attempt failed, and the next is wanted after 11s only");
    // What was asked for counts against the time.
    let error = stops(&retry.elapsed_max(6 * SECOND), asks(7 * SECOND)).await;
    assert_eq!((error.attempts(), error.stop()), (1, Stop::Elapsed));
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_shared_and_earned_by_success() {
    let budget = Budget::new(4, 0.5);
    let retry = every_second(3).budget(budget.clone());
    let other = every_second(3).budget(budget.clone());
    assert_eq!(stops(&retry, Class::Transient).await.attempts(), 3);
    assert_eq!(stops(&other, Class::Transient).await.attempts(), 3);
    let error = stops(&retry, Class::Transient).await;
    assert_eq!((error.attempts(), error.stop()), (1, Stop::Budget));
    for _ in 0..2 {
        other.call(async || Ok::<_, BoxError>(())).await.unwrap();
    }
    assert_eq!(stops(&retry, Class::Transient).await.attempts(), 2, "two successes pay for one");
    for _ in 0..100 {
        retry.call(async || Ok::<_, BoxError>(())).await.unwrap();
    }
    assert_eq!(budget.left(), 4, "it is never more than full");
    assert_eq!(stops(&retry, Class::Permanent).await.stop(), Stop::Permanent);
    assert_eq!(budget.left(), 4, "what is not tried costs nothing");
}

#[tokio::test(start_paused = true)]
async fn a_seed_makes_delays_repeatable_and_each_is_told() {
    let delays = async |seed| {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let retry = Retry::new(4).seed(seed).on_retry(move |retrying| tell.lock().unwrap().push(*retrying));
        stops(&retry, Class::Transient).await;
        std::mem::take(&mut *told.lock().unwrap())
    };
    let told = delays(1).await;
    assert_eq!(told.iter().map(|told| told.attempts).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(
        told.iter().all(|told| told.class == Class::Transient && told.delay <= Duration::from_millis(400))
    );
    assert_eq!(told, delays(1).await);
    assert_ne!(told, delays(2).await);
}

#[tokio::test(start_paused = true)]
async fn dropping_it_ends_the_attempt_and_the_delay() {
    let calls = Cell::new(0);
    let retry = every_second(100);
    let call = retry.call(async || {
        calls.set(calls.get() + 1);
        if calls.get() == 3 { pending().await } else { Err::<(), _>(failing(Class::Transient)) }
    });
    assert!(timeout(SECOND * 3 / 2, call).await.is_err());
    sleep(10 * SECOND).await;
    assert_eq!(calls.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn attempts_can_be_made_by_somebody_else() {
    let retry = every_second(3).budget(Budget::new(10, 0.1));
    let mut attempts = retry.attempts(None);
    assert_eq!(attempts.failed(&retry, Class::Transient), Ok(SECOND));
    sleep(SECOND).await;
    assert_eq!(attempts.failed(&retry, Class::Transient), Ok(SECOND));
    assert_eq!(attempts.failed(&retry, Class::Transient), Err(Stop::Attempts));
    assert_eq!((attempts.made(), attempts.elapsed()), (3, SECOND));
}

#[tokio::test(start_paused = true)]
async fn other_error_types_keep_what_was_tried() {
    let boxed = every_second(2).call(async || Err::<(), _>(failing(Class::Transient))).await;
    let boxed = BoxError::from_retry(boxed.unwrap_err());
    let tried = boxed.downcast_ref::<Tried>().unwrap();
    assert_eq!(
        (tried.attempts(), tried.stop(), tried.earlier()),
        (2, Stop::Attempts, &["no".to_owned()][..])
    );
    assert_eq!(
        (tried.to_string(), tried.source().unwrap().to_string()),
        ("2 attempts failed in 1s".into(), "no".into())
    );
    assert_eq!(class_of(&*boxed), Some(Class::Transient));
    let once = every_second(2).call(async || Err::<(), _>(failing(Class::Permanent))).await;
    let once = BoxError::from_retry(once.unwrap_err());
    assert!(once.is::<Classified>(), "what was not repeated is as it was");

    let timeout = Timeout::new(SECOND);
    let timed = || timeout.call(pending::<Result<(), Error<io::Error>>>);
    let error = Error::from_retry(every_second(2).call(timed).await.unwrap_err());
    assert_eq!((error.attempts(), error.failure().is_none()), (2, true));
    assert!(
        matches!(error, Error::Tried(tried) if matches!(tried.error(), Error::TimedOut(TimedOut { .. })))
    );
    let failed = || ready(Err::<(), _>(Error::Failed(io::Error::from(io::ErrorKind::NotFound))));
    let error = Error::from_retry(every_second(2).call(failed).await.unwrap_err());
    assert!(matches!(error, Error::Failed(_)));
}

#[test]
fn it_prints_itself_and_refuses_nonsense() {
    let retry = every_second(4).elapsed_max(30 * SECOND).budget(Budget::new(10, 0.1));
    assert_eq!(retry.to_string(), "up to 4 attempts, 1s each time, within 30s, from a budget");
    assert_eq!(Retry::never().to_string(), "one attempt");
    assert_eq!((retry.attempts_max(), retry.backoff_used()), (4, Backoff::fixed(SECOND)));
    assert!(std::panic::catch_unwind(|| Retry::new(0)).is_err());
    for ratio in [0.0, 1.1, f64::NAN] {
        assert!(std::panic::catch_unwind(|| Budget::new(1, ratio)).is_err());
    }
}

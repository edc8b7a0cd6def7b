//! What errors are taken for.

use std::fmt;
use std::io;
use std::time::Duration;

use millstream_resilience::{
    BoxError, BreakerSettings, Bulkhead, CircuitBreaker, Class, Classified, Classify, Error, Limited, Rate,
    RateLimiter, TimedOut, class_of,
};

const TIMED_OUT: TimedOut = TimedOut { limit: Duration::from_secs(1) };

/// An error of somebody who knows nothing of classes.
#[derive(Debug)]
struct Wrapped(BoxError);

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wrapped")
    }
}

impl std::error::Error for Wrapped {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

#[test]
fn an_io_error_is_of_the_class_of_its_kind() {
    use io::ErrorKind::*;
    for kind in [ConnectionRefused, ConnectionReset, BrokenPipe, TimedOut, Interrupted, UnexpectedEof] {
        assert_eq!(io::Error::from(kind).class(), Class::Transient, "{kind}");
    }
    for kind in [NotFound, PermissionDenied, InvalidData, AlreadyExists, StorageFull, Unsupported] {
        assert_eq!(io::Error::from(kind).class(), Class::Permanent, "{kind}");
        assert_eq!(io::Error::new(kind, "text").class(), Class::Permanent, "{kind}");
    }
    assert_eq!(class_of(&io::Error::other("text")), None);
    assert_eq!(io::Error::other("text").class(), Class::Transient);
    assert_eq!(io::Error::from_raw_os_error(2).class(), Class::Permanent, "ENOENT");
    assert_eq!(io::Error::from_raw_os_error(104).class(), Class::Transient, "ECONNRESET");
}

#[test]
fn the_cause_is_found_through_those_who_wrap_it() {
    let root = io::Error::from(io::ErrorKind::NotFound);
    let wrapped = Wrapped(Wrapped(root.into()).into());
    assert_eq!(class_of(&wrapped), Some(Class::Permanent));
    assert_eq!(class_of(&io::Error::other(TIMED_OUT)), Some(Class::Transient));
    let permanent = Classified::new(Class::Permanent, TIMED_OUT);
    assert_eq!(
        class_of(&io::Error::new(io::ErrorKind::TimedOut, permanent)),
        Some(Class::Transient),
        "its kind says so"
    );
    let transient = Classified::new(Class::Transient, "later");
    assert_eq!(
        io::Error::new(io::ErrorKind::InvalidData, transient).class(),
        Class::Transient,
        "what is in it knows better"
    );
    let said = Classified::new(Class::Permanent, Wrapped(TIMED_OUT.into()));
    assert_eq!(class_of(&Wrapped(said.into())), Some(Class::Permanent), "the outermost that knows");
    let unknown: BoxError = "unknown".into();
    assert_eq!((class_of(&*unknown), unknown.class()), (None, Class::Transient));
}

#[test]
fn what_was_classified_looks_as_before() {
    let error = Classified::new(Class::Cancelled, Wrapped("the root".into()));
    assert_eq!((error.to_string(), error.class()), ("wrapped".into(), Class::Cancelled));
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the root");
    assert!(error.into_inner().is::<Wrapped>());
}

#[tokio::test(start_paused = true)]
async fn the_policies_own_errors_are_worth_another_attempt_when_they_say() {
    let second = Duration::from_secs(1);
    let breaker = CircuitBreaker::new(BreakerSettings::default().pause(second));
    breaker.trip();
    let open = breaker.try_acquire().unwrap_err();
    let limiter = RateLimiter::new(Rate::new(1, second));
    limiter.try_acquire(1).unwrap();
    let limited = limiter.try_acquire(1).unwrap_err();
    let bulkhead = Bulkhead::new(1);
    let _place = bulkhead.acquire().await.unwrap();
    let full = bulkhead.acquire().await.unwrap_err();
    let later = Class::Throttled { retry_after: Some(second) };
    let boxes: [(BoxError, Class); 4] = [
        (TIMED_OUT.into(), Class::Transient),
        (open.clone().into(), later),
        (limited.clone().into(), later),
        (full.clone().into(), Class::Throttled { retry_after: None }),
    ];
    for (error, class) in boxes {
        assert_eq!(error.class(), class, "{error}");
    }
    let typed: [(Error<io::Error>, Class); 5] = [
        (TIMED_OUT.into(), Class::Transient),
        (open.into(), later),
        (limited.into(), later),
        (full.into(), Class::Throttled { retry_after: None }),
        (Error::Failed(io::ErrorKind::NotFound.into()), Class::Permanent),
    ];
    for (error, class) in typed {
        assert_eq!(error.class(), class, "{error}");
    }
    let _: fn(Limited) -> BoxError = BoxError::from;
}

#[tokio::test(start_paused = true)]
async fn an_aborted_task_is_cancelled_and_a_panicked_one_is_not_tried_again() {
    let aborted = tokio::spawn(std::future::pending::<()>());
    aborted.abort();
    assert_eq!(class_of(&aborted.await.unwrap_err()), Some(Class::Cancelled));
    let panicked = tokio::spawn(async { panic!("on purpose") });
    assert_eq!(class_of(&panicked.await.unwrap_err()), Some(Class::Permanent));
    let late = tokio::time::timeout(Duration::ZERO, std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(class_of(&late), Some(Class::Transient));
}

#[test]
fn what_a_policy_says_keeps_its_class_in_a_chain() {
    type Behind = Error<io::Error>;
    let limiter = RateLimiter::new(Rate::new(1, Duration::from_secs(1)));
    let _ = limiter.try_acquire(1);
    let limited = limiter.try_acquire(1).unwrap_err();
    let throttled = limited.class();
    let failed: Behind = Error::Failed(io::Error::from(io::ErrorKind::NotFound));
    for (error, class) in [
        (Behind::from(limited), throttled),
        (Behind::from(TIMED_OUT), Class::Transient),
        (failed, Class::Permanent),
    ] {
        assert_eq!(class_of(&Wrapped(error.into())), Some(class));
    }
    assert_eq!(class_of(&Wrapped(Class::Permanent.into())), Some(Class::Permanent));
}

//! Behaviours that know their message, around notifications and the opening of streams.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream_flow::{BoxError, Memo, Pipe};
use millstream_mediator::{
    About, BehaviourOf, Cache, Call, Check, Dedupe, Error, ErrorKind, Fallback, Handler, Intercept,
    InterceptorOf, Mediator, Next, Notification, Notified, Opening, Outcome, Published, Request, Scope,
    Streaming, Timeout,
};

use crate::streams::Count;
use crate::{Ask, Do};

struct Paid(u64);
impl Notification for Paid {}

async fn count(
    to: Count,
) -> Result<Pipe<impl millstream_flow::Flow<Item = Result<u64, Error>, Token = ()>>, Error> {
    Ok(Pipe::from_iter(0..to.0).map(Ok::<_, Error>))
}

fn words(published: &Published) -> Vec<&'static str> {
    let word = |outcome: Outcome<'_>| match outcome {
        Outcome::Done => "done",
        Outcome::Failed(error) => error.kind().word(),
        Outcome::NotCalled => "not called",
        Outcome::Detached => "detached",
    };
    published.outcomes().map(|(_, outcome)| word(outcome)).collect()
}

async fn sum(stream: Streaming<u64>) -> u64 {
    stream.fold(0, |sum, item| *sum += item.unwrap()).await.unwrap().0
}

#[tokio::test]
async fn checks_fallbacks_and_hooks_of_an_opening_stand_around_that_stream_alone() {
    struct OneMore;
    impl InterceptorOf<Opening<Count>> for OneMore {
        async fn request(&self, _: &Call<'_>, mut asked: Opening<Count>) -> Result<Opening<Count>, BoxError> {
            asked.0.0 += 1;
            Ok(asked)
        }
    }
    let mediator = Mediator::builder()
        .behaviour_of::<Opening<Count>, _>(Fallback::new(async |error: Error| match error.kind() {
            ErrorKind::Denied => Ok(Pipe::from_iter([7]).map(Ok).boxed()),
            _ => Err(error),
        }))
        .behaviour_of(Check::valid(|asked: &Opening<Count>| match asked.0.0 {
            0 => Err("nothing to count".into()),
            _ => Ok(()),
        }))
        .behaviour_of(Check::allowed(|_: &Call<'_>, asked: &Opening<Count>| match asked.0.0 {
            13 => Err("unlucky".into()),
            _ => Ok(()),
        }))
        .behaviour_of(Intercept::new(OneMore))
        .stream(count)
        .request(async |ask: Ask| Ok::<_, BoxError>(ask.0))
        .build()
        .unwrap();
    assert_eq!(sum(mediator.stream(Count(4)).await.unwrap()).await, 10, "of five items");
    let error = mediator.stream(Count(0)).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Invalid);
    assert_eq!(sum(mediator.stream(Count(13)).await.unwrap()).await, 7);
    assert_eq!(mediator.send(Ask(0)).await.unwrap(), 0);
    let table = mediator.describe().to_string();
    assert!(table.contains("fallback > validation > authorization > interceptor OneMore"), "{table}");
}

#[tokio::test(start_paused = true)]
async fn checks_and_dedupes_of_a_notification_stand_around_each_of_its_handlers() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = |word: &'static str| {
        let told = told.clone();
        move |paid: Arc<Paid>| {
            told.lock().unwrap().push((word, paid.0));
            std::future::ready(Ok::<_, BoxError>(()))
        }
    };
    let minute = Duration::from_secs(60);
    let mediator = Mediator::builder()
        .behaviour_of(Check::valid(
            |paid: &Notified<Paid>| {
                if paid.0.0 == 0 { Err("nothing was paid".into()) } else { Ok(()) }
            },
        ))
        .behaviour_of(Dedupe::new(10, minute, |paid: &Notified<Paid>| paid.0.0))
        .notification(tell("a"))
        .notification(tell("b"))
        .build()
        .unwrap();
    assert_eq!(words(&mediator.publish(Paid(0)).await), ["invalid", "invalid"]);
    assert_eq!(words(&mediator.publish(Paid(5)).await), ["done", "done"]);
    assert_eq!(words(&mediator.publish(Paid(5)).await), ["duplicate", "duplicate"]);
    assert_eq!(*told.lock().unwrap(), [("a", 5), ("b", 5)], "each handler has a memory of its own");
}

#[test]
fn a_cache_of_a_notification_is_refused() {
    let error = Mediator::builder()
        .behaviour_of(Cache::new(Memo::new(10), |paid: &Notified<Paid>| paid.0.0))
        .notification(async |_: Arc<Paid>| Ok::<_, BoxError>(()))
        .build()
        .unwrap_err();
    assert!(
        error.problems()[0].starts_with("the behaviour `cache`: a notification has no answer"),
        "{error}"
    );
}

#[tokio::test]
async fn what_knows_one_way_in_which_a_type_is_dispatched_leaves_the_others_alone() {
    /// Both a command and a notification.
    struct Save;
    impl Request for Save {
        type Response = ();
    }
    impl Notification for Save {}

    #[derive(Clone, Default)]
    struct Counting(Arc<AtomicU64>);
    impl<R: Request> BehaviourOf<R> for Counting {
        fn name(&self) -> Cow<'static, str> {
            "counting".into()
        }
        fn of(&self, _: &About) -> Self {
            self.clone()
        }
        async fn call<N: Next<R>>(
            &self,
            call: &Call<'_>,
            request: R,
            next: &N,
        ) -> Result<R::Response, Error> {
            self.0.fetch_add(1, Ordering::SeqCst);
            next.call(call, request).await
        }
    }
    let (commands, notifications) = (Counting::default(), Counting::default());
    let mediator = Mediator::builder()
        .behaviour_of::<Save, _>(commands.clone())
        .behaviour_of::<Notified<Save>, _>(notifications.clone())
        .request(async |_: Save| Ok::<_, BoxError>(()))
        .notification(async |_: Arc<Save>| Ok::<_, BoxError>(()))
        .build()
        .unwrap();
    mediator.send(Save).await.unwrap();
    for _ in 0..2 {
        assert!(mediator.publish(Save).await.into_result().is_ok());
    }
    assert_eq!((commands.0.load(Ordering::SeqCst), notifications.0.load(Ordering::SeqCst)), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_scope_of_one_type_may_name_the_message_or_how_it_is_dispatched() {
    let never = async |_: Arc<Paid>| std::future::pending::<Result<(), BoxError>>().await;
    for scope in [Scope::of::<Paid>(), Scope::of::<Notified<Paid>>()] {
        let mediator = Mediator::builder()
            .behaviour_for(scope, Timeout::new(Duration::from_secs(1)))
            .notification(never)
            .build()
            .unwrap();
        assert_eq!(words(&mediator.publish(Paid(1)).await), ["timed_out"]);
    }
}

#[tokio::test]
async fn a_handler_of_notifications_that_is_a_type_sees_its_call() {
    struct Told(Arc<Mutex<Vec<u64>>>);
    impl Handler<Notified<Paid>> for Told {
        type Error = BoxError;
        async fn handle(&self, Notified(paid): Notified<Paid>, call: &Call<'_>) -> Result<(), BoxError> {
            assert_eq!(&*call.about().name, "Paid");
            self.0.lock().unwrap().extend([paid.0, call.correlation().0]);
            Ok(())
        }
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let mediator = Mediator::builder()
        .notification_handler(Told(told.clone()))
        .notification_handler(Told(told.clone()))
        .build()
        .unwrap();
    let context = millstream_mediator::Context::new().correlation(7);
    assert_eq!(words(&mediator.publish_in(&context, Paid(3)).await), ["done", "done"]);
    assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [3, 7, 3, 7]);

    assert_eq!(words(&mediator.publish(Paid(3)).await), ["done", "done"]);
    let first = std::mem::take(&mut *told.lock().unwrap());
    assert_eq!(first[1], first[3], "one publish is one piece of work");
    assert_eq!(words(&mediator.publish(Paid(3)).await), ["done", "done"]);
    assert_ne!(first[1], told.lock().unwrap()[1]);
}

#[test]
fn a_handler_type_without_state_is_registered_once() {
    struct Told;
    impl Handler<Notified<Paid>> for Told {
        type Error = BoxError;
        async fn handle(&self, _: Notified<Paid>, _: &Call<'_>) -> Result<(), BoxError> {
            Ok(())
        }
    }
    let error =
        Mediator::builder().notification_handler(Told).notification_handler(Told).build().unwrap_err();
    assert_eq!(error.problems(), ["the handler `Told` of Paid is registered twice; remove one of them"]);
}

#[tokio::test]
async fn what_is_sent_because_of_a_call_goes_on_with_its_correlation() {
    struct Told(Arc<Mutex<Vec<u64>>>, Option<Mediator>);
    impl Handler<Do> for Told {
        type Error = Error;
        async fn handle(&self, order: Do, call: &Call<'_>) -> Result<(), Error> {
            self.0.lock().unwrap().push(call.correlation().0);
            assert_eq!(call.onward().get::<u8>(), Some(&5), "with what the caller gave along");
            match &self.1 {
                Some(inner) => inner.send_in(&call.onward(), order).await,
                None => Ok(()),
            }
        }
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let inner = Mediator::builder().request_handler(Told(told.clone(), None)).build().unwrap();
    let outer = Mediator::builder().request_handler(Told(told.clone(), Some(inner))).build().unwrap();
    let context = millstream_mediator::Context::new().with(5u8);
    outer.send_in(&context, Do(String::new())).await.unwrap();
    let told = told.lock().unwrap();
    assert_eq!(told[0], told[1]);
}

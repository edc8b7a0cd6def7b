use std::borrow::Cow;
use std::error::Error as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use millstream_flow::{BoxError, Panicked};
use millstream_mediator::{
    About, Behaviour, BehaviourOf, Call, Context, Error, ErrorKind, Handler, Kind, Mediator, Next, Request,
    Scope,
};

use crate::{Ask, Do};

async fn double(ask: Ask) -> Result<u64, BoxError> {
    Ok(ask.0 * 2)
}

async fn obey(_: Do) -> Result<(), BoxError> {
    Ok(())
}

#[tokio::test]
async fn a_request_is_answered_by_its_handler_whatever_that_is() {
    struct Adder(u64);
    struct Add(u64);
    impl Request for Add {
        type Response = u64;
    }
    impl Handler<Add> for Adder {
        type Error = Error;
        async fn handle(&self, add: Add, call: &Call<'_>) -> Result<u64, Error> {
            assert_eq!(&*call.about().name, "Add");
            Ok(self.0 + add.0)
        }
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let mediator = Mediator::builder()
        .request(double)
        .request_with(told.clone(), async |told: Arc<Mutex<Vec<String>>>, order: Do| {
            told.lock().map_err(|_| "poisoned")?.push(order.0);
            Ok::<_, &str>(())
        })
        .request_handler(Adder(5))
        .build()
        .unwrap();
    assert_eq!(mediator.send(Ask(21)).await.unwrap(), 42);
    mediator.send(Do("sweep".into())).await.unwrap();
    assert_eq!(mediator.send(Add(1)).await.unwrap(), 6);
    assert_eq!(*told.lock().unwrap(), ["sweep"]);
    let handle = mediator.handle::<Ask>().unwrap();
    drop(mediator);
    assert_eq!(handle.send(Ask(1)).await.unwrap(), 2, "a handle keeps what it leads to");
}

#[tokio::test]
async fn a_request_without_handler_is_an_error_that_names_it() {
    let mediator = Mediator::builder().build().unwrap();
    let error = mediator.send(Ask(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (&ErrorKind::NoHandler, "Ask"));
    assert_eq!(mediator.handle::<Ask>().unwrap_err().kind(), &ErrorKind::NoHandler);
}

#[test]
fn what_is_wrong_is_told_all_at_once_with_its_remedy() {
    mod other {
        #[derive(Debug)]
        pub(super) struct Do;
        impl millstream_mediator::Request for Do {
            type Response = ();
        }
    }
    let error = Mediator::builder()
        .behaviour_for(Scope::of::<Ask>(), Around("lonely"))
        .request(obey)
        .request(async |_: Do| Ok::<_, BoxError>(()))
        .request(async |_: other::Do| Ok::<_, BoxError>(()))
        .declare::<Ask>()
        .json_nothing()
        .behaviour(Around("late"))
        .build()
        .unwrap_err();
    let text = error.to_string();
    for part in [
        "the behaviour `lonely` is for Ask, and no handler of such is registered; register one or remove it",
        "Do has two handlers, `obey` and `closure in what_is_wrong_is_told_all_at_once_with_its_remedy`",
        "are both called Do; give one of them another by its `name` function",
        "the request Ask is declared and has no handler; register one",
        "the behaviour `late` comes after the handler of Do",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(error.problems().len(), 5);
}

/// A place in a chain where a test says nothing.
trait JsonNothing: Sized {
    fn json_nothing(self) -> Self {
        self
    }
}
impl<T> JsonNothing for T {}

#[derive(Clone, Copy)]
struct Around(&'static str);

#[derive(Clone, Default)]
struct Trace(Arc<Mutex<Vec<String>>>);

impl Behaviour for Around {
    fn name(&self) -> Cow<'static, str> {
        self.0.into()
    }
    fn of(&self, _: &About) -> Self {
        *self
    }
    async fn call<R: Request, N: Next<R>>(
        &self,
        call: &Call<'_>,
        request: R,
        next: &N,
    ) -> Result<R::Response, Error> {
        let trace = call.context().get::<Trace>().cloned().unwrap_or_default();
        trace.0.lock().unwrap().push(format!("> {}", self.0));
        let response = next.call(call, request).await;
        trace.0.lock().unwrap().push(format!("< {}", self.0));
        response
    }
}

/// Adds to what is asked and to what is answered.
#[derive(Clone, Copy)]
struct Adding(u64);

impl BehaviourOf<Ask> for Adding {
    fn name(&self) -> Cow<'static, str> {
        format!("adding {}", self.0).into()
    }
    fn of(&self, _: &About) -> Self {
        *self
    }
    async fn call<N: Next<Ask>>(&self, call: &Call<'_>, ask: Ask, next: &N) -> Result<u64, Error> {
        Ok(next.call(call, Ask(ask.0 + self.0)).await? + self.0)
    }
}

#[tokio::test]
async fn behaviours_stand_around_what_their_scope_says_the_first_outermost() {
    let mediator = Mediator::builder()
        .behaviour(Around("all"))
        .behaviour_for(Scope::kind(Kind::Query), Around("queries"))
        .behaviour_for(Scope::kind(Kind::Command), Around("commands"))
        .behaviour_for(Scope::requests().except(Scope::of::<Do>()), Around("not do"))
        .behaviour_for(Scope::when("short", |about| about.name.len() < 3), Around("short"))
        .request(double)
        .request(obey)
        .build()
        .unwrap();
    let sent = async |ask| {
        let trace = Trace::default();
        let context = Context::new().with(trace.clone());
        if ask {
            mediator.send_in(&context, Ask(1)).await.unwrap();
        } else {
            mediator.send_in(&context, Do("x".into())).await.unwrap();
        }
        trace.0.lock().unwrap().join(" ")
    };
    assert_eq!(sent(true).await, "> all > queries > not do < not do < queries < all");
    assert_eq!(sent(false).await, "> all > commands > short < short < commands < all");
    assert_eq!(
        mediator.describe().to_string(),
        "message  kind     handler  behaviours, outermost first\n\
         Ask      query    double   all > queries > not do\n\
         Do       command  obey     all > commands > short\n"
    );
}

#[tokio::test]
async fn any_number_of_behaviours_fits_with_boxes_between() {
    let (a, b, c, d) = (Around("a"), Around("b"), Around("c"), Around("d"));
    let mediator = Mediator::builder()
        .behaviour(a)
        .behaviour(b)
        .behaviour(c)
        .behaviour(d)
        .behaviour(a)
        .behaviour(b)
        .behaviour(c)
        .behaviour(d)
        .boxed()
        .behaviour(a)
        .behaviour(b)
        .behaviour(c)
        .behaviour(d)
        .behaviour(a)
        .behaviour(b)
        .behaviour(c)
        .behaviour(d)
        .boxed()
        .behaviour(a)
        .behaviour(b)
        .behaviour(c)
        .behaviour(d)
        .behaviour(a)
        .behaviour(b)
        .behaviour(c)
        .behaviour(d)
        .request(double)
        .build()
        .unwrap();
    let trace = Trace::default();
    assert_eq!(mediator.send_in(&Context::new().with(trace.clone()), Ask(4)).await.unwrap(), 8);
    assert_eq!(trace.0.lock().unwrap().len(), 48);
    assert_eq!(mediator.describe().lines[0].behaviours.len(), 24);
}

#[tokio::test]
async fn a_behaviour_of_one_type_changes_its_request_and_response() {
    let mediator =
        Mediator::builder().behaviour_of::<Ask, _>(Adding(10)).request(double).request(obey).build().unwrap();
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 32);
    mediator.send(Do(String::new())).await.unwrap();
}

#[tokio::test]
async fn a_handlers_error_keeps_its_chain() {
    let mediator = Mediator::builder()
        .behaviour(Around("a"))
        .request(async |_: Do| Err::<(), _>(std::io::Error::other("the disk is full")))
        .build()
        .unwrap();
    let error = mediator.send(Do(String::new())).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Failed);
    assert_eq!(error.find::<std::io::Error>().unwrap().to_string(), "the disk is full");
    assert_eq!(error.source().unwrap().to_string(), "the disk is full");
    assert!(error.into_cause().is::<std::io::Error>());
}

#[tokio::test]
async fn a_panic_is_an_error_with_the_handlers_name_and_harms_nobody_else() {
    async fn explode(ask: Ask) -> Result<u64, BoxError> {
        match ask.0 {
            0 => panic!("out of luck"),
            n => Ok(n),
        }
    }
    #[expect(unreachable_code, reason = "it panics before it has a future")]
    fn at_once(_: Do) -> std::future::Ready<Result<(), BoxError>> {
        panic!("at once");
        std::future::ready(Ok(()))
    }
    let mediator = Mediator::builder().request(explode).request(at_once).build().unwrap();
    let error = mediator.send(Ask(0)).await.unwrap_err();
    assert_eq!((error.kind(), error.handler()), (&ErrorKind::Panicked, Some("explode")));
    assert_eq!(error.find::<Panicked>().unwrap().message(), "out of luck");
    assert_eq!(mediator.send(Ask(3)).await.unwrap(), 3);
    assert_eq!(
        mediator.send(Do(String::new())).await.unwrap_err().find::<Panicked>().unwrap().message(),
        "at once"
    );
}

#[tokio::test]
async fn a_behaviour_that_panics_fails_its_call_alone() {
    #[derive(Clone, Copy)]
    struct Bomb;
    impl BehaviourOf<Ask> for Bomb {
        fn name(&self) -> Cow<'static, str> {
            "bomb".into()
        }
        fn of(&self, _: &About) -> Self {
            *self
        }
        async fn call<N: Next<Ask>>(&self, call: &Call<'_>, ask: Ask, next: &N) -> Result<u64, Error> {
            assert!(ask.0 != 13, "unlucky");
            next.call(call, ask).await
        }
    }
    let mediator = Mediator::builder().behaviour_of::<Ask, _>(Bomb).request(double).build().unwrap();
    assert_eq!(mediator.send(Ask(13)).await.unwrap_err().kind(), &ErrorKind::Panicked);
    assert_eq!(mediator.send(Ask(14)).await.unwrap(), 28);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_call_drops_its_handler_where_it_waits() {
    struct Guard(Arc<AtomicU64>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicU64::new(0));
    let mediator = Mediator::builder()
        .request_with(dropped.clone(), async |dropped, _: Do| {
            let _guard = Guard(dropped);
            std::future::pending::<Result<(), BoxError>>().await
        })
        .build()
        .unwrap();
    let call = mediator.send(Do(String::new()));
    assert!(tokio::time::timeout(std::time::Duration::from_secs(1), call).await.is_err());
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_correlation_is_the_callers_or_the_calls_own() {
    struct Told(Arc<Mutex<Vec<u64>>>);
    impl Handler<Do> for Told {
        type Error = Error;
        async fn handle(&self, _: Do, call: &Call<'_>) -> Result<(), Error> {
            assert_eq!(call.correlation(), call.correlation());
            assert_eq!(call.correlation(), call.detach().call().correlation());
            self.0.lock().unwrap().push(call.correlation().0);
            Ok(())
        }
    }
    let told = Arc::new(Mutex::new(Vec::new()));
    let mediator = Mediator::builder().request_handler(Told(told.clone())).build().unwrap();
    let context = Context::new().correlation(7);
    mediator.send_in(&context, Do(String::new())).await.unwrap();
    mediator.send(Do(String::new())).await.unwrap();
    mediator.send(Do(String::new())).await.unwrap();
    let told = told.lock().unwrap();
    assert_eq!(told[0], 7);
    assert_ne!(told[1], told[2]);
}

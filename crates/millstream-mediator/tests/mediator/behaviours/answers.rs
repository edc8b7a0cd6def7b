//! What answers, refuses or changes a call instead of its handler.

use super::*;

#[tokio::test]
async fn checks_refuse_before_the_handler_and_say_why() {
    struct Principal(&'static str);
    let (calls, handler) = failing(0, 0);
    let mediator = Mediator::builder()
        .behaviour(Authorize::new(|call| match call.context().get::<Principal>() {
            Some(_) => Ok(()),
            None => Err("nobody is logged in".into()),
        }))
        .behaviour_of(Check::allowed(|call: &Call<'_>, ask: &Ask| match call.context().get::<Principal>() {
            Some(Principal("root")) => Ok(()),
            _ if ask.0 > 10 => Err("only root asks for more than ten".into()),
            _ => Ok(()),
        }))
        .behaviour_of(Check::valid(|ask: &Ask| if ask.0 == 0 { Err("nothing".into()) } else { Ok(()) }))
        .request(handler)
        .build()
        .unwrap();
    let (ada, root) = (Context::new().with(Principal("ada")), Context::new().with(Principal("root")));
    let kind = async |context: &Context, n| {
        mediator.send_in(context, Ask(n)).await.map_err(|error| error.kind().word())
    };
    assert_eq!(kind(&Context::new(), 1).await, Err("denied"));
    assert_eq!(kind(&ada, 11).await, Err("denied"));
    assert_eq!(kind(&ada, 0).await, Err("invalid"));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    assert_eq!((kind(&ada, 5).await, kind(&root, 11).await), (Ok(5), Ok(11)));
    let error = mediator.send_in(&ada, Ask(0)).await.unwrap_err();
    assert_eq!(millstream_flow::chain(&error), "Ask: invalid: nothing");
}

#[tokio::test(start_paused = true)]
async fn a_cache_calls_once_for_many_and_forgets_errors() {
    let (calls, handler) = failing(1, 1);
    let memo = Memo::new(100).age(60 * SECOND);
    let mediator = Mediator::builder()
        .behaviour_of(Cache::new(memo.clone(), |ask: &Ask| ask.0))
        .request(handler)
        .build()
        .unwrap();
    assert!(mediator.send(Ask(1)).await.is_err());
    let began = Instant::now();
    let answers = join_all((0..10).map(|_| mediator.send(Ask(1)))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap() == 1));
    assert_eq!((calls.load(Ordering::SeqCst), began.elapsed()), (2, SECOND), "one flight for all");
    assert_eq!(number(&mediator, "mediator_cache_total", &[("outcome", "hit")]), memo.hits() as f64);
    sleep(61 * SECOND).await;
    mediator.send(Ask(1)).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn the_flight_that_others_wait_for_may_be_dropped() {
    let (calls, handler) = failing(0, 5);
    let mediator = Mediator::builder()
        .behaviour_of(Cache::new(Memo::new(100), |ask: &Ask| ask.0))
        .request(handler)
        .build()
        .unwrap();
    let other = tokio::spawn({
        let mediator = mediator.clone();
        async move {
            sleep(SECOND).await;
            mediator.send(Ask(1)).await
        }
    });
    assert!(tokio::time::timeout(2 * SECOND, mediator.send(Ask(1))).await.is_err());
    assert_eq!(other.await.unwrap().unwrap(), 1);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_refused_once_its_like_has_succeeded() {
    let (calls, handler) = failing(1, 1);
    let mediator = Mediator::builder()
        .behaviour_of(Dedupe::new(100, 60 * SECOND, |ask: &Ask| ask.0))
        .request(handler)
        .build()
        .unwrap();
    assert_eq!(mediator.send(Ask(1)).await.unwrap_err().kind(), &ErrorKind::Failed);
    let (first, second) = tokio::join!(mediator.send(Ask(1)), mediator.send(Ask(1)));
    assert_eq!((first.unwrap(), second.unwrap_err().kind()), (1, &ErrorKind::Duplicate));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    sleep(61 * SECOND).await;
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1);
}

#[tokio::test]
async fn an_interceptor_of_all_changes_in_place_and_refuses() {
    struct Plus;
    impl Interceptor for Plus {
        fn request(&self, call: &Call<'_>, request: &mut dyn Any) -> Result<(), BoxError> {
            if let Some(Ask(n)) = request.downcast_mut() {
                *n += 1;
            }
            if call.about().kind == Kind::Command { Err("no commands today".into()) } else { Ok(()) }
        }
        fn response(&self, _: &Call<'_>, response: &mut dyn Any) -> Result<(), BoxError> {
            if let Some(n) = response.downcast_mut::<u64>() {
                *n *= 10;
            }
            Ok(())
        }
        fn error(&self, call: &Call<'_>, error: Error) -> Error {
            Error::new(call.about(), ErrorKind::Denied).because(error)
        }
    }
    let mediator = Mediator::builder()
        .behaviour(InterceptAll::new(Plus))
        .request(async |ask: Ask| Ok::<_, BoxError>(ask.0))
        .request(async |_: Do| Ok::<_, BoxError>(()))
        .build()
        .unwrap();
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 20);
    let error = mediator.send(Do(String::new())).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Denied);
    assert_eq!(error.find::<Error>().unwrap().kind(), &ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_refused_from_when_its_like_was_handled_and_none_runs_beside_it() {
    // Two keys share the memory of one, and handling takes longer than what is handled is remembered.
    let (running, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counted = (running.clone(), most.clone());
    let mediator = Mediator::builder()
        .behaviour_of(Dedupe::new(1, 10 * SECOND, |ask: &Ask| ask.0))
        .request(move |Ask(n): Ask| {
            let (running, most) = counted.clone();
            async move {
                if n == 1 {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    sleep(15 * SECOND).await;
                    running.fetch_sub(1, Ordering::SeqCst);
                }
                Ok::<_, BoxError>(n)
            }
        })
        .build()
        .unwrap();
    let late = async {
        sleep(11 * SECOND).await;
        mediator.send(Ask(2)).await.unwrap();
        mediator.send(Ask(1)).await
    };
    let (first, late) = tokio::join!(mediator.send(Ask(1)), late);
    assert_eq!((first.unwrap(), late.unwrap_err().kind()), (1, &ErrorKind::Duplicate));
    assert_eq!(most.load(Ordering::SeqCst), 1);
    sleep(9 * SECOND).await;
    let again = mediator.send(Ask(1)).await;
    assert_eq!(again.unwrap_err().kind(), &ErrorKind::Duplicate, "it was handled nine seconds ago");
    sleep(SECOND).await;
    assert_eq!(mediator.send(Ask(1)).await.unwrap(), 1);
}

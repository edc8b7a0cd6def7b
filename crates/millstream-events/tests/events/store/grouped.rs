//! Appends that are stored together, by a broker that refuses, fails, hangs and panics.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use millstream_events::{AppendError, Appended, Event, EventStore, Expected};
use millstream_message::{
    Batch, Binding, Broker, BrokerError, BrokerErrorKind, BrokerUrl, Browsed, Confirm, ConsumeOptions,
    Consumer, Exchange, Features, Message, Queue, QueueStats, StreamFrom, StreamReader, StreamSpec,
    StreamStats,
};
use tokio::sync::Semaphore;

type Judge = dyn Fn(&[Message]) -> Result<(), BrokerError> + Send + Sync;

/// A broker in memory that asks first whether it may append.
pub(crate) struct Picky {
    inner: Arc<dyn Broker>,
    judge: Box<Judge>,
    /// How many messages each append had.
    appends: Mutex<Vec<usize>>,
    /// Appends that may go on.
    lets: Semaphore,
    at_once: AtomicUsize,
}

impl Picky {
    pub(crate) async fn open(
        judge: impl Fn(&[Message]) -> Result<(), BrokerError> + Send + Sync + 'static,
    ) -> Arc<Picky> {
        let inner = millstream_embedded::open(&"memory:".parse().unwrap()).await.unwrap();
        let (appends, lets) = (Mutex::default(), Semaphore::new(Semaphore::MAX_PERMITS));
        Arc::new(Picky { inner, judge: Box::new(judge), appends, lets, at_once: 0.into() })
    }

    fn appends(&self) -> Vec<usize> {
        self.appends.lock().unwrap().clone()
    }
}

impl Broker for Picky {
    fn append<'a>(
        &'a self,
        stream: &'a str,
        messages: Vec<Message>,
    ) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move {
            self.appends.lock().unwrap().push(messages.len());
            self.at_once.fetch_add(1, Ordering::SeqCst);
            self.lets.acquire().await.unwrap().forget();
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            (self.judge)(&messages)?;
            self.inner.append(stream, messages).await
        })
    }

    fn url(&self) -> &BrokerUrl {
        self.inner.url()
    }
    fn features(&self) -> Features {
        self.inner.features()
    }
    fn declare_exchange(&self, exchange: Exchange) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.declare_exchange(exchange)
    }
    fn delete_exchange<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.delete_exchange(name)
    }
    fn declare_queue(&self, queue: Queue) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.declare_queue(queue)
    }
    fn delete_queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        self.inner.delete_queue(name)
    }
    fn bind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.bind(binding)
    }
    fn unbind(&self, binding: Binding) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.unbind(binding)
    }
    fn purge<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, BrokerError>> {
        self.inner.purge(queue)
    }
    fn submit(&self, batch: Batch) -> BoxFuture<'_, Result<Confirm, BrokerError>> {
        self.inner.submit(batch)
    }
    fn consume<'a>(
        &'a self,
        queue: &'a str,
        options: ConsumeOptions,
    ) -> BoxFuture<'a, Result<Consumer, BrokerError>> {
        self.inner.consume(queue, options)
    }
    fn browse<'a>(
        &'a self,
        queue: &'a str,
        skip: u64,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Browsed>, BrokerError>> {
        self.inner.browse(queue, skip, max)
    }
    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<QueueStats, BrokerError>> {
        self.inner.stats(queue)
    }
    fn queue<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Queue>, BrokerError>> {
        self.inner.queue(name)
    }
    fn queues(&self) -> BoxFuture<'_, Result<Vec<String>, BrokerError>> {
        self.inner.queues()
    }
    fn position<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, BrokerError>> {
        self.inner.position(name)
    }
    fn store_position<'a>(
        &'a self,
        name: &'a str,
        value: Option<Bytes>,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.store_position(name, value)
    }
    fn declare_stream(&self, stream: StreamSpec) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.declare_stream(stream)
    }
    fn delete_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.delete_stream(name)
    }
    fn read<'a>(
        &'a self,
        stream: &'a str,
        from: StreamFrom,
    ) -> BoxFuture<'a, Result<StreamReader, BrokerError>> {
        self.inner.read(stream, from)
    }
    fn stream_stats<'a>(&'a self, stream: &'a str) -> BoxFuture<'a, Result<StreamStats, BrokerError>> {
        self.inner.stream_stats(stream)
    }
    fn store_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
        offset: u64,
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.store_offset(stream, reader, offset)
    }
    fn stored_offset<'a>(
        &'a self,
        stream: &'a str,
        reader: &'a str,
    ) -> BoxFuture<'a, Result<Option<u64>, BrokerError>> {
        self.inner.stored_offset(stream, reader)
    }
    fn close(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.close()
    }
}

/// Appends one event each to a stream of its own, all at once.
async fn all_at_once(store: &EventStore, texts: &[String]) -> Vec<Result<Appended, AppendError>> {
    let one = async |at: usize, text: &String| {
        let event = Event::new("e", Message::new(text.clone()));
        store.append(&format!("s-{at}"), Expected::NoStream, [event]).await
    };
    join_all(texts.iter().enumerate().map(|(at, text)| one(at, text))).await
}

fn texts(count: usize, bad: impl Fn(usize) -> bool) -> Vec<String> {
    (0..count).map(|at| if bad(at) { format!("poison {at}") } else { format!("food {at}") }).collect()
}

fn refuses_poison(messages: &[Message]) -> Result<(), BrokerError> {
    let poisoned = |message: &Message| message.body().windows(6).any(|part| part == b"poison");
    match messages.iter().find(|message| poisoned(message)) {
        Some(message) => {
            let which = message.properties().message_id.clone().unwrap_or_default();
            Err(BrokerError::new(BrokerErrorKind::Invalid, format!("{which} is poisoned")))
        }
        None => Ok(()),
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_refused_costs_the_others_little() {
    let broker = Picky::open(refuses_poison).await;
    let store = EventStore::open(broker.clone(), "log").await.unwrap();
    let told = all_at_once(&store, &texts(300, |at| at == 77 || at == 299)).await;
    for (at, told) in told.iter().enumerate() {
        let refused = matches!(told, Err(AppendError::Refused(_)));
        assert_eq!(refused, at == 77 || at == 299, "{at}: {told:?}");
        assert_eq!(told.is_ok(), !refused, "{at}: {told:?}");
        assert_eq!(store.version(&format!("s-{at}")).is_some(), !refused);
    }
    let appends = broker.appends();
    assert!(appends.len() < 60, "{appends:?}");
}

#[tokio::test(start_paused = true)]
async fn where_none_is_taken_all_are_told_soon() {
    let refused = || BrokerError::new(BrokerErrorKind::Invalid, "access refused");
    let broker = Picky::open(move |_| Err(refused())).await;
    let store = EventStore::open(broker.clone(), "log").await.unwrap();
    let told = all_at_once(&store, &texts(300, |_| false)).await;
    assert!(told.iter().all(|told| matches!(told, Err(AppendError::Refused(_)))));
    let appends = broker.appends();
    assert!(appends.len() < 120, "{appends:?}");
}

#[tokio::test(start_paused = true)]
async fn what_fails_together_is_unknown_to_all() {
    let lost = || BrokerError::new(BrokerErrorKind::Unavailable, "the connection is lost");
    let broker = Picky::open(move |_| Err(lost())).await;
    let store = EventStore::open(broker.clone(), "log").await.unwrap();
    let told = all_at_once(&store, &texts(100, |_| false)).await;
    assert!(told.iter().all(|told| matches!(told, Err(AppendError::Unknown { .. }))), "{:?}", told[0]);
    assert!(broker.appends().len() < 10, "{:?}", broker.appends());
}

#[tokio::test(start_paused = true)]
async fn so_many_appends_are_under_way_and_what_comes_then_is_stored_together() {
    let broker = Picky::open(|_| Ok(())).await;
    broker.lets.forget_permits(usize::MAX);
    let store = EventStore::open(broker.clone(), "log").await.unwrap();
    let mut writers = Vec::new();
    for at in 0..100 {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            let event = Event::new("e", Message::new("food"));
            store.append(&format!("s-{at}"), Expected::NoStream, [event]).await
        }));
        // Each comes by itself.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!((broker.at_once.load(Ordering::SeqCst), broker.appends()), (8, vec![1; 8]));
    broker.lets.add_permits(100);
    for told in join_all(writers).await {
        told.unwrap().unwrap();
    }
    assert_eq!(broker.appends()[8..], [92], "the others had waited together");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_panics_ends_the_store_and_all_are_told_why() {
    let broker = Picky::open(|_| panic!("a test panics")).await;
    let store = EventStore::open(broker.clone(), "log").await.unwrap();
    // More than there is room for: some still wait to hand theirs over.
    let large: Vec<_> = (0..12).map(|at| format!("{at}{}", "x".repeat(7 << 20))).collect();
    for told in all_at_once(&store, &large).await {
        let error = told.unwrap_err();
        assert!(matches!(error, AppendError::Unseen { .. } | AppendError::Unreadable(_)), "{error:?}");
        assert!(
            millstream_flow::chain(&error).contains("has panicked"),
            "{}",
            millstream_flow::chain(&error)
        );
    }
    let later = store.append("s", Expected::Any, [Event::new("e", Message::new("food"))]).await;
    assert!(millstream_flow::chain(&later.unwrap_err()).contains("has panicked"));
}

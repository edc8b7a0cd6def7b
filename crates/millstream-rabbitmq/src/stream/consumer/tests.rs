//! One of several consumers of a name, with a server that says what RabbitMQ says from 3.11 on. (What the real one does
//! is tested in `tests/stream/groups.rs`, where there is one.)

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_message::StreamFrom;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::chunk::tests::{Made, chunk};
use super::super::command::{self as key, Body, Broker, Command, Request, Response, StreamMetadata, code};
use super::super::{ProducerOptions, StreamClient, StreamSettings};
use super::*;

const NAME: &str = "group";

/// A server with one stream of which one offset is stored.
struct Server {
    port: u16,
    /// As it is kept: that of the last message read.
    stored: Arc<Mutex<Option<u64>>>,
    /// The connections with a subscription, to be spoken to by the test.
    subscribed: mpsc::Receiver<OwnedWriteHalf>,
    /// Answers to its questions.
    answers: mpsc::Receiver<(u32, Option<OffsetSpec>)>,
    /// What publishers and consumers ask for at their beginning and end.
    registrations: mpsc::Receiver<Request>,
    /// What it does when the next one begins.
    next: Arc<Mutex<Next>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Answer,
    /// It answers, and says in the same breath that the stream has moved.
    Move,
    /// It says nothing.
    Silence,
}

impl Server {
    async fn start() -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (subscriptions, subscribed) = mpsc::channel(4);
        let (answer, answers) = mpsc::channel(4);
        let (registration, registrations) = mpsc::channel(16);
        let (stored, next) = (Arc::new(Mutex::new(None)), Arc::<Mutex<Next>>::default());
        let server =
            Server { port, stored: stored.clone(), subscribed, answers, registrations, next: next.clone() };
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (answer, registration) = (answer.clone(), registration.clone());
                let talk = Talk { port, stored: stored.clone(), answer, registration, next: next.clone() };
                tokio::spawn(talk.serve(socket, subscriptions.clone()));
            }
        });
        server
    }

    async fn answer(&mut self) -> (u32, Option<OffsetSpec>) {
        timeout(Duration::from_secs(10), self.answers.recv()).await.expect("answered").expect("it runs")
    }

    async fn client(&self) -> StreamClient {
        let url = format!("rabbitmq-stream://127.0.0.1:{}", self.port);
        StreamClient::connect(StreamSettings::parse(&url).expect("a URL")).await.expect("connects")
    }

    /// The next thing that a publisher or a consumer asks for at its beginning or its end.
    async fn registration(&mut self) -> Request {
        timeout(Duration::from_secs(10), self.registrations.recv()).await.expect("in time").expect("it runs")
    }
}

struct Talk {
    port: u16,
    stored: Arc<Mutex<Option<u64>>>,
    answer: mpsc::Sender<(u32, Option<OffsetSpec>)>,
    registration: mpsc::Sender<Request>,
    next: Arc<Mutex<Next>>,
}

impl Talk {
    async fn serve(self, socket: TcpStream, subscriptions: mpsc::Sender<OwnedWriteHalf>) {
        let (mut from, to) = socket.into_split();
        let mut to = Some(to);
        while let Some(frame) = frame(&mut from).await {
            match Command::read(&frame).expect("a client's command") {
                Command::Request(correlation, request) => {
                    let subscribes = matches!(&request, Request::Subscribe { properties, .. }
                        if properties.contains(&("single-active-consumer".to_owned(), "true".to_owned())));
                    let tunes = matches!(request, Request::SaslAuthenticate { .. });
                    let response = Response { key: request.key(), code: code::OK, body: self.body(&request) };
                    let none = response.key == key::QUERY_OFFSET && response.body == Body::Empty;
                    let code = if none { code::NO_OFFSET } else { code::OK };
                    let begins =
                        matches!(request, Request::DeclarePublisher { .. } | Request::Subscribe { .. });
                    let ends =
                        matches!(request, Request::DeletePublisher { .. } | Request::Unsubscribe { .. });
                    let next = if begins { std::mem::take(&mut *self.next.lock()) } else { Next::Answer };
                    if begins || ends {
                        self.registration.send(request).await.expect("there is room");
                    }
                    let Some(writer) = to.as_mut().filter(|_| next != Next::Silence) else { continue };
                    let mut bytes =
                        Command::Response(correlation, Response { code, ..response }).frame().to_vec();
                    if next == Next::Move {
                        let moved = Command::MetadataUpdate {
                            code: code::STREAM_NOT_AVAILABLE,
                            stream: "s".to_owned(),
                        };
                        bytes.extend_from_slice(&moved.frame());
                    }
                    writer.write_all(&bytes).await.expect("it listens");
                    if tunes {
                        say(writer, &Command::Tune { frame_max: 1 << 20, heartbeat: 0 }).await;
                    }
                    if subscribes && let Some(writer) = to.take() {
                        subscriptions.send(writer).await.expect("the test listens");
                    }
                }
                Command::Response(correlation, Response { body: Body::From(from), .. }) => {
                    self.answer.send((correlation, from)).await.expect("the test listens");
                }
                Command::StoreOffset { reference, offset, .. } => {
                    assert_eq!(reference, NAME);
                    *self.stored.lock() = Some(offset);
                }
                _ => {}
            }
        }
    }

    fn body(&self, request: &Request) -> Body {
        match request {
            Request::PeerProperties { .. } => {
                Body::Properties(vec![("version".to_owned(), "3.13.0".to_owned())])
            }
            Request::SaslHandshake => Body::Names(vec!["PLAIN".to_owned()]),
            Request::SaslAuthenticate { .. } => Body::Challenge(Vec::new()),
            Request::Open { .. } => Body::Properties(Vec::new()),
            Request::ExchangeVersions { .. } => Body::Versions(Vec::new()),
            Request::Metadata { streams } => Body::Metadata {
                brokers: vec![Broker { reference: 0, host: "127.0.0.1".to_owned(), port: self.port.into() }],
                streams: vec![StreamMetadata {
                    stream: streams[0].clone(),
                    code: code::OK,
                    leader: 0,
                    replicas: Vec::new(),
                }],
            },
            Request::QueryPublisherSequence { .. } => Body::Number(0),
            Request::QueryOffset { .. } => self.stored.lock().map_or(Body::Empty, Body::Number),
            _ => Body::Empty,
        }
    }
}

async fn frame(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut frame = vec![0; from.read_u32().await.ok()? as usize];
    from.read_exact(&mut frame).await.ok()?;
    Some(frame)
}

async fn say(to: &mut OwnedWriteHalf, command: &Command<'_>) {
    to.write_all(&command.frame()).await.expect("it listens");
}

fn asks(correlation: u32, active: bool) -> Command<'static> {
    Command::Request(correlation, Request::ConsumerUpdate { subscription: 0, active })
}

/// So many messages from this offset on, each with its offset as its body.
fn messages(offsets: std::ops::Range<u64>) -> Bytes {
    let entries: Vec<Made> = offsets
        .clone()
        .map(|offset| {
            let mut message = Vec::new();
            amqp::encode(&Message::new(offset.to_string()), None, &mut message);
            Made::One(message)
        })
        .collect();
    chunk(offsets.start, 7, &entries)
}

async fn taken(consumer: &mut StreamConsumer, most: usize) -> Vec<u64> {
    let chunk = timeout(Duration::from_secs(10), consumer.next_chunk(most)).await.expect("in time");
    chunk.expect("read").iter().map(|item| item.offset).collect()
}

#[tokio::test]
async fn the_turn_of_a_consumer_begins_where_the_last_one_was_done() {
    let mut server = Server::start().await;
    let client = server.client().await;
    let options = ConsumerOptions::default().name(NAME).single_active().store_every(1000);
    let mut consumer = client.consumer("s", StreamFrom::Offset(5), options).await.expect("subscribed");
    let mut link = server.subscribed.recv().await.expect("a subscription");
    assert!(!consumer.is_active(), "nobody has said so");

    // Nothing is stored: it begins where it was told to.
    say(&mut link, &asks(1, true)).await;
    assert_eq!(server.answer().await, (1, Some(OffsetSpec::Offset(5))));
    assert!(consumer.is_active());
    say(&mut link, &Command::Deliver { subscription: 0, committed: None, chunk: &messages(0..20) }).await;
    assert_eq!(taken(&mut consumer, 4).await, [5, 6, 7, 8]);
    assert_eq!(taken(&mut consumer, 4).await, [9, 10, 11, 12]);

    // Another one's turn comes: it is not answered before this one is done with what it has in hand.
    say(&mut link, &asks(2, false)).await;
    let early = timeout(Duration::from_millis(200), server.answers.recv()).await;
    assert!(early.is_err() && server.stored.lock().is_none(), "{early:?}");
    assert!(!consumer.is_active());
    let (answer, _) =
        tokio::join!(server.answer(), timeout(Duration::from_millis(200), consumer.next_chunk(4)));
    assert_eq!(answer, (2, None));
    assert_eq!(*server.stored.lock(), Some(12), "the next one begins behind it");

    // The other one has come further; what this one still had of before is void.
    *server.stored.lock() = Some(99);
    say(&mut link, &asks(3, true)).await;
    assert_eq!(server.answer().await, (3, Some(OffsetSpec::Offset(100))));
    say(&mut link, &Command::Deliver { subscription: 0, committed: None, chunk: &messages(98..103) }).await;
    assert_eq!(taken(&mut consumer, 9).await, [100, 101, 102]);

    // Its turn ends before it has got anything: the offset of the one before is not overwritten.
    say(&mut link, &asks(4, false)).await;
    let (answer, _) =
        tokio::join!(server.answer(), timeout(Duration::from_millis(200), consumer.next_chunk(4)));
    assert_eq!((answer, *server.stored.lock()), ((4, None), Some(102)));
    *server.stored.lock() = Some(499);
    for (correlation, active, from) in [(5, true, Some(OffsetSpec::Offset(500))), (6, false, None)] {
        say(&mut link, &asks(correlation, active)).await;
        let asking = timeout(Duration::from_millis(200), consumer.next_chunk(4));
        let (answer, _) = tokio::join!(server.answer(), asking);
        assert_eq!(answer, (correlation, from));
    }
    assert_eq!(*server.stored.lock(), Some(499));
}

#[tokio::test]
async fn a_stream_that_moves_when_somebody_has_just_begun_is_looked_for_again() {
    let mut server = Server::start().await;
    let client = server.client().await;
    *server.next.lock() = Next::Move;
    let named = ProducerOptions::default().name("p");
    let producer = client.producer("s", named).await.expect("a producer");
    for _ in 0..2 {
        assert!(matches!(server.registration().await, Request::DeclarePublisher { .. }));
    }
    drop(producer);
    assert!(matches!(server.registration().await, Request::DeletePublisher { .. }));
    *server.next.lock() = Next::Move;
    let options = ConsumerOptions::default();
    let _consumer = client.consumer("s", StreamFrom::First, options).await.expect("subscribed");
    for _ in 0..2 {
        assert!(matches!(server.registration().await, Request::Subscribe { .. }));
    }
}

#[tokio::test]
async fn who_does_not_wait_for_a_beginning_leaves_nothing_at_the_broker() {
    let mut server = Server::start().await;
    let client = server.client().await;
    *server.next.lock() = Next::Silence;
    tokio::select! {
        _ = client.producer("s", ProducerOptions::default()) => panic!("it is not answered"),
        declared = server.registration() => {
            assert!(matches!(declared, Request::DeclarePublisher { publisher: 0, .. }), "{declared:?}");
        }
    }
    assert_eq!(server.registration().await, Request::DeletePublisher { publisher: 0 });
    *server.next.lock() = Next::Silence;
    tokio::select! {
        _ = client.consumer("s", StreamFrom::First, ConsumerOptions::default()) => panic!("it is not answered"),
        subscribed = server.registration() => {
            assert!(matches!(subscribed, Request::Subscribe { .. }), "{subscribed:?}");
        }
    }
    let ended = server.registration().await;
    assert!(matches!(ended, Request::Unsubscribe { .. }), "{ended:?}");
}

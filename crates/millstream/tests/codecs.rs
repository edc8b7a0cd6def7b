//! Values through queues: what a codec cannot read is a dead letter that says why.

use std::sync::Arc;

use millstream::codec::{
    CodecError, Codecs, Compressed, Compression, Msgpack, Postcard, Protobuf, SCHEMA, Typed,
};
use millstream::message::dead;
use millstream::prelude::*;
use millstream::queue;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u32,
    note: String,
}

fn order(id: u32) -> Order {
    Order { id, note: "by the river ".repeat(200) }
}

/// A broker with these messages in the queue `q`, whose dead letters go to `dead`.
async fn broker(messages: Vec<Message>) -> Arc<dyn Broker> {
    let broker = millstream::open("memory:").await.unwrap();
    broker.declare_queue(Queue::transient("q").dead_letter("", "dead")).await.unwrap();
    broker.declare_queue(Queue::transient("dead")).await.unwrap();
    let sink = queue::Publisher::new(broker.clone(), Address::queue("q"));
    Pipe::from_iter(messages).into_sink(sink).await.unwrap();
    broker
}

async fn read<C>(broker: &Arc<dyn Broker>, codec: C) -> (Vec<Order>, Report)
where
    C: Codec<Order> + Send + 'static,
{
    let consumer = broker.consume("q", ConsumeOptions::default().stop_when_empty()).await.unwrap();
    queue::decode(consumer, codec).collect().await.unwrap()
}

/// The one message that died: its body is as it was, its headers say why.
async fn letter(broker: &Arc<dyn Broker>) -> (Message, String) {
    let mut consumer = broker.consume("dead", ConsumeOptions::default()).await.unwrap();
    let letter = consumer.next_chunk(1).await.unwrap().remove(0).message;
    assert_eq!(letter.header(dead::REASON), Some(&"rejected".into()));
    assert_eq!(letter.header(dead::STAGE), Some(&"decode".into()));
    let why = letter.header(dead::DETAIL).and_then(|why| why.as_text()).unwrap().to_owned();
    (letter, why)
}

/// `bad` is not what `codec` reads; between two that are, it is the only one that dies, and its letter has all of `names`.
async fn dies<C>(codec: C, bad: Message, names: &[&str])
where
    C: Codec<Order> + Clone + Send + 'static,
{
    let good = |id| codec.encode(&order(id)).unwrap();
    let broker = broker(vec![good(1), bad.clone(), good(2)]).await;
    let (orders, report) = read(&broker, codec.clone()).await;
    assert_eq!(orders, [order(1), order(2)]);
    assert_eq!((report.ledger.completed, report.ledger.dead), (2, 1));
    let (letter, why) = letter(&broker).await;
    assert_eq!(letter.body(), bad.body());
    for name in names {
        assert!(why.contains(name), "{name} is not in: {why}");
    }
}

#[tokio::test]
async fn another_schema_is_a_dead_letter_with_both_names() {
    let old = Typed::new(Json, "order.v1").encode(&order(7)).unwrap();
    dies(Typed::new(Json, "order.v2"), old, &["`order.v1`", "`order.v2`"]).await;
    let unnamed = Json.encode(&order(7)).unwrap();
    dies(Typed::new(Json, "order.v2"), unnamed, &["`nothing`", "`order.v2`"]).await;
}

#[tokio::test]
async fn another_format_is_a_dead_letter_with_both_names() {
    let json = Json.encode(&order(7)).unwrap();
    dies(Msgpack, json.clone(), &["`application/json`", "`application/msgpack`"]).await;
    dies(Codecs::new(Postcard).or(Msgpack), json, &["`application/json`", "postcard, application/msgpack`"])
        .await;
}

#[tokio::test]
async fn another_type_is_a_dead_letter_with_format_type_and_place() {
    let bad = Message::new(r#"{"id":"seven"}"#).with_content_type("application/json");
    dies(Json, bad, &["JSON", "codecs::Order", "line 1 column 13"]).await;
}

#[tokio::test]
async fn a_bomb_is_a_dead_letter() {
    let small = Compressed::new(Json, Compression::zstd().max_bytes(10_000));
    let bomb = Compressed::new(Json, Compression::zstd());
    let bomb = bomb.encode(&Order { id: 7, note: "x".repeat(1 << 20) }).unwrap();
    dies(small.clone(), bomb, &["zstd", "10000 bytes"]).await;
    let strange = Json.encode(&order(7)).unwrap().with_content_encoding("br");
    dies(small, strange, &["`br`"]).await;
}

#[tokio::test]
async fn values_travel_in_every_format_and_compression() {
    for compression in [Compression::none(), Compression::gzip(), Compression::zstd(), Compression::lz4()] {
        for format in [Codecs::new(Json), Codecs::new(Msgpack), Codecs::new(Postcard)] {
            let writer = Typed::new(Compressed::new(format, compression.clone()), "order");
            let messages: Vec<_> = (0..3).map(|id| writer.encode(&order(id)).unwrap()).collect();
            assert_eq!(messages[0].header(SCHEMA), Some(&"order".into()));
            let broker = broker(messages).await;
            let all = Codecs::new(Json).or(Msgpack).or(Postcard);
            let reader = Typed::new(Compressed::new(all, Compression::none()), "order");
            assert_eq!(read(&broker, reader).await.0, [order(0), order(1), order(2)]);
        }
    }
}

#[tokio::test]
async fn a_protobuf_of_another_message_is_a_dead_letter_with_both_names() {
    // prost's own forms of google.protobuf.StringValue and UInt32Value.
    let text = Protobuf.message("google.protobuf.StringValue");
    let number = Protobuf.message("google.protobuf.UInt32Value");
    let broker = broker(vec![text.encode(&"seven".to_owned()).unwrap(), number.encode(&7).unwrap()]).await;
    let consumer = broker.consume("q", ConsumeOptions::default().stop_when_empty()).await.unwrap();
    let (numbers, _) = queue::decode::<u32, _>(consumer, number).collect().await.unwrap();
    assert_eq!(numbers, [7]);
    let (_, why) = letter(&broker).await;
    assert!(why.contains("`google.protobuf.StringValue`") && why.contains("`google.protobuf.UInt32Value`"));
}

/// A codec of one's own is as good as ours.
#[tokio::test]
async fn a_codec_of_ones_own_decodes_a_queue() {
    #[derive(Clone)]
    struct Lines;
    impl Codec<Order> for Lines {
        fn content_type(&self) -> &'static str {
            "text/plain"
        }
        fn encode(&self, order: &Order) -> Result<Message, CodecError> {
            Ok(Message::new(format!("{} {}", order.id, order.note)).with_content_type("text/plain"))
        }
        fn decode(&self, message: &Message) -> Result<Order, CodecError> {
            let text = String::from_utf8_lossy(message.body());
            let (id, note) = text.split_once(' ').unwrap_or((&text, ""));
            let id = id.parse().map_err(|source| CodecError::Invalid {
                format: "a line",
                wanted: "Order",
                source: Box::new(source),
            })?;
            Ok(Order { id, note: note.to_owned() })
        }
    }
    dies(Lines, Message::new("seven"), &["a line", "Order", "invalid digit"]).await;
}

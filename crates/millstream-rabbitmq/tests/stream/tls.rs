//! Streams by TLS.

use std::time::Duration;

use millstream_message::{Broker, BrokerErrorKind, Message, StreamFrom, StreamSpec};
use millstream_rabbitmq::stream::{
    ConsumerOptions, ProducerOptions, StreamBroker, StreamClient, StreamSettings,
};
use millstream_testing::{Certificates, Node, Setup, free_port};

use crate::support::take;

#[tokio::test]
async fn tls_checks_the_broker_and_shows_the_client() {
    let (certificates, port) = (Certificates::make(), free_port());
    let setup = Setup::default()
        .plugin("rabbitmq_stream")
        .plugin("rabbitmq_auth_mechanism_ssl")
        .configured(&format!("stream.listeners.ssl.1 = 127.0.0.1:{port}\n{}", certificates.configuration()));
    let node = Node::start(setup).await.expect("it starts");
    let place = certificates.place().display();
    // The node tells its plain port to whoever asks where streams are.
    let url = |rest: &str| {
        format!("rabbitmq-stream+tls://localhost:{port}?hosts_only=true&cacertfile={place}/ca.pem{rest}")
    };
    let own = format!("&certfile={place}/client.pem&keyfile={place}/client.key");
    let by_certificate = url(&format!("{own}&auth_mechanism=external&verify=verify_peer"));
    for good in [url(""), url(&own), by_certificate] {
        let broker = match StreamBroker::connect(&good).await {
            Ok(broker) => broker,
            // It crashes over it.
            Err(error)
                if good.contains("external")
                    && node.tell("rabbitmqctl", &["version"]).await.starts_with("3.10.") =>
            {
                assert!(error.to_string().contains("before 3.11"), "{error}");
                continue;
            }
            Err(error) => panic!("{good}: {error:?}"),
        };
        broker.delete_stream("secret").await.expect("deleted");
        broker.declare_stream(StreamSpec::new("secret")).await.expect("declared");
        // More than a record of TLS, and than the socket takes at once.
        let messages: Vec<Message> = (0..40).map(|number| Message::new(vec![number; 100_000])).collect();
        let producer = broker.client().producer("secret", ProducerOptions::default()).await.expect("made");
        assert!(producer.send(&messages).await.expect("sent").await.all_confirmed());
        let reading = broker.client().consumer("secret", StreamFrom::First, ConsumerOptions::default());
        let read = take(&mut reading.await.expect("subscribed").into_reader(), 40).await;
        assert!(read.into_iter().map(|item| item.message).eq(messages));
        let listed = ["list_stream_connections", "ssl"];
        let listed = node.tell("rabbitmqctl", &listed).await;
        assert!(listed.contains("true") && !listed.contains("false"), "{listed}");
        broker.close().await.expect("closed");
    }
    let complaint = async |url: String| {
        let settings = StreamSettings::parse(&url).expect("a URL");
        let connecting = StreamClient::connect(settings);
        let error = tokio::time::timeout(Duration::from_secs(30), connecting).await.expect("it ends");
        error.expect_err("it is refused")
    };
    let name = complaint(url("&server_name_indication=other.example")).await.to_string();
    assert!(name.contains("other.example"), "{name}");
    let unknown = complaint(format!("rabbitmq-stream+tls://localhost:{port}")).await.to_string();
    assert!(unknown.contains("UnknownIssuer"), "{unknown}");
    let missing =
        complaint(format!("rabbitmq-stream+tls://localhost:{port}?cacertfile={place}/none.pem")).await;
    assert!(missing.to_string().contains("none.pem"), "{missing}");
    let half = complaint(url(&format!("&certfile={place}/client.pem"))).await.to_string();
    assert!(half.contains("keyfile"), "{half}");
    let plain = complaint(format!("rabbitmq-stream://localhost:{port}/?timeout=2")).await;
    assert_eq!(plain.kind(), BrokerErrorKind::Unavailable, "{plain}");
    let other = format!("rabbitmq-stream+tls://localhost:{}/?timeout=2", node.stream_port);
    assert!(complaint(other).await.to_string().contains("no TLS"));
}

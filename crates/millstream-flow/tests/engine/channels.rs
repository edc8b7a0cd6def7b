//! `Pipe::channel`: what is sent flows, and nothing more.

use millstream_flow::Pipe;
use tokio::task::yield_now;

#[tokio::test]
async fn what_was_sent_flows_in_order_and_the_flow_ends_with_its_sender() {
    let (mut sender, pipe) = Pipe::channel(4);
    let run = pipe.collect().start();
    for n in 0..1000 {
        sender.send(n).await.unwrap();
    }
    drop(sender);
    let (items, report) = run.join().await.unwrap();
    assert_eq!(items, (0..1000).collect::<Vec<_>>());
    assert_eq!((report.ledger.received, report.ledger.completed), (1000, 1000));
}

#[tokio::test]
async fn a_full_channel_refuses_at_once_or_makes_the_sender_wait() {
    let (mut sender, mut pipe) = Pipe::channel(2);
    sender.try_send('a').unwrap();
    sender.try_send('b').unwrap();
    let refused = sender.try_send('c').unwrap_err();
    assert!(refused.is_full());
    assert_eq!(refused.item, 'c');

    let sending = tokio::spawn(async move { sender.send('c').await });
    yield_now().await;
    assert!(!sending.is_finished());
    let mut got = String::new();
    while let Some(letter) = futures_util::StreamExt::next(&mut pipe).await {
        got.push(letter);
    }
    assert_eq!(got, "abc");
    sending.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stopped_flow_takes_what_was_sent_and_refuses_what_comes_later() {
    let (mut sender, pipe) = Pipe::channel(8);
    let run = pipe.collect().start();
    for n in 0..3 {
        sender.send(n).await.unwrap();
    }
    run.monitor().stop();
    let (items, _) = run.join().await.unwrap();
    assert_eq!(items, [0, 1, 2]);
    let refused = sender.send(3).await.unwrap_err();
    assert!(!refused.is_full());
}

//! `Pipe::channel`: what is sent flows, and nothing more.

use std::time::Duration;

use millstream_flow::Pipe;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

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

#[tokio::test(start_paused = true)]
async fn a_sender_that_never_pauses_does_not_keep_a_stopped_flow_going() {
    let (mut sender, pipe) = Pipe::channel(4);
    let slow = async |n: u64| {
        sleep(Duration::from_millis(1)).await;
        n
    };
    let run = pipe.map_async(1, slow).collect().start();
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while sender.send(sent).await.is_ok() {
            sent += 1;
        }
        assert!(!sender.try_send(sent).unwrap_err().is_full());
        sent
    });
    sleep(Duration::from_secs(1)).await;
    run.monitor().stop();
    let (items, _) = timeout(Duration::from_secs(60), run.join()).await.expect("it stops").unwrap();
    assert_eq!(items, (0..sending.await.unwrap()).collect::<Vec<_>>(), "all that was accepted");
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_after_the_word_to_stop_is_refused_though_there_is_room() {
    let (mut sender, pipe) = Pipe::channel(8);
    let run = pipe.collect().start();
    sender.send(1).await.unwrap();
    run.monitor().stop();
    assert_eq!(sender.send(2).await.unwrap_err().item, 2);
    assert_eq!(run.join().await.unwrap().0, [1]);
}

mod inputs {
    use std::time::Duration;

    use millstream_flow::Pipe;
    use millstream_flow::test::{End, Script, quiescence, virtual_time};
    use tokio::time::sleep;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn inputs_come_and_go_and_the_flow_ends_with_the_last_of_them() {
        virtual_time(async {
            let (inputs, pipe) = Pipe::inputs();
            let run = pipe.collect().start();
            sleep(SECOND).await; // it waits for its first
            let (first, heard) = Script::new().items(0..3u32).stall().tracked();
            let endless = inputs.add(first).unwrap();
            let more = inputs.clone();
            drop(inputs);
            quiescence().await;
            let (second, also_heard) = Script::new().wait(SECOND).items(10..12).tracked();
            more.add(second.filter(|n| *n != 10).named("not ten")).unwrap();
            drop(more);
            sleep(2 * SECOND).await;
            assert_eq!(run.report().ledger.completed, 4, "the second has ended, the first has not");
            endless.stop();
            let (items, report) = run.join().await.unwrap();
            assert_eq!(items, [0, 1, 2, 11]);
            assert_eq!((report.ledger.received, report.ledger.dropped["not ten"]), (5, 1));
            assert_eq!(heard.list(), vec![End::Completed; 3]);
            assert_eq!(also_heard.list().len(), 2);
            assert!(report.stages.iter().any(|stage| stage.name.contains("not ten")), "{:?}", report.stages);
        });
    }

    #[test]
    fn a_run_that_is_stopped_stops_inputs_that_are_added_later_too() {
        virtual_time(async {
            let (inputs, pipe) = Pipe::<millstream_flow::flows::Changing<u32, ()>>::inputs();
            inputs.add(Script::new().items(0..3).stall().pipe()).unwrap();
            let run = pipe.collect().start();
            quiescence().await;
            run.monitor().stop();
            inputs.add(Script::new().item(7).stall().pipe()).unwrap();
            drop(inputs);
            let (items, _) = run.join().await.unwrap();
            assert_eq!(items, [0, 1, 2]);
        });
    }

    #[test]
    fn what_is_added_to_a_flow_that_is_gone_is_refused_and_given_back() {
        virtual_time(async {
            let (inputs, pipe) = Pipe::inputs();
            let run = pipe.for_each(drop).start();
            let (pipe, outcomes) = Script::new().items(0..3u32).stall().tracked();
            inputs.add(pipe).unwrap();
            quiescence().await;
            drop(run);
            quiescence().await;
            assert_eq!(outcomes.list(), vec![End::Completed; 3]);
            let (late, unheard) = Script::new().items(0..3u32).tracked();
            assert!(inputs.add(late).is_none());
            assert_eq!(unheard.issued(), 0);
        });
    }

    #[test]
    fn a_stopped_flow_ends_with_its_inputs_though_others_could_be_added() {
        virtual_time(async {
            let (inputs, pipe) = Pipe::inputs();
            inputs.add(Script::new().items(0..3).stall().pipe()).unwrap();
            let run = pipe.collect().start();
            quiescence().await;
            let (items, _) = run.shutdown(60 * SECOND).await.unwrap();
            assert_eq!(items, [0, 1, 2]);
            assert!(inputs.add(Script::new().item(7).pipe()).is_none());

            let (inputs, pipe) = Pipe::<millstream_flow::flows::Changing<u32, ()>>::inputs();
            let run = pipe.collect().start();
            quiescence().await;
            let (items, _) = run.shutdown(60 * SECOND).await.unwrap();
            assert!(items.is_empty());
            drop(inputs);
        });
    }
}

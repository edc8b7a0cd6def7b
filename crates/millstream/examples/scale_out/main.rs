//! Several workers of one pipeline against one broker, one of them killed in the midst of it: nothing is lost, work of one
//! key is done in its order, and what came twice is counted. How and why: `docs/scale-out.md`.
//!
//!     cargo run -p millstream --example scale_out                             # workers in this process, in memory
//!     cargo run -p millstream --example scale_out amqp://localhost            # processes, on queues of RabbitMQ
//!     cargo run -p millstream --example scale_out rabbitmq-stream://localhost # processes, on a super stream (RabbitMQ 3.13)

mod account;
mod worker;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use account::{Account, Verdict};
use millstream::message::{Batch, BrokerUrl};
use millstream::prelude::{Address, BoxError, Broker, Message, Queue};
use millstream::rabbitmq::stream::{Partitions, ProducerOptions, Routing, StreamClient, StreamSettings};

const WORKERS: usize = 3;
const KEYS: u64 = 40;
/// Pieces of work of each key.
const EACH: u64 = 75;
const NAME: &str = "scale-out";
const LONG: Duration = Duration::from_secs(40);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => in_one_process().await,
        [role, url, account, name] if role == "queues" || role == "keyed-queues" => {
            let (broker, queues) = (millstream::open(url).await?, worker::queues(NAME, role != "queues"));
            worker::on_queues(broker, &queues, Path::new(account), name).await
        }
        [role, url, account, name] if role == "super-stream" => {
            worker::on_super_stream(url, NAME, Path::new(account), name).await
        }
        [url] if url.starts_with("rabbitmq-stream") => on_a_super_stream(url).await,
        [url] => on_queues(url).await,
        _ => Err("give the URL of a broker, or nothing".into()),
    }
}

/// Workers that are processes of their own; none outlives this one.
#[derive(Default)]
struct Team(Vec<Child>);

impl Team {
    fn hire(role: &str, url: &str, account: &Path) -> std::io::Result<Team> {
        let mut team = Team::default();
        for worker in names() {
            let mut command = Command::new(std::env::current_exe()?);
            command.args([role, url]).arg(account).arg(worker);
            team.0.push(command.stdin(Stdio::null()).spawn()?);
        }
        Ok(team)
    }

    /// Kills one as `kill -9` does: the one that has done most.
    fn lose_one(&mut self, account: &Account) -> std::io::Result<()> {
        self.0[busiest(account)?].kill()
    }
}

fn names() -> impl Iterator<Item = String> {
    (1..=WORKERS).map(|worker| format!("worker-{worker}"))
}

fn busiest(account: &Account) -> std::io::Result<usize> {
    let busiest = account.busiest()?;
    Ok(names().position(|name| Some(name) == busiest).unwrap_or(0))
}

impl Drop for Team {
    fn drop(&mut self) {
        for worker in &mut self.0 {
            // It may be gone.
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}

async fn on_queues(url: &str) -> Result<(), BoxError> {
    let (place, broker) = (tempfile::tempdir()?, millstream::open(url).await?);
    for (keyed, role) in [(false, "queues"), (true, "keyed-queues")] {
        let queues = declare(&broker, keyed).await?;
        let path = place.path().join(role);
        let account = Account::open(&path, KEYS, EACH)?;
        let mut team = Team::hire(role, url, &path)?;
        publish(&broker, &queues).await?;
        account.reaches(KEYS * EACH / 3, LONG).await?;
        team.lose_one(&account)?;
        tell(broker.url(), keyed, &account.verdict(LONG).await?)?;
        drop(team);
        delete(&broker, &queues).await?;
    }
    Ok(broker.close().await?)
}

async fn on_a_super_stream(url: &str) -> Result<(), BoxError> {
    let place = tempfile::tempdir()?;
    let client = StreamClient::connect(StreamSettings::parse(url)?).await?;
    client.delete_super_stream(NAME).await?;
    client.create_super_stream(NAME, &Partitions::Count(worker::PARTS as u16), &[]).await?;
    let path = place.path().join("account");
    let account = Account::open(&path, KEYS, EACH)?;
    let mut team = Team::hire("super-stream", url, &path)?;
    let producer = client.super_producer(NAME, Routing::Hash, ProducerOptions::default()).await?;
    let work: Vec<_> = work().map(|(key, message)| (key.to_string(), message)).collect();
    assert!(producer.send(&work).await?.await.all_confirmed());
    account.reaches(KEYS * EACH / 3, LONG).await?;
    team.lose_one(&account)?;
    tell(&url.parse()?, true, &account.verdict(LONG).await?)?;
    drop(team);
    client.delete_super_stream(NAME).await?;
    client.close().await;
    Ok(())
}

/// The same without processes: a broker in this one serves workers that are tasks, and one of them is dropped.
async fn in_one_process() -> Result<(), BoxError> {
    let (place, broker) = (tempfile::tempdir()?, millstream::open("memory:").await?);
    for keyed in [false, true] {
        let queues = declare(&broker, keyed).await?;
        let path = place.path().join("account");
        let account = Account::open(&path, KEYS, EACH)?;
        let mut team = tokio::task::JoinSet::new();
        let hire = |name: String| {
            let (broker, queues, path) = (broker.clone(), queues.clone(), path.clone());
            team.spawn(async move { worker::on_queues(broker, &queues, &path, &name).await })
        };
        let hired: Vec<_> = names().map(hire).collect();
        publish(&broker, &queues).await?;
        account.reaches(KEYS * EACH / 3, LONG).await?;
        hired[busiest(&account)?].abort();
        tell(broker.url(), keyed, &account.verdict(LONG).await?)?;
        team.shutdown().await;
        delete(&broker, &queues).await?;
    }
    Ok(broker.close().await?)
}

async fn declare(broker: &Arc<dyn Broker>, keyed: bool) -> Result<Vec<Queue>, BoxError> {
    let queues = worker::queues(NAME, keyed);
    delete(broker, &queues).await?;
    for queue in &queues {
        broker.declare_queue(queue.clone()).await?;
    }
    Ok(queues)
}

async fn delete(broker: &Arc<dyn Broker>, queues: &[Queue]) -> Result<(), BoxError> {
    for queue in queues {
        broker.delete_queue(&queue.name).await?;
    }
    Ok(())
}

/// All the work in its order, each piece with its key.
fn work() -> impl Iterator<Item = (u64, Message)> {
    (0..KEYS * EACH).map(|at| (at % KEYS, Message::new(format!("{} {}", at % KEYS, at / KEYS))))
}

/// A key always goes to the same queue.
async fn publish(broker: &Arc<dyn Broker>, queues: &[Queue]) -> Result<(), BoxError> {
    let mut batches = vec![Vec::new(); queues.len()];
    for (key, message) in work() {
        batches[key as usize % queues.len()].push(message);
    }
    for (queue, messages) in queues.iter().zip(batches) {
        let outcomes = broker.publish_batch(Batch::to(&Address::queue(&queue.name), messages)).await?;
        assert!(outcomes.all_confirmed(), "{outcomes:?}");
    }
    Ok(())
}

fn tell(url: &BrokerUrl, keyed: bool, verdict: &Verdict) -> Result<(), BoxError> {
    let kind = if keyed { "order by key" } else { "competing consumers" };
    eprintln!(
        "{url}, {kind}: all {} done, one of {WORKERS} workers lost on the way; {} came twice; by worker: {:?}",
        KEYS * EACH,
        verdict.twice,
        verdict.by_worker
    );
    if keyed && !verdict.in_order {
        return Err("the order of a key was not kept".into());
    }
    Ok(())
}

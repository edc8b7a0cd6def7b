//! `millstream dead-letters`: what failed, why, and another chance for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millstream_message::{
    Acker, Address, Batch, Broker, BrokerUrl, ConsumeOptions, Delivery, Message, Outcomes, Publish,
    QueueKind, Value, dead,
};
use millstream_rabbitmq::USER_ID;
use serde_json::json;

use crate::args::{self, OnBroker, OnQueue, Which};
use crate::broker::{self, message_json};
use crate::failure::Failure;
use crate::out::{Out, complain, on_one_line, preview};
use crate::queue::{browse, on_queue, stored};
use crate::table::{count, counted, table};

/// Letters handled in one step.
const PAGE: usize = 100;
/// How many letters of a queue are grouped; beyond, the list says that it saw only the first.
const LETTERS_MAX: u64 = 100_000;
/// How many groups are told apart in a queue; letters of further ones are counted together.
const GROUPS_MAX: usize = 100;
/// Characters of the column of names, where a letter is shown.
const NAME_WIDTH: usize = 24;
/// Counts how often a letter was replayed. Replaying takes the headers of the death off, so that another death
/// is told as it is; this one stays and says that it was tried before.
const REPLAYS: &str = "millstream-replays";

pub(crate) async fn dead_letters(command: args::DeadLetters) -> Result<(), Failure> {
    match command {
        args::DeadLetters::List { on, queue, json } => list(on, queue, json).await,
        args::DeadLetters::Show { on, which, json } => {
            broker::with_existing(&on.url, |broker| show(broker, on.queue, which, json)).await
        }
        args::DeadLetters::Replay { on, which, to, as_published } => {
            if to.as_deref() == Some(&*on.queue) {
                return Err(Failure::Refused(format!(
                    "`{0}` is where the letters are: --to {0} would only take off why they died",
                    on.queue
                )));
            }
            let to = match (to, as_published) {
                (Some(queue), _) => Home::Named(queue),
                (None, true) => Home::Published,
                (None, false) => Home::Queue,
            };
            broker::with_existing(&on.url, |broker| replay(broker, on.queue, which, to)).await
        }
        args::DeadLetters::Discard { on, which, yes } => discard(on, which, yes).await,
    }
}

/// Why a letter died, as it is grouped and matched.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cause {
    from: String,
    reason: String,
    stage: String,
    detail: String,
}

impl Cause {
    fn of(message: &Message) -> Cause {
        let text = |name| message.header(name).and_then(Value::as_text).unwrap_or_default().to_owned();
        Cause {
            from: text(dead::QUEUE),
            reason: text(dead::REASON),
            stage: text(dead::STAGE),
            detail: text(dead::DETAIL),
        }
    }

    fn matches(&self, which: &Which) -> bool {
        let Some(text) = &which.matching else { return true };
        [&self.reason, &self.stage, &self.detail].iter().any(|part| part.contains(text.as_str()))
    }

    /// The same for all letters whose details differ only in numbers, such as lines and offsets.
    fn group(mut self) -> Cause {
        let mut detail = String::new();
        for character in self.detail.chars() {
            match character {
                digit if digit.is_ascii_digit() => {
                    if !detail.ends_with('#') {
                        detail.push('#');
                    }
                }
                other => detail.push(other),
            }
        }
        self.detail = detail;
        self
    }
}

/// Letters of one cause in one queue.
struct Group {
    letters: u64,
    /// What every one of them says; with `#` for the numbers in which they differ.
    detail: String,
    example: String,
}

impl Group {
    fn of(cause: &Cause, example: &[u8]) -> Group {
        Group { letters: 0, detail: cause.detail.clone(), example: preview(example, 160) }
    }

    /// Counts a letter whose cause is like the others' but for numbers.
    fn add(&mut self, detail: &str, common: &Cause) {
        self.letters += 1;
        if self.detail != detail {
            self.detail.clone_from(&common.detail);
        }
    }
}

async fn list(on: OnBroker, queue: Option<String>, json: bool) -> Result<(), Failure> {
    broker::with_existing(&on.url, |broker| async move {
        let queues = match queue {
            Some(queue) => vec![queue],
            None => queues_with_letters(&broker).await?,
        };
        let mut out = Out::new();
        if queues.is_empty() && !json {
            out.line(format!("{} holds no dead letters", broker.url()))?;
        }
        for queue in queues {
            let (groups, seen, total) = group(&broker, &queue).await?;
            if json {
                for (cause, group) in &groups {
                    out.json(&json!({
                        "queue": queue, "letters": group.letters, "from": cause.from, "reason": cause.reason,
                        "stage": cause.stage, "detail": group.detail, "example": group.example,
                    }))?;
                }
                continue;
            }
            out.line(format!("{}: {}", on_one_line(&queue), counted(total, "dead letter")))?;
            if seen < total {
                out.line(format!("  the first {} of them:", count(seen)))?;
            }
            if !groups.is_empty() {
                let rows: Vec<Vec<String>> = groups.iter().map(row).collect();
                let text = table(&[">letters", "from", "stage", "reason", "example"], &rows);
                out.line(text.lines().map(|line| format!("  {line}\n")).collect::<String>())?;
            }
        }
        out.flush()
    })
    .await
}

fn row((cause, group): &(Cause, Group)) -> Vec<String> {
    let reason = match (cause.reason.as_str(), group.detail.as_str()) {
        ("", "") => "(none given)".to_owned(),
        (reason, "") => reason.to_owned(),
        ("", detail) => preview(detail.as_bytes(), 60),
        (reason, detail) => format!("{reason}: {}", preview(detail.as_bytes(), 60)),
    };
    let cell = |text: &str| if text.is_empty() { "-".to_owned() } else { preview(text.as_bytes(), 40) };
    vec![
        count(group.letters),
        cell(&cause.from),
        cell(&cause.stage),
        reason,
        preview(group.example.as_bytes(), 60),
    ]
}

/// The queues that others name as theirs for dead letters, and those whose first message is one.
async fn queues_with_letters(broker: &Arc<dyn Broker>) -> Result<Vec<String>, Failure> {
    let names = broker.queues().await.map_err(|error| Failure::of("cannot list the queues", &error))?;
    let mut named = BTreeSet::new();
    let mut looked_into = Vec::new();
    // Millstream's own keep positions, replies and what waits for its time: no letters.
    for name in names.into_iter().filter(|name| !name.starts_with("millstream.")) {
        let declared =
            broker.queue(&name).await.map_err(|error| on_queue("look at", &name, broker.url(), &error))?;
        let Some(declared) = declared else { continue };
        // A stream holds no letters, and who is exclusive lets nobody look.
        if declared.kind != Some(QueueKind::Stream) && !declared.exclusive {
            looked_into.push((name, declared.delivery_limit.is_some()));
        }
        named.extend(declared.dead_letter_key);
    }
    let mut found = Vec::new();
    for (name, counts_deliveries) in looked_into {
        // Where a look counts as a delivery, to look too often would make letters of what is none.
        if counts_deliveries && !named.contains(&name) && !broker.features().uncounted_browse {
            continue;
        }
        let first = browse(broker, &name, 0, 1).await?;
        let first_is_letter = first.iter().any(|first| first.message.header(dead::REASON).is_some());
        if first_is_letter || (named.contains(&name) && !first.is_empty()) {
            found.push(name);
        }
    }
    Ok(found)
}

/// The letters of a queue by cause, most first; how many were seen, and how many there are.
async fn group(broker: &Arc<dyn Broker>, queue: &str) -> Result<(Vec<(Cause, Group)>, u64, u64), Failure> {
    let stats =
        broker.stats(queue).await.map_err(|error| on_queue("look at", queue, broker.url(), &error))?;
    let mut groups: BTreeMap<Cause, Group> = BTreeMap::new();
    let mut seen = 0;
    while seen < LETTERS_MAX {
        let page = browse(broker, queue, seen, PAGE).await?;
        if page.is_empty() {
            break;
        }
        seen += page.len() as u64;
        for letter in page {
            let mut one = Cause::of(&letter.message);
            let mut common = one.clone().group();
            if groups.len() >= GROUPS_MAX && !groups.contains_key(&common) {
                one = Cause { reason: "(others)".into(), ..Cause::default() };
                common = one.clone();
            }
            let group =
                groups.entry(common.clone()).or_insert_with(|| Group::of(&one, letter.message.body()));
            group.add(&one.detail, &common);
        }
    }
    let mut groups: Vec<(Cause, Group)> = groups.into_iter().collect();
    groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.letters));
    Ok((groups, seen, stats.ready.max(seen)))
}

async fn show(broker: Arc<dyn Broker>, queue: String, which: Which, json: bool) -> Result<(), Failure> {
    let mut out = Out::new();
    let (mut seen, mut shown) = (0, 0);
    let max = which.max.unwrap_or(u64::MAX);
    while shown < max {
        let page = browse(&broker, &queue, seen, PAGE).await?;
        if page.is_empty() {
            break;
        }
        seen += page.len() as u64;
        for letter in page {
            let cause = Cause::of(&letter.message);
            if shown == max || !cause.matches(&which) {
                continue;
            }
            shown += 1;
            if json {
                out.json(&message_json(&letter.message, &letter.address))?;
            } else {
                out.line(described(shown, &letter.message, &cause))?;
            }
        }
    }
    out.flush()
}

/// A letter as a person reads it: the death first, then the headers, then the body.
fn described(number: u64, message: &Message, cause: &Cause) -> String {
    let mut rows = Vec::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            rows.push((on_one_line(name).into_owned(), preview(value.as_bytes(), 500)));
        }
    };
    line("reason", &cause.reason);
    line("detail", &cause.detail);
    line("stage", &cause.stage);
    line("died in", &cause.from);
    if let Some(address) = origin(message) {
        line("came from", &address.to_string());
    }
    line("id", message.properties().message_id.as_deref().unwrap_or_default());
    if let Some(deaths) = message.header(dead::COUNT).and_then(Value::as_int).filter(|deaths| *deaths > 1) {
        line("deaths", &deaths.to_string());
    }
    for (name, value) in &message.properties().headers {
        if !name.starts_with("millstream-dead-") {
            let value = value.as_text().map_or_else(|| json!(value).to_string(), str::to_owned);
            line(name, &value);
        }
    }
    line("body", &String::from_utf8_lossy(message.body()));
    // Who sends a message chooses the names of its headers: a long one does not move all others.
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).min(NAME_WIDTH);
    let rows = rows.iter().map(|(name, value)| format!("  {name:<width$}  {value}\n"));
    format!("letter {number}\n{}", rows.collect::<String>())
}

/// Where letters are put back.
enum Home {
    /// Into the queue that each died in.
    Queue,
    /// Where each was published to: its exchange, and all queues that are bound there.
    Published,
    Named(String),
}

impl Home {
    fn of(&self, message: &Message) -> Option<Address> {
        let queue = || message.header(dead::QUEUE).and_then(Value::as_text).filter(|queue| !queue.is_empty());
        match self {
            Home::Queue => queue().map(Address::queue).or_else(|| origin(message)),
            Home::Published => origin(message),
            Home::Named(queue) => Some(Address::queue(queue)),
        }
    }
}

/// Where a letter was published to before it died.
fn origin(message: &Message) -> Option<Address> {
    let exchange = message.header(dead::EXCHANGE)?.as_text()?;
    let key = message.header(dead::KEY)?.as_text()?;
    // A letter of an item that came from no queue names neither.
    (!exchange.is_empty() || !key.is_empty()).then(|| Address::new(exchange, key))
}

async fn replay(broker: Arc<dyn Broker>, queue: String, which: Which, to: Home) -> Result<(), Failure> {
    let mut replayed = 0;
    let mut homeless = 0;
    let mut letters = Letters::open(&broker, &queue, which).await?;
    loop {
        let chunk = letters.next().await?;
        if chunk.is_empty() {
            break;
        }
        let (mut tags, mut targets, mut publishes) = (Vec::new(), Vec::new(), Vec::new());
        let mut stuck = false;
        for letter in chunk {
            match to.of(&letter.message) {
                // What is behind it would not be taken off, and would be replayed again the next time.
                _ if stuck => {}
                Some(to) => {
                    tags.push(letter.tag);
                    targets.push(to.key().to_owned());
                    publishes.push(Publish { to, message: revived(letter.message) });
                }
                None => {
                    homeless += 1;
                    stuck = letters.in_order;
                }
            }
        }
        let outcomes: Outcomes = broker
            .publish_batch(Batch::from(publishes))
            .await
            .map_err(|error| on_queue("replay", &queue, broker.url(), &error))?;
        // A letter leaves only when its message is stored elsewhere. Killed in between, it is in both places:
        // twice is better than never.
        let others: BTreeSet<usize> = outcomes.others().iter().map(|(at, _)| *at).collect();
        let stored_tags = tags.iter().enumerate().filter(|(at, _)| !others.contains(at)).map(|(_, tag)| *tag);
        replayed += letters.acker.ack_many(stored_tags).applied;
        if let Some((at, outcome)) = outcomes.others().first() {
            letters.acker.release();
            complain(&format!("replayed {}; the next stays where it is", counted(replayed, "dead letter")));
            return stored(outcome, &targets[*at], broker.url());
        }
        if stuck {
            break;
        }
    }
    letters.acker.release();
    complain(&format!("replayed {}", counted(replayed, "dead letter")));
    if homeless > 0 {
        let behind = if letters.in_order { ", with all behind it in the stream" } else { "" };
        return Err(Failure::Failed(format!(
            "{} without a word of where it came from, left where it was{behind}; --to QUEUE puts it there",
            counted(homeless, "dead letter")
        )));
    }
    Ok(())
}

/// The message as it was before it died.
fn revived(mut message: Message) -> Message {
    let headers = &mut message.properties_mut().headers;
    // Whoever publishes it now is not the one who did, as which RabbitMQ would refuse it.
    headers.remove(USER_ID);
    headers.retain(|name, _| !name.starts_with("millstream-dead-"));
    let replays = headers.get(REPLAYS).and_then(Value::as_int).unwrap_or(0);
    headers.insert(REPLAYS.into(), Value::Int(replays.saturating_add(1)));
    message
}

async fn discard(on: OnQueue, which: Which, yes: bool) -> Result<(), Failure> {
    if !yes {
        return Err(Failure::Refused(format!(
            "this removes dead letters of `{}` for good; `dead-letters show` shows which, --yes removes them",
            on.queue
        )));
    }
    broker::with_existing(&on.url, |broker| async move {
        let mut letters = Letters::open(&broker, &on.queue, which).await?;
        let mut discarded = 0;
        loop {
            let chunk = letters.next().await?;
            if chunk.is_empty() {
                break;
            }
            discarded += letters.acker.ack_many(chunk.iter().map(|letter| letter.tag)).applied;
        }
        letters.acker.release();
        complain(&format!("discarded {}", counted(discarded, "dead letter")));
        Ok(())
    })
    .await
}

/// The letters that are meant, taken one page after the other. Those that are not meant stay unsettled and so
/// return to their places at the end.
struct Letters {
    consumer: millstream_message::Consumer,
    acker: Acker,
    which: Which,
    /// How many deliveries are still to come: as many as there were at the start, so that letters which come
    /// back while they are replayed are not replayed for ever.
    left: u64,
    /// How many letters may still be taken.
    wanted: u64,
    /// They are in a stream, where a letter is done with once all before it are.
    in_order: bool,
    failed: Box<dyn Fn(millstream_message::BrokerError) -> Failure>,
}

impl Letters {
    async fn open(broker: &Arc<dyn Broker>, queue: &str, which: Which) -> Result<Letters, Failure> {
        let in_order = matches!(broker.url(), BrokerUrl::RabbitmqStream(_));
        if in_order && which.matching.is_some() {
            return Err(Failure::Refused(format!(
                "`{queue}` is a stream, whose letters are taken in their order: leave --matching out, or take the first by \
                 --max; `dead-letters show` shows those that match"
            )));
        }
        let failed = {
            let (queue, url) = (queue.to_owned(), broker.url().clone());
            move |error| on_queue("read", &queue, &url, &error)
        };
        let stats = broker.stats(queue).await.map_err(&failed)?;
        // What is passed over stays unsettled, so the prefetch must have room for the whole queue. That costs no
        // memory: the messages themselves are dropped at once.
        let options = ConsumeOptions::default()
            .name("millstream dead-letters")
            .exclusive()
            .prefetch(usize::MAX)
            .prefetch_bytes(usize::MAX)
            .stop_when_empty();
        let consumer = broker.consume(queue, options).await.map_err(&failed)?;
        let acker = consumer.acker();
        let wanted = which.max.unwrap_or(u64::MAX);
        Ok(Letters { consumer, acker, which, left: stats.ready, wanted, in_order, failed: Box::new(failed) })
    }

    /// The next letters that are meant; empty at the end.
    async fn next(&mut self) -> Result<Vec<Delivery>, Failure> {
        let mut meant = Vec::new();
        while meant.is_empty() && self.left > 0 && self.wanted > 0 {
            let max = self.left.min(self.wanted).min(PAGE as u64) as usize;
            let mut chunk = self.consumer.next_chunk(max).await.map_err(&self.failed)?;
            if chunk.is_empty() {
                break;
            }
            self.left -= chunk.len() as u64;
            chunk.retain(|letter| Cause::of(&letter.message).matches(&self.which));
            self.wanted -= chunk.len() as u64;
            meant = chunk;
        }
        Ok(meant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_differ_only_in_numbers_are_of_one_group() {
        let cause = |detail: &str| Cause { detail: detail.into(), ..Cause::default() }.group();
        assert_eq!(cause("line 840, column 7: `NA`"), cause("line 12, column 1: `NA`"));
        assert_ne!(cause("line 1: `NA`"), cause("line 1: ``"));
    }

    #[test]
    fn a_letter_is_shown_in_columns_that_no_terminal_obeys() {
        let message = Message::new("b\n\x1b[2Jody")
            .with_header(dead::REASON, "rejected")
            .with_header("millstream-fault", "the item")
            .with_header("x\x1b[1m", "y");
        let shown = described(1, &message, &Cause::of(&message));
        let rows: Vec<&str> = shown.lines().collect();
        assert_eq!(
            rows,
            [
                "letter 1",
                "  reason            rejected",
                "  millstream-fault  the item",
                "  x\\u{1b}[1m        y",
                "  body              b\\n\\u{1b}[2Jody",
            ]
        );
    }

    #[test]
    fn a_revived_message_says_only_that_it_was_tried_before() {
        let message = Message::new("x").with_header(dead::REASON, "rejected").with_header("tenant", "north");
        let once = revived(message);
        assert_eq!(once.header(dead::REASON), None);
        assert_eq!(once.header("tenant"), Some(&"north".into()));
        assert_eq!(revived(once).header(REPLAYS), Some(&Value::Int(2)));
    }
}

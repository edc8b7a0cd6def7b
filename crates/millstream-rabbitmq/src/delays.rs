//! Messages that wait for their time: each in a queue whose messages expire then, into where they were published to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millstream_message::{Address, Headers, Value};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::headers::DELAY_QUEUE;
use crate::hub::Known;
use crate::proto::Method;

/// The queues in which this handle has messages wait: one for each delay, address and slot of time, which go by themselves, long
/// after their last message has.
///
/// A classic queue lets an expired message go whether or not the queue it goes to takes it: one that is full and refuses loses it. A
/// quorum queue can wait for a confirm ("at-least-once dead lettering", RabbitMQ 3.10 and later), and tries again every three
/// minutes, so that is what they are where the broker can.
///
/// The expiry of a quorum queue counts from when it was first declared, however much it is used since (rabbitmq-server issue 5894),
/// and takes what waits in it along. So each queue is published to for one slot of the clock only, and lives for much longer:
/// [`SLOT`], another one by which the clocks of those who share it may differ, the delay, and [`GRACE`].
pub(crate) struct Delays {
    confirmed: bool,
    known: Arc<Known>,
}

/// Queues that were declared not long ago.
#[derive(Default)]
pub(crate) struct Declared(Mutex<HashMap<String, Place>>);

struct Place {
    declared: Instant,
    /// Where its messages go.
    to: Address,
    /// Somebody has deleted it since.
    gone: bool,
}

/// Where a message waits.
pub(crate) struct Waiting {
    pub(crate) queue: String,
    /// What must be declared first.
    pub(crate) declare: Option<Method>,
    /// For how long it waits, which is a little longer than was asked for: see [`rounded`].
    pub(crate) delay: Duration,
}

/// A queue is declared again when that was so long ago, for somebody may have deleted it.
const RENEW: Duration = Duration::from_secs(30);
/// For so long one queue is published to.
const SLOT: Duration = Duration::from_secs(6 * 3600);
/// For so long a message that is due is offered to a queue that is full and refuses.
const GRACE: Duration = Duration::from_secs(24 * 3600);
/// What a queue lives for besides the delay.
const LIFE: Duration = Duration::from_secs(2 * SLOT.as_secs() + GRACE.as_secs());

/// The time for which a message waits that is to wait for at least so long: in milliseconds, two digits of which count, and at most a
/// minute more than was asked for. There are no more than 90 queues for delays of 1 to 10 seconds then, and not as many as
/// there are delays.
pub(crate) fn rounded(delay: Duration) -> Duration {
    // A part of a millisecond is a whole one: not before its time.
    let millis = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let digits = millis.checked_ilog10().unwrap_or(0);
    let step = 10_u64.saturating_pow(digits.saturating_sub(1)).min(60_000);
    Duration::from_millis(millis.div_ceil(step).saturating_mul(step))
}

impl Declared {
    fn is_fresh(&self, name: &str) -> bool {
        self.0.lock().get(name).is_some_and(|place| !place.gone && place.declared.elapsed() < RENEW)
    }

    /// It has been declared just now.
    pub(crate) fn add(&self, name: &str, to: &Address) {
        let mut declared = self.0.lock();
        // What is to be declared again anyway is remembered for as long only as messages may be on their way to it.
        declared.retain(|_, place| place.declared.elapsed() < 2 * RENEW);
        let place = Place { declared: Instant::now(), to: to.clone(), gone: false };
        declared.insert(name.to_owned(), place);
    }

    /// It is not there. Where its messages were to go: all of those that come back.
    pub(crate) fn gone(&self, name: &str) -> Option<Address> {
        let mut declared = self.0.lock();
        let place = declared.get_mut(name)?;
        place.gone = true;
        Some(place.to.clone())
    }
}

impl Delays {
    /// None yet, on a broker of this version.
    pub(crate) fn new(version: Option<(u32, u32)>, known: Arc<Known>) -> Self {
        Delays { confirmed: version.is_some_and(|version| version >= (3, 10)), known }
    }

    /// The queue for a delay and an address, and its declaration if it must be declared first.
    ///
    /// # Errors
    /// If the delay is longer than RabbitMQ counts.
    pub(crate) fn queue(&self, delay: Duration, to: &Address) -> Result<Waiting, String> {
        #[expect(
            clippy::disallowed_methods,
            reason = "processes that share a queue share nothing but the clock"
        )]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.queue_at(now, delay, to)
    }

    fn queue_at(&self, now: Duration, delay: Duration, to: &Address) -> Result<Waiting, String> {
        let delay = rounded(delay);
        // RabbitMQ counts expiry in 32 bits of milliseconds, and the queue must outlive it.
        let most = Duration::from_millis(u32::MAX.into()) - LIFE;
        if delay > most {
            return Err(format!("a delay of {delay:?} is longer than RabbitMQ can count: at most {most:?}"));
        }
        let (millis, slot) = (delay.as_millis(), now.as_secs() / SLOT.as_secs());
        let mut queue = format!("{DELAY_QUEUE}{millis}.{slot}.{}.{}", to.exchange(), to.key());
        if queue.len() > 255 {
            let hash = fnv(&format!("{}\0{}", to.exchange(), to.key()));
            queue = format!("{DELAY_QUEUE}{millis}.{slot}.{hash:032x}");
        }
        let fresh = self.known.waiting.is_fresh(&queue);
        let declare = (!fresh).then(|| declaration(&queue, delay, to, self.confirmed));
        Ok(Waiting { queue, declare, delay })
    }
}

fn declaration(name: &str, delay: Duration, to: &Address, confirmed: bool) -> Method {
    let millis = |time: Duration| Value::Int(time.as_millis() as i64);
    let mut arguments = Headers::from([
        ("x-message-ttl".to_owned(), millis(delay)),
        ("x-expires".to_owned(), millis(delay + LIFE)),
        ("x-dead-letter-exchange".to_owned(), to.exchange().into()),
        ("x-dead-letter-routing-key".to_owned(), to.key().into()),
    ]);
    if confirmed {
        arguments.extend([
            ("x-queue-type".to_owned(), "quorum".into()),
            ("x-dead-letter-strategy".to_owned(), "at-least-once".into()),
            // Without it RabbitMQ falls back to the other strategy.
            ("x-overflow".to_owned(), "reject-publish".into()),
        ]);
    }
    const DURABLE: [bool; 5] = [false, true, false, false, false];
    Method::QueueDeclare { reserved_1: 0, queue: name.to_owned(), flags: DURABLE, arguments }
}

/// FNV-1a with 128 bits: the same in every version, since other processes must find the same queue.
pub(crate) fn fnv(text: &str) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    text.bytes().fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: Option<(u32, u32)>) -> Delays {
        Delays::new(version, Arc::default())
    }

    fn arguments(waiting: &Waiting) -> &Headers {
        let Some(Method::QueueDeclare { arguments, .. }) = &waiting.declare else {
            panic!("it is to be declared")
        };
        arguments
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_declared_again_now_and_then_and_when_it_is_not_there() {
        let delays = of(None);
        let to = Address::new("ex", "key");
        let ask = || delays.queue_at(SLOT, Duration::from_micros(1500), &to).expect("short enough");
        let first = ask();
        assert_eq!(first.queue, "millstream.delay.2.1.ex.key", "not before its time");
        assert!(first.declare.is_some());
        let declared = &delays.known.waiting;
        declared.add(&first.queue, &to);
        tokio::time::advance(RENEW - Duration::from_secs(1)).await;
        assert!(ask().declare.is_none());
        assert_eq!(declared.gone(&first.queue), Some(to.clone()));
        assert!(ask().declare.is_some());
        declared.add(&first.queue, &to);
        tokio::time::advance(RENEW).await;
        assert!(ask().declare.is_some());
        // Where messages were to go is known for a while longer, and then forgotten.
        declared.add("other", &to);
        assert_eq!(declared.gone(&first.queue), Some(to.clone()));
        tokio::time::advance(RENEW).await;
        declared.add("other", &to);
        assert_eq!(declared.gone(&first.queue), None);
    }

    /// RabbitMQ counts the expiry of a quorum queue from when it was first declared.
    #[test]
    fn a_queue_outlives_the_last_message_it_takes_by_a_day() {
        let delays = of(Some((3, 10)));
        let (delay, to) = (Duration::from_secs(3600), Address::queue("q"));
        let at = |now: Duration| delays.queue_at(now, delay, &to).expect("short enough");
        // Somebody whose clock is early declares it, and somebody whose clock is late publishes last.
        let (begin, first) = (SLOT * 3, at(SLOT * 3));
        let end = SLOT * 4 - Duration::from_secs(1);
        assert_eq!(at(end).queue, first.queue, "for a slot it is the same one");
        let Value::Int(expires) = arguments(&first)["x-expires"] else { panic!("a number") };
        let lives = Duration::from_millis(expires as u64);
        let (last_due, skew) = (end - begin + delay, SLOT);
        assert!(lives >= last_due + skew + GRACE, "{lives:?}");
        assert_ne!(at(SLOT * 4).queue, first.queue, "and then another");
    }

    #[test]
    fn delays_are_rounded_up_so_that_there_are_few_queues() {
        let millis = |delay: u64| rounded(Duration::from_millis(delay)).as_millis();
        assert_eq!([1, 99, 100, 1000, 1500].map(millis), [1, 99, 100, 1000, 1500]);
        assert_eq!([101, 1001, 1234, 99_999].map(millis), [110, 1100, 1300, 100_000]);
        let week = 7 * 24 * 3_600_000;
        assert_eq!([week, week + 1].map(millis), [week, week + 60_000].map(u128::from), "a minute at most");
        let seconds: std::collections::HashSet<_> = (1000..10_000).map(millis).collect();
        assert_eq!(seconds.len(), 91);
    }

    #[test]
    fn what_waits_is_let_go_only_when_it_is_taken_where_the_broker_can() {
        let strategy = |version| {
            let waiting = of(version).queue(RENEW, &Address::queue("q")).expect("short enough");
            arguments(&waiting).get("x-dead-letter-strategy").cloned()
        };
        assert_eq!(strategy(Some((3, 10))), Some("at-least-once".into()));
        assert_eq!(strategy(Some((4, 0))), Some("at-least-once".into()));
        assert_eq!(strategy(Some((3, 9))), None);
        assert_eq!(strategy(None), None);
    }

    #[test]
    fn a_long_name_becomes_a_short_one_and_too_long_a_delay_an_error() {
        let delays = of(Some((3, 10)));
        let far = Address::new("x".repeat(200), "y".repeat(200));
        let name = delays.queue(Duration::from_secs(1), &far).expect("short enough").queue;
        assert!(name.len() < 100 && name.starts_with("millstream.delay.1000."), "{name}");
        // The test vector of the algorithm's authors for "a".
        assert_eq!(fnv("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        let error = delays.queue(Duration::from_secs(100 * 24 * 3600), &far).err().expect("too long");
        assert!(error.contains("at most"), "{error}");
    }
}

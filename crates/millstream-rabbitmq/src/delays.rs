//! Messages that wait for their time: each in a queue whose messages expire then, into where they were published to.

use std::collections::HashMap;
use std::time::Duration;

use millstream_message::{Address, Headers, Value};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::headers::DELAY_QUEUE;
use crate::proto::Method;

/// The queues in which this handle has messages wait: one for each delay and address, which go by themselves when they are no longer
/// used.
///
/// A classic queue lets an expired message go whether or not the queue it goes to takes it: one that is full and refuses loses it. A
/// quorum queue can wait for a confirm ("at-least-once dead lettering", RabbitMQ 3.10 and later), and tries again every three
/// minutes, so that is what they are where the broker can.
pub(crate) struct Delays {
    confirmed: bool,
    declared: Mutex<HashMap<String, Instant>>,
}

/// A queue is declared again when that was so long ago. It lives for at least its delay and twice this after that, so no
/// message in it is lost.
const RENEW: Duration = Duration::from_secs(30);

impl Delays {
    /// None yet, on a broker of this version.
    pub(crate) fn new(version: Option<(u32, u32)>) -> Self {
        Delays { confirmed: version.is_some_and(|version| version >= (3, 10)), declared: Mutex::default() }
    }

    /// The queue for a delay and an address, and its declaration if it must be declared first.
    ///
    /// # Errors
    /// If the delay is longer than RabbitMQ counts.
    pub(crate) fn queue(&self, delay: Duration, to: &Address) -> Result<(String, Option<Method>), String> {
        // RabbitMQ counts expiry in 32 bits of milliseconds, and the queue must outlive it.
        let most = Duration::from_millis(u32::MAX.into()) - 3 * RENEW;
        if delay > most {
            return Err(format!("a delay of {delay:?} is longer than RabbitMQ can count: at most {most:?}"));
        }
        // A part of a millisecond is a whole one: not before its time.
        let millis = delay.as_nanos().div_ceil(1_000_000) as u64;
        let mut name = format!("{DELAY_QUEUE}{millis}.{}.{}", to.exchange(), to.key());
        if name.len() > 255 {
            name = format!("{DELAY_QUEUE}{millis}.{:032x}", fnv(&format!("{}\0{}", to.exchange(), to.key())));
        }
        let fresh = self.declared.lock().get(&name).is_some_and(|declared| declared.elapsed() < RENEW);
        let declare = (!fresh).then(|| declaration(&name, millis, to, self.confirmed));
        Ok((name, declare))
    }

    /// It has been declared just now.
    pub(crate) fn declared(&self, name: &str) {
        let mut declared = self.declared.lock();
        // What is to be declared again anyway need not be remembered.
        declared.retain(|_, declared| declared.elapsed() < RENEW);
        declared.insert(name.to_owned(), Instant::now());
    }
}

fn declaration(name: &str, millis: u64, to: &Address, confirmed: bool) -> Method {
    let millis = millis as i64;
    let mut arguments = Headers::from([
        ("x-message-ttl".to_owned(), Value::Int(millis)),
        ("x-expires".to_owned(), Value::Int(millis + 2 * RENEW.as_millis() as i64)),
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

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_declared_again_before_it_could_go() {
        let delays = Delays::new(None);
        let ask =
            || delays.queue(Duration::from_micros(1500), &Address::new("ex", "key")).expect("short enough");
        let (name, declare) = ask();
        assert_eq!(name, "millstream.delay.2.ex.key", "not before its time");
        let Some(Method::QueueDeclare { arguments, .. }) = declare else { panic!("it is to be declared") };
        assert_eq!(arguments["x-expires"], Value::Int(60_002));
        delays.declared(&name);
        tokio::time::advance(RENEW - Duration::from_secs(1)).await;
        assert!(ask().1.is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(ask().1.is_some());
    }

    #[test]
    fn what_waits_is_let_go_only_when_it_is_taken_where_the_broker_can() {
        let strategy = |version| {
            let delay = Delays::new(version).queue(RENEW, &Address::queue("q")).expect("short enough");
            let Some(Method::QueueDeclare { arguments, .. }) = delay.1 else {
                panic!("it is to be declared")
            };
            arguments.get("x-dead-letter-strategy").cloned()
        };
        assert_eq!(strategy(Some((3, 10))), Some("at-least-once".into()));
        assert_eq!(strategy(Some((4, 0))), Some("at-least-once".into()));
        assert_eq!(strategy(Some((3, 9))), None);
        assert_eq!(strategy(None), None);
    }

    #[test]
    fn a_long_name_becomes_a_short_one_and_too_long_a_delay_an_error() {
        let delays = Delays::new(Some((3, 10)));
        let far = Address::new("x".repeat(200), "y".repeat(200));
        let (name, _) = delays.queue(Duration::from_secs(1), &far).expect("short enough");
        assert!(name.len() < 100 && name.starts_with("millstream.delay.1000."), "{name}");
        // The test vector of the algorithm's authors for "a".
        assert_eq!(fnv("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        let error = delays.queue(Duration::from_secs(100 * 24 * 3600), &far).expect_err("too long");
        assert!(error.contains("at most"), "{error}");
    }
}

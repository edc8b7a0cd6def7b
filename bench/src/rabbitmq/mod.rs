//! The cases of `goals.md`, section *RabbitMQ*.

#[cfg(feature = "peers-rabbitmq")]
mod amqprs;
mod foreign;
#[cfg(feature = "peers-rabbitmq")]
mod lapin;
mod ours;
mod raw;
mod recovery;
mod stream;
mod work;

#[cfg(not(feature = "peers-rabbitmq"))]
use crate::case::{Absent, Sample, Scale};
use crate::case::{Bound, Case};
use foreign::Foreign;
use ours::Threads;
use raw::Acks;
use work::{Act, CPU, Kind, PEAK, RATE, WINDOW, Work, body};

const FLOOR: &str = "raw socket";

pub(crate) fn cases() -> Vec<Case> {
    let publish = Work::new(Act::Publish { window: WINDOW }, 100_000);
    let each = Work::new(Act::SettleEach, 100_000);
    let many = Work::new(Act::SettleMany, 100_000);
    let both = Work::new(Act::Both, 100_000);
    let mut cases = vec![
        against_all("publish, 1000 unconfirmed, transient", publish, Acks::Each)
            .goal_on(RATE, Bound::RateOf(0.97, FLOOR), "")
            .goal_on(CPU, Bound::TimesAtMost(1.38, FLOOR), "≤ 1.2 µs at the floor's 0.87"),
        against_all(
            "publish, 1000 unconfirmed, durable",
            Work { count: 50_000, ..publish.into(Kind::Durable) },
            Acks::Each,
        )
        .goal_on(RATE, Bound::RateOf(0.97, FLOOR), "")
        .goal_on(CPU, Bound::TimesAtMost(3.16, FLOOR), "≤ 0.6 µs at the floor's 0.19"),
        against_all(
            "publish, 1000 unconfirmed, quorum",
            Work { count: 80_000, ..publish.into(Kind::Quorum) },
            Acks::Each,
        )
        .goal_on(RATE, Bound::RateOf(0.97, FLOOR), "")
        .goal_on(CPU, Bound::TimesAtMost(1.71, FLOOR), "≤ 0.6 µs at the floor's 0.35"),
        against_all(
            "publish, each confirm awaited",
            Work::new(Act::Publish { window: 1 }, 20_000),
            Acks::Each,
        )
        .goal_on(RATE, Bound::RateOf(0.97, FLOOR), "")
        .goal_on(CPU, Bound::TimesAtMost(1.14, FLOOR), "≤ 16 µs at the floor's 14"),
        against_all("publish, 1000 unconfirmed, 100 bytes", publish.body(100), Acks::Each)
            .goal_on(RATE, Bound::RateOf(0.97, FLOOR), "")
            .goal_on(CPU, Bound::TimesAtMost(1.38, FLOOR), "as with 1 KB"),
        against_all("consume, prefetch 1000, each settled", each, Acks::Each)
            .goal_on(RATE, Bound::RateOf(1.1, FLOOR), "its acks are merged, the floor's are not")
            .goal_on(CPU, Bound::TimesAtMost(1.16, FLOOR), "≤ 2.9 µs at the floor's 2.5"),
        against_all("consume, prefetch 1000, cumulative acks by hand", many, Acks::Many)
            .goal_on(RATE, Bound::RateOf(0.95, FLOOR), "")
            .goal_on(CPU, Bound::TimesAtMost(1.38, FLOOR), "≤ 2.9 µs at the floor's 2.1"),
        against_all("end to end, transient", both, Acks::Many)
            .goal_on(RATE, Bound::RateOf(0.95, FLOOR), "")
            .goal_on(CPU, Bound::TimesAtMost(1.26, FLOOR), "≤ 4.8 µs at the floor's 3.8")
            .goal_on(PEAK, Bound::AtMost(10.0), "peak resident"),
        against_all("end to end, durable", Work { count: 50_000, ..both.into(Kind::Durable) }, Acks::Many)
            .goal_on(RATE, Bound::RateOf(0.97, FLOOR), "")
            .goal_on(CPU, Bound::TimesAtMost(1.49, FLOOR), "≤ 5.5 µs at the floor's 3.7"),
        recovery(),
    ];
    cases.extend(stream::cases());
    cases
}

fn recovery() -> Case {
    let case = Case::new("recovery after a reset");
    #[cfg(feature = "peers-rabbitmq")]
    let case = case.peer("lapin", recovery::lapin);
    #[cfg(not(feature = "peers-rabbitmq"))]
    let case = case.peer("lapin", without_peers);
    case.ours("ours, two threads", recovery::ours)
        .goal_on(recovery::MS, Bound::AtMost(500.0), "until a new message has come back; the longest of five")
        .remark("lapin's publish is given up and repeated after a second; amqprs and amqp091-go do not recover by themselves.")
}

/// A case with every client.
fn against_all(name: &'static str, work: Work, acks: Acks) -> Case {
    let case = Case::new(name).floor(FLOOR, move |scale| raw::run(work.scaled(scale), acks));
    let case = with_peers(case, work);
    case.peer("Go amqp091", move |scale| foreign::run(Foreign::Go, work.scaled(scale)))
        .peer("Java", move |scale| foreign::run(Foreign::Java, work.scaled(scale)))
        .ours("ours", move |scale| ours::run(work.scaled(scale), Threads::One))
        .ours("ours, two threads", move |scale| ours::run(work.scaled(scale), Threads::Two))
}

/// The clients in Rust, which come with `--features peers-rabbitmq`.
#[cfg(feature = "peers-rabbitmq")]
fn with_peers(case: Case, work: Work) -> Case {
    case.peer("lapin", move |scale| lapin::run(work.scaled(scale), lapin::Form::OneByOne))
        .peer("lapin, many at once", move |scale| lapin::run(work.scaled(scale), lapin::Form::ManyAtOnce))
        .peer("amqprs", move |scale| amqprs::run(work.scaled(scale)))
}

#[cfg(not(feature = "peers-rabbitmq"))]
fn with_peers(case: Case, _: Work) -> Case {
    case.peer("lapin", without_peers).peer("lapin, many at once", without_peers).peer("amqprs", without_peers)
}

#[cfg(not(feature = "peers-rabbitmq"))]
fn without_peers(_: Scale) -> Result<Sample, Absent> {
    Err("this build has no other clients; `cargo xtask bench rabbitmq` has them".to_owned())
}

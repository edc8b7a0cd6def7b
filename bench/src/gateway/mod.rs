//! The cases of `goals.md`, section *gateway*: our proxy, a minimal one on hyper, nginx and haproxy, each a process of its own
//! between a client and an upstream that are threads of this one.

mod load;
mod pool;
mod proxies;
mod serve;

use crate::case::{Absent, Bound, Case, Sample, Scale};
use load::{Upstream, client};
use proxies::{Kind, Proxy};

pub(crate) use serve::serve;

const RATE: &str = "GB/s";
const CPU: &str = "CPU s/GB";
const REQUESTS: &str = "requests/s";
const MICROS: &str = "proxy µs a request";
const P50: &str = "p50 µs";
const P99: &str = "p99 µs";
const PEAK: &str = "peak MiB";

/// Bytes of the large body.
const BODY: u64 = 1 << 30;
/// Bytes of each of the slow bodies.
const SLOW_BODY: u64 = 10_000_000;

type Figures = Result<Sample, Absent>;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        against_all("download", |kind, scale| body(kind, scale, false))
            .floor(NO_PROXY, |scale| body(Kind::None, scale, false))
            .goal_on(RATE, Bound::RateOf(1.0, HYPER), "")
            .goal_on(CPU, Bound::AtMost(0.32), "of the proxy's process"),
        against_all("upload", |kind, scale| body(kind, scale, true))
            .floor(NO_PROXY, |scale| body(Kind::None, scale, true))
            .goal_on(RATE, Bound::RateOf(1.0, HYPER), "")
            .goal_on(CPU, Bound::AtMost(0.36), "of the proxy's process"),
        against_all("GET of 4 KB, 32 connections", small)
            .floor(NO_PROXY, |scale| small(Kind::None, scale))
            .goal_on(REQUESTS, Bound::RateOf(1.0, HYPER), "")
            .goal_on(REQUESTS, Bound::RateOf(1.0, HAPROXY), "")
            .goal_on(REQUESTS, Bound::RateOf(1.0, NGINX), ""),
        against_all("an event each millisecond", events)
            .floor(NO_PROXY, |scale| events(Kind::None, scale))
            .goal_on(P99, Bound::TimesAtMost(1.0, HYPER), "")
            .goal_on(P99, Bound::TimesAtMost(1.0, HAPROXY), "")
            .goal_on(P99, Bound::TimesAtMost(1.0, NGINX), "")
            .remark("From the upstream's write to the client's read."),
        against_all("1,000 slow downloads", |kind, scale| slow(kind, scale, false)).goal_on(
            PEAK,
            Bound::AtMost(48.0),
            "bodies of 10 MB",
        ),
        against_all("1,000 slow uploads", |kind, scale| slow(kind, scale, true)).goal_on(
            PEAK,
            Bound::AtMost(48.0),
            "bodies of 10 MB",
        ),
    ];
    cases.push(by_chunk());
    cases.extend(pool::cases());
    cases
}

/// What the chunk's size and the pool bring, beside the defaults.
fn by_chunk() -> Case {
    let one = |kib, pooled| {
        move |scale: Scale| -> Figures {
            let kind = Kind::Chunks { kib, pooled };
            let upstream = Upstream::start(scale.of(BODY))?;
            let proxy = Proxy::start(kind, upstream.port())?;
            let sample = through(&proxy, scale, false)?;
            Ok(sample.with(PEAK, proxy.peak_mib()?))
        }
    };
    Case::new("download by size of chunk")
        .peer("16 KiB", one(16, true))
        .peer("64 KiB", one(64, true))
        .peer("64 KiB, no pool", one(64, false))
        .peer("256 KiB", one(256, true))
        .peer("1 MiB", one(1024, true))
        .peer("512 KiB, no pool", one(512, false))
        .ours("512 KiB, the default", one(512, true))
}

const NO_PROXY: &str = "no proxy";
const HYPER: &str = "hyper";
const HAPROXY: &str = "haproxy";
const NGINX: &str = "nginx";

fn against_all(name: &'static str, run: fn(Kind, Scale) -> Figures) -> Case {
    Case::new(name)
        .peer(NGINX, move |scale| run(Kind::Nginx, scale))
        .peer(HAPROXY, move |scale| run(Kind::Haproxy, scale))
        .peer(HYPER, move |scale| run(Kind::Hyper, scale))
        .ours("ours", move |scale| run(Kind::Ours, scale))
}

/// One large body, one way.
fn body(kind: Kind, scale: Scale, up: bool) -> Figures {
    let upstream = Upstream::start(scale.of(BODY))?;
    through(&Proxy::start(kind, upstream.port())?, scale, up)
}

fn through(proxy: &Proxy, scale: Scale, up: bool) -> Figures {
    let bytes = scale.of(BODY);
    // Connections are made, buffers are allocated; and what arrives is what was sent.
    client::body(proxy.port(), 1 << 20, up)?;
    let (before, watch) = (proxy.cpu_seconds()?, load::Watch::start());
    client::body(proxy.port(), bytes, up)?;
    let (elapsed, cpu) = (watch.seconds(), proxy.cpu_seconds()? - before);
    let gigabytes = bytes as f64 / 1e9;
    Ok(Sample::new().with(RATE, gigabytes / elapsed).with(CPU, cpu / gigabytes))
}

/// Many small answers.
fn small(kind: Kind, scale: Scale) -> Figures {
    let requests = scale.of(100_000);
    let upstream = Upstream::start(4096)?;
    let proxy = Proxy::start(kind, upstream.port())?;
    client::requests(proxy.port(), 32, 2_000)?;
    let (before, watch) = (proxy.cpu_seconds()?, load::Watch::start());
    client::requests(proxy.port(), 32, requests)?;
    let (elapsed, cpu) = (watch.seconds(), proxy.cpu_seconds()? - before);
    let count = requests as f64;
    Ok(Sample::new().with(REQUESTS, count / elapsed).with(MICROS, cpu / count * 1e6))
}

/// Events, one at a time.
fn events(kind: Kind, scale: Scale) -> Figures {
    let upstream = Upstream::start(0)?;
    let proxy = Proxy::start(kind, upstream.port())?;
    let mut micros = client::events(proxy.port(), scale.of(3_000))?;
    micros.sort_unstable();
    let at = |part: f64| micros[((micros.len() - 1) as f64 * part) as usize] as f64;
    Ok(Sample::new().with(P50, at(0.5)).with(P99, at(0.99)))
}

/// A thousand bodies whose receivers are slow.
fn slow(kind: Kind, scale: Scale, up: bool) -> Figures {
    let connections = if scale == Scale::Quick { 100 } else { 1_000 };
    let upstream = Upstream::start(SLOW_BODY)?;
    let proxy = Proxy::start(kind, upstream.port())?;
    client::slow(proxy.port(), connections, SLOW_BODY, up)?;
    Ok(Sample::new().with(PEAK, proxy.peak_mib()?))
}

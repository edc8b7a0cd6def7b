//! What each part of a pipeline costs an item: `cargo run --release -p millstream-pipeline --example cost`.

use millstream_pipeline::{Condition, Mapping, parse_json, write_json};
use std::hint::black_box;

const ITEM: &str = r#"{"year":"2013","month":"1","day":"1","dep_time":"517","sched_dep_time":"515","dep_delay":"2","arr_time":"830","sched_arr_time":"819","arr_delay":"11","carrier":"UA","flight":"1545","tailnum":"N14228","origin":"EWR","dest":"IAH","air_time":"227","distance":"1400","hour":"5","minute":"15","time_hour":"2013-01-01T10:00:00Z"}"#;
const MAP: &str = "if .dep_time == \"NA\" then error(\"cancelled\") else {carrier, flight: (.flight | tonumber), from: .origin, to: .dest, dep_delay: (.dep_delay | tonumber), arr_delay: (.arr_delay | tonumber)} end";

fn measure(what: &str, mut each: impl FnMut()) {
    // Without optimisation the figures mean nothing; a few items show that it works.
    const ITEMS: u32 = if cfg!(debug_assertions) { 100 } else { 50_000 };
    #[expect(clippy::disallowed_methods, reason = "a measurement is of the real clock")]
    let start = std::time::Instant::now();
    (0..ITEMS).for_each(|_| each());
    eprintln!("{what:24} {:6.2} us an item", start.elapsed().as_secs_f64() * 1e6 / f64::from(ITEMS));
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let item = parse_json(ITEM.as_bytes())?;
    let keep = Condition::compile("item.dep_delay >= 15 || item.arr_delay >= 15")?;
    let map = Mapping::compile(MAP)?;
    let identity = Mapping::compile(".")?;
    let object = Mapping::compile("{carrier, from: .origin}")?;
    let numbers = Mapping::compile("[.flight, .dep_delay, .arr_delay | tonumber]")?;
    let mapped = map.apply(item.clone())?.ok_or("nothing")?;
    let mut out = Vec::new();
    measure("parse JSON", || drop(black_box(parse_json(ITEM.as_bytes()))));
    measure("clone", || drop(black_box(item.clone())));
    measure("jq .", || drop(black_box(identity.apply(item.clone()))));
    measure("jq two fields", || drop(black_box(object.apply(item.clone()))));
    measure("jq three numbers", || drop(black_box(numbers.apply(item.clone()))));
    measure("jq map", || drop(black_box(map.apply(item.clone()))));
    measure("CEL filter", || drop(black_box(keep.holds(&mapped))));
    measure("write JSON", || {
        out.clear();
        write_json(&mut out, &mapped);
    });
    Ok(())
}
